//! Drives the scrubber of a running log: once soon after the start, then once a day, slowly enough to be in nobody's way.
//!
//! Damage to the journal ends the process. A log that cannot read its own past must not go on as if it could, and whoever
//! runs it has to know while there is still a copy to restore from.

use std::time::Duration;

use epigraph_core::{Clock, UnixMillis};
use epigraph_store::scrub::{Progress, Scrubber};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::failure::Failure;

/// Read at once, between two pauses.
const STEP_BYTES: u64 = 1024 * 1024;

/// With [`STEP_BYTES`] at most 32 MiB a second: a log of 100 GiB is read in an hour.
const STEP_PAUSE: Duration = Duration::from_millis(30);

/// From the end of a pass to the next.
const PASS_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// How far the scrubber is.
#[derive(Clone, Copy, Default)]
pub struct Scrubbed {
    pub progress: Progress,
    /// When the last full pass ended.
    pub last_full_pass_at: Option<UnixMillis>,
}

/// Runs until it finds damage, and returns that. The tree must have caught up with the journal.
pub async fn run(mut scrubber: Scrubber, clock: &dyn Clock, told: &watch::Sender<Scrubbed>) -> Failure {
    let mut passes = 0;
    loop {
        let step = tokio::task::spawn_blocking(move || {
            let result = scrubber.step(STEP_BYTES);
            (scrubber, result)
        });
        let progress = match step.await {
            Ok((back, Ok(progress))) => {
                scrubber = back;
                progress
            }
            Ok((_, Err(damage))) => return Failure::state(format_args!("the log is damaged: {damage}")),
            Err(error) => return Failure::state(error),
        };
        let ended = progress.passes > passes;
        told.send_modify(|told| {
            told.progress = progress;
            told.last_full_pass_at = if ended { Some(clock.now()) } else { told.last_full_pass_at };
        });
        if ended {
            passes = progress.passes;
            let entries = progress.last_full_pass.map_or(0, |size| size.get());
            tracing::info!(
                entries,
                tiles_repaired = progress.repaired,
                "everything was read again and is as it was written"
            );
            sleep(PASS_PAUSE).await;
        } else {
            sleep(STEP_PAUSE).await;
        }
    }
}
