//! The newest head of a log, or of a witness: watched, and asked for again and again. Both, because a server that pushes one
//! thing may answer another.

use std::time::Duration;

use bytes::Bytes;
use epigraph_rpc::CallError;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{HEAD_GAP, HeadSource, Outbox, Pushed, shows_nothing};
use crate::event::Vantage;

/// Shows what a source shows, for as long as it is polled.
pub async fn follow<S: HeadSource>(source: &S, vantage: &Vantage, poll: Duration, outbox: &Outbox) {
    let watching = async {
        // Never ends.
        let mut failures = 0;
        loop {
            let before = failures;
            if let Err(error) = watch(source, vantage, outbox, &mut failures).await {
                tracing::debug!(vantage = vantage.name, %error, "watching heads");
            }
            // A stream that ends without a head is no better than none.
            if failures == before {
                failures = failures.saturating_add(1);
            }
            sleep(outbox.wait(failures)).await;
        }
    };
    tokio::join!(watching, ask(source, vantage, poll, outbox));
}

/// One stream of heads. Its failures are not told: what cannot be watched is still asked for.
async fn watch<S: HeadSource>(
    source: &S,
    vantage: &Vantage,
    outbox: &Outbox,
    failures: &mut u32,
) -> Result<(), CallError> {
    let mut pushed = source.watch().await?;
    while let Some(note) = pushed.next().await? {
        *failures = 0;
        outbox.head(vantage, &note).await;
        sleep(HEAD_GAP).await;
    }
    Ok(())
}

async fn ask<S: HeadSource>(source: &S, vantage: &Vantage, poll: Duration, outbox: &Outbox) {
    let mut due = interval(poll);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        tell(source.newest().await, vantage, outbox).await;
    }
}

async fn tell(newest: Result<Bytes, CallError>, vantage: &Vantage, outbox: &Outbox) {
    match newest {
        Ok(note) => {
            outbox.reached(vantage).await;
            outbox.head(vantage, &note).await;
        }
        Err(error) if shows_nothing(&error) => outbox.reached(vantage).await,
        Err(error) => outbox.unreachable(vantage, &error.to_string()).await,
    }
}
