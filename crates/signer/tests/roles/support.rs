//! Trees that share a beginning, keys, a head store in memory, and a publisher with whatever witnesses a test has.

use std::sync::Arc;
use std::time::Duration;

use epigraph_core::checkpoint::encode_text;
use epigraph_core::hash::leaf_hash;
use epigraph_core::progress::{Held, Proposal};
use epigraph_core::proof::{prove_consistency, root_at};
use epigraph_core::{
    Checkpoint, Clock, CosigningKey, Entropy, Hash, KeyName, Origin, Policy, SigningKey, TreeHead, TreeSize,
    UnixMillis, Verified, note,
};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use epigraph_signer::publish::ask::{AskWitness, Reply};
use epigraph_signer::publish::witnesses::{Status, Witnesses};
use epigraph_signer::publish::{AskError, AskSigner, Dialled, Publisher, RootAt, Witnessing};
use epigraph_signer::signer::{Answer, Request, Signer};
use epigraph_store::file::Dir;
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::head::{HeadError, HeadStore};
use epigraph_store::published::PublishedStore;
use epigraph_store::tree::MemoryTree;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

/// The term that [`store`] has open.
pub const TERM: u64 = 1;

pub const NOW: UnixMillis = UnixMillis(1_000_000);

pub fn origin() -> Origin {
    Origin::new("log.example").unwrap()
}

pub fn key_of(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new(name).unwrap(), &Zeroizing::new([seed; 32]))
}

pub fn key() -> SigningKey {
    key_of("log.example", 7)
}

pub fn policy() -> Policy {
    Policy::of_log(key().vkey().clone())
}

pub fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap()
}

/// The head as this key signs it for this origin.
pub fn note_of(key: &SigningKey, origin: &Origin, head: &TreeHead) -> String {
    let text = encode_text(origin, head);
    note::encode(&text, [&key.sign_assertion(&text)])
}

/// A tree of `leaves` leaves that differ from every other world's from leaf `fork` on.
pub fn tree(leaves: u64, fork: u64, world: u8) -> MemoryTree {
    let tree = MemoryTree::new();
    let leaf =
        |index: u64| leaf_hash(&[&index.to_be_bytes()[..], &[if index < fork { 0 } else { world }]].concat());
    tree.apply(tree.stage((0..leaves).map(leaf)).unwrap()).unwrap();
    tree
}

pub fn head(tree: &MemoryTree, at: u64) -> TreeHead {
    TreeHead { size: size(at), root: root_at(tree, size(at)).unwrap() }
}

pub fn proof(tree: &MemoryTree, old: u64, new: u64) -> Vec<Hash> {
    prove_consistency(tree, size(old), size(new)).unwrap().unwrap().hashes
}

/// An honest proposal of the tree's head at `new`.
pub fn proposal(tree: &MemoryTree, old: u64, new: u64) -> Proposal {
    Proposal { old_size: size(old), head: head(tree, new), proof: proof(tree, old, new), note: Vec::new() }
}

/// Not random at all.
pub struct Nine;

impl Entropy for Nine {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(9);
    }
}

/// A clock that stands still.
pub struct Always(pub UnixMillis);

impl Clock for Always {
    fn now(&self) -> UnixMillis {
        self.0
    }
}

/// A directory with a head store that holds the empty tree for the log, and has [`TERM`] open.
pub fn store() -> MemoryDir {
    let memory = MemoryDir::new();
    let mut heads = HeadStore::create(Arc::new(memory.clone()), 1, &Nine).unwrap();
    heads.init_log(&origin(), Held { term: TERM, ..Held::EMPTY }).unwrap();
    memory
}

/// The proposal in the term of [`store`].
pub fn in_term(proposal: Proposal) -> Request {
    Request { origin: origin(), term: TERM, proposal }
}

/// The signer as a start opens it, after a gate at which nobody had seen anything.
pub fn open(dir: Arc<dyn Dir>) -> Result<Signer, HeadError> {
    let mut signer = Signer::new(vec![key()], HeadStore::open(dir)?.0);
    signer.pass_gate(&origin(), &[]).unwrap();
    Ok(signer)
}

/// A witness that is never there.
pub struct Nobody;

impl AskWitness for Nobody {
    async fn add_checkpoint(&self, _: &Origin, _: Proposal) -> Reply {
        Reply::Unavailable("nobody".into())
    }

    async fn newest(&self, _: &Origin) -> Result<Option<Vec<u8>>, String> {
        Err("nobody".into())
    }
}

/// What a publisher without witnesses has in their place.
pub fn alone(tree: &Arc<MemoryTree>) -> Witnessing<Nobody> {
    witnessing(tree, Vec::new())
}

/// What a publisher has that asks these.
pub fn witnessing<W>(tree: &Arc<MemoryTree>, dialled: Vec<Dialled<W>>) -> Witnessing<W> {
    Witnessing {
        dialled,
        handed: mpsc::channel(1).1,
        pending: watch::channel(None).0,
        status: watch::Sender::default(),
        evidence: Arc::new(MemoryDir::new()),
        root_at: root_of(tree),
        entropy: Arc::new(Nine),
        clock: Arc::new(Always(NOW)),
        sizes: None,
    }
}

pub fn root_of(tree: &Arc<MemoryTree>) -> Arc<RootAt> {
    let tree = Arc::clone(tree);
    Arc::new(move |size| root_at(&*tree, size).map_err(|error| error.to_string()))
}

/// The machine at [`NOW`].
pub fn asking(
    policy: Policy,
    already: Option<TreeHead>,
    peers: impl IntoIterator<Item = (usize, TreeSize)>,
) -> Witnesses {
    let mut machine = Witnesses::new(policy, already, peers);
    machine.at(NOW);
    machine
}

pub fn witness_key(place: usize) -> CosigningKey {
    let name = KeyName::new(format!("witness-{place}.example")).unwrap();
    CosigningKey::from_seed(name, &Zeroizing::new([100 + place as u8; 32]))
}

/// `threshold` of `count` witnesses.
pub fn quorum(count: usize, threshold: usize) -> Policy {
    let witnesses: Vec<_> = (0..count).map(|place| witness_key(place).vkey().clone()).collect();
    Policy::of_witnesses(key().vkey(), &witnesses, threshold).unwrap()
}

/// Signs whatever it is asked for.
pub struct Willing;

impl AskSigner for Willing {
    async fn head(&self, _: &Origin) -> Result<SignerHead, AskError> {
        panic!("the gate is over")
    }

    async fn open_term(&self, _: &Origin, _: SignerHead) -> Result<OpenTermAnswer, AskError> {
        panic!("the gate is over")
    }

    async fn sign_checkpoint(&self, request: Request) -> Result<Answer, AskError> {
        Ok(Answer::Signed(note_of(&key(), &request.origin, &request.proposal.head)))
    }
}

/// How old cosignatures become in [`Publishing`] before they are refreshed.
pub const REFRESH: Duration = Duration::from_secs(900);

/// A publisher whose signer signs everything.
pub struct Publishing {
    pub offered: watch::Sender<TreeHead>,
    _wanted: watch::Sender<TreeSize>,
    pub published: watch::Receiver<Option<Arc<Verified<Checkpoint>>>>,
    pub status: watch::Receiver<Status>,
    pub pending: watch::Receiver<Option<Arc<epigraph_core::checkpoint::LogSigned>>>,
    pub task: JoinHandle<Result<(), epigraph_signer::publish::PublishError>>,
}

impl Publishing {
    /// It has published what is in `store`, and is offered `leaves` of the tree.
    pub fn start<W: AskWitness>(
        tree: &Arc<MemoryTree>,
        policy: Policy,
        store: PublishedStore,
        witnesses: Witnessing<W>,
        leaves: u64,
    ) -> Publishing {
        let newest = store.current().map(|note| Arc::new(Checkpoint::open(note, &policy).unwrap()));
        let (publish, published) = watch::channel(newest);
        let (offer, offered) = watch::channel(head(tree, leaves));
        let (want, wanted) = watch::channel(TreeSize::ZERO);
        let (status, pending) = (witnesses.status.subscribe(), witnesses.pending.subscribe());
        let proving = Arc::clone(tree);
        let publisher = Publisher {
            history: None,
            origin: origin(),
            policy,
            checkpoint_interval: Duration::from_secs(1),
            refresh_interval: REFRESH,
            signer: Willing,
            term: TERM,
            on_trouble: Box::new(|_| ()),
            prove: Arc::new(move |old, new| {
                Ok(prove_consistency(&*proving, old, new).unwrap().unwrap().hashes)
            }),
            store,
            published: publish,
            witnesses,
        };
        let task = tokio::spawn(publisher.run(offered, wanted));
        Publishing { offered: offer, _wanted: want, published, status, pending, task }
    }
}
