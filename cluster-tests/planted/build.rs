//! Copies the cores and the simulator, with every bug of the table planted behind a condition. Fails where the place of a
//! bug is not found exactly once: whoever changes that code moves the bug too (`src/table.rs`).

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[expect(dead_code, unreachable_pub, reason = "the library reads the rest of it")]
#[path = "src/table.rs"]
mod table;

/// What is copied, from the root of the workspace, and the module that it becomes.
const SOURCES: [(&str, &str); 7] = [
    ("node/logic/src", "logic"),
    ("cluster-tests/simulation/src/history.rs", "history/mod.rs"),
    ("cluster-tests/simulation/src/history", "history"),
    ("cluster-tests/simulation/src/sim.rs", "sim/mod.rs"),
    ("cluster-tests/simulation/src/sim", "sim"),
    ("cluster-tests/simulation/src/explore.rs", "explore/mod.rs"),
    ("cluster-tests/simulation/src/explore", "explore"),
];
/// The files that stand for their folders.
const MODULES: [&str; 4] = ["logic/lib.rs", "history/mod.rs", "sim/mod.rs", "explore/mod.rs"];

fn main() -> ExitCode {
    match copy() {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors) => {
            for error in errors {
                println!("cargo::error={error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn copy() -> Result<(), Vec<String>> {
    let fail = |error: &dyn std::fmt::Display| vec![error.to_string()];
    let of_cargo = |name| env::var(name).map(PathBuf::from).map_err(|error| fail(&format!("{name}: {error}")));
    let (here, out) = (of_cargo("CARGO_MANIFEST_DIR")?, of_cargo("OUT_DIR")?);
    let root = here.join("../..");
    let mut files = BTreeMap::new();
    for (from, to) in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(from).display());
        read(&root.join(from), to, &mut files).map_err(|error| fail(&format!("{from}: {error}")))?;
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/table.rs");
    println!("cargo::rerun-if-changed=src/table");
    plant(&mut files)?;
    let mut modules = String::new();
    for module in MODULES {
        let name = module.split(['/', '.']).next().unwrap_or(module);
        // A file that has moved would be there twice.
        match fs::remove_dir_all(out.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(fail(&format!("{name}: {error}")));
            }
            Ok(()) | Err(_) => {}
        }
        let path = out.join(module);
        modules += &format!("/// A copy, with bugs.\n#[path = {path:?}]\npub mod {name};\n");
    }
    files.insert("modules.rs".to_owned(), modules);
    for (name, text) in &files {
        let path = out.join(name);
        let folder = path.parent().unwrap_or(&out);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| fail(&format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

fn read(from: &Path, to: &str, files: &mut BTreeMap<String, String>) -> std::io::Result<()> {
    if from.is_file() {
        // Tests beside the code belong to the original; the cores' crate becomes a module.
        let text = fs::read_to_string(from)?.replace("#[cfg(test)]", "#[cfg(any())]");
        let text = if to.starts_with("logic/") { text.replace("crate::", "crate::logic::") } else { text };
        let text = text.replace("roost_logic::", "crate::logic::");
        files.insert(to.to_owned(), text);
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        read(&entry.path(), &format!("{to}/{}", entry.file_name().to_string_lossy()), files)?;
    }
    Ok(())
}

/// All places are looked for in the text as it is; they do not overlap.
fn plant(files: &mut BTreeMap<String, String>) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    let originals = files.clone();
    for bug in table::TABLE {
        for edit in bug.edits {
            let found = originals.get(edit.file).map_or(0, |text| text.matches(edit.from).count());
            if found != 1 {
                let (name, file, first) = (bug.name, edit.file, edit.from.lines().next().unwrap_or(""));
                errors.push(format!(
                    "{name} has its place in {file} at `{first}`…, which is there {found} times: move it in \
                     cluster-tests/planted/src/table.rs to where the code has gone"
                ));
                continue;
            }
            let condition = format!("planted!({:?})", bug.name);
            if !edit.to.contains(&condition) {
                errors.push(format!("{} does not stand behind its own {condition} in {}", bug.name, edit.file));
            }
            let Some(text) = files.get_mut(edit.file) else { continue };
            if text.matches(edit.from).count() == 1 {
                *text = text.replacen(edit.from, edit.to, 1);
            } else {
                errors.push(format!("{}: another bug has the same place in {}: keep them apart", bug.name, edit.file));
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
