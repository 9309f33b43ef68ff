//! The faults: what each is called, what its scene is like, and what is done.

use anyhow::Result;
use futures_util::future::LocalBoxFuture;

use super::{
    connections, demand, idlers, liar, links, machine, memory, mix, processes, scene::Scene, store, strangers, tabs,
    vanished,
};
use crate::network::Lost;

/// A fault: its scene, what is done, and what is promised meanwhile.
pub struct Fault {
    /// For the command line and for the table.
    pub name: &'static str,
    /// What happens, for the table.
    pub what: &'static str,
    /// How many nodes there are.
    pub nodes: usize,
    /// Whether CI plays it.
    pub in_ci: bool,
    /// All copies of a slot may be lost at once: clients may be told of a reset. Otherwise they may not.
    pub loses_all_copies: bool,
    /// There is a relay before each node.
    pub relayed: bool,
    /// The least number of bytes of a message.
    pub message_bytes: usize,
    /// Every publish asks for this number of copies.
    pub min_copies: u8,
    /// Further settings of all nodes: `limits.idle_s`, `10`.
    pub settings: &'static [(&'static str, &'static str)],
    /// Publishes of those who do nothing unusual are answered within this meanwhile, in 99 of 100 cases.
    pub bystanders_p99_ms: Option<u64>,
    /// Brings it about, has it stay, and takes it back.
    pub act: Act,
}

/// See [`Fault::act`].
pub type Act = for<'s> fn(&'s mut Scene<'_>) -> LocalBoxFuture<'s, Result<()>>;

const fn fault(name: &'static str, what: &'static str, act: Act) -> Fault {
    let (nodes, in_ci, loses_all_copies, relayed) = (3, false, false, false);
    let (message_bytes, min_copies, settings, bystanders_p99_ms) = (0, 1, &[], None);
    Fault {
        name,
        what,
        nodes,
        in_ci,
        loses_all_copies,
        relayed,
        message_bytes,
        min_copies,
        settings,
        bystanders_p99_ms,
        act,
    }
}

impl Fault {
    /// What this play of it is called.
    pub fn named(&self, seed: Option<u64>) -> String {
        seed.map_or_else(|| self.name.to_owned(), |seed| format!("{} {seed}", self.name))
    }

    const fn in_ci(self) -> Self {
        Self { in_ci: true, ..self }
    }

    const fn with_nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    const fn loses_all_copies(self) -> Self {
        Self { loses_all_copies: true, ..self }
    }

    const fn with_messages_of(self, message_bytes: usize) -> Self {
        Self { message_bytes, ..self }
    }

    const fn with_min_copies(self, min_copies: u8) -> Self {
        Self { min_copies, ..self }
    }

    const fn with(self, settings: &'static [(&'static str, &'static str)]) -> Self {
        Self { settings, ..self }
    }

    const fn bystanders_within(self, p99_ms: u64) -> Self {
        Self { bystanders_p99_ms: Some(p99_ms), ..self }
    }

    const fn relayed(self) -> Self {
        Self { relayed: true, ..self }
    }
}

/// All of them.
pub const ALL: &[Fault] = &[
    fault("kill-primary", "SIGKILL of a group's primary; started again 12 s later", |s| {
        Box::pin(processes::kill_holder(s, 0))
    })
    .in_ci(),
    fault("kill-replica", "SIGKILL of a group's replica; started again 12 s later", |s| {
        Box::pin(processes::kill_holder(s, 1))
    }),
    fault("kill-gateway", "SIGKILL of a node with 2,000 clients; started again 12 s later", |s| {
        Box::pin(processes::kill_gateway(s))
    }),
    fault("kill-two", "SIGKILL of two of four nodes at once; started again 12 s later", |s| {
        Box::pin(processes::kill_some(s, &[0, 1]))
    })
    .with_nodes(4)
    .loses_all_copies(),
    fault("kill-all", "SIGKILL of all nodes at once; started again at once", |s| Box::pin(processes::kill_all(s)))
        .loses_all_copies()
        .in_ci(),
    fault("kill-20-times", "SIGKILL of one node after the other, 20 times, each started again", |s| {
        Box::pin(processes::kill_again_and_again(s))
    }),
    fault("kill-under-tabs", "the same under 1,000 sessions of three clients, one at each node", |s| {
        Box::pin(tabs::kill_under_tabs(s))
    }),
    fault(
        "min-copies-under-kills",
        "SIGKILL of one node after the other, 6 times, while all publishes ask for two copies",
        |s| Box::pin(processes::kill_below_the_floor(s)),
    )
    .with_min_copies(2),
    fault("drain", "SIGTERM to a node; started again 12 s after it ended", |s| Box::pin(processes::drain(s))).in_ci(),
    fault("rolling-restart", "SIGTERM and start of one node after the other", |s| {
        Box::pin(processes::rolling_restart(s))
    })
    .in_ci(),
    fault("pause-1", "SIGSTOP of a node for 1 s", |s| Box::pin(processes::pause(s, 1))),
    fault("pause-10", "SIGSTOP of a node for 10 s", |s| Box::pin(processes::pause(s, 10))).in_ci(),
    fault("pause-60", "SIGSTOP of a node for 60 s", |s| Box::pin(processes::pause(s, 60))),
    fault(
        "frozen-gateway",
        "SIGSTOP of a node for 1, 2, 4 and 8 s; sessions of its clients attach elsewhere meanwhile",
        |s| Box::pin(processes::frozen_gateway(s)),
    ),
    fault("stalled", "all threads of a node but the watchdog's stand still; started again when it has ended", |s| {
        Box::pin(processes::stalled(s))
    })
    .in_ci(),
    fault(
        "cut-off",
        "a node hears neither of the others, nor they it, for 12 s; clients and the store reach all",
        |s| Box::pin(links::cut_off(s)),
    )
    .in_ci(),
    fault("halves", "two of four nodes on each side, for 12 s", |s| Box::pin(links::part(s, &[0, 1], &[2, 3])))
        .with_nodes(4),
    fault("partial", "two nodes do not hear each other, the third hears both, for 12 s", |s| {
        Box::pin(links::part(s, &[0], &[1]))
    })
    .in_ci(),
    fault("deaf", "a node hears nothing of the others, which hear it, for 12 s", |s| Box::pin(links::deaf(s))).in_ci(),
    fault("mute", "nothing of a node reaches the others, which it hears, for 12 s", |s| Box::pin(links::mute(s))),
    fault("udp-blocked", "no datagram reaches or leaves a node, TCP goes through, for 12 s", |s| {
        Box::pin(links::without_datagrams(s))
    }),
    fault("loss-1", "1 % of the packets between nodes are lost, for 12 s", |s| {
        Box::pin(links::lose(s, Lost::Percent(1)))
    }),
    fault("loss-5", "5 % of the packets between nodes are lost, for 12 s", |s| {
        Box::pin(links::lose(s, Lost::Percent(5)))
    })
    .in_ci(),
    fault("loss-20", "20 % of the packets between nodes are lost, for 12 s", |s| {
        Box::pin(links::lose(s, Lost::Percent(20)))
    }),
    fault("mtu", "packets of more than 1,300 bytes between nodes are lost without a word, for 12 s", |s| {
        Box::pin(links::lose(s, Lost::LongerThan(1_300)))
    })
    .with_messages_of(4_000),
    fault("narrow", "a node's link carries 1 Mb/s each way, clients and store included, for 12 s", |s| {
        Box::pin(links::narrow(s))
    }),
    fault(
        "rough",
        "datagrams between nodes take 5 to 45 ms, overtake each other, and 5 % arrive twice, for 12 s",
        |s| Box::pin(links::rough(s)),
    )
    .relayed()
    .in_ci(),
    fault("replay", "all datagrams of the last seconds between nodes are sent again, three times", |s| {
        Box::pin(links::replay(s))
    })
    .relayed(),
    fault("forged", "random datagrams and a node of the same name and cluster with a certificate of another CA", |s| {
        Box::pin(strangers::forged(s))
    })
    .in_ci(),
    fault("store-cut-one", "the store is cut off from one node, for 12 s", |s| Box::pin(store::cut_off_from_one(s))),
    fault("store-cut-all", "the store is cut off from all nodes, for 12 s", |s| Box::pin(store::cut_off(s))),
    fault("store-cut-kill", "the store is cut off from all nodes and a node dies: its slots wait for 12 s", |s| {
        Box::pin(store::cut_off_and_kill(s))
    }),
    fault("disk-full", "a node's log is on a disk that is full for 12 s, while another node dies and returns", |s| {
        Box::pin(machine::full_disk(s))
    }),
    fault("descriptors", "a node with 256 file descriptors gets 400 connections, for 12 s", |s| {
        Box::pin(connections::few_descriptors(s))
    }),
    fault("held", "a node with 256 file descriptors: 400 connections that are silent, slow, or read no answer", |s| {
        Box::pin(connections::held(s))
    }),
    fault("same-name", "a second process with a node's name, on another host, for 12 s", |s| {
        Box::pin(strangers::same_name(s))
    }),
    fault("clock-ahead", "a node's wall clock is set an hour ahead, and back after 12 s", |s| {
        Box::pin(machine::clock(s, "+3600"))
    }),
    fault("clock-behind", "a node's wall clock is set an hour back, and right again after 12 s", |s| {
        Box::pin(machine::clock(s, "-3600"))
    }),
    fault("trickle", "requests' heads, bodies and hellos come a byte at a time, 60 of each", |s| {
        Box::pin(idlers::trickle(s))
    })
    .with(&[("limits.request_head_ms", "4000"), ("limits.handshake_ms", "4000")])
    .bystanders_within(1_000),
    fault("unread", "20 clients in a group of long messages read nothing", |s| Box::pin(idlers::unread(s)))
        .with(&[("limits.write_timeout_ms", "4000")])
        .bystanders_within(1_000),
    fault("half-open", "the network of 300 clients goes away without a word, and they never come back", |s| {
        Box::pin(vanished::half_open(s))
    })
    .with(&[("limits.idle_s", "10"), ("limits.heartbeat_s", "3")])
    .bystanders_within(1_000),
    fault(
        "rebound-clients",
        "the addresses of 200 clients change, and their connections end without a word, 3 times",
        |s| Box::pin(vanished::rebound_clients(s)),
    )
    .bystanders_within(1_000),
    fault(
        "ghost",
        "a copy of a node's configuration over another store that has seen more starts of it, 3 times",
        |s| Box::pin(strangers::ghost(s)),
    ),
    fault("liar", "a member that lies in gossip, of the map, as a primary and as a copy, for 12 s", |s| {
        Box::pin(liar::lies(s))
    }),
    fault("hot-group", "one group gets nine of ten messages, for 12 s", |s| Box::pin(demand::hot_group(s)))
        .bystanders_within(1_000),
    fault(
        "memory-pressure",
        "a node may map 640 MB and each hold 64 MB for clients; one client publishes ever new groups full, as fast as it can",
        |s| Box::pin(memory::pressure(s)),
    )
    .with(memory::SETTINGS)
    .bystanders_within(1_000),
    fault("starved", "a node is bound to a core that busy processes of niceness -20 have, for 12 s", |s| {
        Box::pin(machine::starved(s))
    }),
    fault("far-50", "datagrams between nodes take 50 ms, for 12 s", |s| Box::pin(links::far(s, 50)))
        .relayed()
        .bystanders_within(1_000),
    fault("far-200", "datagrams between nodes take 200 ms, for 12 s", |s| Box::pin(links::far(s, 200))).relayed(),
    fault("far-500", "datagrams between nodes take 500 ms, for 12 s", |s| Box::pin(links::far(s, 500))).relayed(),
    fault("rebound-peers", "the addresses by which nodes see each other change, 3 times", |s| {
        Box::pin(links::rebound_peers(s))
    })
    .relayed(),
    fault("store-away", "nobody listens where the store was, for a minute; for ten with --long", |s| {
        Box::pin(store::away(s))
    })
    .bystanders_within(1_000),
    fault("rows-lost", "the rows of all sessions and of the map are deleted past Roost, and a node dies", |s| {
        Box::pin(store::rows_lost(s))
    }),
    fault(
        "rows-resurrected",
        "an older map is written past Roost, a node dies; an ended session's row is put back",
        |s| Box::pin(store::rows_resurrected(s)),
    ),
    fault("starts-lost", "the row that counts a node's starts is deleted past Roost, and it starts again", |s| {
        Box::pin(store::starts_lost(s))
    }),
    fault("boot-ahead", "a node starts with a clock that is two days ahead", |s| {
        Box::pin(machine::clock_at_start(s, "+172800"))
    }),
    fault("boot-behind", "a node starts with a clock that is half an hour behind", |s| {
        Box::pin(machine::clock_at_start(s, "-1800"))
    }),
    fault("scale", "two nodes are added to three, and drained again", |s| Box::pin(processes::scale(s))).in_ci(),
];

/// Three at once, as a seed draws them.
pub const MIX: Fault = fault("mix", "three faults at once", |s| Box::pin(mix::play(s))).relayed();
