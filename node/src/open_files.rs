//! How many files this process may have open, and who may have them. Each connection of a client is one; a node that had
//! given them all away could not be asked how it is, nor reach its store.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// With fewer there is nothing to share out.
const LEAST: u64 = 128;
/// Kept for what is no connection of a client (the store's, the mesh, the runtime's), and as much again for HTTP requests:
/// an eighth, within these.
const RESERVE_MIN: u64 = 32;
const RESERVE_MAX: u64 = 512;
/// Kept for whoever comes when all others are taken: it may ask how the node is, and is told to come again.
const PROBES: u64 = 8;
/// Where there is no limit.
const MOST: u64 = 1 << 24;

/// The limit of this process is too low.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this process may have {0} files open, at least {LEAST} are needed, and one more for each client: raise the limit (`ulimit -n`, LimitNOFILE)"
)]
pub struct TooFew(u64);

/// What is left of the open files; shared by the nodes of a process.
#[derive(Debug)]
pub struct OpenFiles {
    clients: usize,
    accepted: Arc<Semaphore>,
    attached: Arc<Semaphore>,
    probes: Arc<Semaphore>,
}

/// The right to one open file; gives it back when dropped.
#[derive(Debug)]
pub struct OpenFile {
    _place: OwnedSemaphorePermit,
}

impl OpenFiles {
    /// What this process may have, after its limit was raised as far as it may do that itself.
    ///
    /// # Errors
    /// Where that is too little to serve anyone.
    pub fn of_process() -> Result<Arc<Self>, TooFew> {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
        Self::of(if raised { maximum } else { current }.unwrap_or(MOST))
    }

    pub(crate) fn of(limit: u64) -> Result<Arc<Self>, TooFew> {
        if limit < LEAST {
            return Err(TooFew(limit));
        }
        let reserve = (limit / 8).clamp(RESERVE_MIN, RESERVE_MAX);
        let places = |count: u64| usize::try_from(count.min(MOST)).unwrap_or(Semaphore::MAX_PERMITS);
        let (accepted, clients) = (places(limit - reserve - PROBES), places(limit - 2 * reserve));
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Ok(Arc::new(Self {
            clients,
            accepted: semaphore(accepted),
            attached: semaphore(clients),
            probes: semaphore(places(PROBES)),
        }))
    }

    /// How many clients there is room for.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// For a connection that was accepted; nothing where what is left is for others.
    pub fn accept(&self) -> Option<OpenFile> {
        Self::take(&self.accepted)
    }

    /// For a connection for which [`OpenFiles::accept`] has nothing.
    pub fn accept_probe(&self) -> Option<OpenFile> {
        Self::take(&self.probes)
    }

    /// The same; waits until there is one.
    pub async fn wait_for_probe(&self) -> OpenFile {
        match self.probes.clone().acquire_owned().await {
            Ok(place) => OpenFile { _place: place },
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// For a connection that becomes a client's, which may last; nothing where what is left is for others.
    pub fn attach(&self) -> Option<OpenFile> {
        Self::take(&self.attached)
    }

    /// How many of those that [`OpenFiles::accept_probe`] gives are left.
    #[cfg(test)]
    pub(crate) fn probes_left(&self) -> usize {
        self.probes.available_permits()
    }

    fn take(places: &Arc<Semaphore>) -> Option<OpenFile> {
        places.clone().try_acquire_owned().ok().map(|place| OpenFile { _place: place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_room_for_requests_and_both_for_the_node() {
        let files = OpenFiles::of(256).unwrap();
        let clients: Vec<_> = std::iter::from_fn(|| files.attach()).collect();
        assert_eq!((clients.len(), files.clients()), (192, 192));
        let accepted: Vec<_> = std::iter::from_fn(|| files.accept()).collect();
        let probes: Vec<_> = std::iter::from_fn(|| files.accept_probe()).collect();
        assert_eq!((accepted.len(), probes.len()), (216, 8));
        drop(clients);
        assert!(files.attach().is_some());
    }

    #[test]
    fn limits_of_every_size() {
        let clients = |limit| OpenFiles::of(limit).map(|files| files.clients());
        assert_eq!(clients(100), Err(TooFew(100)));
        assert_eq!(clients(128), Ok(64));
        assert_eq!(clients(1_024), Ok(768));
        assert_eq!(clients(20_000), Ok(18_976));
        assert_eq!(clients(u64::MAX), Ok(MOST as usize));
    }
}
