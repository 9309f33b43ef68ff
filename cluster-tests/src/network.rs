//! A network of its own for a test: a bridge, and a namespace with an address for each host, whose links can be cut, made
//! lossy, narrow or slow.
//!
//! All of it lies in the namespaces that [`enter`] made for this process, and goes with it: nothing outside is seen or
//! touched. The test itself, with its clients and its Cassandra, is at [`HOME`]; the nodes are at [`Host::address`].

use std::{
    env,
    fmt::Write as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::servers::Host;

/// Where the test is.
pub const HOME: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The first three parts of addresses at home on which relays listen, for Cassandra's nodes and for the hosts.
pub const STORE_RELAYS: [u8; 3] = [10, 77, 1];
/// See [`STORE_RELAYS`].
pub const HOST_RELAYS: [u8; 3] = [10, 77, 2];
/// Relays of each kind.
const RELAYS: u8 = 9;
/// The last part of a host's address is this much above its number.
const HOSTS_ABOVE: u8 = 11;
/// Says that this process is where [`enter`] wanted it.
const INSIDE: &str = "ROOST_INSIDE_NAMESPACES";

/// A bridge with hosts. Hosts are counted from 0.
pub struct Network {
    hosts: usize,
}

/// What does not reach a host. Everything else does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// Everything that this host sends.
    From(usize),
    /// Its datagrams, which is how nodes talk to each other; TCP goes on.
    DatagramsFrom(usize),
    /// So many of a hundred packets of other hosts, by chance.
    Percent(u8),
    /// Packets of other hosts above this number of bytes; their senders are not told.
    LongerThan(u16),
    /// Everything that the store sends.
    FromStore,
}

/// Runs this program again in namespaces of its own for network, mounts and processes, unless it is there already, and ends
/// as that does. All that it starts there ends with it, and it ends with this process, however that comes about.
pub fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let mut inside = Command::new("setpriv")
        // The first process of a namespace hears no signal that it has not asked for.
        .args(["--pdeathsig", "KILL"])
        .args(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(INSIDE, "yes")
        .spawn()
        .context("setpriv (of util-linux) could not be run")?;
    let status = inside.wait()?;
    std::process::exit(status.code().unwrap_or(1));
}

impl Network {
    /// Makes the bridge and this number of hosts. An error where this process has a network in common with others.
    pub fn new(hosts: usize) -> Result<Self> {
        let interfaces = String::from_utf8(run("ip", &["-o", "link"])?)?;
        ensure!(interfaces.lines().count() <= 1, "this network is not of this test alone: it was not entered");
        // Names of namespaces are files, here in a place that nobody else sees.
        std::fs::create_dir_all("/run/netns")?;
        run("mount", &["-t", "tmpfs", "names", "/run/netns"])?;
        ip("link set lo up")?;
        ip("link add home type bridge forward_delay 0")?;
        ip(&format!("addr add {HOME}/16 dev home"))?;
        for [a, b, c] in [STORE_RELAYS, HOST_RELAYS] {
            for number in 1..=RELAYS {
                ip(&format!("addr add {a}.{b}.{c}.{number}/16 dev home"))?;
            }
        }
        ip("link set home up")?;
        let this = Self { hosts };
        for number in 0..hosts {
            let (host, outer) = (name(number), outer(number));
            ip(&format!("netns add {host}"))?;
            ip(&format!("link add {outer} type veth peer name eth0 netns {host}"))?;
            // One packet is one packet to the rules below, not a batch of them.
            ip(&format!("link set {outer} gso_max_segs 1 master home up"))?;
            ip(&format!("-n {host} link set lo up"))?;
            ip(&format!("-n {host} link set eth0 gso_max_segs 1 up"))?;
            ip(&format!("-n {host} addr add {}/16 dev eth0", address(number)))?;
        }
        Ok(this)
    }

    /// The hosts, for servers to run on.
    pub fn hosts(&self) -> Vec<Host> {
        (0..self.hosts).map(host).collect()
    }

    /// Has a host lose what is named here and nothing else, from now on.
    pub fn lose(&self, number: usize, lost: &[Lost]) -> Result<()> {
        let others: Vec<String> =
            (0..self.hosts).filter(|other| *other != number).map(|other| address(other).to_string()).collect();
        let others = others.join(", ");
        let mut rules = String::new();
        for one in lost {
            let _ = match one {
                Lost::From(other) => writeln!(rules, "ip saddr {} counter drop", address(*other)),
                Lost::DatagramsFrom(other) => {
                    writeln!(rules, "ip saddr {} meta l4proto udp counter drop", address(*other))
                }
                Lost::Percent(percent) => {
                    writeln!(rules, "ip saddr {{ {others} }} numgen random mod 100 < {percent} counter drop")
                }
                Lost::LongerThan(bytes) => {
                    writeln!(rules, "ip saddr {{ {others} }} meta length > {bytes} counter drop")
                }
                Lost::FromStore => {
                    let [a, b, c] = STORE_RELAYS;
                    writeln!(rules, "ip saddr {a}.{b}.{c}.0/24 counter drop")
                }
            };
        }
        // The first two lines empty the table, whether or not it was there.
        let table = format!(
            "table ip lost\ndelete table ip lost\ntable ip lost {{\nchain arriving {{\ntype filter hook input priority 0;\n{rules}}}\n}}\n"
        );
        pipe("ip", &["netns", "exec", &name(number), "nft", "-f", "-"], &table)
    }

    /// How many packets the hosts have lost by what [`Network::lose`] was last told of each.
    pub fn lost(&self) -> Result<u64> {
        let mut sum = 0;
        for number in 0..self.hosts {
            let arguments = ["netns", "exec", &name(number), "nft", "list", "ruleset"];
            let rules = String::from_utf8(run("ip", &arguments)?)?;
            let counts = rules.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next());
            sum += counts.filter_map(|count| count.parse::<u64>().ok()).sum::<u64>();
        }
        Ok(sum)
    }

    /// Cuts the hosts of one side off from those of the other, both ways.
    pub fn part(&self, one: &[usize], other: &[usize]) -> Result<()> {
        for (side, far) in [(one, other), (other, one)] {
            let lost: Vec<Lost> = far.iter().map(|far| Lost::From(*far)).collect();
            for host in side {
                self.lose(*host, &lost)?;
            }
        }
        Ok(())
    }

    /// Limits what goes to and from a host to this number of kilobits a second.
    pub fn narrow(&self, number: usize, kbit: u32) -> Result<()> {
        let bucket = format!("root tbf rate {kbit}kbit burst 16kb latency 200ms");
        tc(&format!("qdisc replace dev {} {bucket}", outer(number)))?;
        run("ip", &split(&format!("netns exec {} tc qdisc replace dev eth0 {bucket}", name(number)))).map(drop)
    }

    /// Takes back everything that was done to a host's link.
    pub fn mend(&self, number: usize) -> Result<()> {
        self.lose(number, &[])?;
        // There may be none to delete.
        let _ = tc(&format!("qdisc del dev {} root", outer(number)));
        let _ = run("ip", &split(&format!("netns exec {} tc qdisc del dev eth0 root", name(number))));
        Ok(())
    }

    /// Takes back everything.
    pub fn mend_all(&self) -> Result<()> {
        (0..self.hosts).try_for_each(|number| self.mend(number))
    }

    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.hosts
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hosts == 0
    }
}

fn host(number: usize) -> Host {
    let run = ["ip", "netns", "exec", &name(number)].map(str::to_owned).to_vec();
    Host { address: address(number), run, reached_at: address(number) }
}

fn name(number: usize) -> String {
    format!("host-{number}")
}

fn outer(number: usize) -> String {
    format!("to-{number}")
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, HOSTS_ABOVE + number as u8)
}

fn ip(arguments: &str) -> Result<()> {
    run("ip", &split(arguments)).map(drop)
}

fn tc(arguments: &str) -> Result<()> {
    run("tc", &split(arguments)).map(drop)
}

fn split(arguments: &str) -> Vec<&str> {
    arguments.split_whitespace().collect()
}

fn run(program: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{program} could not be run: scripts/setup installs it"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}\n{said}", arguments.join(" "), output.status);
    }
    Ok(output.stdout)
}

fn pipe(program: &str, arguments: &[&str], text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} could not be run"))?;
    child.stdin.take().context("a pipe was asked for")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}\n{said}{text}", arguments.join(" "), output.status);
    Ok(())
}
