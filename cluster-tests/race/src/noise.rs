//! What other programs took of the machine during a turn, as Linux tells it in `/proc`.

use anyhow::{Context, ensure};
use roost_bench::{
    clock,
    process::{Processes, own},
};

/// The machine at a moment.
pub(crate) struct Noise {
    at_us: u64,
    /// What all programs together have used.
    busy_us: u64,
    /// What this one has used.
    own_us: u64,
}

impl Noise {
    pub(crate) fn look() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Ok(Self { at_us: clock::now_us(), busy_us: busy_us(&stat)?, own_us: own().cpu_us })
    }

    /// How many processors others than this program and the servers, started since then, have kept busy since then.
    pub(crate) fn others_since(&self, servers: &[u32]) -> anyhow::Result<f64> {
        let now = Self::look()?;
        let servers_us = Processes::of(servers)?.usage()?.cpu_us;
        let others_us = (now.busy_us - self.busy_us).saturating_sub(now.own_us - self.own_us + servers_us);
        Ok(others_us as f64 / (now.at_us - self.at_us).max(1) as f64)
    }
}

/// Of the first line: all but the time in which nothing was done, waited for a disk, or was given to other machines. Guests are counted
/// among the users already.
fn busy_us(stat: &str) -> anyhow::Result<u64> {
    let line = stat.lines().next().context("it is empty")?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(fields.len() >= 7, "its first line is short: {line}");
    let [user, nice, system, _idle, _disk, irq, softirq] = fields[..7] else { unreachable!("seven were taken") };
    // In steps of 10 ms, whatever the kernel's own are.
    Ok((user + nice + system + irq + softirq) * 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_busy_is_read() {
        assert_eq!(busy_us("cpu  1 2 3 400 500 6 7 8 0 0\ncpu0 1\n").unwrap(), 190_000);
        assert!(busy_us("cpu 1 2").is_err() && busy_us("").is_err() && busy_us("cpu a").is_err());
    }

    #[test]
    fn this_program_is_no_other() {
        let before = Noise::look().unwrap();
        while clock::now_us() < before.at_us + 200_000 {}
        let processors = std::thread::available_parallelism().unwrap().get() as f64;
        assert!((0.0..processors).contains(&before.others_since(&[]).unwrap()));
    }
}
