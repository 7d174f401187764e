//! What other monitors have seen, pulled from them. Only heads with the log's own signature count, wherever they come from: so
//! another monitor can show a fork that was hidden from this one, and nothing else.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::Origin;
use epigraph_rpc::CallError;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{HEAD_GAP, Outbox};
use crate::event::Vantage;

/// Pages that are read of one monitor at a time: more heads than a monitor keeps of one log.
const MAX_PAGES: usize = 16;

/// Heads that are looked at of one page.
const MAX_HEADS: usize = 1_000;

/// Another monitor.
pub trait OtherMonitor: Send + Sync {
    /// Asks for one page of the heads that it has seen: signed notes, and the token of the next page.
    fn heads(
        &self,
        origin: &Origin,
        page_token: &str,
    ) -> impl Future<Output = Result<(Vec<Bytes>, Option<String>), CallError>> + Send;
}

/// Shows what another monitor has seen, for as long as it is polled.
pub async fn follow<M: OtherMonitor>(
    monitor: &M,
    origin: &Origin,
    vantage: &Vantage,
    poll: Duration,
    outbox: &Outbox,
) {
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

async fn pull<M: OtherMonitor>(
    monitor: &M,
    origin: &Origin,
    vantage: &Vantage,
    outbox: &Outbox,
) -> Result<(), CallError> {
    let mut token = Some(String::new());
    for _ in 0..MAX_PAGES {
        let Some(asked) = token.take() else { break };
        let (notes, next) = monitor.heads(origin, &asked).await?;
        for note in notes.iter().take(MAX_HEADS) {
            outbox.head(vantage, note).await;
            sleep(HEAD_GAP).await;
        }
        token = next;
    }
    Ok(())
}
