//! The only place that writes to standard output and standard error for people. A reader that went away is an error to
//! end on, not a panic.

use std::{
    fmt::{Arguments, Display},
    io::{ErrorKind, Write},
};

/// A result, for standard output: one line, at once.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// A remark, for standard error. Nothing depends on its being read.
pub(super) fn note(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether the command ended because nobody reads its output any more.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &std::io::Error| cause.kind() == ErrorKind::BrokenPipe;
    error.downcast_ref::<std::io::Error>().is_some_and(broken)
}
