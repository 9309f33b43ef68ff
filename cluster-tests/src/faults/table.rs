//! What was seen of each fault: a table, and the details below it.

use std::{fmt::Write, time::Duration};

use crate::{history::Summary, latency::Spread};

/// What was seen of a fault that did no harm.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in the catalogue, with its seed where it has one.
    pub fault: String,
    /// The step, in words.
    pub what: &'static str,
    /// After how long the first node that answered said that something is wrong, and what it said.
    pub noticed: Option<(Duration, String)>,
    /// From each beginning until publishes of after it were acknowledged in every group.
    pub acknowledged_again: Spread,
    /// Until the last client that was told of a group it does not hear knew it.
    pub told_stale: Option<Duration>,
    /// From the fault's end until every node said green and every subscriber got more of every group.
    pub healed: Duration,
    /// How long publishes of the scene's own publishers took before it, and while it was there.
    pub publishes: [Spread; 2],
    /// What the history holds.
    pub summary: Summary,
    /// What else was seen.
    pub notes: Vec<String>,
}

/// How a fault came out.
#[derive(Debug)]
pub struct Played {
    /// Its name in the catalogue, with its seed where it has one.
    pub fault: String,
    /// The row, or what went wrong.
    pub outcome: anyhow::Result<Row>,
}

/// What was played and what it means, the table, and what was seen of each fault.
pub fn document(played: &[Played], cores: usize, minutes: u64) -> String {
    let failed: Vec<&str> = played.iter().filter(|one| one.outcome.is_err()).map(|one| one.fault.as_str()).collect();
    let fell_short = match failed.len() {
        0 => "Nothing fell short.".to_owned(),
        count => format!("{count} fell short: {}.", failed.join(", ")),
    };
    let mut text = format!(
        "# Faults of real processes, and what was seen\n\n\
         {} faults were played one after the other, each on a cluster under load, and then healed. \
         Made by `scripts/faults --table cluster-tests/FAULTS.md` in {minutes} minutes; `scripts/faults NAME` plays one again, \
         and `scripts/faults --mix SEED` three at once, as the seed draws them. \
         Unless a fault says otherwise there are three nodes, each a process in a network namespace, over one real Cassandra, on \
         {cores} cores that nodes, clients and Cassandra share. \
         *S1–S8 hold* means that every publish was answered, and that in what all clients saw no acknowledged message is \
         missing, none comes twice or out of order, and no hole goes unannounced. \
         {fell_short}\n\n{}",
        played.len(),
        markdown(played),
    );
    text += "\nRecovery is the time from the fault's beginning until publishes that began after it were acknowledged in every \
             group, by whichever node they went to.\n\n\
             On each node there is a publisher (50 messages a second to 12 groups in turn) and a subscriber to all groups. They \
             leave a node of which they hear nothing for 4 s. Below:\n\n\
             - *a node says so*: until the first node that answers reports that something is wrong, and what it says first.\n\
             - *told `stale`*: until the last client that was told of a group it does not hear knew it.\n\
             - *healed*: from the fault's end, restarts included, until every node reports green and every subscriber got more \
             of every group.\n\
             - *publishes before, meanwhile*: from the sending of a publish to its acknowledgement, of the publishers on each \
             node, by whichever node it went to.\n";
    for one in played {
        details(one, &mut text);
    }
    text
}

/// The table in Markdown, its heading included.
fn markdown(played: &[Played]) -> String {
    let mut text = String::from("| fault | verdict | recovery |\n| --- | --- | --- |\n");
    for Played { fault, outcome } in played {
        let (verdict, recovery) = match outcome {
            Ok(row) => ("S1–S8 hold".to_owned(), again(row.acknowledged_again)),
            Err(error) => (format!("**failed**: {}", cell(&first_line(error))), "–".to_owned()),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {fault} | {verdict} | {recovery} |");
    }
    text
}

fn again(spread: Spread) -> String {
    match spread.count {
        1 => seconds_of(spread.max_us),
        count => format!("{count} times: p50 {}, p99 {}", seconds_of(spread.p50_us), seconds_of(spread.p99_us)),
    }
}

/// What was seen of a fault, under a heading of its own.
fn details(Played { fault, outcome }: &Played, text: &mut String) {
    let row = match outcome {
        Ok(row) => row,
        Err(error) => {
            let _ = writeln!(text, "\n## {fault}\n- failed: {}", cell(&first_line(error)));
            return;
        }
    };
    let Row { what, noticed, told_stale, healed, publishes: [before, meanwhile], summary, notes, .. } = row;
    let Summary { acked, repeats, delivered, resumes, resets, gaps, not_recovered, fewest_copies, .. } = summary;
    let what = [*what].into_iter().chain(notes.iter().map(String::as_str)).collect::<Vec<_>>().join("; ");
    let noticed = noticed.as_ref().map_or("–".to_owned(), |(after, says)| format!("{}: {says}", seconds(*after)));
    let stale = told_stale.map_or("–".to_owned(), seconds);
    let copies = fewest_copies.map_or("–".to_owned(), |copies| copies.to_string());
    let lost =
        if *not_recovered > 0 { format!(", {not_recovered} told that not all can be had") } else { String::new() };
    let (what, noticed, healed) = (cell(&what), cell(&noticed), seconds(*healed));
    let _ = writeln!(
        text,
        "\n## {fault}\n- what happened: {what}\n- a node says so: {noticed}\n- told `stale`: {stale}\n- healed: {healed}\n\
         - publishes before: {before}; meanwhile: {meanwhile}\n\
         - publishes {acked}, repeats {repeats}; deliveries {delivered}; resumes {resumes}{lost}; resets {resets}, gaps {gaps}; \
         fewest copies {copies}"
    );
}

/// The most letters that are told of one thing.
const CELL: usize = 400;

/// As it may stand in a table.
fn cell(text: &str) -> String {
    let mut short: String = text.chars().take(CELL).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() && text.chars().count() > CELL {
        short.push('…');
    }
    short.replace('|', "\\|")
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn seconds_of(us: u64) -> String {
    seconds(Duration::from_micros(us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_as_many_cells_as_the_heading() {
        let row = Row {
            fault: "a".to_owned(),
            what: "b | c",
            noticed: Some((Duration::from_millis(1_234), "x".repeat(500))),
            acknowledged_again: Spread::of(vec![1_000_000, 2_000_000]),
            told_stale: None,
            healed: Duration::from_secs(2),
            publishes: [Spread::default(); 2],
            summary: Summary::default(),
            notes: vec!["seen\ntoo".to_owned()],
        };
        let failed = Played { fault: "d".to_owned(), outcome: Err(anyhow::anyhow!("e\nf")) };
        let text = document(&[Played { fault: "a".to_owned(), outcome: Ok(row) }, failed], 2, 3);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        let cells = |line: &&str| line.replace("\\|", "").matches('|').count();
        assert_eq!(rows.iter().map(cells).collect::<Vec<_>>(), [4; 4], "{text}");
        assert!(
            text.contains("| a | S1–S8 hold | 2 times: p50 2.0 s") && text.contains("| d | **failed**: e | – |"),
            "{text}"
        );
        assert!(text.contains("1 fell short: d.") && text.contains("- failed: e\n"), "{text}");
        assert!(text.contains("1.2 s: xxx") && text.contains("b \\| c; seen too"), "{text}");
    }
}
