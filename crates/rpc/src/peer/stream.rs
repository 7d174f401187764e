//! Calls that the log answers for as long as it likes: published checkpoints, and entries as they are published.
//!
//! A stream may be silent for ever: that nothing happens is legal. A server that is gone is noticed by the connection's
//! keepalive. Only the beginning has a deadline.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::note::SignatureLine;
use epigraph_core::{LeafIndex, TreeSize};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::{Log, call, check_entries, expect, present};
use crate::convert::{ConvertError, leaf_index};
use crate::entries::Entries;
use crate::limits::CALL_DEADLINE;
use crate::status::CallError;
use crate::v1;
use crate::v1::follow_event::Event;

/// What a log says on a stream of entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FollowEvent {
    /// The signed note of a published checkpoint; the entries that it covers follow.
    Checkpoint(Bytes),
    /// Entries without gaps from those before; one at least.
    Entries {
        /// The index of the first one.
        first_index: LeafIndex,
        /// Their bytes.
        entries: Entries,
    },
    /// The last event: ask again for what follows this index, which is after the last entry that came.
    End(LeafIndex),
}

/// Entries as they are published.
#[derive(Debug)]
pub struct Follow {
    events: Streaming<v1::FollowEvent>,
    next: LeafIndex,
}

/// Checkpoints as they are published.
#[derive(Debug)]
pub struct Watch(Streaming<v1::WatchCheckpointsResponse>);

impl Log {
    /// Asks for the entries from `first` on, as they are published.
    pub async fn follow(&self, origin: &str, first: LeafIndex) -> Result<Follow, CallError> {
        let request = v1::FollowRequest { origin: origin.into(), first_index: first.get() };
        let mut client = self.client.clone();
        let events = open(request, CALL_DEADLINE, |request| client.follow(request)).await?;
        Ok(Follow { events, next: first })
    }

    /// Asks for published checkpoints, those above a size only or from the newest on.
    pub async fn watch_checkpoints(
        &self,
        origin: &str,
        after_size: Option<TreeSize>,
    ) -> Result<Watch, CallError> {
        let after_size = after_size.map(TreeSize::get);
        let request = v1::WatchCheckpointsRequest { origin: origin.into(), after_size, ..Default::default() };
        let mut client = self.client.clone();
        Ok(Watch(open(request, CALL_DEADLINE, |request| client.watch_checkpoints(request)).await?))
    }

    /// Asks to be told of heads when they are signed, published or not. A witness says what it `held` last: the note with the log's
    /// signature and its own, empty if it never cosigned one; or it does not say.
    pub async fn watch_pending(&self, origin: &str, held: Option<Bytes>) -> Result<Watch, CallError> {
        let origin = origin.into();
        let request = v1::WatchCheckpointsRequest { origin, after_size: None, include_pending: true, held };
        let mut client = self.client.clone();
        Ok(Watch(open(request, CALL_DEADLINE, |request| client.watch_checkpoints(request)).await?))
    }

    /// Hands in cosignatures of the pending head of this size.
    pub async fn add_cosignature(
        &self,
        origin: &str,
        size: TreeSize,
        lines: &[SignatureLine],
    ) -> Result<(), CallError> {
        let signatures = lines.iter().map(|line| format!("{line}\n")).collect::<String>().into();
        let (origin, size) = (origin.into(), size.get());
        let request = v1::AddCosignatureRequest { origin, size, signatures, ..Default::default() };
        let mut client = self.client.clone();
        call(request, CALL_DEADLINE, |request| client.add_cosignature(request)).await?;
        Ok(())
    }

    /// Tells, as a witness, that the pending head of this size does not extend the one that is held, whose note this is.
    pub async fn report_conflict(&self, origin: &str, size: TreeSize, held: Bytes) -> Result<(), CallError> {
        let (origin, size) = (origin.into(), size.get());
        let request = v1::AddCosignatureRequest { origin, size, held, ..Default::default() };
        let mut client = self.client.clone();
        call(request, CALL_DEADLINE, |request| client.add_cosignature(request)).await?;
        Ok(())
    }
}

impl Follow {
    /// The next event, which continues those before it; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<FollowEvent>, CallError> {
        let Some(event) = self.events.message().await? else { return Ok(None) };
        Ok(Some(match event.event.ok_or(ConvertError::Missing("event"))? {
            Event::Checkpoint(note) => FollowEvent::Checkpoint(present("checkpoint", note)?),
            Event::Entries(v1::FollowEntries { first_index, entries }) => {
                expect("first_index", self.next.get(), first_index)?;
                let count = check_entries(self.next, entries.iter())?;
                let first_index = self.next;
                self.next =
                    first_index.checked_add(count).ok_or(ConvertError::IndexTooLarge(first_index.get()))?;
                FollowEvent::Entries { first_index, entries }
            }
            Event::End(v1::FollowEnd { next_index }) => {
                expect("next_index", self.next.get(), next_index)?;
                FollowEvent::End(leaf_index(next_index)?)
            }
        }))
    }
}

impl Watch {
    /// The next signed note; `None` when the server wants the client to connect anew.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some(answer) = self.0.message().await? else { return Ok(None) };
        Ok(Some(present("checkpoint", answer.checkpoint)?))
    }
}

/// Opens a stream. The deadline is for its beginning alone and does not travel: the server would end the stream by it.
async fn open<M, A, F>(
    message: M,
    deadline: Duration,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<Streaming<A>, CallError>
where
    F: Future<Output = Result<Response<Streaming<A>>, Status>>,
{
    let opened = timeout(deadline, send(Request::new(message))).await;
    Ok(opened.map_err(|_| CallError::TimedOut)??.into_inner())
}
