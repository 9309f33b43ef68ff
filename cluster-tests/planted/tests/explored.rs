//! The exploration finds a bug of each rule, and more of some.

use planted_bugs::{
    explore::{Scope, Start, explore},
    table::TABLE,
    with,
};

/// Each bug of a rule, and a scope in which it shows.
const SCOPES: [(&str, Scope); 19] = [
    ("CommitsAlone", Scope::new(Start::Settled, 1, 1, 0)),
    ("CommitsByTheFirst", Scope::new(Start::Three, 1, 0, 0)),
    ("FollowerApplies", Scope::new(Start::Settled, 1, 1, 0)),
    ("ShrinksEarly", Scope::new(Start::Settled, 1, 1, 0)),
    ("PromotesUnsynced", Scope::new(Start::Alone, 1, 2, 0)),
    ("ExpandsLate", Scope::new(Start::Learning, 1, 1, 0)),
    ("CountsOldAcks", Scope::new(Start::Three, 1, 2, 0)),
    ("AnyoneTakesOver", Scope::new(Start::Learning, 1, 1, 0)),
    ("ForgetsTheLiving", Scope::new(Start::Alone, 1, 1, 0)),
    ("ServesTooSoon", Scope::new(Start::Settled, 1, 1, 0)),
    ("IgnoresTheTerm", Scope::new(Start::Settled, 2, 2, 0)),
    ("KeepsItsSuffix", Scope::new(Start::Settled, 2, 1, 0)),
    ("ReconcilesInSteps", Scope::new(Start::Three, 2, 1, 0)),
    ("ReconcilesByLength", Scope::new(Start::Settled, 2, 1, 0)),
    ("KnowsOnlyNodes", Scope::new(Start::Settled, 1, 1, 1).with_restarts()),
    ("RestartedIsAlive", Scope::new(Start::Settled, 1, 1, 1).with_restarts()),
    ("TakesOldMaps", Scope::new(Start::Alone, 1, 2, 0)),
    ("CarriesOutOldRequests", Scope::new(Start::Learning, 1, 1, 0)),
    ("LeavesHoles", Scope::new(Start::Learning, 1, 1, 0)),
];

#[test]
fn every_bug_of_a_rule_is_found() {
    if cfg!(debug_assertions) {
        // Without optimisation it takes minutes; scripts/check builds with it.
        return;
    }
    // Of a bug that the code's own assertions find, the steps that lead there are enough.
    std::panic::set_hook(Box::new(|_| {}));
    let of_rules: Vec<_> = TABLE.iter().filter(|bug| bug.breaks.starts_with("rule")).map(|bug| bug.name).collect();
    let mut missing: Vec<_> = of_rules.iter().filter(|name| SCOPES.iter().all(|(other, _)| other != *name)).collect();
    for bug in TABLE {
        let Some((name, scope)) = SCOPES.iter().find(|(name, _)| *name == bug.name) else { continue };
        let report = with(Some(name), || explore(*scope, |_| {}));
        println!("{name} ({}), {scope}: {report}", bug.breaks);
        if report.found.is_none_or(|found| found.trace.is_empty()) {
            missing.push(&bug.name);
        }
    }
    assert!(missing.is_empty(), "the exploration is blind to {missing:?}");
    let rules = |rule: u8| {
        of_rules.iter().any(|name| TABLE.iter().any(|bug| bug.name == *name && bug.breaks.contains(&rule.to_string())))
    };
    assert!((1..=6).all(rules), "a rule has no bug");
}

#[test]
fn without_a_bug_the_copies_hold() {
    let scope = Scope::new(Start::Settled, 1, 1, 0);
    let report = with(None, || explore(scope, |_| {}));
    assert!(report.complete && report.found.is_none(), "{report}");
}
