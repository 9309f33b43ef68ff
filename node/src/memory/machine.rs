//! How much memory this process may have: the machine's, or that of its control group, or its limit of addresses, whichever
//! is least.

use std::{fs, path::Path};

/// Where nothing can be read, what any machine has.
const UNKNOWN_BYTES: u64 = 1 << 30;
const GROUPS: &str = "/sys/fs/cgroup";

/// The bytes that there are for this process. Reads files of the system; for the start of a node.
pub(super) fn bytes_of_machine() -> u64 {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let machine = of_machine(&read("/proc/meminfo"));
    let addresses = of_process(&read("/proc/self/limits"));
    let groups = files(&read("/proc/self/cgroup")).into_iter().filter_map(|file| of_group(&read(&file)));
    machine.into_iter().chain(addresses).chain(groups).min().unwrap_or(UNKNOWN_BYTES)
}

/// `MemTotal:       16315160 kB`.
fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1_024))
}

/// `Max address space         unlimited            unlimited            bytes`: the first counts.
fn of_process(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The files that may bound the process's group or one above it. `0::/a/b` in version 2, `4:memory:/a/b` in version 1. In a
/// container the path may be one of the machine's, and the group itself is at the top.
fn files(cgroup: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (top, file) = match controllers {
            "" => (GROUPS.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                (format!("{GROUPS}/memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        files.extend(Path::new(path).ancestors().map(|group| format!("{top}{}/{file}", group.display())));
    }
    files
}

/// A number of bytes, or `max`.
fn of_group(limit: &str) -> Option<u64> {
    limit.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bounds_a_process_is_read() {
        assert_eq!(of_machine("MemFree: 1 kB\nMemTotal:       2000 kB\n"), Some(2_048_000));
        assert_eq!(of_machine(""), None);
        let limits = |soft| format!("Limit  Soft  Hard  Units\nMax address space         {soft}   unlimited   bytes\n");
        assert_eq!((of_process(&limits("4096")), of_process(&limits("unlimited"))), (Some(4_096), None));
        assert_eq!((of_group("1048576\n"), of_group("max\n"), of_group("")), (Some(1 << 20), None, None));
        assert_eq!(files("0::/a\n"), ["/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup//memory.max"]);
        let first = files("7:cpu:/x\n4:memory,hugetlb:/y\n0::/\n");
        let wanted = [
            "/sys/fs/cgroup/memory/y/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory//memory.limit_in_bytes",
            "/sys/fs/cgroup//memory.max",
        ];
        assert_eq!(first, wanted);
        assert!(bytes_of_machine() > 0);
    }
}
