//! Every state of replication in the scopes of every day. `scripts/sim --explore` goes further.

use std::time::Instant;

use roost_simulation::explore::{SCOPES, Scope, Start, explore};

#[test]
#[expect(clippy::disallowed_methods, reason = "tells how fast it is")]
fn every_state_of_a_scope_is_right() {
    // Without optimisation the larger ones take minutes; scripts/check builds with it.
    let scopes: &[Scope] = if cfg!(debug_assertions) { &[Scope::new(Start::Settled, 1, 1, 1)] } else { &SCOPES };
    for scope in scopes {
        let start = Instant::now();
        let report = explore(*scope, |_| {});
        println!("{scope}: {report}, {:.1} s", start.elapsed().as_secs_f64());
        assert!(report.complete && report.found.is_none(), "{scope}: {report}");
        assert!(report.states > 1_000, "{scope}: {report}");
    }
}

#[test]
fn an_exploration_is_the_same_twice() {
    let scope = Scope::new(Start::Settled, 1, 1, 0);
    assert_eq!(explore(scope, |_| {}), explore(scope, |_| {}));
}
