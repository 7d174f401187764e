//! A log in memory behind mutual TLS, whose every answer can be twisted on its way out.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use epigraph_client::Client;
use epigraph_client::pin::Pin as CheckpointPin;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::hash::{leaf_hash, node_hash};
use epigraph_core::proof::{Nodes, prove_consistency, prove_inclusion, root_at};
use epigraph_core::{
    Clock, Entropy, Hash, KeyName, LeafIndex, Origin, Policy, SigningKey, TreeHead, TreeSize, UnixMillis,
    note,
};
use epigraph_rpc::peer::Log;
use epigraph_rpc::v1::follow_event::Event;
use epigraph_rpc::v1::get_proof_request::Target;
use epigraph_rpc::v1::log_service_server::LogService;
use epigraph_rpc::{
    Authorizer, Caller, ClientTls, Credentials, Grant, Logs, OnRefused, Reason, Refusal, Role, Routes,
    ServerTls, TrustBundle, Usage, Wait, convert, log_service, serve, v1,
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

/// Entries that it serves at once.
pub const PAGE: u32 = 5;

const SERVER: &str = "spiffe://test.example/epigraph/log/main";
const APPENDER: &str = "spiffe://test.example/epigraph/appender/a";

/// 2030-01-01T00:00:00Z, always.
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> UnixMillis {
        UnixMillis(1_893_456_000_000)
    }
}

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

pub fn origin() -> Origin {
    Origin::new("log.example").unwrap()
}

pub fn key_of(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new(name).unwrap(), &Zeroizing::new([seed; 32]))
}

pub fn key() -> SigningKey {
    key_of("log.example", 7)
}

pub fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap()
}

/// The head as this key signs it, under the origin of the key's name.
pub fn note_of(key: &SigningKey, head: &TreeHead) -> String {
    let text = encode_text(&key.vkey().name().to_origin(), head);
    note::encode(&text, [&key.sign_assertion(&text)])
}

/// A tree as the leaf hashes that it is made of.
pub struct Tree(Vec<Hash>);

impl Nodes for Tree {
    type Error = String;

    fn node(&self, height: u32, index: u64) -> Result<Hash, String> {
        match height {
            0 => self.0.get(index as usize).copied().ok_or(format!("there is no leaf {index}")),
            _ => {
                let below = |index| self.node(height - 1, index);
                Ok(node_hash(&below(2 * index)?, &below(2 * index + 1)?))
            }
        }
    }
}

impl Tree {
    fn size(&self) -> TreeSize {
        size(self.0.len() as u64)
    }

    fn grow(&mut self, entries: impl Iterator<Item = Bytes>) {
        self.0.extend(entries.map(|entry| leaf_hash(&entry)));
    }
}

/// The log's tree. Another world differs from leaf `fork` on.
pub fn tree(leaves: u64, fork: u64, world: u8) -> Tree {
    let mut tree = Tree(Vec::new());
    tree.grow((0..leaves).map(|index| entry(index, if index < fork { 0 } else { world })));
    tree
}

pub fn entry(index: u64, world: u8) -> Bytes {
    Bytes::from(format!("entry {index} of world {world}"))
}

pub fn head(tree: &Tree, at: u64) -> TreeHead {
    TreeHead { size: size(at), root: root_at(tree, size(at)).unwrap() }
}

/// An answer on its way out.
pub enum Answer<'a> {
    Append(&'a mut v1::AppendResponse),
    Proof(&'a mut v1::GetProofResponse),
    Entries(&'a mut v1::GetEntriesResponse),
    Consistency(&'a mut Result<v1::GetConsistencyProofResponse, Refusal>),
    Checkpoint(&'a mut v1::GetCheckpointResponse),
    /// The events of a stream, which then stays open unless the last one ends it.
    Follow(&'a mut Events),
    /// The notes of a stream, which then ends.
    Watch(&'a mut Vec<Bytes>),
}

pub type Events = Vec<Result<v1::FollowEvent, Status>>;

pub fn checkpoint_event(note: impl Into<Bytes>) -> Result<v1::FollowEvent, Status> {
    Ok(v1::FollowEvent { event: Some(Event::Checkpoint(note.into())) })
}

pub fn entries_event(first_index: u64, entries: Vec<Bytes>) -> Result<v1::FollowEvent, Status> {
    let entries = entries.iter().collect();
    Ok(v1::FollowEvent { event: Some(Event::Entries(v1::FollowEntries { first_index, entries })) })
}

pub fn end_event(next_index: u64) -> Result<v1::FollowEvent, Status> {
    Ok(v1::FollowEvent { event: Some(Event::End(v1::FollowEnd { next_index })) })
}

/// Always the same, which is enough for waiting.
pub struct NotRandom;

impl Entropy for NotRandom {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

/// A call whose answer can be held back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    Checkpoint,
    Consistency,
}

type Twist = Box<dyn FnMut(Answer<'_>) + Send>;

struct World {
    tree: Tree,
    twist: Option<Twist>,
    /// Holds the next answer to this call back until it is released.
    hold: Option<(Hold, Arc<Notify>)>,
}

/// The log, its address, and a client's directory.
pub struct Liar {
    world: Arc<Mutex<World>>,
    held: Arc<Notify>,
    address: String,
    tls: ClientTls,
    pub state: TempDir,
}

impl Liar {
    /// A log of five entries, in its own words.
    pub async fn start() -> Liar {
        let ca = Ca::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let own = ca.issue(SERVER, ExtendedKeyUsagePurpose::ServerAuth, Usage::Server);
        let tls = Arc::new(ServerTls::new(&own, &ca.trust(), Arc::new(Fixed)).unwrap());
        let grant =
            Grant { spiffe: APPENDER.parse().unwrap(), roles: [Role::Appender].into(), logs: Logs::All };
        let authorizer = Authorizer::new(vec![grant]).unwrap();
        let world = Arc::new(Mutex::new(World { tree: tree(5, 5, 0), twist: None, hold: None }));
        let held = Arc::new(Notify::new());
        let service = Service { world: Arc::clone(&world), held: Arc::clone(&held) };
        let routes = Routes::new(log_service(service));
        let refused: OnRefused = Arc::new(|_, _| ());
        tokio::spawn(async move {
            let entropy = Arc::new(Fixed);
            serve(listener, tls, authorizer, routes, refused, entropy, std::future::pending()).await;
        });
        let own = ca.issue(APPENDER, ExtendedKeyUsagePurpose::ClientAuth, Usage::Client);
        let tls = ClientTls::new(own, ca.trust(), Arc::new(Fixed)).unwrap();
        Liar { world, held, address, tls, state: tempfile::tempdir().unwrap() }
    }

    pub fn client(&self) -> Client {
        self.client_trusting(Policy::of_log(key().vkey().clone()))
    }

    pub fn client_trusting(&self, policy: Policy) -> Client {
        let log = Log::new(&self.address, &self.tls, &SERVER.parse().unwrap()).unwrap();
        Client::new(log, origin(), policy, CheckpointPin::new(self.state.path(), &origin()).unwrap())
    }

    pub fn grow_to(&self, leaves: u64) {
        let tree = &mut self.world().tree;
        tree.grow((tree.size().get()..leaves).map(|index| entry(index, 0)));
    }

    /// From now on every answer goes through this.
    pub fn twist(&self, twist: impl FnMut(Answer<'_>) + Send + 'static) {
        self.world().twist = Some(Box::new(twist));
    }

    /// Serves this note in place of every checkpoint.
    pub fn serve_note(&self, note: impl Into<Bytes>) {
        let note = note.into();
        self.twist(move |answer| replace_note(answer, &note));
    }

    pub fn be_honest(&self) {
        self.world().twist = None;
    }

    /// Holds the next answer to this call back; what it says is decided when the question comes.
    pub fn hold(&self, call: Hold) -> Arc<Notify> {
        let release = Arc::new(Notify::new());
        self.world().hold = Some((call, Arc::clone(&release)));
        release
    }

    /// Waits until an answer is being held back.
    pub async fn holding(&self) {
        self.held.notified().await;
    }

    pub fn pin_file(&self) -> PathBuf {
        self.state.path().join(format!("{}.checkpoint", origin().hash()))
    }

    /// The pinned note as it lies on disk.
    pub fn pinned(&self) -> Vec<u8> {
        std::fs::read(self.pin_file()).unwrap()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

pub fn replace_note(answer: Answer<'_>, note: &Bytes) {
    match answer {
        Answer::Append(answer) => answer.checkpoint = note.clone(),
        Answer::Proof(answer) => answer.checkpoint = note.clone(),
        Answer::Checkpoint(answer) => answer.checkpoint = note.clone(),
        Answer::Watch(notes) => notes.iter_mut().for_each(|served| *served = note.clone()),
        Answer::Entries(_) | Answer::Consistency(_) | Answer::Follow(_) => {}
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Service {
    world: Arc<Mutex<World>>,
    held: Arc<Notify>,
}

impl Service {
    fn authorize<T>(&self, request: &Request<T>, origin: &str) -> Result<MutexGuard<'_, World>, Status> {
        Caller::of(request)?.authorize(origin)?;
        Ok(self.world.lock().unwrap())
    }

    async fn hold(&self, call: Hold) {
        let release = self.world.lock().unwrap().hold.take_if(|(held, _)| *held == call);
        if let Some((_, release)) = release {
            self.held.notify_one();
            release.notified().await;
        }
    }
}

impl World {
    fn note(&self) -> Bytes {
        note_of(&key(), &head(&self.tree, self.tree.size().get())).into()
    }

    fn proof(&self, index: u64) -> Vec<Bytes> {
        self.proof_in(index, self.tree.size())
    }

    fn proof_in(&self, index: u64, size: TreeSize) -> Vec<Bytes> {
        let index = LeafIndex::new(index).unwrap();
        let proof = prove_inclusion(&self.tree, index, size).unwrap().unwrap();
        convert::proof_to_wire(&proof.hashes)
    }

    fn twisted(&mut self, answer: Answer<'_>) {
        if let Some(twist) = &mut self.twist {
            twist(answer);
        }
    }
}

#[tonic::async_trait]
impl LogService for Service {
    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        let mut world = self.authorize(&request, &request.get_ref().origin)?;
        let request = request.into_inner();
        let first_index = world.tree.size().get();
        let count = request.entries.len() as u32;
        world.tree.grow(request.entries.into_iter());
        let proofs = (first_index..first_index + u64::from(count))
            .map(|index| v1::InclusionProof { hashes: world.proof(index) })
            .collect();
        let reached = Wait::Published.to_wire();
        let mut answer = v1::AppendResponse {
            first_index,
            count,
            reached,
            checkpoint: world.note(),
            proofs,
            unpublished_because: String::new(),
        };
        world.twisted(Answer::Append(&mut answer));
        Ok(Response::new(answer))
    }

    async fn get_proof(
        &self,
        request: Request<v1::GetProofRequest>,
    ) -> Result<Response<v1::GetProofResponse>, Status> {
        let mut world = self.authorize(&request, &request.get_ref().origin)?;
        let Some(Target::LeafIndex(leaf_index)) = request.get_ref().target else { panic!("no target") };
        let (hashes, checkpoint) = match request.get_ref().tree_size {
            0 => (world.proof(leaf_index), world.note()),
            at if at > world.tree.size().get() => {
                return Err(Refusal::new(Reason::BeyondTree, "the log does not reach this far").into());
            }
            at => (world.proof_in(leaf_index, size(at)), Bytes::new()),
        };
        let mut answer = v1::GetProofResponse { leaf_index, hashes, checkpoint, consistency: Vec::new() };
        world.twisted(Answer::Proof(&mut answer));
        Ok(Response::new(answer))
    }

    async fn get_entries(
        &self,
        request: Request<v1::GetEntriesRequest>,
    ) -> Result<Response<v1::GetEntriesResponse>, Status> {
        let mut world = self.authorize(&request, &request.get_ref().origin)?;
        let v1::GetEntriesRequest { first_index, max_entries, .. } = request.into_inner();
        if first_index >= world.tree.size().get() {
            return Err(Refusal::new(Reason::BeyondTree, "there is no such entry").into());
        }
        // Small pages, so that a few entries need several.
        let end = world.tree.size().get().min(first_index + u64::from(max_entries.min(PAGE)));
        let entries = (first_index..end).map(|index| entry(index, 0)).collect();
        let mut answer = v1::GetEntriesResponse { first_index, entries };
        world.twisted(Answer::Entries(&mut answer));
        Ok(Response::new(answer))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::GetConsistencyProofResponse>, Status> {
        let answer = {
            let mut world = self.authorize(&request, &request.get_ref().origin)?;
            let (old, new) = (request.get_ref().old_size, request.get_ref().new_size);
            let mut answer = match prove_consistency(&world.tree, size(old), size(new)) {
                Ok(proof) => {
                    let hashes = convert::proof_to_wire(&proof.unwrap().hashes);
                    Ok(v1::GetConsistencyProofResponse { hashes })
                }
                Err(_) => Err(Refusal::new(Reason::BeyondTree, "the log does not reach this far")),
            };
            world.twisted(Answer::Consistency(&mut answer));
            answer
        };
        self.hold(Hold::Consistency).await;
        Ok(Response::new(answer?))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        let answer = {
            let mut world = self.authorize(&request, &request.get_ref().origin)?;
            let mut answer = v1::GetCheckpointResponse { checkpoint: world.note() };
            world.twisted(Answer::Checkpoint(&mut answer));
            answer
        };
        self.hold(Hold::Checkpoint).await;
        Ok(Response::new(answer))
    }

    type AppendStreamStream = tokio_stream::Empty<Result<v1::AppendResponse, Status>>;

    async fn append_stream(
        &self,
        _: Request<tonic::Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn get_producer(
        &self,
        _: Request<v1::GetProducerRequest>,
    ) -> Result<Response<v1::GetProducerResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    type FollowStream = Answers<v1::FollowEvent>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let mut world = self.authorize(&request, &request.get_ref().origin)?;
        let (first, size) = (request.get_ref().first_index, world.tree.size().get());
        let mut events = Vec::new();
        if first < size {
            events.push(checkpoint_event(world.note()));
            for at in (first..size).step_by(PAGE as usize) {
                let end = size.min(at + u64::from(PAGE));
                events.push(entries_event(at, (at..end).map(|index| entry(index, 0)).collect()));
            }
            events.push(end_event(size));
        }
        world.twisted(Answer::Follow(&mut events));
        let ends = match events.last() {
            Some(Ok(event)) => matches!(event.event, Some(Event::End(_))),
            last => last.is_some(),
        };
        let events = tokio_stream::iter(events);
        Ok(Response::new(if ends {
            Box::pin(events)
        } else {
            Box::pin(events.chain(tokio_stream::pending()))
        }))
    }

    async fn get_tile(
        &self,
        _: Request<v1::GetTileRequest>,
    ) -> Result<Response<v1::GetTileResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn add_cosignature(
        &self,
        _: Request<v1::AddCosignatureRequest>,
    ) -> Result<Response<v1::AddCosignatureResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    type WatchCheckpointsStream = Answers<v1::WatchCheckpointsResponse>;

    async fn watch_checkpoints(
        &self,
        request: Request<v1::WatchCheckpointsRequest>,
    ) -> Result<Response<Self::WatchCheckpointsStream>, Status> {
        let mut world = self.authorize(&request, &request.get_ref().origin)?;
        let newer = request.get_ref().after_size.is_none_or(|after| world.tree.size().get() > after);
        let mut notes = if newer { vec![world.note()] } else { Vec::new() };
        world.twisted(Answer::Watch(&mut notes));
        let answers = notes.into_iter().map(|checkpoint| Ok(v1::WatchCheckpointsResponse { checkpoint }));
        Ok(Response::new(Box::pin(tokio_stream::iter(answers.collect::<Vec<_>>()))))
    }
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, name: &str, purpose: ExtendedKeyUsagePurpose, usage: Usage) -> Credentials {
        let mut params = CertificateParams::new(vec!["localhost".to_string()]).unwrap();
        params.subject_alt_names.push(SanType::URI(name.try_into().unwrap()));
        params.extended_key_usages = vec![purpose];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let key = key.serialize_pem();
        Credentials::from_pem(chain.as_bytes(), key.as_bytes(), usage, Fixed.now()).unwrap()
    }

    fn trust(&self) -> TrustBundle {
        TrustBundle::from_pem("test.example", self.pem.as_bytes()).unwrap()
    }
}
