//! What other monitors have seen, pulled from them. Only heads with the log's own signature count, wherever they come from: so
//! another monitor can show a fork that was hidden from this one, and nothing else.

use std::time::Duration;

use epigraph_core::Origin;
use epigraph_rpc::CallError;
use epigraph_rpc::peer::Monitor;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{HEAD_GAP, Outbox};
use crate::event::Vantage;

/// Pages that are read of one monitor at a time: more heads than a monitor keeps of one log.
const MAX_PAGES: usize = 16;

/// Shows what another monitor has seen, for as long as it is polled.
pub async fn follow(monitor: &Monitor, origin: &Origin, vantage: &Vantage, poll: Duration, outbox: &Outbox) {
    let mut due = interval(poll);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        match pull(monitor, origin, vantage, outbox).await {
            Ok(()) => outbox.reached(vantage).await,
            Err(error) => outbox.unreachable(vantage, &error.to_string()).await,
        }
    }
}

async fn pull(
    monitor: &Monitor,
    origin: &Origin,
    vantage: &Vantage,
    outbox: &Outbox,
) -> Result<(), CallError> {
    let mut token = Some(String::new());
    for _ in 0..MAX_PAGES {
        let Some(asked) = token.take() else { break };
        let (seen, next) = monitor.checkpoints(origin.as_str(), &asked).await?;
        for seen in &seen {
            outbox.head(vantage, &seen.note).await;
            sleep(HEAD_GAP).await;
        }
        token = next;
    }
    Ok(())
}
