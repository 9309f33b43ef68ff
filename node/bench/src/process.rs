//! What the server's processes use, as Linux tells it in `/proc`.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path};

use anyhow::{Context, ensure};
use serde::Serialize;

/// The processes of a server.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    pids: Vec<u32>,
}

/// What they have used by now, and what they hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Usage {
    /// Time on a processor, in the kernel for them too. In steps of a clock tick, 10 ms mostly.
    pub cpu_us: u64,
    /// Memory of their own: `RssAnon`.
    pub memory_bytes: u64,
}

impl Processes {
    /// Those with these ids.
    ///
    /// # Errors
    /// Where one is not there.
    pub fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let this = Self { pids: pids.to_vec() };
        this.usage()?;
        Ok(this)
    }

    /// Those that listen at one of these addresses on this machine, as far as we may see that.
    pub fn listening_at(addresses: &[SocketAddr]) -> Self {
        let ports: BTreeSet<u16> =
            addresses.iter().filter(|address| address.ip().is_loopback()).map(SocketAddr::port).collect();
        let mut inodes = BTreeSet::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            inodes.extend(listeners(&fs::read_to_string(table).unwrap_or_default(), &ports));
        }
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if !inodes.is_empty() && holds(&entry.path(), &inodes) {
                pids.push(pid);
            }
        }
        pids.sort_unstable();
        Self { pids }
    }

    /// Their ids; none where they are not known.
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// All that they have used together, from their start on.
    ///
    /// # Errors
    /// Where one of them has ended.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for pid in &self.pids {
            let read = |name: &str| {
                fs::read_to_string(format!("/proc/{pid}/{name}"))
                    .with_context(|| format!("process {pid} is not there (any more)"))
            };
            sum.cpu_us += cpu_us(&read("stat")?).with_context(|| format!("/proc/{pid}/stat"))?;
            sum.memory_bytes += memory_bytes(&read("status")?).with_context(|| format!("/proc/{pid}/status"))?;
        }
        Ok(sum)
    }
}

/// What this process has used.
pub fn own() -> Usage {
    Processes { pids: vec![std::process::id()] }.usage().unwrap_or_default()
}

/// The inodes of sockets that listen at one of the ports.
fn listeners(table: &str, ports: &BTreeSet<u16>) -> Vec<u64> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
        let listens = *fields.get(3)? == "0A";
        (listens && ports.contains(&port)).then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().filter_map(of_line).collect()
}

fn holds(process: &Path, inodes: &BTreeSet<u64>) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|link| {
        let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode| inodes.contains(&inode))
    })
}

/// `utime` and `stime` of `/proc/PID/stat`. The name in front may hold anything, so counting begins behind its `)`.
fn cpu_us(stat: &str) -> anyhow::Result<u64> {
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    ensure!(fields.len() > 13, "too short");
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

fn memory_bytes(status: &str) -> anyhow::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kb: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kb << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_us(stat).unwrap(), 300 * 1_000_000 / rustix::param::clock_ticks_per_second());
        assert!(cpu_us("7 (a) S 1").is_err());
        assert_eq!(memory_bytes("Name:\ta\nRssAnon:\t    12 kB\n").unwrap(), 12 << 10);
        assert!(own().memory_bytes > 0);
    }

    #[test]
    fn who_listens_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = Processes::listening_at(&[listener.local_addr().unwrap()]);
        assert_eq!(found.pids(), [std::process::id()]);
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(Processes::listening_at(&[address]).pids().is_empty());
        assert!(Processes::of(&[u32::MAX]).is_err());
    }
}
