//! What is shown while it goes on: to standard error, hidden where that is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Counts up to a length.
pub(crate) fn count(length: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:14} {bar:40} {pos}/{len} {per_sec} {eta}");
    ProgressBar::new(length).with_style(style.expect("the template is right")).with_message(what)
}

/// Waits, and shows how much of that is over and, behind it, how far `counted` has come.
pub(crate) async fn wait(length: Duration, what: &'static str, counted: impl Fn() -> u64) {
    const STEPS: u32 = 20;
    let style = ProgressStyle::with_template("{msg:14} {bar:40} {elapsed}/{prefix} {pos}");
    let bar = ProgressBar::new(u64::from(STEPS)).with_style(style.expect("the template is right")).with_message(what);
    bar.set_prefix(format!("{} s", length.as_secs_f64()));
    for step in 1..=STEPS {
        tokio::time::sleep(length / STEPS).await;
        bar.set_position(u64::from(step));
        bar.set_message(format!("{what} {}", counted()));
    }
    bar.finish_and_clear();
}
