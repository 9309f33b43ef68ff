//! An address translation before a node, for its clients' TCP: it may forget all connections, as routers do.
//!
//! Those that were there then carry nothing more, and neither end is told. Later ones come to the node from another address.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use roost::tasks::Tasks;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};

/// Dropped, it is gone, and all connections end.
pub struct Nat {
    listen: SocketAddr,
    times: watch::Sender<usize>,
    forgotten: Arc<AtomicU64>,
    tasks: Tasks,
}

#[derive(Clone)]
struct Side {
    node: SocketAddr,
    /// The address that the node sees, one after the other.
    from: Arc<[Ipv4Addr]>,
    times: watch::Receiver<usize>,
    forgotten: Arc<AtomicU64>,
}

impl Nat {
    /// Listens here for clients of that node, which sees the first of these addresses.
    pub async fn start(listen: SocketAddr, node: SocketAddr, from: &[Ipv4Addr]) -> Result<Self> {
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("an address translation at {listen}"))?;
        let listen = listener.local_addr()?;
        let (times, seen) = watch::channel(0);
        let (tasks, forgotten) = (Tasks::new(), Arc::<AtomicU64>::default());
        let side = Side { node, from: from.into(), times: seen, forgotten: forgotten.clone() };
        let connections = tasks.clone();
        tasks.spawn_detached("address translation", async move {
            // An error here tells of a connection that is gone already.
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                connections.spawn_detached("translated connection", side.clone().carry(client));
            }
        });
        Ok(Self { listen, times, forgotten, tasks })
    }

    /// The base URL of the node for its clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Forgets all connections.
    pub fn forget(&self) {
        self.times.send_modify(|times| *times += 1);
    }

    /// How many connections carried something until they were forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

impl Side {
    async fn carry(mut self, mut client: TcpStream) {
        let times = *self.times.borrow_and_update();
        let Ok(mut node) = self.connect(times).await else { return };
        let _ = (client.set_nodelay(true), node.set_nodelay(true));
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut node) => return,
            changed = self.times.changed() => if changed.is_err() { return },
        }
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        // Both sockets stay as they are, until all ends.
        while self.times.changed().await.is_ok() {}
    }

    async fn connect(&self, times: usize) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from[times % self.from.len()], 0).into())?;
        socket.connect(self.node).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn carries_until_it_forgets_and_changes_the_address() -> Result<()> {
        let node = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let from = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
        let nat = Nat::start((Ipv4Addr::LOCALHOST, 0).into(), node.local_addr()?, &from).await?;
        let mut buffer = [0; 4];
        let mut kept = Vec::new();
        for address in from {
            let mut client = TcpStream::connect(nat.listen).await?;
            client.write_all(b"ping").await?;
            let (mut served, by) = node.accept().await?;
            assert_eq!(by.ip(), address);
            served.read_exact(&mut buffer).await?;
            nat.forget();
            kept.push((client, served));
        }
        while nat.forgotten() < 2 {
            tokio::task::yield_now().await;
        }
        // What is said now arrives nowhere, and nothing ends.
        let (mut client, mut served) = kept.remove(0);
        client.write_all(b"lost").await?;
        drop(client);
        let waited = tokio::time::timeout(Duration::from_millis(100), served.read(&mut buffer)).await;
        assert!(waited.is_err(), "something came");
        Ok(())
    }
}
