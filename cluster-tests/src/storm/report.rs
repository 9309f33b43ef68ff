//! What a storm came to: figures to read, and what was wrong.

use std::fmt;

use anyhow::{Result, ensure};

use super::generator::Answer;
use crate::latency::Latencies;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many clients there were.
    pub clients: usize,
    /// Until all were attached and in their groups.
    pub gathered_ms: u64,
    /// When the node went, by the wall's clock.
    pub cut_ms: u64,
    /// From the cut until each client was caught up, sorted.
    pub caught_up_ms: Vec<u64>,
    /// Connections refused with 503.
    pub refused: u64,
    /// Connections that came to nothing otherwise.
    pub failed: u64,
    /// Connections that were closed with a `bye`.
    pub byes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Messages that a client had already.
    pub duplicates: u64,
    /// Messages in all.
    pub messages: u64,
    /// What the others' publishes and deliveries took before the cut.
    pub before: Latencies,
    /// From the cut until all were caught up.
    pub during: Latencies,
    /// Of the nodes that stay.
    pub memory_before_mb: Vec<u64>,
    /// The same, at most.
    pub memory_peak_mb: Vec<u64>,
    /// Gaps, resets, resumes that were not whole, messages out of order or missing.
    pub wrong: Vec<String>,
}

impl Report {
    pub(super) fn add(&mut self, answers: impl Iterator<Item = Answer>) {
        for answer in answers {
            match answer {
                Answer::Gathered => {}
                Answer::CaughtUp { at_ms } => {
                    self.caught_up_ms.extend(at_ms.iter().map(|at_ms| at_ms.saturating_sub(self.cut_ms)));
                }
                Answer::Settled(tally) => {
                    self.refused += tally.refused;
                    self.failed += tally.failed;
                    self.byes += tally.byes;
                    self.errors += tally.errors;
                    self.duplicates += tally.duplicates;
                    self.messages += tally.messages;
                    self.wrong.extend(tally.wrong);
                }
            }
        }
        self.caught_up_ms.sort_unstable();
    }

    /// An error where a promise was broken.
    ///
    /// # Errors
    /// With the first few of what is wrong.
    pub fn verdict(&self) -> Result<()> {
        let caught_up = self.caught_up_ms.len();
        ensure!(caught_up == self.clients, "{caught_up} of {} clients caught up; {:#?}", self.clients, self.few());
        ensure!(self.wrong.is_empty(), "{} things are wrong: {:#?}", self.wrong.len(), self.few());
        Ok(())
    }

    fn few(&self) -> &[String] {
        &self.wrong[..self.wrong.len().min(10)]
    }

    fn after(&self, percent: usize) -> String {
        let place = (self.clients * percent).div_ceil(100).max(1) - 1;
        self.caught_up_ms.get(place).map_or("never".to_owned(), |ms| format!("{:.2} s", *ms as f64 / 1e3))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clients, gathered_ms, refused, failed, byes, errors, duplicates, messages, .. } = self;
        let [half, most, nearly, all] = [50, 90, 99, 100].map(|percent| self.after(percent));
        writeln!(f, "{clients} clients, gathered in {:.1} s", *gathered_ms as f64 / 1e3)?;
        writeln!(f, "caught up after the cut: 50 % {half}, 90 % {most}, 99 % {nearly}, all {all}")?;
        writeln!(f, "connections refused with 503: {refused}, failed: {failed}; byes: {byes}; errors: {errors}")?;
        writeln!(f, "messages: {messages}, duplicates: {duplicates}, wrong: {}", self.wrong.len())?;
        for (when, Latencies { publish, delivery, .. }) in [("before", &self.before), ("during", &self.during)] {
            writeln!(f, "the others' publishes {when}: {publish}\nthe others' deliveries {when}: {delivery}")?;
        }
        write!(f, "memory of the survivors in MB: {:?}, at most {:?}", self.memory_before_mb, self.memory_peak_mb)
    }
}
