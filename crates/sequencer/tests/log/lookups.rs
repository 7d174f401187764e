//! Entries found by their leaf hash, behind everything else.

use epigraph_core::hash::leaf_hash;
use epigraph_core::{Hash, LeafIndex};
use epigraph_sequencer::log::{Log, ReadError};
use epigraph_store::file::memory::MemoryDir;

use crate::support::*;

/// Asks until the lookup is not behind any more.
async fn found(log: &Log, leaf: Hash) -> Result<LeafIndex, ReadError> {
    loop {
        match log.index_of(leaf).await {
            Err(ReadError::LeafNotFound { behind: true }) => tokio::task::yield_now().await,
            answer => return answer,
        }
    }
}

/// Fails if the answer is not the first of equal entries, or if absence is said before the lookup has caught up.
#[tokio::test]
async fn each_entry_is_found_by_its_hash_the_first_of_equal_ones_also_after_a_restart() {
    let dir = MemoryDir::new();
    let mut running = create(&dir, Options::default());
    let texts: Vec<_> = (0..600).map(|n| format!("{}", n % 400)).collect();
    let sent: Vec<_> = texts.iter().map(|text| text.clone().into()).collect();
    running.log.append(sent, PUBLISHED).await.unwrap();
    for round in 0..2 {
        for n in (0..600).step_by(7) {
            let index = found(&running.log, leaf_hash(texts[n].as_bytes())).await.unwrap();
            assert_eq!(index.get(), n as u64 % 400, "round {round}");
            let proven = running.log.prove(index).await.unwrap();
            proven.proof.verify(&leaf_hash(texts[n].as_bytes()), &proven.checkpoint.head().root).unwrap();
        }
        let absent = found(&running.log, leaf_hash(b"never appended")).await;
        assert_eq!(absent, Err(ReadError::LeafNotFound { behind: false }));
        let lookup = running.log.status(NOW).lookup.unwrap();
        assert_eq!((lookup.size, lookup.lag), (size(600), 0));
        running.stop().await.unwrap();
        running = open(&dir, Options::default());
    }
}
