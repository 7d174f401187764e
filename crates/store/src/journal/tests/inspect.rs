//! Inspection: each flaw is found where it is, none hides the next, and nothing is changed.

use super::*;

fn inspected(dir: &MemoryDir) -> Inspection {
    inspect(dir, ORIGIN, &[], &mut |_| ())
}

/// The segments that flaws were found in, in the order of the report.
fn flawed(inspection: &Inspection) -> Vec<String> {
    let segment = |flaw: &'_ Flaw| match &flaw.error {
        JournalError::Damaged { segment, .. } | JournalError::MissingSegment { segment, .. } => {
            segment.clone()
        }
        other => panic!("{other}"),
    };
    inspection.flaws.iter().map(segment).collect()
}

#[test]
fn a_sound_journal_has_no_flaws_and_its_roots_are_those_of_its_entries() {
    let dir = written(100);
    let sizes = [0, 1, 59, 60, 100].map(|size| TreeSize::new(size).unwrap());
    let mut heard = 0;
    let found = inspect(&dir, ORIGIN, &sizes, &mut |entries| heard = entries);
    assert!(found.flaws.is_empty() && found.torn.is_none(), "{found:?}");
    let mut frontier = Frontier::new();
    for index in 0..=100 {
        if sizes.contains(&frontier.size()) {
            assert_eq!(found.roots.get(&frontier.size()), Some(&frontier.root()), "{index}");
        }
        if index < 100 {
            frontier.push(leaf_hash(&entry(index))).unwrap();
        }
    }
    assert_eq!((found.head, heard), (frontier.head(), frontier.size().get()));
    assert_eq!(found.segments, segments(&dir).len() as u64);
}

/// Fails if any field, padding or unused byte of a segment is not looked at.
#[test]
fn every_changed_byte_of_every_segment_is_found_in_its_segment() {
    let dir = written(40);
    let names = segments(&dir);
    assert!(names.len() > 1);
    for name in &names {
        let bytes = dir.content(name).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            dir.damage(name, at, &[byte ^ 0x10]).unwrap();
            let found = inspected(&dir);
            match &found.torn {
                Some(torn) => assert!(torn.segment == *name && at as u64 >= torn.offset, "{name} byte {at}"),
                None => assert!(
                    !found.flaws.is_empty() && flawed(&found).iter().all(|flawed| flawed == name),
                    "{name} byte {at}: {found:?}"
                ),
            }
            dir.damage(name, at, &[*byte]).unwrap();
        }
    }
    assert!(inspected(&dir).flaws.is_empty());
}

#[test]
fn one_run_shows_every_flaw_and_reads_on_behind_each() {
    let dir = written(150);
    let names = segments(&dir);
    assert!(names.len() >= 4);
    let frames = |name: &str| -> Vec<usize> {
        let bytes = dir.content(name).unwrap();
        (SECTOR..bytes.len()).step_by(SECTOR).filter(|at| bytes[*at..].starts_with(b"epigfrm\n")).collect()
    };
    let all = inspected(&dir).frames;
    let (first, second) = (frames(&names[0]), frames(&names[1]));
    // A header and a body in one segment, a body in the next, and the third one gone.
    dir.damage(&names[0], first[0] + 30, &[0xee]).unwrap();
    dir.damage(&names[0], first[2] + SECTOR + 3, &[0xee]).unwrap();
    dir.damage(&names[1], second[1] + SECTOR + 3, &[0xee]).unwrap();
    let found = inspected(&dir);
    assert_eq!(flawed(&found), [0, 0, 1].map(|at: usize| names[at].clone()), "{found:?}");
    assert_eq!(found.frames, all - 3);
    assert_eq!(found.flaws[0].index, TreeSize::ZERO);
    dir.remove(&names[2]).unwrap();
    let found = inspected(&dir);
    assert_eq!(flawed(&found), [0, 0, 1, 2].map(|at: usize| names[at].clone()), "{found:?}");
}

/// Fails if an inspection judges a tail by other rules than opening.
#[test]
fn what_the_next_open_cuts_is_torn_and_no_flaw() {
    let dir = written(7);
    let name = segments(&dir)[0].clone();
    let end = open(&dir).unwrap().0.cursor.end;
    dir.damage(&name, end as usize + SECTOR, b"part of a body").unwrap();
    let before = dir.content(&name).unwrap();
    let found = inspected(&dir);
    assert!(found.flaws.is_empty(), "{found:?}");
    assert_eq!(dir.content(&name).unwrap(), before);
    let cut = open(&dir).unwrap().1.cut.unwrap();
    let torn = Torn { segment: cut.segment, offset: cut.offset, bytes: cut.bytes };
    assert_eq!(found.torn, Some(torn));
}

#[test]
fn a_journal_that_is_not_there_or_of_another_log_is_said() {
    let check = |dir: &MemoryDir, origin: Hash, wanted: &str| {
        let found = inspect(dir, origin, &[], &mut |_| ());
        assert!(found.flaws.iter().any(|flaw| flaw.error.to_string().contains(wanted)), "{found:?}");
    };
    check(&MemoryDir::new(), ORIGIN, "there is no journal here");
    check(&written(3), sha256(b"another"), "belongs to the log with origin hash");
}
