//! Free ports for programs that are told a first port and take the next ones too.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};
use rand::RngExt;

/// Below where the system takes the ports of outgoing connections from, so that none of those gets in the way between
/// the look and the use.
const RANGE: std::ops::Range<u16> = 10_000..28_000;

/// The program's mesh ports lie this far above its HTTP ports, where it does not leave them to the system.
const PEER_PORTS_ABOVE: u16 = 1_000;

/// The first of `count` neighbouring ports that nobody holds, and that this process gives out only once.
pub fn free_block(count: u16) -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..1_000)
        .map(|_| rand::rng().random_range(RANGE))
        .find(|&first| (first..first + count).all(|port| !given.contains(&port) && is_free(port)))
        .inspect(|&first| given.extend(first..first + count))
        .with_context(|| format!("no {count} neighbouring ports are free in {RANGE:?}"))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::LOCALHOST, port + PEER_PORTS_ABOVE)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap() {
        let mut blocks: Vec<u16> = (0..20).map(|_| free_block(5).expect("there are free ports")).collect();
        blocks.sort_unstable();
        assert!(blocks.windows(2).all(|pair| pair[1] - pair[0] >= 5), "{blocks:?}");
    }
}
