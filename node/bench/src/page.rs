//! Reports as a page of HTML that needs nothing else: the text of each, and its plots.

use std::fmt::Write;

use crate::{
    plan::Scenario,
    report::Report,
    svg::{Bar, Curve, bars, curves, escape},
};

/// All of it.
pub fn page(reports: &[Report]) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>roost bench</title><style>\
         body{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}pre{background:#f4f4f4;padding:1rem;overflow:auto}\
         </style></head><body><h1>roost bench</h1>",
    );
    let each: Vec<Bar> = reports
        .iter()
        .filter_map(|report| {
            Some(Bar { label: report.plan.scenario.to_string(), value: report.cpu_us_each?, spread: None })
        })
        .collect();
    if !each.is_empty() {
        page += &bars("CPU of the server for each delivery, connect or return", "µs", &each);
    }
    for report in reports {
        let _ = write!(page, "<h2>{}</h2><pre>{}</pre>", report.plan.scenario, escape(&report.to_string()));
        let lines: Vec<Curve> = [("latency", &report.latency), ("answer", &report.answer)]
            .into_iter()
            .filter(|(_, times)| times.count > 0)
            .map(|(label, times)| Curve { label: label.to_owned(), points: times.curve.clone() })
            .collect();
        if !lines.is_empty() && report.plan.scenario != Scenario::Idle {
            page += &curves(&format!("{}: how many took at most how long", report.plan.scenario), &lines);
        }
    }
    page + "</body></html>\n"
}
