//! Streams of appends: what is read ahead, and how they end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use epigraph_core::Hash;
use epigraph_core::hash::sha256;
use epigraph_sequencer::log::{AppendError, Appended, Call, MAX_AHEAD, MAX_AHEAD_BYTES, StreamError, Wait};
use epigraph_sequencer::machine::{Numbers, Refused};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::journal::{Config, ProducerKey};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;

use crate::support::{NOW, Options, PUBLISHED, Running, create, entries, poll_times, verify};

/// Requests that are there at once, and how many of them were read. Behind them it ends, or stays open.
struct Requests {
    requests: VecDeque<Vec<Bytes>>,
    read: Arc<AtomicUsize>,
    ends: bool,
}

impl Stream for Requests {
    type Item = Result<Vec<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.requests.pop_front() {
            Some(request) => {
                self.read.fetch_add(1, Ordering::SeqCst);
                Poll::Ready(Some(Ok(request)))
            }
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

fn requests(requests: Vec<Vec<Bytes>>, ends: bool) -> (Requests, Arc<AtomicUsize>) {
    let read = Arc::new(AtomicUsize::new(0));
    (Requests { requests: requests.into(), read: Arc::clone(&read), ends }, read)
}

fn numbers(first_sequence: u64) -> Option<Numbers> {
    let producer = ProducerKey { identity: Hash::from_bytes([1; 32]), id: [2; 16] };
    Some(Numbers { producer, epoch: 0, first_sequence })
}

type Answers = mpsc::Receiver<Result<Vec<Appended>, StreamError<Infallible>>>;

async fn indexes(mut answers: Answers) -> Vec<u64> {
    let mut indexes = Vec::new();
    while let Some(answer) = answers.recv().await {
        indexes.extend(answer.unwrap().iter().map(|answer| answer.first_index.get()));
    }
    indexes
}

/// Runs a stream to its end.
async fn run(
    running: &Running,
    numbers: Option<Numbers>,
    requests: Requests,
    leave: impl Future<Output = ()>,
) -> (Vec<u64>, Result<(), StreamError<Infallible>>) {
    let (send, answers) = mpsc::channel(1);
    let log = Arc::clone(&running.log);
    let stream =
        async move { log.append_stream(sha256(b""), Wait::Durable, numbers, requests, leave, &send).await };
    let (ended, indexes) = tokio::join!(stream, indexes(answers));
    (indexes, ended)
}

/// Seen to fail without the limits on requests, and on bytes.
#[tokio::test]
async fn so_much_is_read_ahead_and_no_more() {
    let check = async |request: Vec<Bytes>, expected: usize| {
        let running = create(
            &MemoryDir::new(),
            Options { publishes: false, config: Config::QUICKSTART, ..Options::default() },
        );
        let (requests, read) = requests(vec![request; 2 * MAX_AHEAD], false);
        let (send, _answers) = mpsc::channel(1);
        // Nothing is published, so nothing is answered.
        let stream = Arc::clone(&running.log);
        let stream =
            stream.append_stream(sha256(b""), PUBLISHED, None, requests, std::future::pending(), &send);
        let mut stream = Box::pin(stream);
        for _ in 0..100 {
            assert!(poll_times(stream.as_mut(), 1).await.is_none());
            tokio::task::yield_now().await;
        }
        drop(stream);
        assert_eq!(read.load(Ordering::SeqCst), expected);
        // Whoever goes away leaves nothing behind but what was taken.
        running.log.drain().await;
        let Running { log, driver, .. } = running;
        crate::support::ended(driver).await.unwrap();
        assert_eq!(log.status(NOW).in_flight_bytes, 0);
    };
    check(entries(&["a", "b"]), MAX_AHEAD).await;
    // The entries of this many requests are just above the limit.
    let large = Bytes::from(vec![7; 65_535]);
    check(vec![large], MAX_AHEAD_BYTES / (65_535 + 64) + 1).await;
}

/// Broken to see it fail: the proofs of all that came together in each answer, indexes that do not run on.
#[tokio::test]
async fn each_request_of_many_that_come_together_gets_its_own_receipts() {
    let running = create(&MemoryDir::new(), Options::default());
    for numbers in [None, numbers(0)] {
        let sent: Vec<_> = (1..=8).map(|count| vec![Bytes::from(format!("of {count}")); count]).collect();
        let (send, mut answers) = mpsc::channel(1);
        let log = Arc::clone(&running.log);
        let requests = requests(sent.clone(), true).0;
        let stream =
            log.append_stream(sha256(b""), PUBLISHED, numbers, requests, std::future::pending(), &send);
        let receiving = async {
            let mut told = Vec::new();
            while told.len() < sent.len() {
                told.extend(answers.recv().await.unwrap().unwrap());
            }
            told
        };
        let (ended, told) = tokio::join!(stream, receiving);
        assert_eq!(ended, Ok(()));
        let mut next = told[0].first_index;
        for (answer, sent) in told.iter().zip(&sent) {
            assert_eq!((answer.first_index, answer.count as usize), (next, sent.len()));
            verify(answer, sent);
            next = next.checked_add(sent.len() as u64).unwrap();
        }
    }
}

#[tokio::test]
async fn whoever_is_asked_to_leave_gets_all_answers_first() {
    let running = create(&MemoryDir::new(), Options::default());
    let (leave, left) = oneshot::channel::<()>();
    let (open, _) = requests(vec![entries(&["a"]); 10], false);
    drop(leave);
    let leave = async { drop(left.await) };
    let (told, ended) = run(&running, None, open, leave).await;
    assert_eq!(ended, Ok(()));
    let durable = running.durable(&["after"]).await;
    assert_eq!(told.len() as u64, durable, "what was read is answered");

    let (open, _) = requests(vec![entries(&["a"]); 10], false);
    running.log.drain().await;
    let (told, ended) = run(&running, None, open, std::future::pending()).await;
    assert_eq!((told.len(), ended), (0, Ok(())));
}

#[tokio::test]
async fn repeats_come_first_and_one_in_the_midst_of_new_ones_ends_the_stream_well() {
    let running = create(&MemoryDir::new(), Options::default());
    let request = |number: u64| vec![Bytes::from(format!("number {number}"))];
    let all = |numbers: std::ops::Range<u64>| requests(numbers.map(request).collect(), true).0;
    assert_eq!(run(&running, numbers(0), all(0..20), std::future::pending()).await.0, Vec::from_iter(0..20));
    // All again, and more.
    let (told, ended) = run(&running, numbers(0), all(0..30), std::future::pending()).await;
    assert_eq!((told, ended), (Vec::from_iter(0..30), Ok(())));
    // Somebody was here before.
    let call = Call {
        entries: request(32),
        wait: Wait::Durable,
        numbers: numbers(32),
        line: None,
        identity: sha256(b""),
    };
    assert_eq!(running.log.call(call).await.unwrap().first_index.get(), 30);
    let (told, ended) = run(&running, numbers(30), all(30..40), std::future::pending()).await;
    assert_eq!(
        (told, ended),
        (vec![31, 32], Ok(())),
        "it ends before the repeat and takes nothing behind it"
    );
    let (told, ended) = run(&running, numbers(32), all(32..40), std::future::pending()).await;
    assert_eq!((told[0], told.len(), ended), (30, 8, Ok(())));
    let state = running.log.producer(numbers(0).unwrap().producer).await.unwrap();
    assert_eq!(state.next_sequence, 40);
}

#[tokio::test]
async fn a_request_that_is_refused_ends_the_stream_after_those_before_it() {
    let running = create(&MemoryDir::new(), Options::default());
    for numbers in [None, numbers(0)] {
        let before = running.durable(&["between"]).await;
        let sent = vec![entries(&["a"]), entries(&["b", "c"]), Vec::new(), entries(&["d"])];
        let (told, ended) = run(&running, numbers, requests(sent, true).0, std::future::pending()).await;
        assert_eq!((told, ended), (vec![before + 1, before + 2], Err(AppendError::NoEntries.into())));
        assert_eq!(running.durable(&["after"]).await, before + 4);
    }
    let other = requests(vec![entries(&["x"])], true).0;
    let (_, ended) = run(&running, numbers(1), other, std::future::pending()).await;
    assert_eq!(ended, Err(AppendError::Refused(Refused::Reused(1)).into()));
}
