//! Rot: a changed byte is found by `open` in the last segment and by the reader in the others.

use super::*;

/// The three ways to change a byte that matter: a low bit, a high bit, to zero.
fn changes(byte: u8) -> impl Iterator<Item = u8> {
    [byte ^ 1, byte ^ 0x80, 0].into_iter().filter(move |changed| *changed != byte)
}

#[test]
fn every_changed_byte_of_the_last_segment_is_refused_or_was_never_used() {
    let dir = written(60);
    let (journal, opened) = open(&dir).unwrap();
    let used = usize::try_from(journal.cursor.end).unwrap();
    drop(journal);
    let name = segments(&dir).pop().unwrap();
    assert!(segments(&dir).len() > 1 && used > 3 * SECTOR);
    for (at, byte) in dir.content(&name).unwrap().into_iter().enumerate() {
        for changed in changes(byte) {
            let dir = dir.duplicate();
            dir.damage(&name, at, &[changed]).unwrap();
            match open(&dir) {
                Ok((_, found)) => {
                    assert!(at >= used, "byte {at} of {name} was taken with {changed:#x}");
                    assert_eq!(found.head(), opened.head(), "byte {at}");
                    assert!(found.cut.is_some(), "byte {at}");
                }
                Err(error) => assert!(at < used, "byte {at}: {error}"),
            }
        }
    }
}

#[test]
fn every_changed_byte_of_a_sealed_segment_is_found_by_the_reader_or_was_never_used() {
    let dir = written(60);
    let size = open(&dir).unwrap().1.head().size;
    let name = segments(&dir)[0].clone();
    let bytes = dir.content(&name).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(SECTOR);
    for (at, byte) in bytes[..used].iter().enumerate() {
        for changed in changes(*byte) {
            let dir = dir.duplicate();
            dir.damage(&name, at, &[changed]).unwrap();
            let read = verify_all(Arc::new(dir), ORIGIN, size, |_| ());
            assert!(read.is_err(), "byte {at} of {name} was taken with {changed:#x}");
        }
    }
}

#[test]
fn a_truncated_or_foreign_segment_is_refused() {
    let dir = written(60);
    let other = MemoryDir::new();
    let foreign =
        Journal::create(Arc::new(other.clone()), ORIGIN, config(), NOW, Arc::new(Counter(77.into())));
    fill(&mut foreign.unwrap(), 60);
    for name in segments(&dir) {
        let bytes = dir.content(&name).unwrap();
        let with = |content: &[u8]| {
            let dir = dir.duplicate();
            dir.remove(&name).unwrap();
            dir.create(&name).unwrap().write_at(0, content).unwrap();
            let opens = open(&dir).is_ok();
            opens && verify_all(Arc::new(dir), ORIGIN, TreeSize::new(60).unwrap(), |_| ()).is_ok()
        };
        assert!(with(&bytes));
        let twin = dir.duplicate();
        twin.damage(&name, 0, &other.content(&name).unwrap()).unwrap();
        let read = verify_all(Arc::new(twin), ORIGIN, TreeSize::new(60).unwrap(), |_| ());
        assert!(read.is_err(), "the reader took {name} of another journal with the same entries");
        for length in [0, 1, 511, 512, 1_024, bytes.len() - 512, bytes.len() - 1] {
            assert!(!with(&bytes[..length]), "{name} cut to {length}");
        }
        assert!(!with(&[&bytes[..], &[0; 512]].concat()), "{name} made longer");
        assert!(!with(&other.content(&name).unwrap()), "{name} of another journal with the same entries");
    }
    let dir = dir.duplicate();
    drop(dir.create("7.seg").unwrap());
    assert!(matches!(open(&dir), Err(JournalError::Damaged { segment, .. }) if segment == "7.seg"));
}

#[test]
fn a_frame_whose_root_is_not_that_of_its_entries_is_refused() {
    let dir = written(4);
    let (mut journal, opened) = open(&dir).unwrap();
    let mut lie = batch(&opened.frontier, 2);
    lie.after = batch_of(&opened.frontier, &[b"x".to_vec(), b"y".to_vec()]).after;
    journal.append(&lie).unwrap();
    let size = journal.head().size;
    drop(journal);
    assert!(matches!(open(&dir), Err(JournalError::Damaged { .. })));
    assert!(matches!(verify_all(Arc::new(dir), ORIGIN, size, |_| ()), Err(JournalError::Damaged { .. })));
}
