//! Puts the leaf of every event into the log, once, in the order of their slots.
//!
//! A leaf was durable before the log is given it, and its slot is its number: after a crash, or an answer that got lost, the same
//! leaves go under the same numbers, and the log answers where they are. So a leaf is in the log once, whatever happens
//! on the way.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_client::producer::Producer;
use epigraph_client::{Client, ClientError};
use epigraph_core::Entropy;
use epigraph_core::backoff::spread_wait;
use epigraph_rpc::Wait;
use thiserror::Error;

use crate::keeper::{Ended, Keeper};
use crate::store::StoreError;

/// Leaves in one append: as many as the log takes. Below the window in which it recognises repeats.
const MOST: usize = 4_096;

/// How long nothing has to come before what was appended last is waited for, which makes the log publish it: a burst is published
/// once, and a collector that has sent all it has does not wait for the log's next checkpoint.
const QUIET: Duration = Duration::from_millis(20);

/// The pauses after the client has given up: its own attempts have taken minutes by then.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why no more leaves are appended.
#[derive(Debug, Error)]
pub enum AppendEnded {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's thread.
    #[error(transparent)]
    Keeper(#[from] Ended),
    /// The log is not the one that it was.
    #[error(
        "the log has {has} leaves of this audit service, and confirmed {confirmed}: it went back, or is another log. Do not go on \
         with it; compare its checkpoint with the one that this service has pinned"
    )]
    WentBack {
        /// What it has.
        has: u64,
        /// What it confirmed.
        confirmed: u64,
    },
    /// The store is not the one that it was.
    #[error(
        "the log has {has} leaves of this audit service, and its store has {kept} events: the store is an old copy. Put the newest copy of \
         its directory back; with this one, events would take the places of others"
    )]
    OldCopy {
        /// What the log has.
        has: u64,
        /// What is stored.
        kept: u64,
    },
    /// Somebody else appends under this service's name.
    #[error("another process appends leaves under this audit service's name: stop one of the two ({0})")]
    Fenced(ClientError),
}

/// Appends until the process ends. `trouble` is told why it waits, and `None` when it goes on.
pub async fn run(
    keeper: &Keeper,
    client: &Client,
    entropy: Arc<dyn Entropy>,
    trouble: impl Fn(Option<&str>),
) -> Result<(), AppendEnded> {
    let id = keeper.reader().producer()?;
    let mut attempts = 0_u32;
    loop {
        let placed = *keeper.placed().borrow();
        let error = match client.producer(id, Arc::clone(&entropy)).await {
            Ok(mut producer) => {
                if producer.next_sequence() < placed {
                    return Err(AppendEnded::WentBack { has: producer.next_sequence(), confirmed: placed });
                }
                // A leaf is durable before it is sent.
                let kept = *keeper.durable().borrow();
                if producer.next_sequence() > kept {
                    return Err(AppendEnded::OldCopy { has: producer.next_sequence(), kept });
                }
                // One call is under way at a time, so what the log has and did not confirm was one call. It is repeated as it was.
                let mut most = match usize::try_from(producer.next_sequence() - placed) {
                    Ok(0) | Err(_) => MOST,
                    Ok(unconfirmed) => unconfirmed,
                };
                producer.repeat_from(placed);
                let mut durable = keeper.durable();
                let mut last = None;
                loop {
                    let next = producer.next_sequence();
                    tokio::select! {
                        more = durable.wait_for(|durable| *durable > next) => drop(more.map_err(|_| Ended)?),
                        never = publish(&producer, last.take()) => match never {},
                    }
                    let reader = keeper.reader().clone();
                    let leaves = tokio::task::spawn_blocking(move || reader.leaves(next, most)).await;
                    let leaves = leaves.map_err(|_| Ended)??;
                    let leaves: Vec<_> = leaves.iter().map(|leaf| Bytes::copy_from_slice(leaf)).collect();
                    match producer.append(&leaves, Wait::Durable).await {
                        Ok(appended) => {
                            keeper.place(next, leaves.len() as u64, appended.first_index).await?;
                            last = leaves.last().cloned();
                            (attempts, most) = (0, MOST);
                            trouble(None);
                        }
                        Err(error) if is_fenced(&error) => return Err(AppendEnded::Fenced(error)),
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "the leaves of events wait for the log");
        trouble(Some(&error.to_string()));
        attempts = attempts.saturating_add(1);
        tokio::time::sleep(spread_wait(FIRST_PAUSE, LONGEST_PAUSE, attempts, &*entropy)).await;
    }
}

/// Makes the log publish what was appended last, once nothing more comes; without it that is published all the same, later. It is
/// left alone as soon as something comes.
async fn publish(producer: &Producer<'_>, last: Option<Bytes>) -> Infallible {
    if let Some(last) = last {
        tokio::time::sleep(QUIET).await;
        if let Err(error) = producer.wait_for_last(last).await {
            tracing::debug!(%error, "the last leaf was not waited for");
        }
    }
    pending().await
}

fn is_fenced(error: &ClientError) -> bool {
    matches!(error, ClientError::Call(epigraph_rpc::CallError::Refused(refusal))
        if refusal.reason() == epigraph_rpc::Reason::StaleEpoch)
}
