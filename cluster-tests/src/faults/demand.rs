//! Faults of what clients ask for: much more of one thing than of all others.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::scene::{STAY, Scene};
use crate::load;

/// Of each publisher to the hot group, after each message: with three of them it gets nine messages of ten.
const HOT_PAUSE: Duration = Duration::from_micros(2_200);

/// One group gets 90 % of all messages. Those of the others do not wait for it.
pub(super) async fn hot_group(scene: &mut Scene<'_>) -> Result<()> {
    let hot = load::groups(1).remove(0);
    let before = scene.received();
    let publishers = scene.publishers(&[0, 1, 2], &hot).await?;
    scene.begin();
    scene.heat(publishers, &hot, HOT_PAUSE, 0);
    scene.stay(STAY).await;
    scene.rest().await?;
    let after = scene.received();
    let of = |group: &str| after.get(group).unwrap_or(&0) - before.get(group).unwrap_or(&0);
    let (to_it, to_all) = (of(&hot), after.keys().map(|group| of(group)).sum::<u64>());
    let percent = 100 * to_it / to_all.max(1);
    ensure!(percent >= 80, "the hot group was to get nine messages of ten, and got {percent} %: the machine is slow");
    scene.note(format!("{to_it} of {to_all} messages that the first subscriber got ({percent} %) are of one group"));
    Ok(())
}
