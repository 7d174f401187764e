//! Terms and the gate: which sequencer may have heads signed, and whether the signer's own state is the newest.

use std::sync::Arc;
use std::time::Duration;

use epigraph_core::progress::Proposal;
use epigraph_core::{Clock, UnixMillis};
use epigraph_rpc::peer::{OpenTermAnswer, SignerHead};
use epigraph_signer::gate::{Seen, Vantage, WentBack, judge, look_around};
use epigraph_signer::handle::SignerHandle;
use epigraph_signer::signer::{Answer, Request, Signer, SignerError};
use epigraph_signer::status::{Gate, Kind};
use epigraph_store::file::Dir;
use epigraph_store::head::HeadStore;

use crate::support::*;

fn in_this_term(term: u64, proposal: Proposal) -> Request {
    Request { origin: origin(), term, proposal }
}

/// D3. Seen to fail when `decide` in signer.rs did not compare the terms, and when `open_term` did not persist.
#[test]
fn only_the_newest_term_is_signed_in_also_after_a_restart() {
    let tree = tree(20, 20, 1);
    let memory = store();
    let mut signer = open(Arc::new(memory.clone())).unwrap();
    let held = signer.head(&origin()).unwrap();
    assert_eq!(signer.open_term(&origin(), &held).unwrap(), OpenTermAnswer::Opened(2));
    assert_eq!(
        signer.open_term(&origin(), &held).unwrap(),
        OpenTermAnswer::Changed(SignerHead { term: 2, ..held })
    );
    for restart in [false, true] {
        if restart {
            signer = open(Arc::new(memory.clone())).unwrap();
        }
        let old = signer.sign_checkpoint(in_this_term(1, proposal(&tree, 0, 4)), NOW);
        assert!(matches!(old, Err(SignerError::Fenced { asked: 1, open: 2, .. })), "{old:?}");
        for never in [0, 3, u64::MAX] {
            let refused = signer.sign_checkpoint(in_this_term(never, proposal(&tree, 0, 4)), NOW);
            let fenced = never == 0 && matches!(refused, Err(SignerError::Fenced { .. }));
            assert!(fenced || matches!(refused, Err(SignerError::TermNotOpened { .. })), "{refused:?}");
        }
        assert_eq!(signer.head(&origin()).unwrap().head, head(&tree, 0), "a refusal changes nothing");
    }
    let signed = signer.sign_checkpoint(in_this_term(2, proposal(&tree, 0, 4)), NOW).unwrap();
    assert!(matches!(signed, Answer::Signed(_)));
    // A term is opened on a head, not on a number alone.
    let stale = SignerHead { term: 2, ..held };
    let now = SignerHead { head: head(&tree, 4), term: 2 };
    assert_eq!(signer.open_term(&origin(), &stale).unwrap(), OpenTermAnswer::Changed(now));
}

/// The signer of a new log has opened no term, so nobody can sign in "term 0". Seen to fail without that comparison.
#[test]
fn before_the_first_term_nothing_is_signed() {
    let memory = epigraph_store::file::memory::MemoryDir::new();
    let mut heads = HeadStore::create(Arc::new(memory), 1, &Nine).unwrap();
    heads.init_log(&origin(), epigraph_core::progress::Held::EMPTY).unwrap();
    let mut signer = Signer::new(vec![key()], heads);
    signer.pass_gate(&origin(), &[]).unwrap();
    let refused = signer.sign_checkpoint(in_this_term(0, proposal(&tree(4, 4, 1), 0, 4)), NOW);
    assert!(matches!(refused, Err(SignerError::TermNotOpened { .. })), "{refused:?}");
}

/// A term that was answered and then lost with its slots must not be answered a second time, to somebody else. Seen to fail
/// without `skip_a_term` in signer.rs.
#[test]
fn a_term_that_may_have_been_lost_is_not_opened_twice() {
    let memory = store();
    let mut signer = open(Arc::new(memory.clone())).unwrap();
    let held = signer.head(&origin()).unwrap();
    assert_eq!(signer.open_term(&origin(), &held).unwrap(), OpenTermAnswer::Opened(2));
    // Both copies of the newest generation: a log's slots lie behind two blocks of header, the generation at byte 72 of each.
    let bytes = memory.content("heads").unwrap();
    let generation = |slot: usize| {
        let at = 8192 * (slot + 1) + 72;
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    let newest = (0..4).map(generation).max().unwrap();
    let file = memory.open("heads").unwrap();
    for slot in (0..4).filter(|slot| generation(*slot) == newest) {
        file.write_at(8192 * (slot as u64 + 1) + 200, b"rot").unwrap();
    }
    let mut signer = Signer::new(vec![key()], HeadStore::open(Arc::new(memory)).unwrap().0);
    assert!(matches!(signer.head(&origin()), Err(SignerError::Gated(_))));
    signer.pass_gate(&origin(), &[]).unwrap();
    let tree = tree(4, 4, 1);
    for term in [1, 2] {
        let refused = signer.sign_checkpoint(in_this_term(term, proposal(&tree, 0, 4)), NOW);
        assert!(matches!(refused, Err(SignerError::Fenced { .. })), "{term}: {refused:?}");
    }
    let held = signer.head(&origin()).unwrap();
    assert_eq!(signer.open_term(&origin(), &held).unwrap(), OpenTermAnswer::Opened(4));
}

/// R5: what each of these was seen to be, under the signer's own key. Seen to fail with `>` turned into `>=`, and without the
/// comparison of roots.
#[test]
fn a_newer_or_another_head_under_its_own_key_is_refused_and_nothing_else() {
    let (ours, theirs) = (tree(20, 20, 1), tree(20, 2, 2));
    let seen = |head| Seen { by: "the log".into(), head };
    let check = |held: u64, heads: &[Seen], expected: &str| {
        let got = match judge(&origin(), head(&ours, held), heads).map_err(|went_back| *went_back) {
            Ok(()) => "passes",
            Err(WentBack::Behind { .. }) => "behind",
            Err(WentBack::OtherHistory { .. }) => "other history",
        };
        assert_eq!(got, expected, "{held} {heads:?}");
    };
    check(0, &[], "passes");
    check(5, &[], "passes");
    check(5, &[seen(head(&ours, 5))], "passes");
    check(5, &[seen(head(&ours, 3)), seen(head(&ours, 0))], "passes");
    check(5, &[seen(head(&ours, 6))], "behind");
    check(0, &[seen(head(&ours, 1))], "behind");
    check(5, &[seen(head(&ours, 5)), seen(head(&ours, 9))], "behind");
    check(5, &[seen(head(&theirs, 5))], "other history");
    check(5, &[seen(head(&ours, 4)), seen(head(&theirs, 5))], "other history");
}

/// Seen to fail when `passed` in signer.rs took a log without a gate for one that had passed.
#[test]
fn before_the_gate_and_after_a_refusal_no_term_is_opened_and_nothing_is_signed() {
    let tree = tree(20, 20, 1);
    let memory = store();
    let before = memory.content("heads").unwrap();
    let mut signer = Signer::new(vec![key()], HeadStore::open(Arc::new(memory.clone())).unwrap().0);
    let held = signer.head(&origin()).unwrap();
    assert!(matches!(signer.open_term(&origin(), &held), Err(SignerError::Gated(_))));
    assert!(matches!(
        signer.sign_checkpoint(in_term(proposal(&tree, 0, 4)), NOW),
        Err(SignerError::Gated(_))
    ));
    let seen = [Seen { by: "a mirror".into(), head: head(&tree, 7) }];
    let refused = signer.pass_gate(&origin(), &seen).unwrap_err().to_string();
    for part in ["size 0", "size 7", &head(&tree, 7).root.to_string(), "a mirror", "Put the newest copy back"]
    {
        assert!(refused.contains(part), "{part:?} is missing: {refused}");
    }
    assert!(matches!(signer.open_term(&origin(), &held), Err(SignerError::WentBack(_))));
    let signed = signer.sign_checkpoint(in_term(proposal(&tree, 0, 4)), NOW);
    assert!(matches!(signed, Err(SignerError::WentBack(_))));
    assert_eq!(memory.content("heads").unwrap(), before);
}

/// Shows something else each time it is asked.
struct Mirror {
    name: &'static str,
    answers: std::sync::Mutex<Vec<Result<Option<Vec<u8>>, String>>>,
}

impl Mirror {
    fn new(name: &'static str, answers: Vec<Result<Option<Vec<u8>>, String>>) -> Mirror {
        Mirror { name, answers: answers.into_iter().rev().collect::<Vec<_>>().into() }
    }
}

impl Vantage for Mirror {
    fn name(&self) -> &str {
        self.name
    }

    async fn newest(&self, _: &epigraph_core::Origin) -> Result<Option<Vec<u8>>, String> {
        self.answers.lock().unwrap().pop().unwrap()
    }
}

/// R6: it waits, and only what is signed with the log's own key is an answer. Seen to fail when `read` in gate.rs took a note
/// that does not open for "nothing".
#[tokio::test(start_paused = true)]
async fn it_waits_until_enough_have_answered_and_garbage_is_no_answer() {
    let tree = tree(20, 20, 1);
    let note = |seed, at| note_of(&key_of("log.example", seed), &origin(), &head(&tree, at)).into_bytes();
    let peers = vec![
        Mirror::new(
            "a",
            vec![
                Err("away".into()),
                Ok(Some(note(8, 20))),
                Ok(Some(b"garbage".to_vec())),
                Ok(Some(note(7, 9))),
            ],
        ),
        Mirror::new("b", vec![Ok(None)]),
        Mirror::new("c", vec![Err("away".into()); 9]),
    ];
    let two = |answered: &[bool]| answered.iter().filter(|answered| **answered).count() >= 2;
    let waited = std::sync::Mutex::new(Vec::new());
    let waiting = |whom: &str| waited.lock().unwrap().push(whom.to_owned());
    let seen = look_around(key().vkey(), head(&tree, 9), peers, two, waiting).await;
    assert_eq!(seen, [Seen { by: "a".into(), head: head(&tree, 9) }]);
    let waited = waited.into_inner().unwrap().join("\n");
    assert!(waited.contains("c: away") && waited.contains("a: its answer does not count"), "{waited}");
}

/// R5: one witness that holds more than the signer ends the wait, although the log and the others are away. Broken to see it
/// fail: `judge` is not asked before enough have answered (it never ends).
#[tokio::test(start_paused = true)]
async fn what_shows_a_rollback_is_not_kept_waiting_by_who_is_away() {
    let tree = tree(20, 20, 1);
    let note = |at| note_of(&key(), &origin(), &head(&tree, at)).into_bytes();
    let away = |name| Mirror::new(name, vec![Err("away".into()); 20]);
    let peers = vec![away("the log"), Mirror::new("w", vec![Ok(Some(note(9)))]), away("v")];
    let all = |answered: &[bool]| answered.iter().all(|answered| *answered);
    // Longer than any pause.
    let key = key();
    let looking = look_around(key.vkey(), head(&tree, 8), peers, all, |_| ());
    let seen = tokio::time::timeout(Duration::from_secs(3_600), looking).await.unwrap();
    assert_eq!(seen, [Seen { by: "w".into(), head: head(&tree, 9) }]);
    assert!(judge(&origin(), head(&tree, 8), &seen).is_err());
}

/// Group commit: what waits together shares a sync, two of one log are decided one after the other, and each is answered.
#[tokio::test]
async fn proposals_that_wait_together_are_each_answered() {
    struct Fixed;
    impl Clock for Fixed {
        fn now(&self) -> UnixMillis {
            NOW
        }
    }
    let tree = tree(20, 20, 1);
    let (signer, _failure) = SignerHandle::spawn(open(Arc::new(store())).unwrap(), Arc::new(Fixed)).unwrap();
    let ask = |old, new| signer.sign_checkpoint(in_term(proposal(&tree, old, new)));
    let (first, second, third) = tokio::join!(ask(0, 4), ask(4, 7), ask(4, 9));
    assert!(matches!(first.unwrap(), Answer::Signed(_)));
    assert!(matches!(second.unwrap(), Answer::Signed(_)));
    assert_eq!(third.unwrap(), Answer::Stale(head(&tree, 7)));
}

/// What is told of a log is what its signer is bound to, and each refusal counts as what it is. Broken to see it fail: the held
/// head is told before it is durable, and a refusal counts as a signature.
#[test]
fn it_tells_what_it_is_bound_to_what_it_signed_and_what_it_refused() {
    let (ours, other) = (tree(20, 20, 1), tree(20, 3, 2));
    let memory = store();
    let (heads, _) = HeadStore::open(Arc::new(memory.clone())).unwrap();
    let mut signer = Signer::new(vec![key()], heads);
    let status = signer.status();
    let look = || status.look().remove(&origin()).unwrap();
    assert_eq!((look().gate, look().held.term), (Gate::Waiting(String::new()), TERM));
    status.waits_for(&origin(), "somebody");
    assert_eq!(look().gate, Gate::Waiting("somebody".into()));
    signer.sign_checkpoint(in_term(proposal(&ours, 0, 5)), NOW).unwrap_err();
    signer.pass_gate(&origin(), &[]).unwrap();
    let expected = signer.head(&origin()).unwrap();
    signer.open_term(&origin(), &expected).unwrap();
    signer.open_term(&origin(), &expected).unwrap();
    assert_eq!((look().gate, look().held.term), (Gate::Passed, TERM + 1));
    status.waits_for(&origin(), "nobody");
    assert_eq!(look().gate, Gate::Passed);

    let term = TERM + 1;
    signer.sign_checkpoint(in_this_term(term, proposal(&ours, 0, 5)), NOW).unwrap();
    signer.sign_checkpoint(in_this_term(TERM, proposal(&ours, 5, 6)), NOW).unwrap_err();
    signer.sign_checkpoint(in_this_term(term + 1, proposal(&ours, 5, 6)), NOW).unwrap_err();
    signer.sign_checkpoint(in_this_term(term, proposal(&ours, 4, 6)), NOW).unwrap();
    signer.sign_checkpoint(in_this_term(term, proposal(&other, 5, 5)), NOW).unwrap();
    let garbage = Proposal { proof: proof(&other, 5, 6), ..proposal(&ours, 5, 6) };
    signer.sign_checkpoint(in_this_term(term, garbage), NOW).unwrap();
    let kinds = [Kind::Gated, Kind::Stale, Kind::Fenced, Kind::TermNotOpened, Kind::Conflict, Kind::Rejected];
    assert_eq!(kinds.map(|kind| look().refused(kind)), [1, 2, 1, 1, 1, 1]);
    assert_eq!((look().signed, look().held), (1, SignerHead { head: head(&ours, 5), term }));

    // After a restart what is held is told at once; a gate that is shut says why.
    let (heads, _) = HeadStore::open(Arc::new(memory)).unwrap();
    let mut signer = Signer::new(vec![key()], heads);
    let status = signer.status();
    let seen = Seen { by: "a mirror".into(), head: head(&ours, 6) };
    signer.pass_gate(&origin(), &[seen]).unwrap_err();
    let shut = status.look().remove(&origin()).unwrap();
    assert_eq!(shut.held, SignerHead { head: head(&ours, 5), term });
    assert!(matches!(&shut.gate, Gate::Shut(why) if why.contains("went back")), "{shut:?}");
}
