//! The lying log on the wire: every call of an honest log, answered from what this caller is to believe.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::{LeafIndex, TreeSize};
use epigraph_rpc::limits::{MAX_APPEND_ENTRIES, MAX_READ_BYTES};
use epigraph_rpc::v1::follow_event::Event;
use epigraph_rpc::v1::get_proof_request::Target;
use epigraph_rpc::v1::log_service_server::LogService;
use epigraph_rpc::{Caller, Reason, Refusal, SpiffeId, Wait, convert, v1};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::lie::View;
use super::log::LyingLog;

/// When to ask again for what is not published yet.
const RETRY_SOON: Duration = Duration::from_millis(100);

/// The calls of the lying log.
pub struct Service(pub Arc<LyingLog>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// Who calls, if they may use this log.
    fn caller<T>(&self, request: &Request<T>, origin: &str) -> Result<Caller, Refusal> {
        let caller = Caller::of(request)?;
        let own = self.0.origin.as_str();
        let origin = caller.authorize(if origin.is_empty() { own } else { origin })?;
        if origin.get().as_str() != own {
            return Err(Refusal::new(Reason::UnknownOrigin, "there is no such log here").at("origin"));
        }
        Ok(caller.clone())
    }

    /// Answers from what the caller is shown.
    fn answer<T>(
        &self,
        caller: &Caller,
        answer: impl FnOnce(View<'_>) -> Result<T, Refusal>,
    ) -> Result<Response<T>, Status> {
        Ok(Response::new(answer(self.0.world().view(caller.identity()))?))
    }

    /// The proofs of new entries, when what this caller is shown covers them.
    fn receipts(
        &self,
        caller: &SpiffeId,
        first: u64,
        count: u32,
    ) -> Option<(Bytes, Vec<v1::InclusionProof>)> {
        let world = self.0.world();
        let view = world.view(caller);
        let newest = view.newest.filter(|newest| newest.size.get() >= first + u64::from(count))?;
        let proof = |index| {
            let proof = view.history.inclusion(LeafIndex::new(index)?, newest.size)?;
            Some(v1::InclusionProof { hashes: convert::proof_to_wire(&proof.hashes) })
        };
        let proofs = (first..first + u64::from(count)).map(proof).collect::<Option<_>>()?;
        Some((newest.note.clone(), proofs))
    }
}

#[tonic::async_trait]
impl LogService for Service {
    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let v1::AppendRequest { entries, wait, wait_ms, .. } = request.into_inner();
        let asked = Wait::asked(wait).map_err(Refusal::from)?;
        if !(1..=MAX_APPEND_ENTRIES).contains(&entries.len()) {
            return Err(Refusal::new(Reason::TooManyEntries, "a call has 1 to 4,096 entries").into());
        }
        let count = entries.len() as u32;
        let full = |_| Refusal::new(Reason::NoSpace, "this log is for a demo and takes no more entries");
        let first_index = self.0.world().append(entries, asked).map_err(full)?;
        let mut changes = self.0.changes();
        self.0.changed();
        let published = async {
            loop {
                if let Some(receipts) = self.receipts(caller.identity(), first_index, count) {
                    return receipts;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let receipts = match asked {
            Wait::Durable => None,
            Wait::Published => timeout(convert::wait_for(wait_ms), published).await.ok(),
        };
        let reached = if receipts.is_some() { Wait::Published } else { Wait::Durable }.to_wire();
        let (checkpoint, proofs) = receipts.unwrap_or_default();
        Ok(Response::new(v1::AppendResponse {
            first_index,
            count,
            reached,
            checkpoint,
            proofs,
            unpublished_because: String::new(),
        }))
    }

    type AppendStreamStream = Answers<v1::AppendResponse>;

    async fn append_stream(
        &self,
        _: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        Err(not_here())
    }

    async fn get_producer(
        &self,
        _: Request<v1::GetProducerRequest>,
    ) -> Result<Response<v1::GetProducerResponse>, Status> {
        Err(not_here())
    }

    async fn get_proof(
        &self,
        request: Request<v1::GetProofRequest>,
    ) -> Result<Response<v1::GetProofResponse>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let v1::GetProofRequest { target, tree_size, consistent_from, .. } = request.into_inner();
        self.answer(&caller, |view| {
            let newest = view.newest.ok_or_else(not_yet)?;
            let size = if tree_size == 0 { newest.size } else { size("tree_size", tree_size)? };
            let index = match target {
                Some(Target::LeafIndex(index)) => LeafIndex::new(index).ok_or_else(beyond)?,
                Some(Target::LeafHash(leaf)) => {
                    let leaf = convert::hash("leaf_hash", &leaf)?;
                    let unknown = || Refusal::new(Reason::LeafNotFound, "no entry with this hash is known");
                    view.history.find(&leaf).ok_or_else(unknown)?
                }
                None => return Err(Refusal::new(Reason::Malformed, "`target` is missing")),
            };
            if size > newest.size {
                return Err(beyond());
            }
            if !size.contains(index) {
                return Err(if index.get() < view.history.size() { not_yet() } else { beyond() });
            }
            let proof = view.history.inclusion(index, size).ok_or_else(beyond)?;
            let consistency = match consistent_from {
                0 => Vec::new(),
                old => {
                    let old = self::size("consistent_from", old)?;
                    view.history.consistency(old, size).ok_or_else(bad_size)?.hashes
                }
            };
            Ok(v1::GetProofResponse {
                leaf_index: index.get(),
                hashes: convert::proof_to_wire(&proof.hashes),
                checkpoint: if size == newest.size { newest.note.clone() } else { Bytes::new() },
                consistency: convert::proof_to_wire(&consistency),
            })
        })
    }

    async fn get_entries(
        &self,
        request: Request<v1::GetEntriesRequest>,
    ) -> Result<Response<v1::GetEntriesResponse>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let v1::GetEntriesRequest { first_index, max_entries, .. } = request.into_inner();
        self.answer(&caller, |view| {
            let entries = entries(&view, first_index, u64::from(convert::read_entries(max_entries)));
            match entries.is_empty() {
                true if first_index < view.history.size() => Err(not_yet()),
                true => Err(beyond()),
                false => Ok(v1::GetEntriesResponse { first_index, entries }),
            }
        })
    }

    type FollowStream = Answers<v1::FollowEvent>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let (log, mut next) = (Arc::clone(&self.0), request.get_ref().first_index);
        Ok(Response::new(stream(caller, log, move |view| {
            let newest = view.newest.filter(|newest| newest.size.get() > next)?;
            let entries = entries(view, next, newest.size.get() - next);
            let first_index = next;
            next += entries.len() as u64;
            let events = [
                Event::Checkpoint(newest.note.clone()),
                Event::Entries(v1::FollowEntries { first_index, entries: entries.iter().collect() }),
            ];
            Some(events.map(|event| v1::FollowEvent { event: Some(event) }).into())
        })))
    }

    async fn get_tile(
        &self,
        request: Request<v1::GetTileRequest>,
    ) -> Result<Response<v1::GetTileResponse>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let v1::GetTileRequest { level, index, width, .. } = request.into_inner();
        self.answer(&caller, |view| {
            let hashes = view.history.tile(level, index, convert::tile_width(width)).ok_or_else(beyond)?;
            let bytes: Vec<u8> = hashes.iter().flat_map(|hash| *hash.as_bytes()).collect();
            Ok(v1::GetTileResponse { hashes: bytes.into() })
        })
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::GetConsistencyProofResponse>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let v1::GetConsistencyProofRequest { old_size, new_size, .. } = request.into_inner();
        self.answer(&caller, |view| {
            let (old, new) = (size("old_size", old_size)?, size("new_size", new_size)?);
            if old == TreeSize::ZERO || old > new {
                return Err(bad_size());
            }
            let proof = view.history.consistency(old, new).ok_or_else(beyond)?;
            Ok(v1::GetConsistencyProofResponse { hashes: convert::proof_to_wire(&proof.hashes) })
        })
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        self.answer(&caller, |view| {
            let newest = view.newest.ok_or_else(not_yet)?;
            Ok(v1::GetCheckpointResponse { checkpoint: newest.note.clone() })
        })
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let v1::ListCheckpointsRequest { min_size, page_size, .. } = request.into_inner();
        self.answer(&caller, |view| {
            let shown = view.size();
            let published = view.history.published().iter();
            let asked = published.filter(|one| (min_size..=shown).contains(&one.size.get()));
            let page = asked.take(convert::list_page(page_size) as usize);
            let checkpoints = page.map(|one| one.note.clone()).collect();
            Ok(v1::ListCheckpointsResponse { checkpoints, next_page_token: String::new() })
        })
    }

    async fn add_cosignature(
        &self,
        _: Request<v1::AddCosignatureRequest>,
    ) -> Result<Response<v1::AddCosignatureResponse>, Status> {
        Err(not_here())
    }

    type WatchCheckpointsStream = Answers<v1::WatchCheckpointsResponse>;

    async fn watch_checkpoints(
        &self,
        request: Request<v1::WatchCheckpointsRequest>,
    ) -> Result<Response<Self::WatchCheckpointsStream>, Status> {
        let caller = self.caller(&request, &request.get_ref().origin)?;
        let mut after = request.get_ref().after_size.unwrap_or_default();
        Ok(Response::new(stream(caller, Arc::clone(&self.0), move |view| {
            let newest = view.newest.filter(|newest| newest.size.get() > after)?;
            after = newest.size.get();
            Some(vec![v1::WatchCheckpointsResponse { checkpoint: newest.note.clone() }])
        })))
    }
}

/// Sends what there is for this caller, and again after each change, until its connection is asked to leave.
fn stream<T: Send + 'static>(
    caller: Caller,
    log: Arc<LyingLog>,
    mut next: impl FnMut(&View<'_>) -> Option<Vec<T>> + Send + 'static,
) -> Answers<T> {
    let (answers, stream) = mpsc::channel(1);
    let mut changes = log.changes();
    let sending = async move {
        loop {
            let events = next(&log.world().view(caller.identity()));
            for event in events.into_iter().flatten() {
                if answers.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = answers.closed() => return,
                () = sleep_until(caller.leave_by()) => return,
            }
        }
    };
    tokio::spawn(sending);
    Box::pin(ReceiverStream::new(stream))
}

/// Entries as this caller is served them, as many as fit into an answer.
fn entries(view: &View<'_>, first: u64, most: u64) -> Vec<Bytes> {
    let end = view.size().min(first.saturating_add(most));
    let mut bytes = 0;
    let fits = |entry: &Bytes| {
        bytes += entry.len();
        bytes <= MAX_READ_BYTES
    };
    (first..end).map_while(|index| view.entry(index)).take_while(fits).collect()
}

fn size(field: &'static str, size: u64) -> Result<TreeSize, Refusal> {
    Ok(convert::tree_size(field, size)?)
}

fn not_yet() -> Refusal {
    Refusal::new(Reason::NotYetPublished, "no published checkpoint covers this yet").retry_after(RETRY_SOON)
}

fn beyond() -> Refusal {
    Refusal::new(Reason::BeyondTree, "the log does not reach this far")
}

fn bad_size() -> Refusal {
    Refusal::new(Reason::BadSize, "these sizes do not go together")
}

/// What no demo needs, a lying log does not have.
fn not_here() -> Status {
    Refusal::new(Reason::UnknownRpc, "this log is for a demo and does not have this call").into()
}
