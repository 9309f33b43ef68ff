//! The table of what was seen: one row for each fault.

use std::{fmt::Write, time::Duration};

use crate::{history::Summary, latency::Spread};

/// What was seen of a fault that did no harm.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in the catalogue.
    pub fault: &'static str,
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
    /// What the history holds.
    pub summary: Summary,
    /// What else was seen.
    pub notes: Vec<String>,
}

/// How a fault came out.
#[derive(Debug)]
pub struct Played {
    /// Its name in the catalogue.
    pub fault: &'static str,
    /// The row, or what went wrong.
    pub outcome: anyhow::Result<Row>,
}

/// The table with what a reader needs to know about it.
pub fn document(played: &[Played], cores: usize, minutes: u64) -> String {
    let failed = played.iter().filter(|one| one.outcome.is_err()).count();
    format!(
        "# Faults of real processes, and what was seen\n\n\
         Made by `scripts/faults --table cluster-tests/FAULTS.md`: {} faults in {minutes} minutes on {cores} cores, which nodes, \
         clients and Cassandra shared; {failed} failed. `scripts/faults NAME` plays one of them again.\n\n\
         Three nodes where nothing else is said, each a process in a network namespace, over one real Cassandra; on each a \
         publisher (50 messages a second to 12 groups in turn) and a subscriber to all groups, which leave a node of which they \
         hear nothing for 4 s. After each fault all is healed, every publish answered, and the history of what all clients saw \
         is checked for S1 to S8 of the promises: no acknowledged message missing, none twice, none out of order, no hole \
         that was not announced.\n\n\
         - *a node says so*: until the first node that answers reports that something is wrong, and what it says first.\n\
         - *acknowledged again*: from the fault's beginning until publishes that began after it were acknowledged in every \
         group, by whichever node they went to.\n\
         - *told `stale`*: until the last client that was told of a group it does not hear knew it.\n\
         - *healed*: from the fault's end, restarts included, until every node reports green and every subscriber got more of \
         every group.\n\n{}",
        played.len(),
        markdown(played),
    )
}

/// The table in Markdown, its heading included.
pub fn markdown(played: &[Played]) -> String {
    let mut text = String::from(
        "| fault | what happened | a node says so | acknowledged again in every group | told `stale` | healed | publishes, repeats | deliveries | resumes | resets, gaps | fewest copies | verdict |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for Played { fault, outcome } in played {
        let _ = match outcome {
            Ok(row) => writeln!(text, "{}", line(row)),
            Err(error) => writeln!(text, "| {fault} | {} | | | | | | | | | | **failed** |", cell(&first_line(error))),
        };
    }
    text
}

fn line(row: &Row) -> String {
    let Row { fault, what, noticed, acknowledged_again: again, told_stale, healed, summary, notes } = row;
    let Summary { acked, repeats, delivered, resumes, resets, gaps, not_recovered, fewest_copies, .. } = summary;
    let mut what = (*what).to_owned();
    for note in notes {
        what += "; ";
        what += note;
    }
    let noticed = noticed.as_ref().map_or("–".to_owned(), |(after, says)| format!("{}: {says}", seconds(*after)));
    let again = match again.count {
        1 => seconds_of(again.max_us),
        count => {
            format!("{count} times: p50 {}, p99 {}", seconds_of(again.p50_us), seconds_of(again.p99_us))
        }
    };
    let stale = told_stale.map_or("–".to_owned(), seconds);
    let copies = fewest_copies.map_or("–".to_owned(), |copies| copies.to_string());
    let lost =
        if *not_recovered > 0 { format!(", {not_recovered} told that not all can be had") } else { String::new() };
    format!(
        "| {fault} | {} | {} | {again} | {stale} | {} | {acked}, {repeats} | {delivered} | {resumes}{lost} | {resets}, {gaps} | {copies} | S1–S8 hold |",
        cell(&what),
        cell(&noticed),
        seconds(*healed),
    )
}

/// As it may stand in a table.
fn cell(text: &str) -> String {
    let mut short: String = text.chars().take(240).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() && text.chars().count() > 240 {
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
            fault: "a",
            what: "b | c",
            noticed: Some((Duration::from_millis(1_234), "x".repeat(300))),
            acknowledged_again: Spread::of(vec![1_000_000, 2_000_000]),
            told_stale: None,
            healed: Duration::from_secs(2),
            summary: Summary::default(),
            notes: vec!["seen\ntoo".to_owned()],
        };
        let failed = Played { fault: "d", outcome: Err(anyhow::anyhow!("e\nf")) };
        let text = markdown(&[Played { fault: "a", outcome: Ok(row) }, failed]);
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        let counts: Vec<usize> = text.lines().map(cells).collect();
        assert!(counts.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert_eq!(counts.len(), 4);
        assert!(
            text.contains("2 times: p50 2.0 s") && text.contains("1.2 s: xxx") && text.contains("b \\| c"),
            "{text}"
        );
    }
}
