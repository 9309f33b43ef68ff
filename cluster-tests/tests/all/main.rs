//! The tests that drive whole clusters, as one program: linked once. `cargo test -p cluster-tests crash` runs those of one
//! file; those of different files take turns ([`cluster_tests::turn`]).

mod backends;
mod bad_input;
mod bench;
mod clients;
mod crash;
mod documents;
mod drain;
mod elsewhere;
mod ephemeral;
mod events;
mod faults;
mod jwt;
mod laptop;
mod machine;
mod memory;
mod openapi;
mod ordering;
mod proxies;
mod rights;
mod series;
mod sessions;
mod slow_consumers;
mod starting;
mod store_access;
mod store_cluster;
mod store_contract;
mod store_ephemeral;
mod store_faults;
mod store_figures;
mod store_unknown;
mod storm;
mod tabs;

/// A test that forgets its turn runs beside those of other files and disturbs what they measure.
#[test]
fn every_test_takes_its_turn() -> anyhow::Result<()> {
    let mut tests = 0;
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/all"))? {
        let path = file?.path();
        if path.ends_with("main.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let begin = |line: &str| line == "#[test]" || line.starts_with("#[tokio::test");
        for (at, _) in lines.iter().enumerate().filter(|(_, line)| begin(line)) {
            let body = lines[at..].iter().skip_while(|line| !line.ends_with('{')).nth(1);
            anyhow::ensure!(body == Some(&"let _turn = turn::take(module_path!());"), "{}:{}", path.display(), at + 1);
            tests += 1;
        }
    }
    anyhow::ensure!(tests >= 25, "only {tests} tests were found");
    Ok(())
}
