//! What our documents show is so: every block of code in the README and in the pages of the clients is run, or is a part of a file that
//! a test runs. Whatever else a block is, its language says; one that is not known fails.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{api::KEY, cluster::Cluster, jwt, process::binary, turn};

use super::{
    clients::run,
    elsewhere::{clients, node, python, repository},
};

/// Output and diagrams.
const SHOWN: [&str; 2] = ["text", ""];

/// A fenced block of a document.
struct Block<'a> {
    language: &'a str,
    /// The file beside the document that it is a part of.
    file: Option<&'a str>,
    text: &'a str,
    /// What it prints, where that follows.
    prints: Option<&'a str>,
}

struct Documents {
    cluster: Cluster,
    /// What `page.mjs` opens in a browser.
    opened: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_block_is_run() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(3, &[("ROOST_JWT__SECRETS__MAIN", jwt::SECRET)]).await?;
    let documents = Documents { cluster, opened: std::fs::read_to_string(clients().join("page.mjs"))? };
    let (mut paths, mut blocks) = (vec![repository().join("README.md")], 0);
    find_documents(&repository().join("node/clients"), &mut paths)?;
    for path in &paths {
        let text = std::fs::read_to_string(path)?;
        check_links(path, &text)?;
        let mut earlier = String::new();
        let blocks_here = blocks_of(&text);
        let pages = blocks_here.iter().filter(|block| block.language == "html").count();
        ensure!(pages <= 1, "{} has {pages} pages, of which page.mjs opens the first", path.display());
        for block in blocks_here {
            let at = || format!("{}:\n{}", path.display(), block.text);
            documents.check(path, &block, &mut earlier).await.with_context(at)?;
            blocks += 1;
        }
    }
    ensure!(paths.len() >= 7 && blocks >= 25, "{} documents with {blocks} blocks were found", paths.len());
    documents.cluster.shut_down().await
}

impl Documents {
    async fn check(&self, document: &Path, block: &Block<'_>, earlier: &mut String) -> Result<()> {
        let folder = document.parent().context("a document lies in a folder")?;
        if let Some(file) = block.file {
            let whole = std::fs::read_to_string(folder.join(file))?;
            ensure!(whole.contains(block.text), "this is no part of {file}");
            // What runs these files.
            return ensure_starts(&std::fs::read_to_string(repository().join(BACKENDS))?, file);
        }
        match block.language {
            "js" => {
                let client = repository().join("node/clients/js/roost.js").canonicalize()?;
                let client = format!("\"file://{}\"", client.display());
                let program = self.filled(block.text).replace("\"roost-client\"", &client);
                let printed = run(&node()?, &["--input-type=module", "-"], &clients(), &[], &program).await?;
                has_printed(block, &printed)
            }
            "python" => {
                let path = repository().join("node/clients/python");
                let variables = [("PYTHONPATH", path), ("JWT_SECRET", jwt::SECRET.into())];
                let printed = run(&python()?, &["-"], folder, &variables, &self.filled(block.text)).await?;
                has_printed(block, &printed)
            }
            "html" => {
                let name = document.strip_prefix(repository())?.display();
                ensure!(self.opened.contains(&format!("pageOf(\"{name}\"")), "page.mjs opens no page of {name}");
                Ok(())
            }
            "sh" => self.shell(folder, block.text, earlier).await,
            shown if SHOWN.contains(&shown) => Ok(()),
            other => bail!("nothing runs a block of {other}"),
        }
    }

    /// Calls are made, and are answered with what the comment after them shows; of what starts programs it is looked whether there
    /// are such, with these options. `earlier` is what calls of later blocks need.
    async fn shell(&self, folder: &Path, text: &str, earlier: &mut String) -> Result<()> {
        let mut answer: Option<String> = None;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(shown) = line.strip_prefix('#') {
                let answer = answer.as_deref().context("a comment follows a call")?;
                for name in names(shown) {
                    ensure!(answer.contains(&format!("{name}:")), "{answer} has no {name}, which {shown} has");
                }
            } else if line.starts_with("alias ") {
                earlier.push_str(&self.filled(line));
                earlier.push('\n');
            } else if line.starts_with("curl ") || line.starts_with("roost-api ") {
                answer = Some(self.call(line, earlier).await?);
            } else {
                let line = line.split(" # ").next().unwrap_or(line);
                for command in line.split("&&") {
                    is_there(folder, command).await?;
                }
            }
        }
        Ok(())
    }

    async fn call(&self, line: &str, earlier: &str) -> Result<String> {
        // A stream has no end.
        let streams = line.contains(" -sN ");
        let line = if streams { line.replacen(" -sN ", " -sN --max-time 10 ", 1) } else { line.to_owned() };
        let ends = if streams { "[ $? = 28 ]" } else { "[ $? = 0 ]" };
        let script = format!("shopt -s expand_aliases\n{earlier}{}\n{ends}\n", self.filled(&line));
        let answer = run(Path::new("bash"), &["-s"], &repository(), &[], &script).await?;
        ensure!(!answer.is_empty() && !answer.contains("\"detail\""), "{line} is answered {answer:?}");
        Ok(answer)
    }

    /// With the nodes of this test, and its key.
    fn filled(&self, text: &str) -> String {
        (0..3).fold(text.replace("dev-key", KEY), |text, node| {
            let (shown, url) = (format!("localhost:{}", 8_000 + node), self.cluster.url(node));
            text.replace(&shown, url.trim_start_matches("http://"))
        })
    }
}

/// Whose programs stand beside the page about backends.
const BACKENDS: &str = "cluster-tests/tests/all/backends.rs";

fn ensure_starts(test: &str, file: &str) -> Result<()> {
    // The one on axum is built with the tests, from the same file.
    let stem = Path::new(file).file_stem().and_then(OsStr::to_str).unwrap_or_default();
    ensure!(test.contains(file) || test.contains(&format!("\"{stem}:app\"")), "{BACKENDS} does not run {file}");
    Ok(())
}

fn has_printed(block: &Block<'_>, printed: &str) -> Result<()> {
    let prints = block.prints.context("a program is followed by what it prints")?;
    ensure!(printed == prints, "it prints\n{printed}");
    Ok(())
}

/// The names in a JSON object that is shown with parts left out.
fn names(shown: &str) -> impl Iterator<Item = &str> {
    let words = shown.split(['{', ',', '}']).filter_map(|part| part.split_once(':'));
    words.map(|(name, _)| name.trim()).filter(|name| name.starts_with('"'))
}

/// Whether there is such a program, and whether ours knows what it is told.
async fn is_there(folder: &Path, command: &str) -> Result<()> {
    let mut words = command.split_whitespace().skip_while(|word| word.contains('=') || *word == "export");
    let Some(program) = words.next() else { return Ok(()) };
    let words: Vec<&str> = words.collect();
    let file = |path: PathBuf| {
        ensure!(path.is_file(), "there is no {}", path.display());
        Ok(())
    };
    match (program, &*words) {
        ("roost", words) | ("cargo", ["run", "--release", "--", words @ ..]) => knows(words).await,
        ("cargo", ["run", "-p", "cluster-tests", "--example", name]) => file(super::backends::example(name)?),
        ("uvicorn", [module, ..]) => file(folder.join(module.replace(":app", ".py"))),
        ("node", [name]) => file(folder.join(name)),
        (script, _) if script.starts_with("scripts/") => file(repository().join(script)),
        _ => bail!("it is not known what `{program}` is"),
    }
}

/// Whether `roost` has this command with these options.
async fn knows(words: &[&str]) -> Result<()> {
    let command = words.first().context("roost is told what to do")?;
    let help = run(&binary()?, &[command, "--help"], &repository(), &[], "").await?;
    for option in words.iter().filter(|word| word.starts_with("--")) {
        ensure!(help.contains(option), "roost {command} has no {option}");
    }
    Ok(())
}

/// All documents in a folder and below it.
fn find_documents(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find_documents(&path, found)?;
        } else if path.extension() == Some(OsStr::new("md")) {
            found.push(path);
        }
    }
    Ok(())
}

fn blocks_of(text: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let fenced = text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    for (head, text) in fenced {
        let (language, file) = head.split_once(' ').map_or((head, None), |(language, file)| (language, Some(file)));
        if language == "text"
            && let Some(last) = blocks.last_mut()
        {
            last.prints = Some(text);
        }
        blocks.push(Block { language, file, text, prints: None });
    }
    blocks
}

/// Each link within the repository leads to a file, and to a heading of it.
fn check_links(document: &Path, text: &str) -> Result<()> {
    let folder = document.parent().context("a document lies in a folder")?;
    let prose: String = text.split("```").step_by(2).collect();
    let links = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.contains("://")) {
        let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
        let target = if file.is_empty() { document.to_owned() } else { folder.join(file) };
        ensure!(target.exists(), "{} links to {link}, which is not there", document.display());
        if let Some(heading) = heading {
            let there = std::fs::read_to_string(&target)?;
            let mut headings = there.lines().filter(|line| line.starts_with('#')).map(anchor);
            ensure!(headings.any(|there| there == heading), "{} links to {link}, no heading", document.display());
        }
    }
    Ok(())
}

/// What a link to a heading says.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.collect::<String>().replace(' ', "-")
}
