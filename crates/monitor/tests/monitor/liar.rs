//! A log in memory behind mutual TLS that serves what a test tells it to.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::proof::prove_inclusion;
use epigraph_core::{LeafIndex, TreeHead};
use epigraph_rpc::v1::follow_event::Event;
use epigraph_rpc::v1::get_proof_request::Target;
use epigraph_rpc::v1::log_service_server::LogService;
use epigraph_rpc::{Caller, Reason, Refusal, Routes, convert, log_service, v1};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::pki::Serving;
use crate::trees::{Tree, entries, entry, note_of, size};

/// Entries of one event.
const EVENT: usize = 100;

/// From one entry to the next of a log that dribbles: just soon enough for whoever waits half a minute for something to come.
const DRIBBLE: Duration = Duration::from_secs(25);

/// How it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    /// As an honest log of its history does.
    Honest,
    /// It proves nothing.
    ProvesNothing,
    /// Every proof is 63 hashes of nothing.
    Garbage,
    /// Every proof has more hashes than any tree is high.
    TooLong,
    /// It refuses every call for a while.
    Away,
    /// It sends one entry, and the next one when everybody has nearly given up.
    Dribbles,
    /// It says that it has entries and sends none.
    Withholds,
    /// Its streams of entries end at once.
    Ends,
    /// It sends entries beyond those that it published.
    Endless,
    /// It takes every call and answers none.
    Hangs,
    /// Each time that it is asked for its newest head it is of another size.
    Contradicts,
}

/// What it is and shows.
pub struct World {
    pub served: Vec<Bytes>,
    pub tree: Tree,
    pub mood: Mood,
    /// As large as it says it is, where that is more than it serves.
    pub pretends: u64,
    /// The reader to whom one entry is served with other bytes.
    pub changed_for: Option<(&'static str, usize)>,
    /// In place of its newest head.
    pub note: Option<Bytes>,
    /// How often it was asked for its newest head.
    asked: u64,
    /// Where each stream of entries began.
    pub follows: Vec<u64>,
    /// Questions for proofs.
    pub proofs: usize,
}

/// The log, and its address.
pub struct Liar {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    pub serving: Serving,
}

impl World {
    fn size(&self) -> u64 {
        self.pretends.max(self.served.len() as u64)
    }

    pub fn head(&self) -> TreeHead {
        self.tree.head(self.size())
    }

    fn note(&mut self) -> Bytes {
        if self.mood == Mood::Contradicts {
            self.asked += 1;
            return note_of(&self.tree.head(self.size() / (1 + self.asked % 3))).into();
        }
        self.note.clone().unwrap_or_else(|| note_of(&self.head()).into())
    }
}

impl Liar {
    /// A log of these entries.
    pub async fn start(served: Vec<Bytes>) -> Liar {
        let tree = Tree::of(&served);
        let world = World {
            served,
            tree,
            mood: Mood::Honest,
            pretends: 0,
            changed_for: None,
            note: None,
            asked: 0,
            follows: Vec::new(),
            proofs: 0,
        };
        let world = Arc::new(Mutex::new(world));
        let (changed, changes) = watch::channel(0);
        let service = Service { world: Arc::clone(&world), changes };
        let serving = Serving::start(Routes::new(log_service(service))).await;
        Liar { world, changed, serving }
    }

    /// A log of `leaves` entries, which differ from those of others from `fork` on.
    pub async fn of(leaves: u64, fork: u64, world: u8) -> Liar {
        Liar::start(entries(leaves, fork, world)).await
    }

    /// Changes something about it.
    pub fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world());
        self.changed.send_modify(|count| *count += 1);
    }

    /// It has these entries now.
    pub fn become_of(&self, leaves: u64, fork: u64, label: u8) {
        self.change(|world| {
            world.served = entries(leaves, fork, label);
            world.tree = Tree::of(&world.served);
        });
    }

    pub fn mood(&self, mood: Mood) {
        self.change(|world| world.mood = mood);
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Service {
    world: Arc<Mutex<World>>,
    changes: watch::Receiver<u64>,
}

impl Service {
    async fn hang(&self) {
        let hangs = self.world.lock().unwrap().mood == Mood::Hangs;
        if hangs {
            std::future::pending::<()>().await;
        }
    }

    fn world(&self) -> Result<MutexGuard<'_, World>, Status> {
        let world = self.world.lock().unwrap();
        match world.mood {
            Mood::Away => Err(Refusal::new(Reason::Draining, "the log is away").into()),
            _ => Ok(world),
        }
    }

    fn prover(&self) -> Result<(MutexGuard<'_, World>, Option<Vec<Bytes>>), Status> {
        let mut world = self.world()?;
        world.proofs += 1;
        match world.mood {
            Mood::ProvesNothing => Err(Refusal::new(Reason::BadSize, "no").into()),
            Mood::Garbage => Ok((world, Some(vec![Bytes::from(vec![7; 32]); 63]))),
            Mood::TooLong => Ok((world, Some(vec![Bytes::from(vec![7; 32]); 64]))),
            _ => Ok((world, None)),
        }
    }
}

fn check(world: &World, wanted: u64) -> Result<(), Status> {
    match wanted <= world.size() {
        true => Ok(()),
        false => Err(Refusal::new(Reason::NotYetPublished, "the log does not reach this far").into()),
    }
}

fn unused<T>() -> Result<T, Status> {
    Err(Refusal::new(Reason::UnknownRpc, "not of this test").into())
}

#[tonic::async_trait]
impl LogService for Service {
    async fn get_proof(
        &self,
        request: Request<v1::GetProofRequest>,
    ) -> Result<Response<v1::GetProofResponse>, Status> {
        self.hang().await;
        let (world, garbage) = self.prover()?;
        let Some(Target::LeafIndex(leaf_index)) = request.get_ref().target else { return unused() };
        let at = request.get_ref().tree_size;
        check(&world, at)?;
        let index = LeafIndex::new(leaf_index).unwrap();
        let proof = prove_inclusion(&world.tree, index, size(at))
            .unwrap()
            .map_err(|error| Status::from(Refusal::new(Reason::BadSize, error.to_string())))?;
        let hashes = garbage.unwrap_or_else(|| convert::proof_to_wire(&proof.hashes));
        Ok(Response::new(v1::GetProofResponse { leaf_index, hashes, ..Default::default() }))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::GetConsistencyProofResponse>, Status> {
        self.hang().await;
        let (world, garbage) = self.prover()?;
        let (old, new) = (request.get_ref().old_size, request.get_ref().new_size);
        check(&world, new)?;
        let proof = || convert::proof_to_wire(&world.tree.consistency(size(old), size(new)));
        let hashes = garbage.unwrap_or_else(proof);
        Ok(Response::new(v1::GetConsistencyProofResponse { hashes }))
    }

    async fn get_tile(
        &self,
        request: Request<v1::GetTileRequest>,
    ) -> Result<Response<v1::GetTileResponse>, Status> {
        self.hang().await;
        let (world, _) = self.prover()?;
        let v1::GetTileRequest { level, index, width, .. } = request.into_inner();
        let count = if width == 0 { 256 } else { u64::from(width) };
        assert_eq!(level, 0);
        check(&world, index * 256 + count)?;
        let leaves = (0..count).flat_map(|n| *world.tree.leaf(index * 256 + n).as_bytes());
        Ok(Response::new(v1::GetTileResponse { hashes: leaves.collect::<Vec<u8>>().into() }))
    }

    async fn get_checkpoint(
        &self,
        _: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        self.hang().await;
        Ok(Response::new(v1::GetCheckpointResponse { checkpoint: self.world()?.note() }))
    }

    type WatchCheckpointsStream = Answers<v1::WatchCheckpointsResponse>;

    async fn watch_checkpoints(
        &self,
        _: Request<v1::WatchCheckpointsRequest>,
    ) -> Result<Response<Self::WatchCheckpointsStream>, Status> {
        self.hang().await;
        drop(self.world()?);
        let (world, mut changes) = (Arc::clone(&self.world), self.changes.clone());
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let checkpoint = world.lock().unwrap().note();
                let told = send.send(Ok(v1::WatchCheckpointsResponse { checkpoint })).await;
                if told.is_err() || changes.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    type FollowStream = Answers<v1::FollowEvent>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        self.hang().await;
        let first = request.get_ref().first_index;
        let caller = Caller::of(&request)?.identity().as_str().to_owned();
        let (events, mood) = {
            let mut world = self.world()?;
            let mut all = world.served.clone();
            if let Some((_, index)) = world.changed_for.filter(|(to, _)| caller.ends_with(&format!("/{to}")))
            {
                all[index] = entry(index as u64, 1);
            }
            world.follows.push(first);
            let event = |event| Ok(v1::FollowEvent { event: Some(event) });
            let mut events = vec![event(Event::Checkpoint(world.note()))];
            let from = all.get(first as usize..).unwrap_or_default();
            let served = match world.mood {
                Mood::Withholds | Mood::Ends => Vec::new(),
                Mood::Endless => from.iter().cloned().chain(entries(50_000, 0, 9)).collect(),
                _ => from.to_vec(),
            };
            let mut first_index = first;
            let together = if world.mood == Mood::Dribbles { 1 } else { EVENT };
            for entries in served.chunks(together) {
                let count = entries.len() as u64;
                events.push(event(Event::Entries(v1::FollowEntries {
                    first_index,
                    entries: entries.iter().collect(),
                })));
                first_index += count;
            }
            if world.mood == Mood::Ends {
                events.push(event(Event::End(v1::FollowEnd { next_index: first })));
            }
            (events, world.mood)
        };
        // What comes after is a new stream's.
        let mut changes = self.changes.clone();
        changes.borrow_and_update();
        let grown = async move {
            let _ = changes.changed().await;
        };
        let events = tokio_stream::iter(events);
        if mood == Mood::Ends {
            return Ok(Response::new(Box::pin(events)));
        }
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                if mood == Mood::Dribbles {
                    sleep(DRIBBLE).await;
                }
                if send.send(event).await.is_err() {
                    return;
                }
            }
            grown.await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn append(&self, _: Request<v1::AppendRequest>) -> Result<Response<v1::AppendResponse>, Status> {
        unused()
    }

    type AppendStreamStream = Answers<v1::AppendResponse>;

    async fn append_stream(
        &self,
        _: Request<tonic::Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        unused()
    }

    async fn get_producer(
        &self,
        _: Request<v1::GetProducerRequest>,
    ) -> Result<Response<v1::GetProducerResponse>, Status> {
        unused()
    }

    async fn get_entries(
        &self,
        _: Request<v1::GetEntriesRequest>,
    ) -> Result<Response<v1::GetEntriesResponse>, Status> {
        unused()
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        unused()
    }

    async fn add_cosignature(
        &self,
        _: Request<v1::AddCosignatureRequest>,
    ) -> Result<Response<v1::AddCosignatureResponse>, Status> {
        unused()
    }
}
