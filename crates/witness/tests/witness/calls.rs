//! A running witness: who is refused and why, what the gate waits for, and what becomes of its list of logs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::note::{self, MAX_SIGNATURES, SignatureLine};
use epigraph_core::{Hash, KeyName, Origin, SigningKey, TreeSize};
use epigraph_store::file::memory::MemoryDir;
use epigraph_store::tree::MemoryTree;
use epigraph_witness::gate::Passage;
use epigraph_witness::keeper::{Answer, Refused, YOUNG_MS};
use epigraph_witness::list::Listed;
use epigraph_witness::status::Kind;
use epigraph_witness::witness::{AddError, AskLog, Notes, Settings, Witness, prepare};
use zeroize::Zeroizing;

use crate::support::*;

const SETTINGS: Settings =
    Settings { caller_per_second: 10_000, log_per_second: 10_000, pass_unreachable: false };

/// What all logs show, and how often they were asked.
#[derive(Default)]
pub struct Show {
    notes: Mutex<Option<Vec<Bytes>>>,
    asked: AtomicUsize,
}

impl Show {
    pub fn nothing() -> Arc<Show> {
        Show::these(vec![])
    }

    fn these(notes: Vec<Vec<u8>>) -> Arc<Show> {
        let notes = notes.into_iter().map(Bytes::from).collect();
        Arc::new(Show { notes: Mutex::new(Some(notes)), asked: AtomicUsize::new(0) })
    }
}

impl AskLog for Show {
    fn notes<'a>(&'a self, _: &'a Origin, _: TreeSize) -> Notes<'a> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let notes = self.notes.lock().unwrap().clone();
        Box::pin(async { notes.ok_or_else(|| "connection refused".into()) })
    }
}

fn start_with(
    memory: &MemoryDir,
    list: Vec<Listed>,
    settings: Settings,
    show: Arc<Show>,
) -> (Witness, Arc<TestClock>) {
    let clock = TestClock::new();
    let mut keeper = open_gated(Arc::new(memory.clone())).unwrap();
    let prepared = prepare(&mut keeper, list, &*clock).unwrap();
    let (witness, _) =
        Witness::start(keeper, prepared, settings, Arc::clone(&clock) as _, show, Arc::new(memory.clone()))
            .unwrap();
    (witness, clock)
}

pub fn start(memory: &MemoryDir, logs: usize, show: Arc<Show>) -> (Witness, Arc<TestClock>) {
    start_with(memory, (0..logs).map(listed).collect(), SETTINGS, show)
}

async fn add(
    witness: &Witness,
    log: usize,
    tree: &MemoryTree,
    old: u64,
    new: u64,
) -> Result<Answer, AddError> {
    let note = signed(log, &head(tree, new));
    witness.add_checkpoint(&origin(log), size(old), note.as_bytes(), proof(tree, old, new)).await
}

#[track_caller]
fn is_cosigned(answer: Result<Answer, AddError>) {
    assert!(matches!(answer, Ok(Answer::Cosigned(_))), "{answer:?}");
}

/// R6 for a witness. Broken to see it fail: a silent log counts as one that shows nothing.
#[tokio::test]
async fn nothing_is_cosigned_before_the_log_has_answered_once_after_a_start() {
    let ours = tree(20, 20, 1);
    let memory = store(1);
    let show = Arc::new(Show::default());
    let (witness, _) = start(&memory, 1, Arc::clone(&show));
    for _ in 0..3 {
        let error = add(&witness, 0, &ours, 0, 5).await.unwrap_err();
        assert!(
            matches!(error, AddError::LogSilent { .. }) && error.to_string().contains("connection refused"),
            "{error}"
        );
    }
    assert_eq!((witness.status().waiting_logs, witness.status().refusals.of(Kind::Gated)), (1, 3));
    // The log comes up, and shows a larger head that it signed and nobody cosigned.
    *show.notes.lock().unwrap() = Some(vec![signed(0, &head(&ours, 12)).into()]);
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    *show.notes.lock().unwrap() = None;
    is_cosigned(add(&witness, 0, &ours, 5, 12).await);
    assert_eq!(show.asked.load(Ordering::Relaxed), 4, "a log is asked until it answers, then never again");
    assert_eq!((witness.status().waiting_logs, witness.status().cosigned), (0, 2));
}

/// After a power cut the newest head may be torn. A log that waits at its own gate to hear what is held proposes nothing before it
/// hears it, so the question itself passes the gate. Broken to see it fail: only a proposal does.
#[tokio::test]
async fn a_witness_whose_newest_head_is_torn_asks_the_log_before_it_says_what_it_holds() {
    let ours = tree(20, 20, 1);
    let memory = store(1);
    let mut keeper = open(Arc::new(memory.clone()), 1).unwrap();
    for (old, new) in [(0, 8), (8, 9)] {
        propose(&mut keeper, proposal(0, &ours, old, new), NOW).unwrap();
    }
    for slot in [1, 3] {
        memory.damage("heads", 8_192 + slot * 8_192 + 300, b"torn").unwrap();
    }
    let show = Arc::new(Show::default());
    let (witness, _) = start(&memory, 1, Arc::clone(&show));
    let silent = witness.checkpoint(&origin(0)).await.unwrap_err();
    assert!(matches!(silent, AddError::LogSilent { .. }), "{silent}");
    *show.notes.lock().unwrap() = Some(vec![cosigned(0, &head(&ours, 8), NOW).into()]);
    assert_eq!(witness.checkpoint(&origin(0)).await.unwrap().unwrap().held.head, head(&ours, 8));

    let newer = cosigned(0, &head(&ours, 9), NOW);
    let (restored, _) = start(&memory, 1, Show::these(vec![newer.into_bytes()]));
    let back = restored.checkpoint(&origin(0)).await.unwrap_err();
    assert!(matches!(back, AddError::Refused(Refused::RolledBack(_))), "{back}");
}

#[tokio::test]
async fn a_silent_log_or_one_without_an_address_passes_only_where_that_is_configured_and_is_counted() {
    let ours = tree(20, 20, 1);
    let lenient = Settings { pass_unreachable: true, ..SETTINGS };
    let (witness, _) = start_with(&store(1), vec![listed(0)], lenient, Arc::new(Show::default()));
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    assert_eq!(witness.status().unchecked_logs, 1);

    let nobody = vec![Listed { can_ask: false, ..listed(0) }];
    let show = Arc::new(Show::default());
    let (witness, _) = start_with(&store(1), nobody, SETTINGS, Arc::clone(&show));
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    assert_eq!((witness.status().unchecked_logs, show.asked.load(Ordering::Relaxed)), (1, 0));
}

/// A log that gets its address while the witness runs was cosigned for unasked until then. Broken to see it fail: the list's
/// new address changes nothing before the next start; one that is told again and again asks anew each time.
#[tokio::test]
async fn a_log_that_gets_an_address_is_asked_by_the_running_witness() {
    let ours = tree(20, 20, 1);
    let nobody = vec![Listed { can_ask: false, ..listed(0) }];
    let show = Arc::new(Show::default());
    let (witness, _) = start_with(&store(1), nobody, SETTINGS, Arc::clone(&show));
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    assert_eq!(witness.apply(vec![listed(0)]).await.unwrap().reachable, [origin(0)]);
    assert_eq!(witness.held()[0].passage, Passage::Closed);
    let silent = add(&witness, 0, &ours, 5, 6).await.unwrap_err();
    assert!(matches!(silent, AddError::LogSilent { .. }), "{silent}");
    *show.notes.lock().unwrap() = Some(vec![]);
    is_cosigned(add(&witness, 0, &ours, 5, 6).await);
    assert!(witness.apply(vec![listed(0)]).await.unwrap().reachable.is_empty());
    is_cosigned(add(&witness, 0, &ours, 6, 7).await);
    assert_eq!((witness.held()[0].passage, show.asked.load(Ordering::Relaxed)), (Passage::Passed, 2));

    // What it shows may convict the witness as at a start.
    let nobody = vec![Listed { can_ask: false, ..listed(0) }];
    let newer = cosigned(0, &head(&ours, 12), NOW);
    let (restored, _) = start_with(&store(1), nobody, SETTINGS, Show::these(vec![newer.into_bytes()]));
    is_cosigned(add(&restored, 0, &ours, 0, 5).await);
    restored.apply(vec![listed(0)]).await.unwrap();
    let back = add(&restored, 0, &ours, 5, 6).await.unwrap_err();
    assert!(matches!(back, AddError::Refused(Refused::RolledBack(_))), "{back}");
    assert!(restored.status().rolled_back);
}

/// What is held is told before and after the first cosignature of a run, and each refusal counts as what it is.
#[tokio::test]
async fn it_tells_what_it_holds_and_why_it_refused() {
    let (ours, other) = (tree(20, 20, 1), tree(20, 3, 2));
    let memory = store(2);
    let (witness, clock) = start(&memory, 2, Show::nothing());
    let held = |witness: &Witness| {
        let held = witness.held();
        held.into_iter().map(|log| (log.size.get(), log.cosigned_at)).collect::<Vec<_>>()
    };
    assert_eq!(held(&witness), [(0, None), (0, None)]);
    is_cosigned(add(&witness, 1, &ours, 0, 5).await);
    assert_eq!(held(&witness), [(0, None), (5, Some(NOW))]);
    let (restarted, _) = start(&memory, 2, Show::nothing());
    assert_eq!(held(&restarted), [(0, None), (5, Some(NOW))]);

    drop(add(&witness, 1, &ours, 4, 6).await.unwrap());
    drop(add(&witness, 1, &other, 5, 5).await.unwrap());
    let forged = signed(0, &head(&ours, 6)).replace("log.example/0", "log.example/1");
    witness.add_checkpoint(&origin(1), size(5), forged.as_bytes(), vec![]).await.unwrap_err();
    add(&witness, 7, &ours, 0, 5).await.unwrap_err();
    witness.add_checkpoint(&origin(1), size(5), b"nothing", vec![]).await.unwrap_err();
    clock.forward(2 * YEAR_MS);
    add(&witness, 1, &ours, 5, 6).await.unwrap_err();
    let refusals = witness.status().refusals;
    let kinds =
        [Kind::Stale, Kind::Conflict, Kind::BadSignature, Kind::UnknownLog, Kind::Malformed, Kind::ClockSkew];
    assert_eq!((kinds.map(|kind| refusals.of(kind)), refusals.total()), ([1; 6], 6));
    assert_eq!(witness.status().cosigned, 1);
}

/// A14, R2. Broken to see it fail: what the log shows is not looked through for our cosignatures.
#[tokio::test]
async fn an_older_copy_of_the_state_cosigns_nothing_when_the_log_shows_our_newer_cosignature() {
    let ours = tree(20, 20, 1);
    let memory = store(2);
    let (witness, clock) = start(&memory, 2, Show::nothing());
    is_cosigned(add(&witness, 0, &ours, 0, 8).await);
    let yesterday = memory.duplicate();
    clock.forward(10_000);
    let Ok(Answer::Cosigned(published)) = add(&witness, 0, &ours, 8, 12).await else { panic!() };

    // Its newest checkpoint was published without us; the one before carries our cosignature.
    let notes = vec![signed(0, &head(&ours, 20)).into_bytes(), published.note()];
    let (restored, _) = start(&yesterday, 2, Show::these(notes));
    for log in [0, 0, 1] {
        let error = add(&restored, log, &ours, 8, 20).await.unwrap_err();
        assert!(matches!(error, AddError::Refused(Refused::RolledBack(_))), "{error}");
        let (old, new) = (head(&ours, 8).root.to_string(), head(&ours, 12).root.to_string());
        assert!(error.to_string().contains(&old) && error.to_string().contains(&new), "{error}");
    }
    assert!(restored.status().rolled_back);
    // It still shows what it holds, so that others can see that it went back.
    let held = restored.checkpoint(&origin(0)).await.unwrap().unwrap();
    assert_eq!(check_note(&held.note(), 0), head(&ours, 8));
}

#[tokio::test]
async fn only_a_plain_checkpoint_with_the_logs_own_signature_is_looked_at() {
    let ours = tree(20, 20, 1);
    let (witness, _) = start(&store(2), 2, Show::nothing());
    let at = head(&ours, 5);
    let text = encode_text(&origin(0), &at);
    let own = log_key(0).sign_assertion(&text);
    let stranger = SigningKey::from_seed(KeyName::new("log.example/0").unwrap(), &Zeroizing::new([77; 32]));
    let refused = async |note: String, log: usize, says: &str| {
        let error = witness.add_checkpoint(&origin(log), size(0), note.as_bytes(), vec![]).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(String::new(), 0, "cut off").await;
    refused(note::encode(&text, [&stranger.sign_assertion(&text)]), 0, "no key that the policy trusts").await;
    refused(
        note::encode(&text, [&SignatureLine { signature: vec![0; 64], ..own.clone() }]),
        0,
        "does not match",
    )
    .await;
    refused(note::encode(&text, [&own]), 1, "log.example/0").await;
    refused(note::encode(&text, [&own]), 7, "no log").await;
    refused(note::encode(&text, [&own, &own, &own]), 0, "one is enough").await;
    let extended = format!("{text}more\n");
    refused(note::encode(&extended, [&log_key(0).sign_assertion(&extended)]), 0, "extension lines").await;
    for size in ["05", "9223372036854775808", "18446744073709551615", "-1"] {
        let text = text.replace("\n5\n", &format!("\n{size}\n"));
        refused(note::encode(&text, [&log_key(0).sign_assertion(&text)]), 0, "size").await;
    }
    let long = vec![SignatureLine { name: "x".repeat(255), ..own.clone() }; MAX_SIGNATURES];
    refused(note::encode(&text, &long), 0, "no key that the policy trusts").await;
    refused(note::encode(&text, long.iter().chain([&own])), 0, "at most 100 signatures").await;
    assert!(witness.checkpoint(&origin(0)).await.unwrap().is_none(), "none of it left a trace");

    // Ninety-nine lines of strangers beside the log's: only the log's is kept.
    let crowded = note::encode(&text, long.iter().skip(1).chain([&own]));
    is_cosigned(witness.add_checkpoint(&origin(0), size(0), crowded.as_bytes(), vec![]).await);
    let shown = witness.checkpoint(&origin(0)).await.unwrap().unwrap();
    assert_eq!(shown.held.note, signed(0, &at).into_bytes());
    assert_eq!(check_note(&shown.note(), 0), at);
}

/// The same checkpoint a thousand times, and a garbage proof for a valid one: no state change, no alarm.
#[tokio::test]
async fn repeats_and_garbage_change_nothing() {
    let ours = tree(20, 20, 1);
    let memory = store(1);
    let (witness, clock) = start(&memory, 1, Show::nothing());
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    let before = memory.content("heads").unwrap();
    clock.forward(YOUNG_MS - 1);
    for _ in 0..1_000 {
        is_cosigned(add(&witness, 0, &ours, 5, 5).await);
    }
    let garbage = vec![Hash::from_bytes([9; 32]); 5];
    let note = signed(0, &head(&ours, 12));
    let error = witness.add_checkpoint(&origin(0), size(5), note.as_bytes(), garbage).await.unwrap_err();
    assert!(matches!(error, AddError::Refused(Refused::Reject(_))), "{error}");
    assert!(memory.content("heads").unwrap() == before);
    let status = witness.status();
    assert_eq!((status.refusals.of(Kind::BadProof), status.refusals.total()), (1, 1));
    assert!(!status.rolled_back);
}

/// Broken to see it fail: the log's quota is taken before the signature is verified.
#[tokio::test]
async fn nobody_spends_a_logs_quota_but_the_log() {
    let ours = tree(20, 20, 1);
    let settings = Settings { caller_per_second: 3, log_per_second: 2, ..SETTINGS };
    let (witness, clock) = start_with(&store(2), vec![listed(0), listed(1)], settings, Show::nothing());
    for _ in 0..3 {
        witness.count_caller("spiffe://td/epigraph/log/a").unwrap();
    }
    assert!(matches!(witness.count_caller("spiffe://td/epigraph/log/a"), Err(AddError::CallerQuota(_))));
    witness.count_caller("spiffe://td/epigraph/log/b").unwrap();

    let forged = signed(1, &head(&ours, 5)).replace("log.example/1", "log.example/0");
    for _ in 0..10 {
        let error = witness.add_checkpoint(&origin(0), size(0), forged.as_bytes(), vec![]).await.unwrap_err();
        assert!(matches!(error, AddError::Checkpoint(_)), "{error}");
    }
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    is_cosigned(add(&witness, 0, &ours, 5, 6).await);
    assert!(matches!(add(&witness, 0, &ours, 6, 7).await, Err(AddError::LogQuota(_))));
    is_cosigned(add(&witness, 1, &ours, 0, 5).await);
    clock.forward(500);
    is_cosigned(add(&witness, 0, &ours, 6, 7).await);
}

/// Broken to see it fail: a removed log's slot is given up; a new key is taken.
#[tokio::test]
async fn logs_are_added_while_it_runs_and_neither_forgotten_nor_given_another_key() {
    let ours = tree(20, 20, 1);
    let memory = store(1);
    let (witness, _) = start(&memory, 1, Show::nothing());
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    assert!(matches!(add(&witness, 1, &ours, 0, 5).await, Err(AddError::UnknownLog(_))));

    let changes = witness.apply(vec![listed(0), listed(1)]).await.unwrap();
    assert_eq!(changes.added, [listed(1)]);
    is_cosigned(add(&witness, 1, &ours, 0, 5).await);

    let changes = witness.apply(vec![listed(1)]).await.unwrap();
    assert_eq!(changes.removed, [origin(0)]);
    assert!(matches!(add(&witness, 0, &ours, 5, 6).await, Err(AddError::Removed(_))));
    assert_eq!(witness.list(None, 10, |_| true).await.len(), 1);
    assert!(witness.checkpoint(&origin(0)).await.unwrap().is_some(), "what is held is still shown");

    let changes = witness.apply(vec![listed(0), listed(1)]).await.unwrap();
    assert_eq!((changes.returned, changes.added), (vec![origin(0)], vec![]));
    is_cosigned(add(&witness, 0, &ours, 5, 6).await);

    let other_key = Listed { vkey: log_key(7).vkey().clone(), ..listed(0) };
    let changes = witness.apply(vec![other_key.clone(), listed(1)]).await.unwrap();
    assert!(changes.rekeyed[0].to_string().contains("another key for log.example/0"), "{changes:?}");
    assert!(matches!(add(&witness, 0, &ours, 6, 7).await, Err(AddError::Rekeyed(_))));
    is_cosigned(add(&witness, 1, &ours, 5, 6).await);
    witness.apply(vec![listed(0), listed(1)]).await.unwrap();
    is_cosigned(add(&witness, 0, &ours, 6, 7).await);

    let twice = witness.apply(vec![listed(0), listed(0)]).await.unwrap_err();
    assert!(twice.to_string().contains("twice"), "{twice}");

    // A restart with the log off the list, then on it again: its head is still there. With another key: refused.
    let (witness, _) = start_with(&memory, vec![listed(1)], SETTINGS, Show::nothing());
    assert!(matches!(add(&witness, 0, &ours, 7, 8).await, Err(AddError::UnknownLog(_))));
    witness.apply(vec![listed(0), listed(1)]).await.unwrap();
    assert!(matches!(add(&witness, 0, &ours, 0, 8).await, Ok(Answer::Stale(_))));
    is_cosigned(add(&witness, 0, &ours, 7, 8).await);
    let (witness, _) = start_with(&memory, vec![other_key.clone()], SETTINGS, Show::nothing());
    witness.apply(vec![other_key]).await.unwrap();
    assert!(matches!(add(&witness, 0, &ours, 8, 9).await, Err(AddError::Rekeyed(_))));
    assert_eq!(witness.status().refused_logs, 1);
}

#[tokio::test]
async fn a_watcher_sees_the_newest_first_and_not_all_of_them() {
    let ours = tree(20, 20, 1);
    let memory = store(1);
    let (witness, _) = start(&memory, 1, Show::nothing());
    let mut early = witness.watch(&origin(0)).await.unwrap();
    assert!(early.borrow_and_update().is_none());
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    is_cosigned(add(&witness, 0, &ours, 5, 6).await);
    early.changed().await.unwrap();
    assert_eq!(early.borrow_and_update().as_ref().unwrap().held.head, head(&ours, 6));
    assert!(!early.has_changed().unwrap());
    // Also what was cosigned before a restart.
    let (witness, _) = start(&memory, 1, Show::nothing());
    let late = witness.watch(&origin(0)).await.unwrap();
    assert_eq!(late.borrow().as_ref().unwrap().held.head, head(&ours, 6));
}

#[tokio::test]
async fn logs_are_listed_in_pages_to_those_who_may_see_them() {
    let (witness, _) = start(&store(9), 9, Show::nothing());
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = witness.list(after.as_ref(), 4, |log| *log != origin(3)).await;
        seen.extend(page.iter().map(|log| log.origin.clone()));
        match page.last() {
            Some(last) if page.len() == 4 => after = Some(last.origin.clone()),
            _ => break,
        }
    }
    assert_eq!(seen, (0..9).filter(|log| *log != 3).map(origin).collect::<Vec<_>>());
}

/// D2, W7: a witness that is shown two histories keeps what convicts whoever has the log's key, one file for each log, which anybody
/// judges offline. Broken to see it fail: nothing is written; the proof is left out.
#[tokio::test]
async fn evidence_against_a_log_is_kept_on_the_witness_s_own_disk() {
    let (ours, theirs) = (tree(20, 20, 1), tree(20, 3, 2));
    let memory = store(2);
    let (witness, _) = start(&memory, 2, Show::nothing());
    let key = |log| log_key(log).vkey().clone();
    let file = |log| format!("{}.evidence", origin(log).hash());
    for (log, fork) in [(0, 5), (1, 9)] {
        is_cosigned(add(&witness, log, &ours, 0, 5).await);
        let forked = |at| signed(log, &head(&theirs, at));
        let answer = witness
            .add_checkpoint(&origin(log), size(5), forked(fork).as_bytes(), proof(&theirs, 5, fork))
            .await;
        assert!(matches!(answer, Ok(Answer::Conflict { .. })), "{answer:?}");
        let kept = memory.content(&file(log)).unwrap();
        let evidence = epigraph_core::evidence::verify(&kept, &[key(log)]).unwrap();
        let mut heads = evidence.heads();
        heads.sort_by_key(|one| (one.size, one.root != head(&ours, 5).root));
        assert_eq!(heads, [head(&ours, 5), head(&theirs, fork)]);
        // More of the same is not kept.
        witness
            .add_checkpoint(&origin(log), size(5), forked(11).as_bytes(), proof(&theirs, 5, 11))
            .await
            .unwrap();
        assert_eq!(memory.content(&file(log)).unwrap(), kept);
    }
    // A proof that merely fails is no evidence.
    let memory = store(1);
    let (witness, _) = start(&memory, 1, Show::nothing());
    is_cosigned(add(&witness, 0, &ours, 0, 5).await);
    let garbage = signed(0, &head(&theirs, 9));
    let answer = witness.add_checkpoint(&origin(0), size(5), garbage.as_bytes(), proof(&ours, 5, 9)).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(memory.content(&file(0)).is_err());
}
