//! What the turns gave: ratios within each round, and their spread over the rounds.

use std::{fs::File, io::Write, path::PathBuf};

use anyhow::Context;
use roost_bench::Report;

use crate::{
    peers::Peer,
    rows::{Figure, Row, What},
    servers::Ran,
};

/// All turns.
pub(crate) struct Outcome {
    pub versions: Vec<String>,
    pub rounds: u32,
    pub seconds: f64,
    json: Option<File>,
    turns: Vec<Turn>,
}

/// One of them.
struct Turn {
    row: &'static str,
    round: u32,
    peer: Peer,
    /// What went wrong, where it gave no figures.
    report: Result<Report, String>,
    /// Processors that other programs kept busy.
    others: Option<f64>,
}

/// The middle of several numbers, and their ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    pub middle: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub(crate) fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        let half = numbers.len() / 2;
        let middle =
            if numbers.len() % 2 == 1 { numbers[half] } else { f64::midpoint(numbers[half - 1], numbers[half]) };
        Some(Self { middle, least, most })
    }
}

impl Outcome {
    pub(crate) fn new(versions: Vec<String>, rounds: u32, seconds: f64, json: Option<PathBuf>) -> anyhow::Result<Self> {
        let json = json.map(|path| File::create(&path).with_context(|| format!("{}", path.display()))).transpose()?;
        Ok(Self { versions, rounds, seconds, json, turns: Vec::new() })
    }

    pub(crate) fn add(&mut self, row: &Row, round: u32, peer: Peer, ran: anyhow::Result<Ran>) -> anyhow::Result<()> {
        let others = ran.as_ref().ok().map(|ran| ran.others);
        let report = ran.map(|ran| ran.report).map_err(|error| format!("{error:#}"));
        if let Some(file) = &mut self.json {
            let outcome = match &report {
                Ok(report) => serde_json::to_value(report)?,
                Err(error) => serde_json::json!({ "error": error }),
            };
            writeln!(
                file,
                "{}",
                serde_json::json!({ "row": row.name, "round": round, "peer": peer.word(), "others": others, "report": outcome })
            )?;
        }
        match &report {
            Ok(report) => {
                let figures = row
                    .figures
                    .iter()
                    .filter_map(|figure| Some(format!("{:.3} {}", figure.what.of(report)?, figure.what.unit())));
                let whole = if report.is_whole() { "" } else { "  NOT WHOLE" };
                eprintln!(
                    "{} round {round} {}: {}{whole}",
                    row.name,
                    peer.word(),
                    figures.collect::<Vec<_>>().join(", ")
                );
                for word in &report.faults.words {
                    eprintln!("    {word}");
                }
            }
            Err(error) => eprintln!("{} round {round} {}: {error}", row.name, peer.word()),
        }
        self.turns.push(Turn { row: row.name, round, peer, report, others });
        Ok(())
    }

    fn number(&self, row: &Row, round: u32, peer: Peer, what: What) -> Option<f64> {
        let turn = self.turns.iter().find(|turn| (turn.row, turn.round, turn.peer) == (row.name, round, peer))?;
        what.of(turn.report.as_ref().ok()?)
    }

    /// A figure of a peer over the rounds.
    pub(crate) fn figure(&self, row: &Row, peer: Peer, what: What) -> Option<Spread> {
        Spread::of((0..self.rounds).filter_map(|round| self.number(row, round, peer, what)).collect())
    }

    /// Roost's to another's, each within a round.
    pub(crate) fn ratio(&self, row: &Row, peer: Peer, what: What) -> Option<Spread> {
        let of_round = |round| {
            let (ours, theirs) = (self.number(row, round, Peer::Roost, what)?, self.number(row, round, peer, what)?);
            (theirs > 0.0).then(|| ours / theirs)
        };
        Spread::of((0..self.rounds).filter_map(of_round).collect())
    }

    /// Turns that failed, or in which something was lost, repeated or out of order.
    pub(crate) fn faults(&self) -> Vec<String> {
        let of_turn = |turn: &Turn| match &turn.report {
            Err(error) => Some(format!("{}, round {}: {error}", turn.row, turn.round + 1)),
            Ok(report) if !report.is_whole() => Some(format!(
                "{}, round {}, {}: {}",
                turn.row,
                turn.round + 1,
                turn.peer.word(),
                serde_json::to_string(&report.faults).unwrap_or_default()
            )),
            Ok(_) => None,
        };
        self.turns.iter().filter_map(of_turn).collect()
    }

    /// How many turns there were.
    pub(crate) fn turns(&self) -> usize {
        self.turns.len()
    }

    /// Processors that other programs kept busy, over all turns.
    pub(crate) fn others(&self) -> Option<Spread> {
        Spread::of(self.turns.iter().filter_map(|turn| turn.others).collect())
    }

    /// Deliveries of all turns that were measured.
    pub(crate) fn deliveries(&self) -> u64 {
        self.turns.iter().filter_map(|turn| turn.report.as_ref().ok()).map(|report| report.deliveries).sum()
    }

    /// Whether Roost's figure is where it is to be, by the middle of the rounds; nothing where that was not measured.
    pub(crate) fn reached(&self, row: &Row, figure: Figure) -> Option<bool> {
        let ratio = |peer, bound: Option<f64>| Some(self.ratio(row, peer, figure.what)?.middle <= bound?);
        let most = || Some(self.figure(row, Peer::Roost, figure.what)?.middle <= figure.most?);
        let all = [ratio(Peer::Centrifuge, figure.of_centrifuge), ratio(Peer::Naive, figure.of_naive), most()];
        all.into_iter().flatten().reduce(|one, other| one && other)
    }

    /// A row as text.
    pub(crate) fn row(&self, row: &Row) -> String {
        let mut lines = vec![format!("== {}: {}", row.name, row.title)];
        for figure in &row.figures {
            for &peer in &row.peers {
                let Some(spread) = self.figure(row, peer, figure.what) else { continue };
                let ratio = self.ratio(row, peer, figure.what).filter(|_| peer != Peer::Roost);
                let ratio = ratio.map_or_else(String::new, |ratio| {
                    format!("   Roost has {:.2} of it ({:.2} to {:.2})", ratio.middle, ratio.least, ratio.most)
                });
                let Spread { middle, least, most } = spread;
                lines.push(format!(
                    "   {:10} {middle:9.3} {} ({least:.3} to {most:.3}){ratio}",
                    peer.word(),
                    figure.what.unit()
                ));
            }
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_a_middle() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { middle: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0]), Some(Spread { middle: 2.5, least: 1.0, most: 4.0 }));
    }
}
