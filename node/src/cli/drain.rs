//! `roost drain`: has a node hand over what it holds, and end.

use super::{
    api::{Api, ApiArgs},
    print,
};
use crate::id::NodeId;

/// Arguments of `roost drain`.
#[derive(Debug, clap::Args)]
pub(super) struct DrainArgs {
    /// The node's name; any node can be asked
    node: String,
    /// Also while another node drains
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub(super) async fn run(args: DrainArgs) -> anyhow::Result<()> {
    let node = NodeId::parse(&args.node).map_err(anyhow::Error::msg)?;
    let api = Api::new(&args.api)?;
    api.post_with(&["v1", "cluster", "nodes", node.as_str(), "drain"], &format!("force={}", args.force)).await?;
    print::note(format_args!("{node} drains: `roost status` shows it until it has gone"));
    Ok(())
}
