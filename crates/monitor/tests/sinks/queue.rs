//! The queue on disk: what was put stays, whatever ends the process; what is given up is counted.

use std::sync::Arc;

use epigraph_monitor::finding::Severity::{self, Page, Warn};
use epigraph_monitor::sinks::queue::{MAX_MESSAGE_BYTES, MAX_MESSAGES, Queue, QueueError};
use epigraph_store::file::Dir;
use epigraph_store::file::fault::{Fault, FaultDir, Operation, Outcome};
use epigraph_store::file::memory::{MemoryDir, by_seed};

fn open(dir: &MemoryDir) -> Queue {
    Queue::open(Arc::new(dir.clone())).unwrap()
}

fn put(queue: &mut Queue, severity: Severity, text: &str) {
    queue.put(severity, text.to_owned().into()).unwrap();
}

/// All that wait, oldest first.
fn waiting(queue: &mut Queue) -> Vec<String> {
    let mut found: Vec<(u64, String)> = Vec::new();
    let mut from = 0;
    while let Some(queued) = queue.next_from(from).unwrap() {
        if found.last().is_some_and(|(last, _)| *last >= queued.number) {
            break;
        }
        from = queued.number + 1;
        found.push((queued.number, String::from_utf8(queued.body.to_vec()).unwrap()));
    }
    found.into_iter().map(|(_, text)| text).collect()
}

/// M4: seen to fail without the sync of the file, and without that of the directory.
#[test]
fn what_was_put_outlives_a_power_cut() {
    for seed in 0..200 {
        let dir = MemoryDir::new();
        let mut queue = open(&dir);
        put(&mut queue, Page, "one");
        put(&mut queue, Warn, "two");
        put(&mut queue, Warn, "three");
        queue.remove(1).unwrap();
        drop(queue);
        dir.power_cut(by_seed(seed));
        let mut queue = open(&dir);
        let there = waiting(&mut queue);
        // What was delivered may come once more; what was not is there.
        assert!(there == ["one", "three"] || there == ["one", "two", "three"], "{seed}: {there:?}");
        put(&mut queue, Page, "four");
        assert_eq!(waiting(&mut queue).last().map(String::as_str), Some("four"));
    }
}

/// M4: wherever a put is cut off, what was put before is there, and the queue opens. Seen to fail when a file was written in
/// place, and when what is left of one stopped the next.
#[test]
fn a_put_that_is_cut_off_costs_no_other() {
    let operations = {
        let dir = FaultDir::new(Arc::new(MemoryDir::new()));
        let mut queue = Queue::open(Arc::new(dir.clone())).unwrap();
        let before = dir.operations().len();
        put(&mut queue, Page, "two");
        dir.operations().len() - before
    };
    for nth in 0..operations {
        for outcome in [Outcome::NotApplied, Outcome::Applied, Outcome::Torn(30), Outcome::NoSpace] {
            let memory = MemoryDir::new();
            put(&mut open(&memory), Page, "one");
            let dir = FaultDir::new(Arc::new(memory.clone()));
            let mut queue = Queue::open(Arc::new(dir.clone())).unwrap();
            dir.inject(Fault { operation: None, nth, outcome, crash: true });
            let outcome = queue.put(Page, "two".into());
            assert!(dir.fired());
            if outcome.is_err() {
                // The process lives on, and holds it.
                assert_eq!(queue.len(), 2);
            }
            drop(queue);
            memory.power_cut(by_seed(nth as u64));
            let mut queue = open(&memory);
            let there = waiting(&mut queue);
            put(&mut queue, Page, "three");
            assert!(there == ["one"] || there == ["one", "two"], "{nth} {outcome:?}: {there:?}");
            assert!(outcome.is_err() || there.len() == 2, "{nth} {outcome:?}");
        }
    }
}

/// Seen to fail when the message was only counted as put.
#[test]
fn a_full_disk_does_not_silence_an_alarm() {
    let dir = FaultDir::new(Arc::new(MemoryDir::new()));
    let mut queue = Queue::open(Arc::new(dir.clone())).unwrap();
    dir.inject(Fault { operation: Some(Operation::Write), nth: 0, outcome: Outcome::NoSpace, crash: false });
    assert!(matches!(queue.put(Page, "one".into()), Err(QueueError::Io { .. })));
    assert_eq!(waiting(&mut queue), ["one"]);
    queue.remove(0).unwrap();
    assert!(queue.is_empty());
}

/// M4: the oldest of the least severe goes, is counted, and the count outlives the process. Seen to fail with the oldest of all, and
/// with a count in memory.
#[test]
fn a_full_queue_gives_up_the_oldest_of_the_least_severe_and_counts_it() {
    let dir = MemoryDir::new();
    let mut queue = open(&dir);
    put(&mut queue, Page, "page 0");
    put(&mut queue, Warn, "warn 0");
    put(&mut queue, Warn, "warn 1");
    for n in 3..MAX_MESSAGES {
        put(&mut queue, Page, &format!("page {n}"));
    }
    assert_eq!((queue.len(), queue.dropped()), (MAX_MESSAGES, 0));
    put(&mut queue, Page, "newest");
    assert_eq!((queue.len(), queue.dropped()), (MAX_MESSAGES, 1));
    drop(queue);
    dir.forget_unsynced();

    let mut queue = open(&dir);
    assert_eq!(queue.dropped(), 1);
    let there = waiting(&mut queue);
    assert_eq!(
        (&there[0], &there[1], there.last().unwrap()),
        (&"page 0".into(), &"warn 1".into(), &"newest".into())
    );
    // Without any that is less severe, the oldest.
    put(&mut queue, Page, "a");
    put(&mut queue, Page, "b");
    assert_eq!((waiting(&mut queue)[0].as_str(), queue.dropped()), ("page 3", 3));
    // Nor does a new one push out what is worse.
    put(&mut queue, Warn, "least");
    assert!(!waiting(&mut queue).contains(&"least".to_owned()) && queue.dropped() == 4);
    queue.told_dropped(3).unwrap();
    assert_eq!(open(&dir).dropped(), 1);
}

/// Seen to fail without the digest.
#[test]
fn a_damaged_message_is_named_and_counted_and_stops_no_other() {
    for offset in [0, 25, 90] {
        let dir = MemoryDir::new();
        let mut queue = open(&dir);
        put(&mut queue, Page, "one");
        put(&mut queue, Page, "two");
        let name = dir.list().unwrap().remove(0);
        let offset = offset.min(dir.content(&name).unwrap().len() - 1);
        dir.damage(&name, offset, b"#").unwrap();
        let error = queue.next_from(0).unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        assert_eq!((waiting(&mut queue), queue.dropped()), (vec!["two".to_owned()], 1));
    }
}

/// Seen to fail when an error of the directory gave an empty queue.
#[test]
fn what_cannot_be_read_is_no_empty_queue() {
    let memory = MemoryDir::new();
    put(&mut open(&memory), Page, "one");
    let dir = FaultDir::new(Arc::new(memory.clone()));
    let fault =
        |operation| Fault { operation: Some(operation), nth: 0, outcome: Outcome::NotApplied, crash: false };
    dir.inject(fault(Operation::List));
    assert!(Queue::open(Arc::new(dir.clone())).is_err());
    drop(memory.create("somebody's.txt").unwrap());
    let Err(error) = Queue::open(Arc::new(memory.clone())) else { panic!("a foreign file was taken") };
    assert!(matches!(error, QueueError::Foreign(_)), "{error}");
}

#[test]
fn a_message_has_a_longest_length() {
    let mut queue = open(&MemoryDir::new());
    assert!(queue.put(Page, vec![b'x'; MAX_MESSAGE_BYTES].into()).is_ok());
    assert!(matches!(queue.put(Page, vec![b'x'; MAX_MESSAGE_BYTES + 1].into()), Err(QueueError::TooLong(_))));
}
