//! Streams on the wire: asks for the next event whenever the reader has taken the one before.

use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::LeafIndex;
use epigraph_rpc::v1::follow_event::Event;
use epigraph_rpc::{Caller, ConvertError, Reason, Refusal, convert, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::read::refusal;
use super::{Answers, RETRY_LATER};
use crate::log::{Followed, Log, Reach, TooManyStreams};

pub(super) fn follow(
    log: &Arc<Log>,
    caller: &Caller,
    request: v1::FollowRequest,
) -> Result<Answers<v1::FollowEvent>, Refusal> {
    let out_of_range =
        |error: ConvertError| Refusal::new(Reason::BeyondTree, error.to_string()).at("first_index");
    let first: LeafIndex = convert::leaf_index(request.first_index).map_err(out_of_range)?;
    let follow = log.follow(first, caller.identity().clone(), caller.leave_by());
    let mut follow = follow.map_err(too_many)?;
    let (answers, stream) = answers();
    tokio::spawn(async move {
        // Nothing is read before there is room for it, and nothing after the reader has gone.
        while let Ok(room) = answers.reserve().await {
            let event = tokio::select! {
                event = follow.next() => event,
                () = answers.closed() => None,
            };
            let Some(event) = event else { return };
            room.send(event.map(to_wire).map_err(|error| refusal(error).into()));
        }
    });
    Ok(stream)
}

pub(super) fn watch_checkpoints(
    log: &Log,
    reach: Reach,
    caller: &Caller,
    request: v1::WatchCheckpointsRequest,
) -> Result<Answers<v1::WatchCheckpointsResponse>, Refusal> {
    if request.include_pending {
        return watch_pending(log, reach, caller, request);
    }
    let after = request.after_size.map(|size| convert::tree_size("after_size", size)).transpose()?;
    let watch = log.watch(after, caller.identity().clone(), caller.leave_by());
    let mut watch = watch.map_err(too_many)?;
    let (answers, stream) = answers();
    tokio::spawn(async move {
        while let Ok(room) = answers.reserve().await {
            let checkpoint = tokio::select! {
                checkpoint = watch.next() => checkpoint,
                () = answers.closed() => None,
            };
            let Some(checkpoint) = checkpoint else { return };
            let checkpoint = Bytes::copy_from_slice(checkpoint.note());
            room.send(Ok(v1::WatchCheckpointsResponse { checkpoint }));
        }
    });
    Ok(stream)
}

fn watch_pending(
    log: &Log,
    reach: Reach,
    caller: &Caller,
    request: v1::WatchCheckpointsRequest,
) -> Result<Answers<v1::WatchCheckpointsResponse>, Refusal> {
    if reach != Reach::Signed {
        let message = "heads that are not published are for the roles witness and monitor; see [[authorize]]";
        return Err(Refusal::new(Reason::PermissionDenied, message).at("include_pending"));
    }
    let mut watch = log.watch_pending(caller.identity().clone(), caller.leave_by()).map_err(too_many)?;
    if let Some(held) = request.held {
        log.witness_holds(
            caller.identity().clone(),
            Some(held.into()).filter(|held: &Vec<u8>| !held.is_empty()),
        );
    }
    let (answers, stream) = answers();
    tokio::spawn(async move {
        while let Ok(room) = answers.reserve().await {
            let signed = tokio::select! {
                signed = watch.next() => signed,
                () = answers.closed() => None,
            };
            let Some(signed) = signed else { return };
            let checkpoint = Bytes::copy_from_slice(signed.note().as_bytes());
            room.send(Ok(v1::WatchCheckpointsResponse { checkpoint }));
        }
    });
    Ok(stream)
}

/// Room for one answer.
fn answers<T: Send + 'static>() -> (mpsc::Sender<Result<T, Status>>, Answers<T>) {
    let (answers, taken) = mpsc::channel(1);
    (answers, Box::pin(ReceiverStream::new(taken)))
}

fn to_wire(event: Followed) -> v1::FollowEvent {
    let event = match event {
        Followed::Checkpoint(checkpoint) => Event::Checkpoint(Bytes::copy_from_slice(checkpoint.note())),
        Followed::Entries { first_index, entries } => {
            Event::Entries(v1::FollowEntries { first_index: first_index.get(), entries })
        }
        Followed::End(next) => Event::End(v1::FollowEnd { next_index: next.get() }),
    };
    v1::FollowEvent { event: Some(event) }
}

fn too_many(error: TooManyStreams) -> Refusal {
    Refusal::new(Reason::Overloaded, error.to_string()).retry_after(RETRY_LATER)
}
