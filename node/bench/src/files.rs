//! How many connections this process may have: each is an open file.

use anyhow::ensure;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For the program itself.
const KEPT: u64 = 64;

/// Raises the limit as far as it may be raised, and says whether this number of connections fits.
///
/// # Errors
/// Where it does not; the text says what to do.
pub fn make_room(connections: u64) -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    fits(connections, if raised { maximum } else { current })
}

fn fits(connections: u64, limit: Option<u64>) -> anyhow::Result<()> {
    let Some(limit) = limit else { return Ok(()) };
    ensure!(
        connections + KEPT <= limit,
        "{connections} connections need as many open files, and this process may have {limit}: ask for at most {} \
         connections, run several benches side by side, or raise the limit (`ulimit -Hn`)",
        limit.saturating_sub(KEPT)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_connections_are_refused_with_the_limit() {
        fits(20_000, None).unwrap();
        fits(936, Some(1_000)).unwrap();
        let text = fits(20_000, Some(20_000)).unwrap_err().to_string();
        assert!(text.contains("at most 19936 connections") && text.contains("may have 20000"), "{text}");
    }
}
