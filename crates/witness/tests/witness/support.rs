//! Trees that share a beginning, logs that sign their heads, and a witness in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_core::checkpoint::encode_text;
use epigraph_core::cosignature::{self, CosigningKey};
use epigraph_core::hash::leaf_hash;
use epigraph_core::note::{self, Parsed, SignatureLine};
use epigraph_core::progress::Proposal;
use epigraph_core::proof::{prove_consistency, root_at};
use epigraph_core::{Clock, Entropy, Hash, KeyName, Origin, SigningKey, TreeHead, TreeSize, UnixMillis};
use epigraph_store::file::Dir;
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::head::{HeadError, HeadStore};
use epigraph_store::tree::MemoryTree;
use epigraph_witness::keeper::{Answer, Keeper, Refused};
use epigraph_witness::list::Listed;
use zeroize::Zeroizing;

pub const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
pub const YEAR_MS: u64 = 366 * 24 * 3_600_000;

pub fn origin(log: usize) -> Origin {
    Origin::new(format!("log.example/{log}")).unwrap()
}

pub fn log_key(log: usize) -> SigningKey {
    let name = KeyName::new(format!("log.example/{log}")).unwrap();
    SigningKey::from_seed(name, &Zeroizing::new([log as u8; 32]))
}

pub fn key() -> CosigningKey {
    CosigningKey::from_seed(KeyName::new("witness.example/w").unwrap(), &Zeroizing::new([201; 32]))
}

pub fn listed(log: usize) -> Listed {
    Listed { origin: origin(log), vkey: log_key(log).vkey().clone(), can_ask: true }
}

pub fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap()
}

/// A tree whose leaves differ from every other world's from leaf `fork` on.
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

/// The head as the log signs it.
pub fn signed(log: usize, head: &TreeHead) -> String {
    let text = encode_text(&origin(log), head);
    note::encode(&text, [&log_key(log).sign_assertion(&text)])
}

/// An honest proposal of the tree's head at `new`.
pub fn proposal(log: usize, tree: &MemoryTree, old: u64, new: u64) -> (Origin, Proposal) {
    let head = head(tree, new);
    let note = signed(log, &head).into_bytes();
    (origin(log), Proposal { old_size: size(old), head, proof: proof(tree, old, new), note })
}

/// The head as the log signs it, with this witness's cosignature.
pub fn cosigned(log: usize, head: &TreeHead, time: UnixMillis) -> String {
    let text = encode_text(&origin(log), head);
    let time = cosignature::CosignedAt::of(time).unwrap();
    note::encode(&text, [&log_key(log).sign_assertion(&text), &key().cosign_assertion(&text, time)])
}

pub struct Fixed;

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(9);
    }
}

/// A clock that tests set.
pub struct TestClock(pub AtomicU64);

impl TestClock {
    pub fn new() -> Arc<TestClock> {
        Arc::new(TestClock(AtomicU64::new(NOW.0)))
    }

    pub fn forward(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::Relaxed))
    }
}

/// A directory with a witness's store that has so many logs, and holds nothing for them.
pub fn store(logs: usize) -> MemoryDir {
    let memory = MemoryDir::new();
    let heads = HeadStore::create(Arc::new(memory.clone()), logs as u32, &Fixed).unwrap();
    let origins: Vec<_> = (0..logs).map(origin).collect();
    Keeper::new(heads, key(), YEAR_MS).admit(&origins, NOW).unwrap();
    memory
}

/// Opens the store; nothing has passed the gate.
pub fn open_gated(dir: Arc<dyn Dir>) -> Result<Keeper, HeadError> {
    Ok(Keeper::new(HeadStore::open(dir)?.0, key(), YEAR_MS))
}

/// Opens the store; the logs show nothing that is newer.
pub fn open(dir: Arc<dyn Dir>, logs: usize) -> Result<Keeper, HeadError> {
    let mut keeper = open_gated(dir)?;
    for log in 0..logs {
        keeper.pass(&origin(log), &[]).unwrap();
    }
    Ok(keeper)
}

/// One proposal.
pub fn propose(
    keeper: &mut Keeper,
    proposal: (Origin, Proposal),
    now: UnixMillis,
) -> Result<Answer, Refused> {
    keeper.propose(vec![proposal], now).unwrap().remove(0)
}

/// The time of a cosignature over this head, which must be valid.
#[track_caller]
pub fn check_line(line: &SignatureLine, log: usize, head: &TreeHead) -> u64 {
    let text = encode_text(&origin(log), head);
    cosignature::verify(&text, line, key().vkey()).unwrap().seconds()
}

/// The head of a cosigned note, with both signatures checked.
#[track_caller]
pub fn check_note(note: &[u8], log: usize) -> TreeHead {
    let parsed = Parsed::parse(note).unwrap();
    let (_, head) = epigraph_core::checkpoint::decode_text(parsed.text()).unwrap();
    let log_vkey = log_key(log).vkey().clone();
    epigraph_core::checkpoint::LogSigned::open(note, &origin(log), &[log_vkey]).unwrap();
    let ours = |line: &&SignatureLine| cosignature::verify(parsed.text(), line, key().vkey()).is_ok();
    assert_eq!(parsed.signatures().iter().filter(ours).count(), 1);
    head
}
