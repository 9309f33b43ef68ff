//! Makes a connection to an address, says hello, and says in words why there is none.

use std::{net::SocketAddr, time::Duration};

use quinn::{ConnectError, Connection, ConnectionError, Endpoint};
use tokio::sync::watch;

use super::{
    belongs::Belongs,
    greeting::{self, DialError, Goodbye, Hello, Purpose},
    tls,
};
use crate::id::{Generation, Member, NodeId};

/// Dials for one node.
pub(super) struct Dialler {
    pub(super) me: Member,
    pub(super) belongs: Belongs,
    pub(super) endpoint: Endpoint,
    pub(super) client: quinn::ClientConfig,
    /// What another node has said last of why it refuses this one.
    pub(super) misfit: watch::Sender<Option<String>>,
}

impl Dialler {
    /// `expected` is who has to be there, where that is known. Gives the connection, and who is there.
    pub(super) async fn dial(
        &self,
        addr: SocketAddr,
        purpose: Purpose,
        expected: Option<(&NodeId, Generation)>,
    ) -> Result<(Connection, NodeId, Generation), DialError> {
        let connecting = self.endpoint.connect_with(self.client.clone(), addr, tls::COMMON_NAME);
        let connecting = connecting.map_err(|error| match error {
            // This node is the one that stops.
            ConnectError::EndpointStopping => DialError::Lost(ConnectionError::LocallyClosed),
            error => DialError::Refused(error.to_string()),
        })?;
        let connection = connecting.await.map_err(DialError::Lost)?;
        let hello = Hello {
            purpose,
            generation: self.me.generation,
            to_generation: expected.map_or(0, |(_, generation)| generation),
            belongs: self.belongs.clone(),
        };
        let greeted = greeting::greet(&connection, &self.me.node, expected.map(|(node, _)| node), &hello).await;
        let (node, generation) = greeted.map_err(|error| self.explain(error))?;
        Ok((connection, node, generation))
    }

    /// Turns a refusal that a person must mend into words.
    fn explain(&self, error: DialError) -> DialError {
        let DialError::Lost(lost) = &error else { return error };
        match Goodbye::of(lost) {
            Some(Goodbye::WrongCluster) => DialError::Refused(
                "the node there belongs to a cluster of another name: see cluster.name and cluster.seeds".to_owned(),
            ),
            Some(Goodbye::WrongNode) => {
                DialError::Refused("the node there refuses this node's certificate or name".to_owned())
            }
            Some(Goodbye::WrongStore | Goodbye::WrongSettings) => {
                let why = Goodbye::words(lost);
                self.misfit.send_replace(Some(why.clone()));
                DialError::Refused(why)
            }
            _ => error,
        }
    }
}

/// The pause before the next dial: 50 ms, doubled up to 1 s, each shortened by up to a half at random.
#[derive(Default)]
pub(super) struct Pause {
    failures: u32,
}

impl Pause {
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn next(&mut self) -> Duration {
        let ms = (50_u64 << self.failures.min(5)).min(1_000);
        self.failures = self.failures.saturating_add(1);
        Duration::from_millis(rand::random_range(ms / 2..=ms))
    }
}
