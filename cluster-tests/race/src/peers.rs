//! Who takes part.

use std::sync::Arc;

use roost_bench::{Dialect, roost::Roost};

use crate::dialects::{Centrifuge, Naive, SocketIo};

/// A kind of server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Peer {
    Roost,
    Centrifuge,
    Naive,
    SocketIo,
    /// The send loop alone: what is left when a server does nothing else.
    Bare,
}

impl Peer {
    pub(crate) const OTHERS: [Self; 4] = [Self::Centrifuge, Self::Naive, Self::SocketIo, Self::Bare];

    /// As it is written on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Roost => "roost",
            Self::Centrifuge => "centrifuge",
            Self::Naive => "naive",
            Self::SocketIo => "socketio",
            Self::Bare => "bare",
        }
    }

    pub(crate) fn dialect(self) -> Arc<dyn Dialect> {
        match self {
            Self::Roost => Arc::new(Roost),
            Self::Centrifuge => Arc::new(Centrifuge),
            Self::Naive => Arc::new(Naive("axum, naive")),
            Self::Bare => Arc::new(Naive("bare send loop")),
            Self::SocketIo => Arc::new(SocketIo),
        }
    }
}
