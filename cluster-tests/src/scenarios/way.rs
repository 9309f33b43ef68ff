//! The way of one client to one node: a network that can be cut, silenced, or carry in one direction only.

use anyhow::{Context, Result};
use roost::tasks::Tasks;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What becomes of what passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// It arrives.
    Pass,
    /// Connections end, new ones at once.
    Refuse,
    /// Not a byte goes either way, and nobody is told.
    Hold,
    /// What the client says arrives, what the node says is lost.
    Deaf,
}

/// A mode, and how often everything was cut.
type Setting = (Mode, u64);

#[derive(Debug)]
pub(super) struct Way {
    url: String,
    setting: watch::Sender<Setting>,
}

impl Way {
    pub(super) async fn start(to: &str, tasks: &Tasks) -> Result<Self> {
        let target = to.strip_prefix("http://").context("it is a plain URL")?.to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (setting, seen) = watch::channel((Mode::Pass, 0));
        tasks.spawn_detached("way", accept(listener, target, seen, tasks.clone()));
        Ok(Self { url, setting })
    }

    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    pub(super) fn set(&self, mode: Mode) {
        self.setting.send_modify(|setting| setting.0 = mode);
    }

    /// Ends what is open.
    pub(super) fn cut(&self) {
        self.setting.send_modify(|setting| setting.1 += 1);
    }
}

async fn accept(listener: TcpListener, target: String, mut seen: watch::Receiver<Setting>, tasks: Tasks) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The scenario is over.
            () = gone(&mut seen) => return,
        };
        if let (Ok((client, _)), false) = (accepted, seen.borrow().0 == Mode::Refuse) {
            tasks.spawn_detached("way", carry(client, target.clone(), seen.clone()));
        }
    }
}

async fn gone(seen: &mut watch::Receiver<Setting>) {
    while seen.changed().await.is_ok() {}
}

/// Until either end is gone, or everything is cut.
async fn carry(client: TcpStream, target: String, mut seen: watch::Receiver<Setting>) {
    let Ok(node) = TcpStream::connect(target).await else { return };
    let cuts = seen.borrow_and_update().1;
    let ((from_client, to_client), (from_node, to_node)) = (client.into_split(), node.into_split());
    let (up, down) = (seen.clone(), seen.clone());
    tokio::select! {
        () = one_way(from_client, to_node, up, false) => {}
        () = one_way(from_node, to_client, down, true) => {}
        _ = seen.wait_for(|(mode, now)| *now != cuts || *mode == Mode::Refuse) => {}
    }
}

async fn one_way(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut seen: watch::Receiver<Setting>,
    from_node: bool,
) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let Ok(mode) = seen.wait_for(|(mode, _)| *mode != Mode::Hold).await.map(|setting| setting.0) else { return };
        let lost = from_node && mode == Mode::Deaf;
        if !lost && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    // An end passes like all else.
    let _ = seen.wait_for(|(mode, _)| !(*mode == Mode::Hold || (from_node && *mode == Mode::Deaf))).await;
}
