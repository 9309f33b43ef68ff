//! One `roost serve` with a folder of its own: for tests of a single node as it comes.

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{api::KEY, ports::free_block, process::binary};

/// A node by itself. It ends with this.
pub struct Lone {
    /// Where its HTTP is.
    pub url: String,
    node: Child,
    _folder: TempDir,
}

impl Lone {
    /// Starts a node with these further settings; the two ports after its own, which `settings` is given, are free.
    pub async fn start(settings: impl FnOnce(u16) -> String) -> Result<Self> {
        Self::start_as("", settings).await
    }

    /// The same with these lines more about the node itself.
    pub async fn start_as(node: &str, settings: impl FnOnce(u16) -> String) -> Result<Self> {
        let (folder, port, roost) = (tempfile::tempdir()?, free_block(3)?, binary()?);
        for arguments in [
            &["certs", "init", "--dir", "."][..],
            &["certs", "node", "n1", "--dir", "."],
            &["keys", "new", "--file", "keyring.toml"],
        ] {
            let made = Command::new(&roost).args(arguments).current_dir(folder.path()).output().await?;
            ensure!(made.status.success(), "{arguments:?}: {made:?}");
        }
        let config = format!(
            "[node]\nid = \"n1\"\nhttp_listen = \"127.0.0.1:{port}\"\npeer_listen = \"127.0.0.1:0\"\n{node}\n\
             [tls]\nca = \"ca.pem\"\ncert = \"n1.pem\"\nkey = \"n1.key\"\n[auth]\napi_keys = [\"{KEY}\"]\n{}",
            settings(port)
        );
        std::fs::write(folder.path().join("node.toml"), config)?;
        let mut serve = Command::new(&roost);
        serve.args(["serve", "--config", "node.toml"]).current_dir(folder.path()).kill_on_drop(true);
        Ok(Self { url: format!("http://127.0.0.1:{port}"), node: serve.spawn()?, _folder: folder })
    }

    /// Sends it a signal: `-HUP`.
    pub async fn signal(&self, signal: &str) -> Result<()> {
        let id = self.node.id().context("it runs")?;
        ensure!(Command::new("kill").args([signal, &id.to_string()]).status().await?.success());
        Ok(())
    }

    /// Ends it by SIGTERM, upon which it is to end as asked.
    pub async fn end(mut self) -> Result<()> {
        self.signal("-TERM").await?;
        ensure!(self.node.wait().await?.success(), "a signal ends it");
        Ok(())
    }
}
