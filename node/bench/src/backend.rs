//! Publishing as an application's own server does it, over no client's connection.

use std::fmt;

use futures_util::future::BoxFuture;

/// A server that publishes.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// Publishes JSON to a group through the node of this number; the future ends when that is answered, with the reason where it is
    /// refused. The next message of the group is published after that, which keeps their order.
    fn publish<'a>(&'a self, node: usize, group: &'a str, data: String) -> BoxFuture<'a, Result<(), String>>;
}
