//! A log over a directory in memory, and a stand-in for the publisher that signs whatever it is offered.

use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::checkpoint::{LogSigned, encode_text};
use epigraph_core::hash::leaf_hash;
use epigraph_core::{
    Checkpoint, Clock, Entropy, KeyName, Origin, Policy, SigningKey, TreeHead, TreeSize, UnixMillis,
    Verified, note,
};
use epigraph_sequencer::log::{Appended, Log, Wait, Witnessing};
use epigraph_sequencer::machine::Limits;
use epigraph_sequencer::run::{Fatal, OpenLookup, Setup, start};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::file::{Dir, File};
use epigraph_store::history::History;
use epigraph_store::journal::{Config, Journal, Reader};
use epigraph_store::lookup::Lookup;
use epigraph_store::tree::open_in_memory;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

/// Longer than any test takes, also on a busy machine.
pub const LONG: Duration = Duration::from_secs(600);

/// A driver that is to end does so at once; this much for a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

pub const PUBLISHED: Wait = Wait::Published(LONG);

pub const LIMITS: Limits = Limits { unpublished_max_entries: 1 << 30, unpublished_max_age_ms: 1 << 40 };

pub fn origin() -> Origin {
    Origin::new("log.example").unwrap()
}

pub fn key() -> SigningKey {
    SigningKey::from_seed(KeyName::new("log.example").unwrap(), &Zeroizing::new([7; 32]))
}

/// Segments that a few appends fill.
pub fn small() -> Config {
    Config::new(64 << 10, 32 << 10).unwrap()
}

pub fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).unwrap()
}

pub fn entries(texts: &[&str]) -> Vec<Bytes> {
    texts.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect()
}

struct Fixed;

/// The time of every test.
pub const NOW: UnixMillis = UnixMillis(1_000_000);

impl Clock for Fixed {
    fn now(&self) -> UnixMillis {
        NOW
    }
}

/// Fills with the same byte, another one each time.
#[derive(Default)]
struct Counting(Mutex<u8>);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let mut count = self.0.lock().unwrap();
        *count += 1;
        bytes.fill(*count);
    }
}

/// A directory that tells a test where the log is, and can be full.
#[derive(Clone, Default)]
pub struct Tap {
    pub memory: MemoryDir,
    full: Arc<AtomicBool>,
    hook: Arc<Mutex<Option<Hook>>>,
}

type Hook = Arc<dyn Fn(&str) + Send + Sync>;

impl Tap {
    /// Whether files can be made.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// Calls `hook` with the name of each crash point, and with `open` where a file is opened for reading.
    pub fn on(&self, hook: impl Fn(&str) + Send + Sync + 'static) {
        *self.hook.lock().unwrap() = Some(Arc::new(hook));
    }

    fn tell(&self, name: &str) {
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
        hook.inspect(|hook| hook(name));
    }
}

impl Dir for Tap {
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.memory.open(name)
    }
    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.tell("open");
        self.memory.open_read_only(name)
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.memory.create(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.memory.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.memory.remove(name)
    }
    fn protect(&self, name: &str) -> io::Result<()> {
        self.memory.protect(name)
    }
    fn is_protected(&self, name: &str) -> io::Result<bool> {
        self.memory.is_protected(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.memory.list()
    }
    fn sync(&self) -> io::Result<()> {
        self.memory.sync()
    }
    fn crash_point(&self, name: &'static str) {
        self.tell(name);
    }
}

/// What a log is given to run.
#[derive(Clone, Copy)]
pub struct Options {
    pub limits: Limits,
    pub config: Config,
    /// Whether the stand-in publishes what is offered.
    pub publishes: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { limits: LIMITS, config: small(), publishes: true }
    }
}

/// A log that is running.
pub struct Running {
    pub log: Arc<Log>,
    pub offered: watch::Receiver<TreeHead>,
    pub driver: JoinHandle<Result<(), Fatal>>,
    /// Where a test publishes itself; the stand-in has another handle.
    pub publish: watch::Sender<Option<Arc<Verified<Checkpoint>>>>,
    /// Where a test says what was signed.
    pub sign: watch::Sender<Option<Arc<LogSigned>>>,
    /// Empty, and its own at each start; nobody but the test adds to it.
    pub history: Arc<History>,
}

/// A new log in an empty directory.
pub fn create(dir: &(impl Dir + Clone + 'static), options: Options) -> Running {
    Journal::create(
        Arc::new(dir.clone()),
        origin().hash(),
        options.config,
        UnixMillis(1),
        Arc::new(Counting::default()),
    )
    .unwrap();
    open(dir, options)
}

/// The log that is in the directory.
pub fn open(dir: &(impl Dir + Clone + 'static), options: Options) -> Running {
    let dir: Arc<dyn Dir> = Arc::new(dir.clone());
    let entropy = Arc::new(Counting(Mutex::new(100)));
    let (journal, _) = Journal::open(Arc::clone(&dir), origin().hash(), options.config, entropy).unwrap();
    let (tree, mut follower) = open_in_memory(dir, origin().hash()).unwrap();
    follower.catch_up(journal.head().size, &mut |_| ControlFlow::Continue(())).unwrap();
    let newest = options.publishes.then(|| Arc::new(signed(journal.head())));
    let (publish, published) = watch::channel(newest);
    let (sign, signed_receiver) = watch::channel(None);
    let history = Arc::new(History::open(Arc::new(MemoryDir::new()), Arc::new(Fixed)).unwrap().0);
    let (of_lookup, durable) = (Arc::clone(&tree), journal.head().size);
    let open_lookup: OpenLookup = Box::new(move || {
        let dir = Arc::new(MemoryDir::new());
        Lookup::open(dir, origin().hash(), of_lookup, durable, &mut |aside| panic!("{aside:?}"))
    });
    let setup = Setup {
        origin: origin(),
        limits: options.limits,
        journal,
        tree,
        open_tree: Box::new(|| Ok(follower)),
        on_building: Box::new(|_, _| ()),
        clock: Arc::new(Fixed),
        published,
        signed: signed_receiver,
        witnessing: Witnessing { handed_in: mpsc::channel(1).0, held: mpsc::channel(1).0 },
        history: Some(Arc::clone(&history)),
        policy: Policy::of_log(key().vkey().clone()),
        open_lookup,
    };
    let ready = start(setup).unwrap();
    if options.publishes {
        let (mut offered, publish) = (ready.offered.clone(), publish.clone());
        tokio::spawn(async move {
            while offered.changed().await.is_ok() {
                let head = *offered.borrow_and_update();
                publish.send_replace(Some(Arc::new(signed(head))));
            }
        });
    }
    Running {
        log: ready.log,
        offered: ready.offered,
        driver: tokio::spawn(ready.driver.run()),
        publish,
        sign,
        history,
    }
}

impl Running {
    /// Lets the last handle of the log go and waits for the driver.
    pub async fn stop(self) -> Result<(), Fatal> {
        drop(self.log);
        ended(self.driver).await
    }

    pub async fn durable(&self, texts: &[&str]) -> u64 {
        self.log.append(entries(texts), Wait::Durable).await.unwrap().first_index.get()
    }
}

/// How the driver ended; fails the test if it does not.
pub async fn ended(driver: JoinHandle<Result<(), Fatal>>) -> Result<(), Fatal> {
    tokio::time::timeout(ENDS_WITHIN, driver).await.unwrap().unwrap()
}

/// The head as the log's key signs it.
pub fn signed(head: TreeHead) -> Verified<Checkpoint> {
    let text = encode_text(&origin(), &head);
    let note = note::encode(&text, [&key().sign_assertion(&text)]);
    Checkpoint::open(note.as_bytes(), &Policy::of_log(key().vkey().clone())).unwrap()
}

/// Signed by the log, and not published.
pub fn log_signed(head: TreeHead) -> LogSigned {
    let text = encode_text(&origin(), &head);
    let note = note::encode(&text, [&key().sign_assertion(&text)]);
    Checkpoint::open_log_signed(note.as_bytes(), &Policy::of_log(key().vkey().clone())).unwrap()
}

/// Checks that the receipt in the answer proves exactly these entries.
pub fn verify(answer: &Appended, sent: &[Bytes]) {
    let (checkpoint, proofs) = answer.published.as_ref().unwrap();
    assert_eq!((proofs.len(), answer.count as usize), (sent.len(), sent.len()));
    for ((proof, entry), offset) in proofs.iter().zip(sent).zip(0..) {
        assert_eq!(Some(proof.index), answer.first_index.checked_add(offset));
        proof.verify(&leaf_hash(entry), &checkpoint.head().root).unwrap();
    }
}

/// All entries that a fresh process finds in the directory, up to its durable end.
pub fn on_disk(dir: &MemoryDir, config: Config) -> Vec<Vec<u8>> {
    let dir: Arc<dyn Dir> = Arc::new(dir.clone());
    let entropy = Arc::new(Counting(Mutex::new(200)));
    let (journal, _) = Journal::open(Arc::clone(&dir), origin().hash(), config, entropy).unwrap();
    let mut reader = Reader::new(dir, origin().hash());
    let mut found = Vec::new();
    while let Some(frame) = reader.next_frame(journal.head().size).unwrap() {
        found.extend(frame.entries().map(<[u8]>::to_vec));
    }
    found
}

/// Polls a future so many times at most, then drops it: a caller that hangs up at that await point.
pub async fn poll_times<F: Future>(future: F, mut times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        if times == 0 {
            return Poll::Ready(None);
        }
        times -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if times == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
