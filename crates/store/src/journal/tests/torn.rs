//! Torn tails: what provably was never completely written is cut, and nothing else.

use super::*;

const SIZE: u64 = 7;

/// A journal, and the bytes of the frame that would come next, with where they go.
fn journal_and_frame(entries: &[Vec<u8>]) -> (MemoryDir, String, usize, Vec<u8>) {
    let dir = written(SIZE);
    let name = segments(&dir)[0].clone();
    let after = dir.duplicate();
    let (mut journal, opened) = open(&after).unwrap();
    let at = usize::try_from(journal.cursor.end).unwrap();
    journal.append(&batch_of(&opened.frontier, entries)).unwrap();
    let end = usize::try_from(journal.cursor.end).unwrap();
    let frame = after.content(&name).unwrap()[at..end].to_vec();
    (dir, name, at, frame)
}

/// Puts `debris` behind the last frame and opens; the head must stay. Returns what was cut, or the refusal.
fn opened_with(dir: &MemoryDir, name: &str, at: usize, debris: &[u8]) -> Result<Option<Cut>, JournalError> {
    let dir = dir.duplicate();
    dir.damage(name, at, debris).unwrap();
    let before = dir.content(name).unwrap();
    match open(&dir) {
        Ok((mut journal, opened)) => {
            assert_eq!(opened.head().size.get(), SIZE);
            if let Some(cut) = &opened.cut {
                assert_eq!(cut.offset, at as u64);
                let saved = dir.content(&cut.saved_as).unwrap();
                assert_eq!(saved, before[at..at + cut.bytes as usize]);
                assert!(dir.content(name).unwrap()[at..].iter().all(|byte| *byte == 0));
            }
            fill(&mut journal, SIZE + 4);
            assert_holds(&dir, journal.head().size);
            Ok(opened.cut)
        }
        Err(error) => {
            assert_eq!(dir.content(name).unwrap(), before, "a refusal changes nothing");
            Err(error)
        }
    }
}

#[test]
fn a_frame_of_which_some_sectors_are_missing_is_cut() {
    let (dir, name, at, frame) = journal_and_frame(&[vec![1; 700], vec![2; 900]]);
    let sectors = frame.len() / SECTOR;
    assert_eq!(sectors, 5);
    // Bit n of the mask: sector n arrived.
    for mask in 0..(1u32 << sectors) - 1 {
        let mut debris = frame.clone();
        for (number, sector) in debris.chunks_mut(SECTOR).enumerate() {
            if mask & (1 << number) == 0 {
                sector.fill(0);
            }
        }
        let cut = opened_with(&dir, &name, at, &debris).unwrap_or_else(|error| panic!("{mask:b}: {error}"));
        assert_eq!(cut.is_some(), mask != 0, "{mask:b}");
    }
}

#[test]
fn a_header_torn_at_either_end_is_cut() {
    let (dir, name, at, frame) = journal_and_frame(&[vec![1; 700]]);
    for tear in (64..=448).step_by(64) {
        let (mut head, mut tail) = (frame[..SECTOR].to_vec(), frame[..SECTOR].to_vec());
        head[tear..].fill(0);
        tail[..tear].fill(0);
        for debris in [head, tail] {
            assert!(opened_with(&dir, &name, at, &debris).unwrap().is_some(), "torn at {tear}");
        }
    }
}

#[test]
fn a_frame_torn_at_any_byte_is_cut_or_refused_but_never_taken() {
    let (dir, name, at, frame) = journal_and_frame(&[vec![1; 400], Vec::new(), vec![3; 300]]);
    let last = frame.iter().rposition(|byte| *byte != 0).unwrap();
    let mut refused = 0;
    for tear in 1..=last {
        let mut debris = frame.clone();
        debris[tear..].fill(0);
        match opened_with(&dir, &name, at, &debris) {
            Ok(cut) => assert!(cut.is_some(), "torn at {tear}"),
            Err(JournalError::Damaged { segment, offset, .. }) => {
                assert_eq!((segment, offset), (name.clone(), at as u64));
                // Only where the last bytes of the header are half there, or where no whole sector is missing.
                assert!((493..512).contains(&tear) || tear > last / SECTOR * SECTOR, "torn at {tear}");
                refused += 1;
            }
            Err(other) => panic!("torn at {tear}: {other}"),
        }
    }
    assert!(refused > 0);
}

#[test]
fn zeros_of_the_entries_themselves_do_not_make_a_frame_torn() {
    let (dir, name, at, frame) = journal_and_frame(&[vec![0; 1_500], vec![5; 100]]);
    let mut rotten = frame.clone();
    *rotten.last_mut().unwrap() ^= 1;
    assert!(opened_with(&dir, &name, at, &rotten).is_err(), "no sector is missing");
    let mut torn = frame.clone();
    torn[SECTOR..2 * SECTOR].fill(0);
    assert!(opened_with(&dir, &name, at, &torn).unwrap().is_some());
}

#[test]
fn one_byte_that_makes_a_sector_zero_does_not_make_a_frame_torn() {
    // 2 + 510 bytes fill a sector, the next holds 2 + 0 zeros and then one byte of the last entry's length.
    let (dir, name, at, frame) = journal_and_frame(&[vec![1; 510], vec![0; 1], vec![0; 300]]);
    let lone = 2 * SECTOR + 1;
    assert_eq!(frame[2 * SECTOR..].iter().filter(|byte| **byte != 0).count(), 3);
    let (dir2, name2, at2, frame2) = journal_and_frame(&[vec![1; 510], vec![0; 200]]);
    assert_eq!(frame2[2 * SECTOR..].iter().filter(|byte| **byte != 0).count(), 1);
    let mut rotten = frame2.clone();
    assert_ne!(rotten[lone], 0);
    rotten[lone] = 0;
    assert!(matches!(opened_with(&dir2, &name2, at2, &rotten), Err(JournalError::Damaged { .. })));
    let mut torn = frame;
    torn[2 * SECTOR..].fill(0);
    assert!(opened_with(&dir, &name, at, &torn).unwrap().is_some());
}

#[test]
fn a_bad_frame_before_a_later_header_is_refused() {
    let dir = written(SIZE);
    let name = segments(&dir)[0].clone();
    let bytes = dir.content(&name).unwrap();
    let headers: Vec<usize> = (1..bytes.len() / SECTOR)
        .map(|n| n * SECTOR)
        .filter(|at| bytes[*at..].starts_with(b"epigfrm\n"))
        .collect();
    for at in &headers[..headers.len() - 1] {
        for length in [64, SECTOR, 2 * SECTOR] {
            let dir = dir.duplicate();
            dir.damage(&name, *at, &vec![0; length]).unwrap();
            // A flipped bit in the later header must not make it debris.
            dir.damage(&name, headers[headers.len() - 1] + 40, &[0xee]).unwrap();
            match open(&dir).err().unwrap() {
                JournalError::Damaged { segment, offset, .. } => {
                    assert_eq!((&segment, offset), (&name, *at as u64))
                }
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn more_debris_than_a_frame_can_leave_is_refused() {
    let config = Config::PRODUCTION;
    let dir = MemoryDir::new();
    drop(Journal::create(Arc::new(dir.clone()), ORIGIN, config, NOW, Arc::new(Counter::default())).unwrap());
    let name = segments(&dir)[0].clone();
    let reach = SECTOR + SECTOR + MAX_FRAME_BYTES as usize;
    for (offset, opens) in [(reach - 1, true), (reach, false)] {
        let dir = dir.duplicate();
        dir.damage(&name, offset, &[1]).unwrap();
        assert_eq!(open(&dir).is_ok(), opens, "{offset}");
    }
}
