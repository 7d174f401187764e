//! The offline check of a monitor's directory.

use std::sync::Arc;

use epigraph_core::{Policy, TreeHead, hash};
use epigraph_monitor::book::Book;
use epigraph_monitor::disk::{Badness, Disk, Flaw, Inspection, inspect};
use epigraph_monitor::finding::Code;
use epigraph_monitor::progress::{Audited, Progress};
use epigraph_store::file::Dir;
use epigraph_store::file::memory::MemoryDir;

use crate::liar::Liar;
use crate::support::{Home, monitor_key, origin};
use crate::trees::{Tree, entries, entry, key, note_of};

/// A monitor's directory with a proof and an observation in its book.
async fn home() -> Home {
    let (log, home) = (Liar::of(300, 300, 0).await, Home::new());
    log.change(|world| world.changed_for = Some(("a", 7)));
    let mut running =
        home.start(vec![("log/a", log.serving.reader("a")), ("log/b", log.serving.reader("b"))]);
    running.read_under_all(300).await;
    let hidden = Tree::of(&entries(200, 150, 5)).head(200);
    home.dropped.create("hidden").unwrap().write_at(0, note_of(&hidden).as_bytes()).unwrap();
    running.finding(Code::SplitView).await;
    running.finding(Code::RewrittenEntry).await;
    running.kill().await;
    home
}

/// What is found, and that nothing is changed.
fn look(home: &Home) -> Inspection {
    let all = |dir: &MemoryDir| {
        let names = dir.list().unwrap().into_iter();
        names.map(|name| (hash::sha256(&bytes(dir, &name)), name)).collect::<Vec<_>>()
    };
    let before = (all(&home.state), all(&home.evidence));
    let logs = [(origin(), Policy::of_log(key().vkey().clone()))];
    let (state, evidence) = (Arc::new(home.state.clone()), Arc::new(home.evidence.clone()));
    let found = inspect(state, evidence, &logs, Some(monitor_key().vkey())).unwrap();
    assert_eq!(before, (all(&home.state), all(&home.evidence)), "the check changed something");
    found
}

fn bytes(dir: &MemoryDir, name: &str) -> Vec<u8> {
    let file = dir.open_read_only(name).unwrap();
    let mut bytes = vec![0; file.length().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

#[track_caller]
fn check(home: &Home, expected: &[(&str, Badness, &str)]) {
    let flaws = look(home).flaws;
    let is = |flaw: &Flaw, (file, badness, why): &(&str, Badness, &str)| {
        flaw.file == *file && flaw.badness == *badness && flaw.why.contains(why)
    };
    assert_eq!(flaws.len(), expected.len(), "{flaws:?}");
    expected.iter().for_each(|one| assert!(flaws.iter().any(|flaw| is(flaw, one)), "{one:?}: {flaws:?}"));
}

/// Issue 5: each file of a monitor is looked at, and what is wrong is named, all in one run. Seen to fail with the evidence not read, with
/// the files of the logs not decoded, and with an end at the first flaw.
#[tokio::test]
async fn every_file_of_a_monitor_is_looked_at() {
    let home = home().await;
    let sound = look(&home);
    assert_eq!((sound.findings, sound.evidence, sound.flaws.as_slice()), (Some(2), 2, &[][..]));
    let log = &sound.logs[0];
    assert_eq!((log.heads, log.consistent.get(), log.audited.get()), (2, 300, 300));

    let mut all = Vec::new();
    let broken = home.backup();
    for (dir, part) in [(&broken.state, 60), (&broken.evidence, 30)] {
        for name in dir.list().unwrap() {
            let old = bytes(dir, &name)[part];
            dir.damage(&name, part, &[old ^ 1]).unwrap();
            all.push(name);
        }
    }
    assert_eq!(all.len(), 5, "{all:?}");
    let all: Vec<_> = all.iter().map(|name| (name.as_str(), Badness::Damaged, "damaged")).collect();
    check(&broken, &all);
    for name in home.state.list().unwrap() {
        let missing = home.backup();
        missing.state.remove(&name).unwrap();
        check(&missing, &[(&name, Badness::Damaged, "missing")]);
    }
    for name in home.evidence.list().unwrap() {
        let missing = home.backup();
        missing.evidence.remove(&name).unwrap();
        check(&missing, &[(&name, Badness::Damaged, "is missing: put it back")]);
    }
}

/// Files that are each whole and do not belong together, and those that are nobody's. Seen to fail without the comparison of entries that
/// were read with the heads, without that of a file with its finding, and with files that are foreign passed over in silence.
#[tokio::test]
async fn files_that_do_not_belong_together_are_found() {
    let home = home().await;
    let other = home.backup();
    let (mut disk, _) = Disk::open(Arc::new(other.state.clone()), Arc::new(other.evidence.clone())).unwrap();
    let mut frontier = epigraph_core::Frontier::new();
    (0..300).for_each(|n| frontier.push(hash::leaf_hash(&entry(n, 1))).unwrap());
    let read: TreeHead = frontier.head();
    let mut progress = Progress::default();
    progress.set("log/a", Audited { read: frontier, ..Audited::default() });
    disk.keep_progress(&origin(), &progress).unwrap();
    let file = format!("{}.audit", origin().hash());
    check(&other, &[(&file, Badness::Damaged, &format!("lead to the root {}", read.root))]);

    // The statement of one finding where that of another should be.
    let other = home.backup();
    let (mut disk, kept) =
        Disk::open(Arc::new(other.state.clone()), Arc::new(other.evidence.clone())).unwrap();
    let proof = kept.findings().find(|finding| finding.code == Code::SplitView).unwrap().evidence.unwrap();
    let text = String::from_utf8(kept.encode()).unwrap();
    let observed = kept.findings().find(|finding| finding.code == Code::RewrittenEntry).unwrap();
    let swapped = text.replace(&observed.evidence.unwrap().to_string(), &proof.to_string());
    let book = Book::decode(swapped.as_bytes()).unwrap();
    disk.keep_book(&book).unwrap();
    check(&other, &[(&proof.to_string(), Badness::Damaged, "(rewritten-entry) does not show it")]);

    let other = home.backup();
    for (dir, name) in [(&other.state, "book.new"), (&other.state, "notes.txt"), (&other.evidence, "x")] {
        dir.create(name).unwrap().write_at(0, b"?").unwrap();
    }
    let (left, foreign) = (Badness::Unfinished, Badness::Foreign);
    check(
        &other,
        &[("book.new", left, "never"), ("notes.txt", foreign, "not put"), ("x", foreign, "not put")],
    );
}
