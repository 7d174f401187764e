//! Numbered entries are in the log once: over kills, restarts and lost answers, call by call and as streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use epigraph_core::{Entropy, TreeSize};
use epigraph_rpc::v1::{AppendRequest, GetProducerRequest};
use epigraph_rpc::{CallError, Producer, Reason, Refusal, Wait, peer};
use epigraph_store::file::real::RealDir;
use epigraph_store::journal::Reader;
use tokio::sync::mpsc;

use crate::support::{House, Serving, block_on, signal};

const ROUNDS: u64 = 8;
const PRODUCERS: u8 = 4;

/// The entry that a producer sends under a number.
fn entry(id: u8, number: u64) -> Bytes {
    format!("producer {id} number {number}").into()
}

fn entries(id: u8, first: u64, count: u64) -> Vec<Bytes> {
    (first..first + count).map(|number| entry(id, number)).collect()
}

fn numbered(id: u8, epoch: u64, first_sequence: u64) -> Option<Producer> {
    Some(Producer { id: [id; 16], epoch, first_sequence })
}

async fn append(log: &peer::Log, id: u8, epoch: u64, first: u64, count: u64) -> Result<u64, CallError> {
    let sent = entries(id, first, count);
    let answer = log.append("", sent, Wait::Durable, None, numbered(id, epoch, first)).await?;
    Ok(answer.first_index.get())
}

fn refused<T: std::fmt::Debug>(result: Result<T, CallError>) -> Refusal {
    match result {
        Err(CallError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

/// What is in the journal, read without the program: the index of each numbered entry.
fn on_disk(house: &House, entries: u64) -> BTreeMap<Bytes, u64> {
    let dir = Arc::new(RealDir::open(&house.log("journal")).unwrap());
    let mut reader = Reader::new(dir, house.origin().hash());
    let (mut found, mut index) = (BTreeMap::new(), 0);
    while let Some(frame) = reader.next_frame(TreeSize::new(entries).unwrap()).unwrap() {
        for entry in frame.entries() {
            let entry = Bytes::copy_from_slice(entry);
            assert_eq!(found.insert(entry.clone(), index), None, "{entry:?} is in the log twice");
            index += 1;
        }
    }
    assert_eq!(index, entries);
    found
}

/// What a producer was told: its id, a first number, a count, and the index.
type Told = (u8, u64, u64, u64);

/// Appends until the log is gone; returns the call that was not answered.
async fn append_until_it_ends(
    log: peer::Log,
    id: u8,
    mut next: u64,
    told: mpsc::UnboundedSender<Told>,
) -> (u8, u64, u64) {
    loop {
        let count = next % 3 + 1;
        match append(&log, id, 1, next, count).await {
            Ok(index) => drop(told.send((id, next, count, index))),
            Err(CallError::Unreachable(_) | CallError::TimedOut) => return (id, next, count),
            Err(error) => panic!("{error}"),
        }
        next += count;
    }
}

/// C1, C2, N7. Seen to fail with the table not folded at open.
#[test]
fn kills_between_disk_and_answer_leave_each_number_in_the_log_once() {
    let house = House::new();
    let mut answered: BTreeMap<(u8, u64), u64> = BTreeMap::new();
    let mut unanswered: Vec<(u8, u64, u64)> = (1..=PRODUCERS).map(|id| (id, 0, 1)).collect();
    let mut found_committed = 0;
    for round in 0..ROUNDS {
        let mut serving = house.serve();
        block_on(async {
            let log = house.log_peer(&serving);
            let mut next = Vec::new();
            for (id, first, count) in std::mem::take(&mut unanswered) {
                let known = log.producer("", [id; 16]).await.unwrap();
                let committed = known.next_sequence == first + count;
                assert!(committed || known.next_sequence == first, "{known:?} {first} {count}");
                found_committed += usize::from(committed);
                // Whether or not it was durable, it is now; and again, and everything that was answered before as well.
                let index = append(&log, id, 1, first, count).await.unwrap();
                assert_eq!(append(&log, id, 1, first, count).await.unwrap(), index);
                answered.extend((first..first + count).zip(index..).map(|(n, index)| ((id, n), index)));
                if let Some(before) = first.checked_sub(1) {
                    assert_eq!(append(&log, id, 1, before, 1).await.unwrap(), answered[&(id, before)]);
                }
                next.push((id, first + count));
            }
            let (sender, mut told) = mpsc::unbounded_channel();
            let tasks: Vec<_> = next
                .into_iter()
                .map(|(id, next)| tokio::spawn(append_until_it_ends(log.clone(), id, next, sender.clone())))
                .collect();
            drop(sender);
            let mut left = 10 + round * 3;
            while let Some((id, first, count, index)) = told.recv().await {
                answered.extend((first..first + count).zip(index..).map(|(n, index)| ((id, n), index)));
                left = left.saturating_sub(1);
                if left == 0 {
                    serving.kill();
                }
            }
            for task in tasks {
                unanswered.push(task.await.unwrap());
            }
        });
    }
    println!("{found_committed} calls were durable and not answered");
    let serving = house.serve();
    let size = serving.entries;
    serving.stop();
    let found = on_disk(&house, size);
    for ((id, number), index) in &answered {
        assert_eq!(found.get(&entry(*id, *number)), Some(index), "{id} {number}");
    }
}

#[test]
fn what_a_producer_may_not_do_is_refused_and_says_why() {
    let house = House::new();
    let serving = house.serve();
    block_on(async {
        let log = &house.log_peer(&serving);
        let known = log.producer("", [1; 16]).await.unwrap();
        assert_eq!((known.epoch, known.next_sequence), (None, 0));
        let first = append(log, 1, 3, 0, 5).await.unwrap();
        let check = async |sent: Vec<Bytes>, epoch, number, reason, says: &str| {
            let result = log.append("", sent, Wait::Durable, None, numbered(1, epoch, number)).await;
            let refusal = refused(result);
            assert_eq!((refusal.reason(), refusal.field()), (reason, Some("producer")), "{refusal}");
            assert!(refusal.message().contains(says), "{refusal}");
        };
        check(entries(2, 1, 2), 3, 1, Reason::SequenceReused, "number 1 ").await;
        let mut changed = entries(1, 0, 5);
        changed[4] = Bytes::from_static(b"other");
        check(changed, 3, 0, Reason::SequenceReused, "number 4 ").await;
        check(entries(1, 3, 4), 3, 3, Reason::SequenceReused, "lowest number that is missing is 5").await;
        check(entries(1, 5, 1), 2, 5, Reason::StaleEpoch, "epoch 3").await;
        check(entries(1, 20_000, 1), 3, 20_000, Reason::SequenceGap, "missing is 5").await;
        assert_eq!(append(log, 1, 3, 0, 5).await.unwrap(), first);
        assert_eq!(append(log, 1, 4, 2, 2).await.unwrap(), first + 2);
        // A repeat that waits for publication brings the receipts.
        let published = Wait::Published;
        let answer = log.append("", entries(1, 0, 5), published, None, numbered(1, 4, 0)).await.unwrap();
        assert_eq!((answer.first_index.get(), answer.proofs.len(), answer.reached), (first, 5, published));
        // Far behind, it is still known to be committed.
        for number in (5..17_000).step_by(4_000) {
            append(log, 1, 4, number, 4_000).await.unwrap();
        }
        check(entries(1, 0, 1), 4, 0, Reason::AlreadyCommitted, "all below 20005").await;
        let known = log.producer("", [1; 16]).await.unwrap();
        assert_eq!((known.epoch, known.next_sequence), (Some(4), 20_005));
        let mut raw = house.raw_client(&serving);
        let bad =
            raw.get_producer(GetProducerRequest { origin: String::new(), id: Bytes::from_static(&[1; 15]) });
        let refusal = Refusal::from_status(&bad.await.unwrap_err()).unwrap();
        assert_eq!((refusal.reason(), refusal.field()), (Reason::Malformed, Some("id")));
    });
    serving.stop();
}

/// Sends requests as one stream and says of each what became of it, and how the stream ended.
async fn stream(
    log: &peer::Log,
    producer: Option<Producer>,
    requests: Vec<Vec<Bytes>>,
) -> (Vec<u64>, Result<(), CallError>) {
    let (mut sender, mut answers) = log.append_stream("", Wait::Durable, None, producer).await.unwrap();
    let sending = async move {
        for entries in requests {
            if !sender.send(entries).await {
                break;
            }
        }
    };
    let receiving = async {
        let mut indexes = Vec::new();
        loop {
            match answers.next().await {
                Ok(Some(answer)) => indexes.push(answer.first_index.get()),
                Ok(None) => return (indexes, Ok(())),
                Err(error) => return (indexes, Err(error)),
            }
        }
    };
    tokio::join!(sending, receiving).1
}

#[test]
fn a_stream_answers_in_order_and_everything_that_was_sent_before_it_was_closed() {
    let house = House::new();
    let serving = house.serve();
    let start = serving.entries;
    block_on(async {
        let log = house.log_peer(&serving);
        let requests: Vec<_> = (0..300).map(|n| entries(1, n * 2, 2)).collect();
        let (indexes, ended) = stream(&log, numbered(1, 0, 0), requests.clone()).await;
        assert_eq!((indexes.clone(), ended), ((0..300).map(|n| start + 2 * n).collect(), Ok(())));
        // The newest again, and more: the same answers.
        let again: Vec<_> = requests[250..].iter().cloned().chain([entries(1, 600, 1)]).collect();
        let (repeated, ended) = stream(&log, numbered(1, 0, 500), again).await;
        assert_eq!(ended, Ok(()));
        assert_eq!(repeated[..50], indexes[250..]);
        assert_eq!(repeated[50..], [start + 600]);
        // Without numbers everything is appended.
        let (indexes, ended) = stream(&log, None, vec![vec![Bytes::new()]; 100]).await;
        assert_eq!((indexes, ended), ((601..701).map(|n| start + n).collect(), Ok(())));
    });
    let after = start + 701;
    serving.stop();
    assert_eq!(house.serve().entries, after);
}

#[test]
fn a_stream_ends_with_the_request_that_is_refused_and_takes_none_after_it() {
    let house = House::new();
    let serving = house.serve();
    let start = serving.entries;
    block_on(async {
        let log = house.log_peer(&serving);
        let too_large = vec![Bytes::from(vec![7; 65_536])];
        for producer in [None, numbered(1, 0, 0)] {
            let before = if producer.is_some() { start + 2 } else { start };
            let requests = vec![entries(1, 0, 1), entries(1, 1, 1), too_large.clone(), entries(1, 2, 1)];
            let (indexes, ended) = stream(&log, producer, requests).await;
            assert_eq!(indexes, [before, before + 1]);
            assert_eq!(refused(ended).reason(), Reason::EntryTooLarge);
        }
        // A number that stands for something else, in the midst of new ones.
        append(&log, 1, 0, 3, 1).await.unwrap();
        let requests = vec![entries(1, 2, 1), entries(2, 3, 1), entries(1, 4, 1)];
        let (indexes, _) = stream(&log, numbered(1, 0, 2), requests).await;
        assert_eq!(indexes, [start + 5]);
        assert_eq!(log.producer("", [1; 16]).await.unwrap().next_sequence, 4);

        let mut raw = house.raw_client(&serving);
        let first = AppendRequest { entries: entries(3, 0, 1), ..AppendRequest::default() };
        let second = AppendRequest { wait: 1, ..first.clone() };
        let requests = tokio_stream::iter([first.clone(), second, first]);
        let mut answers = raw.append_stream(requests).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().map(|answer| answer.first_index), Some(start + 6));
        let refusal = Refusal::from_status(&answers.message().await.unwrap_err()).unwrap();
        assert_eq!(refusal.reason(), Reason::Malformed);
    });
    serving.stop();
    assert_eq!(house.serve().entries, start + 7);
}

#[test]
fn a_log_that_stops_ends_a_stream_well_after_all_its_answers() {
    let house = House::new();
    let mut serving: Serving = house.serve();
    block_on(async {
        let log = house.log_peer(&serving);
        let (mut sender, mut answers) =
            log.append_stream("", Wait::Published, None, numbered(1, 0, 0)).await.unwrap();
        for number in 0..20 {
            assert!(sender.send(entries(1, number, 1)).await);
        }
        let first = answers.next().await.unwrap().unwrap();
        signal("TERM", &serving.pid().to_string());
        let mut indexes = vec![first.first_index.get()];
        while let Some(answer) = answers.next().await.unwrap() {
            indexes.push(answer.first_index.get());
        }
        assert!(indexes.is_sorted() && indexes.len() <= 20);
        drop(sender);
        // What was not answered was not appended: it can be sent elsewhere, or again.
        serving.ended().succeeded(&[]);
        assert_eq!(house.serve().entries, indexes[0] + indexes.len() as u64);
    });
}

/// Another byte each time.
struct Counting(AtomicU8);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(self.0.fetch_add(1, Ordering::Relaxed));
    }
}

#[test]
fn a_producer_that_starts_again_goes_on_and_fences_the_one_before() {
    let house = House::new();
    let serving = house.serve();
    block_on(async {
        let client = house.client(&serving);
        let entropy: Arc<dyn Entropy> = Arc::new(Counting(AtomicU8::new(50)));
        let mut old = client.new_producer(Arc::clone(&entropy)).await.unwrap();
        let appended = old.append(&entries(1, 0, 3), Wait::Published).await.unwrap();
        assert_eq!(appended.receipts.unwrap().len(), 3);
        let mut new = client.producer(old.id(), entropy).await.unwrap();
        assert_eq!(new.next_sequence(), 3);
        let next = new.append(&entries(1, 3, 1), Wait::Durable).await.unwrap();
        assert_eq!(next.first_index.get(), appended.first_index.get() + 3);
        let fenced = old.append(&entries(1, 3, 1), Wait::Durable).await.unwrap_err();
        assert!(fenced.to_string().contains("STALE_EPOCH"), "{fenced}");
    });
    serving.stop();
}
