//! The monitor beside logs that lie: what is found, what it is proven by, and what is no alarm.

use std::sync::Arc;

use epigraph_core::{Evidence, LeafIndex, observation};
use epigraph_monitor::compare::MAX_CLAIMS_OF_ONE;
use epigraph_monitor::finding::{Code, Finding};
use epigraph_store::file::Dir;

use crate::liar::{Liar, Mood};
use crate::pki::{Going, NOW};
use crate::support::{Home, PUBLISHED_WITHIN_MS, Running, monitor_key, origin};
use crate::trees::{Tree, entries, entry, key, note_of};

/// The evidence of a finding, which convinces whoever knows the log's key alone.
async fn evidence(running: &Running, finding: &Finding) -> Evidence {
    let file = running.monitor.evidence(finding.evidence.unwrap()).await.unwrap().unwrap();
    let evidence = Evidence::decode(&file).unwrap();
    assert_eq!(evidence.accused(), key().vkey());
    evidence
}

fn codes(running: &Running) -> Vec<Code> {
    running.monitor.findings().iter().map(|finding| finding.code).collect()
}

/// M2, A1, SIM-SPLIT: two identities are shown two histories; whether the log proves its own or refuses every proof, the monitor hands over
/// evidence. The fork lies before, at and behind a power of two. Fails without the reading of one history (`Job::Rehash`) where
/// the log refuses, and without the hash that a consistency proof leaves out where it does not.
#[tokio::test]
async fn two_histories_are_proven_with_the_logs_help_or_without() {
    for (seen, fork, leaves) in [(300, 100, 300), (256, 100, 300), (256, 255, 257), (257, 0, 400), (1, 0, 3)]
    {
        for mood in [Mood::Honest, Mood::ProvesNothing] {
            let one = Liar::of(seen, fork, 1).await;
            let other = Liar::of(leaves, leaves, 0).await;
            one.mood(mood);
            other.mood(mood);
            let home = Home::new();
            let mut running =
                home.start(vec![("log/a", one.serving.reader("a")), ("log/b", other.serving.reader("b"))]);
            let found = running.finding(Code::SplitView).await;
            let evidence = evidence(&running, &found).await;
            let mut heads = [one.world().head(), other.world().head()];
            heads.sort_by_key(|head| (head.size, head.root));
            assert_eq!(evidence.heads(), heads, "{seen} {fork} {leaves} {mood:?}");
            assert!(codes(&running).iter().all(|code| *code == Code::SplitView), "{:?}", codes(&running));
        }
    }
}

/// A4, M3, SIM-YETI: an entry is changed behind valid proofs for one identity only. Every head, proof and tile is the same for all, and the
/// log stands still; the finding names the entry and the identity. Seen to fail with new entries read under one identity alone, whichever
/// that is, and with the audits of two identities taking turns as the log grows.
#[tokio::test]
async fn a_changed_entry_is_found_at_the_identity_that_is_shown_it() {
    for to in ["a", "b"] {
        let log = Liar::of(700, 700, 0).await;
        log.change(|world| world.changed_for = Some((to, 421)));
        let home = Home::new();
        let mut running =
            home.start(vec![("log/a", log.serving.reader("a")), ("log/b", log.serving.reader("b"))]);
        let found = running.finding(Code::RewrittenEntry).await;
        assert_eq!(found.subject, format!("log/{to}"));
        assert!(found.detail.contains("entry 421"), "{}", found.detail);
        let file = running.monitor.evidence(found.evidence.unwrap()).await.unwrap().unwrap();
        let (said, by) = observation::verify(&file, &[monitor_key().vkey().clone()]).unwrap();
        assert_eq!((said.code(), &by), ("rewritten-entry", monitor_key().vkey()));
        // The head under which it was found out, as the log signed it.
        assert_eq!(said.notes().len(), 1);
        running.read_under_all(700).await;
        assert_eq!(codes(&running), [Code::RewrittenEntry]);
        // What was read and proven under the other is the same tree.
        assert_eq!(running.status().consistent.get(), 700);
    }
}

/// All is read again under one identity after the other: what was changed for one of them since it was read is found. Seen to fail with the
/// turn always given to the first identity.
#[tokio::test]
async fn all_is_read_again_under_each_identity_in_turn() {
    let log = Liar::of(300, 300, 0).await;
    let home = Home::new();
    let readers = || vec![("log/a", log.serving.reader("a")), ("log/b", log.serving.reader("b"))];
    let mut running = home.start(readers());
    running.read_under_all(300).await;
    running.kill().await;
    log.change(|world| world.changed_for = Some(("b", 7)));
    log.change(|world| world.follows.clear());
    let state = Arc::new(home.state.clone());
    let mut running = home.start_over(state, readers(), 60_000, Going::from(NOW.0 + 60_000)).unwrap();
    let begun = |log: &Liar| log.world().follows.iter().filter(|first| **first == 0).count();
    running
        .until("one has read all again", |status, _| {
            status.last_full_audit.is_some_and(|at| at.0 >= NOW.0 + 60_000)
        })
        .await;
    assert_eq!((begun(&log), codes(&running)), (1, Vec::new()));
    running.kill().await;
    let state = Arc::new(home.state.clone());
    let mut running = home.start_over(state, readers(), 60_000, Going::from(NOW.0 + 180_000)).unwrap();
    let found = running.finding(Code::RewrittenEntry).await;
    assert!(found.subject == "log/b" && found.detail.contains("entry 7"), "{found:?}");
    assert_eq!(begun(&log), 2);
}

/// A vantage point whose entries lead nowhere is told of, and the others are audited all the same. Fails if the machine is not told that an
/// audit came to nothing.
#[tokio::test]
async fn an_audit_that_is_stuck_holds_up_no_other() {
    let (bad, good) = (Liar::of(300, 300, 0).await, Liar::of(300, 300, 0).await);
    bad.change(|world| world.served = entries(300, 200, 1));
    let home = Home::new();
    let mut running =
        home.start(vec![("log/a", bad.serving.reader("a")), ("log/b", good.serving.reader("b"))]);
    running.finding(Code::RewrittenEntry).await;
    running.audited(300).await;
    assert!(running.monitor.findings().iter().all(|found| found.subject == "log/a"));
}

/// Anybody can put a file there, feed a garbage proof or forge a head: nothing is found about the log. Fails if a note counts without the
/// log's signature, and if a proof that fails is an alarm.
#[tokio::test]
async fn what_others_make_up_is_no_alarm_about_the_log() {
    let log = Liar::of(300, 300, 0).await;
    let home = Home::new();
    let forged = note_of(&Tree::of(&entries(400, 0, 5)).head(400)).replace("log.example", "log.exampie");
    let resigned = note_of(&Tree::of(&entries(200, 0, 5)).head(200)).replace("\n200\n", "\n201\n");
    for (name, bytes) in
        [("forged", forged.as_bytes()), ("changed", resigned.as_bytes()), ("junk", b"\xff\x00junk")]
    {
        home.dropped.create(name).unwrap().write_at(0, bytes).unwrap();
    }
    let mut running = home.start(vec![("log/a", log.serving.reader("a"))]);
    running.audited(300).await;
    running.finding(Code::BadSignature).await;
    for code in codes(&running) {
        assert_eq!(code, Code::BadSignature);
    }
    assert!(running.monitor.findings().iter().all(|found| found.subject == "files"));
}

/// A8, SIM-BYZ-MAJ: two monitors are in two partitions, each sees one history and nothing to find. When the one can ask the other, it
/// has evidence. Fails if what other monitors show is not pulled.
#[tokio::test]
async fn two_partitions_find_the_split_when_they_meet() {
    let (one, other) = (Liar::of(256, 200, 1).await, Liar::of(300, 300, 0).await);
    let (first, second) = (Home::new(), Home::new());
    let mut here = first.start(vec![("log/a", one.serving.reader("a"))]);
    let mut there = second.start(vec![("log/a", other.serving.reader("a"))]);
    here.audited(256).await;
    there.audited(300).await;
    assert_eq!((here.monitor.findings(), there.monitor.findings()), (Vec::new(), Vec::new()));
    let door = here.serve().await;
    there.kill().await;
    let mut there = second.start_beside(vec![("log/a", other.serving.reader("a"))], door.monitor("there"));
    let found = there.finding(Code::SplitView).await;
    let heads = evidence(&there, &found).await.heads();
    assert_eq!(heads, [one.world().head(), other.world().head()]);
}

/// A claim is on the disk when it was taken; the same one again has the first deadline, and there is a limit. At the deadline the
/// monitor looks by itself: an entry that is there is no finding, one that is not there is one, which names the claimant. A2, SIM-MMD.
/// Fails if the claim only joins the queue of the loop.
#[tokio::test]
async fn a_claim_outlives_the_process_and_is_looked_at() {
    let log = Liar::of(300, 300, 0).await;
    let home = Home::new();
    let mut running = home.start(vec![("log/a", log.serving.reader("a"))]);
    running.audited(300).await;
    let tree = Tree::of(&entries(300, 300, 0));
    let index = |index| LeafIndex::new(index).unwrap();
    let (there, missing) = ((index(7), tree.leaf(7)), (index(8), tree.leaf(9)));
    let mut due = Vec::new();
    for (index, leaf) in [there, missing, there] {
        due.push(running.monitor.submit_receipt(&origin(), "appender/a", index, leaf).await.unwrap());
    }
    assert!(due[0] == due[2] && due[0].0 >= NOW.0 + PUBLISHED_WITHIN_MS, "{due:?}");
    for n in 0..MAX_CLAIMS_OF_ONE as u64 + 5 {
        let taken =
            running.monitor.submit_receipt(&origin(), "appender/b", index(1_000 + n), tree.leaf(0)).await;
        assert_eq!(taken.is_ok(), n < MAX_CLAIMS_OF_ONE as u64, "{n}: {taken:?}");
    }
    running.kill().await;
    let later = Going::from(NOW.0 + 100 * PUBLISHED_WITHIN_MS);
    let state = Arc::new(home.state.clone());
    let readers = vec![("log/a", log.serving.reader("a"))];
    let mut running = home.start_over(state, readers, u64::MAX, later).unwrap();
    running
        .until("every claim was looked at", |_, findings| {
            let missing = findings.iter().filter(|found| found.code == Code::MissingEntry);
            missing.map(|found| found.count).sum::<u64>() > MAX_CLAIMS_OF_ONE as u64
        })
        .await;
    let findings = running.monitor.findings();
    assert!(codes(&running).iter().all(|code| *code == Code::MissingEntry), "{findings:?}");
    assert!(findings.iter().any(|found| found.detail.contains("appender/a")), "{findings:?}");
}

/// A head that the log really signed, and that it shows to nobody here, is put there as a file: it is evidence. A6.
/// Seen to fail with what is in files passed over.
#[tokio::test]
async fn a_hidden_head_in_a_file_is_a_split_view() {
    let log = Liar::of(300, 300, 0).await;
    let home = Home::new();
    let mut running = home.start(vec![("log/a", log.serving.reader("a"))]);
    running.audited(300).await;
    let hidden = Tree::of(&entries(200, 150, 5)).head(200);
    home.dropped.create("from-a-friend").unwrap().write_at(0, note_of(&hidden).as_bytes()).unwrap();
    let found = running.finding(Code::SplitView).await;
    assert_eq!(evidence(&running, &found).await.heads()[0], hidden);
}

/// A10, M1: a vantage point that is away, never answers, withholds, ends its streams, sends without end, contradicts itself about its size or
/// proves nonsense holds up no other, and what it shows is no alarm about the log's history. Fails if streams may end before
/// their entries for ever, and if identities take turns in reading what is new.
#[tokio::test]
async fn a_bad_vantage_point_stops_no_other() {
    for mood in [
        Mood::Away,
        Mood::Hangs,
        Mood::Withholds,
        Mood::Ends,
        Mood::Endless,
        Mood::Contradicts,
        Mood::Garbage,
        Mood::TooLong,
    ] {
        let (bad, good) = (Liar::of(300, 300, 0).await, Liar::of(300, 300, 0).await);
        bad.mood(mood);
        let home = Home::new();
        let mut running =
            home.start(vec![("log/a", bad.serving.reader("a")), ("log/b", good.serving.reader("b"))]);
        let mut size = 300;
        for _ in 0..3 {
            size += 57;
            for liar in [&bad, &good] {
                liar.become_of(size, size, 0);
            }
            let at = size;
            running
                .until("the good one is seen", |status, _| {
                    let good = status.vantages.iter().find(|point| point.vantage.name == "log/b").unwrap();
                    good.head.is_some_and(|head| head.size.get() == at)
                })
                .await;
        }
        // Whoever else is asked, the entries are read where they are.
        running.audited(size).await;
        for code in codes(&running) {
            assert!(matches!(code, Code::VantageUnreachable), "{mood:?}: {:?}", running.monitor.findings());
        }
    }
}

/// R3: an old copy of the monitor's directory is put back. It reads forward from there, raises no alarm, and finds the fork that was
/// hidden behind what it forgot. Fails if what is read anew is compared with nothing.
#[tokio::test]
async fn an_old_copy_reads_forward_and_misses_no_fork() {
    let log = Liar::of(300, 300, 0).await;
    let home = Home::new();
    let mut running = home.start(vec![("log/a", log.serving.reader("a"))]);
    running.audited(300).await;
    running.kill().await;
    let old = home.backup();
    for (leaves, fork, label, code) in [(900, 900, 0, None), (900, 200, 1, Some(Code::SplitView))] {
        let (log, home) = (Liar::of(300, 300, 0).await, old.backup());
        log.become_of(leaves, fork, label);
        let mut running = home.start(vec![("log/a", log.serving.reader("a"))]);
        match code {
            Some(code) => drop(running.finding(code).await),
            None => {
                running.audited(leaves).await;
                assert_eq!(running.monitor.findings(), []);
                // Nothing of what was proven is read again.
                let first = log.world().follows.iter().min().copied();
                assert_eq!(first, Some(300));
            }
        }
    }
}

/// Everything is read again from the first entry on when it is due; an entry that was changed since is found. Fails if the audit goes on
/// from what was proven.
#[tokio::test]
async fn what_was_changed_since_is_found_when_all_is_read_again() {
    let log = Liar::of(300, 300, 0).await;
    let home = Home::new();
    let mut running = home.start(vec![("log/a", log.serving.reader("a"))]);
    running.audited(300).await;
    log.change(|world| world.served[7] = entry(7, 1));
    log.change(|world| {
        world.served.push(entry(300, 0));
        world.tree = Tree::of(&entries(301, 301, 0));
    });
    running.audited(301).await;
    assert_eq!(running.monitor.findings(), []);
    running.kill().await;
    let state = Arc::new(home.state.clone());
    let mut running =
        home.start_over(state, vec![("log/a", log.serving.reader("a"))], 0, Going::from(NOW.0)).unwrap();
    let found = running.finding(Code::RewrittenEntry).await;
    assert!(found.detail.contains("entry 7"), "{}", found.detail);
}
