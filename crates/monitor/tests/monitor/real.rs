//! The monitor beside the log as it is shipped, over real connections.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use epigraph_core::{Checkpoint, Entropy, Policy, TreeHead, UnixMillis, Verified};
use epigraph_rpc::{Routes, log_service};
use epigraph_sequencer::log::{Log, Wait, Witnessing};
use epigraph_sequencer::machine::Limits;
use epigraph_sequencer::run::{Setup, start};
use epigraph_sequencer::service::LogServer;
use epigraph_store::file::Dir;
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::history::History;
use epigraph_store::journal::{Config, Journal};
use epigraph_store::lookup::Lookup;
use epigraph_store::tree::open_in_memory;
use tokio::sync::{mpsc, watch};

use crate::pki::{Fixed, Serving};
use crate::support::{Home, origin};
use crate::trees::{entry, key, note_of};

/// Another byte each time.
struct Counting(Mutex<u8>);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let mut count = self.0.lock().unwrap();
        *count += 1;
        bytes.fill(*count);
    }
}

fn signed(head: &TreeHead) -> Arc<Verified<Checkpoint>> {
    let policy = Policy::of_log(key().vkey().clone());
    Arc::new(Checkpoint::open(note_of(head).as_bytes(), &policy).unwrap())
}

/// A log in memory that publishes what it has.
fn log() -> Arc<Log> {
    let dir: Arc<dyn Dir> = Arc::new(MemoryDir::new());
    let hash = origin().hash();
    let config = Config::new(4 << 20, 1 << 20).unwrap();
    let entropy = |from| Arc::new(Counting(Mutex::new(from)));
    Journal::create(Arc::clone(&dir), hash, config, UnixMillis(1), entropy(0)).unwrap();
    let (journal, _) = Journal::open(Arc::clone(&dir), hash, config, entropy(100)).unwrap();
    let (tree, mut follower) = open_in_memory(dir, hash).unwrap();
    follower.catch_up(journal.head().size, &mut |_| ControlFlow::Continue(())).unwrap();
    let (publish, published) = watch::channel(None);
    let (of_lookup, durable) = (Arc::clone(&tree), journal.head().size);
    let setup = Setup {
        origin: origin(),
        limits: Limits { unpublished_max_entries: 1 << 30, unpublished_max_age_ms: 1 << 40 },
        journal,
        tree,
        open_tree: Box::new(|| Ok(follower)),
        on_building: Box::new(|_, _| ()),
        clock: Arc::new(Fixed),
        published,
        signed: watch::channel(None).1,
        witnessing: Witnessing { handed_in: mpsc::channel(1).0, held: mpsc::channel(1).0 },
        history: Some(Arc::new(History::open(Arc::new(MemoryDir::new()), Arc::new(Fixed)).unwrap().0)),
        policy: Policy::of_log(key().vkey().clone()),
        open_lookup: Box::new(move || {
            Lookup::open(Arc::new(MemoryDir::new()), hash, of_lookup, durable, &mut |aside| {
                panic!("{aside:?}")
            })
        }),
    };
    let ready = start(setup).unwrap();
    let mut offered = ready.offered.clone();
    tokio::spawn(async move {
        while offered.changed().await.is_ok() {
            let head = *offered.borrow_and_update();
            publish.send_replace(Some(signed(&head)));
        }
    });
    tokio::spawn(ready.driver.run());
    ready.log
}

async fn append(log: &Log, from: u64, count: u64) {
    let entries: Vec<Bytes> = (from..from + count).map(|index| entry(index, 0)).collect();
    log.append(entries, Wait::Durable).await.unwrap();
}

/// An honest log that grows is audited to its end, under both identities, and nothing is found.
#[tokio::test]
async fn an_honest_log_is_audited_as_it_grows() {
    let log = log();
    let serving = Serving::start(Routes::new(log_service(LogServer::new([Arc::clone(&log)], [])))).await;
    let mut running = Home::new().start(vec![("log/a", serving.reader("a")), ("log/b", serving.reader("b"))]);
    let mut size = 0;
    for count in [1, 1, 7, 300, 2_000, 1] {
        append(&log, size, count).await;
        size += count;
        running.audited(size).await;
    }
    running
        .until("both identities saw all", |status, _| {
            let shows = |point: &epigraph_monitor::monitor::VantageStatus| {
                point.vantage.name == "files" || point.head.is_some_and(|head| head.size.get() == size)
            };
            status.vantages.iter().all(shows) && status.consistent.get() == size
        })
        .await;
    assert_eq!(running.monitor.findings(), []);
    assert!(running.status().last_full_audit.is_some());
}
