//! A second reader, written from docs/formats/journal.md alone, and the parts of the format not yet in use.

use super::format::*;
use super::*;

/// CRC-32C bit by bit, from its definition.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc: u32, byte| {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1)));
        crc
    })
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[test]
fn the_documented_offsets_read_a_journal() {
    let dir = written(40);
    let names = segments(&dir);
    let mut index = 0;
    let mut root = Hash::EMPTY_ROOT;
    let mut last = (0, 0, Hash::from_bytes([0; 32]));
    for (position, name) in names.iter().enumerate() {
        let file = dir.content(name).unwrap();
        let first = index;
        assert_eq!(name, &format!("{first:020}.seg"));
        assert_eq!(&file[..8], b"epigseg\n");
        assert_eq!(number(&file, 8, 4), 1);
        let body = number(&file, 12, 4) as usize;
        let id = &file[16..32];
        assert_eq!(&file[32..64], ORIGIN.as_bytes());
        assert_eq!(number(&file, 64, 8), first);
        assert_eq!(&file[72..104], root.as_bytes());
        assert_eq!(number(&file, 104, 8), NOW.0);
        assert_eq!(number(&file, 112, 8), file.len() as u64);
        assert_eq!(number(&file, 120, 4), u64::from(first.count_ones()));
        assert_eq!(number(&file, 124, 4), 0);
        let body_end = 512 + body.next_multiple_of(512);
        assert_eq!(number(&file, 128, 4), u64::from(crc(&file[512..body_end])));
        assert_eq!(number(&file, 132, 4), u64::from(position > 0));
        assert_eq!((number(&file, 136, 8), number(&file, 144, 8)), (last.0, last.1));
        assert_eq!(&file[152..184], last.2.as_bytes());
        assert!(file[184..492].iter().all(|byte| *byte == 0));
        assert_eq!(&file[492..508], id);
        assert_eq!(number(&file, 508, 4), u64::from(crc(&file[..508])));
        assert_eq!(body, 32 * first.count_ones() as usize);

        let mut previous = sha256(&file[..512]);
        let mut at = body_end;
        while at < file.len() && file[at] != 0 {
            let header = &file[at..at + 512];
            assert_eq!(&header[..8], b"epigfrm\n");
            assert_eq!(number(header, 8, 4), 1);
            let length = number(header, 12, 4) as usize;
            assert_eq!(&header[16..32], id);
            assert_eq!(number(header, 32, 8), index);
            let count = number(header, 40, 4);
            assert_eq!(number(header, 44, 4), 0);
            assert_eq!(number(header, 48, 8), NOW.0);
            assert_eq!(&header[56..88], root.as_bytes());
            root = Hash::from_slice(&header[88..120]).unwrap();
            assert_eq!(&header[120..152], previous.as_bytes());
            let body = &file[at + 512..at + 512 + length.next_multiple_of(512)];
            assert_eq!(number(header, 152, 4), u64::from(crc(body)));
            let nonzero = |sector: &[u8]| sector.iter().filter(|byte| **byte != 0).count();
            let sectors = |wanted| body.chunks(512).filter(|sector| nonzero(sector) == wanted).count() as u64;
            assert_eq!((number(header, 156, 4), number(header, 160, 4)), (sectors(0), sectors(1)));
            assert!(header[164..492].iter().all(|byte| *byte == 0));
            assert_eq!(&header[492..508], id);
            assert_eq!(number(header, 508, 4), u64::from(crc(&header[..508])));
            let mut entry_at = 0;
            for _ in 0..count {
                let length = usize::from(body[entry_at]) << 8 | usize::from(body[entry_at + 1]);
                assert_eq!(body[entry_at + 2..entry_at + 2 + length], entry(index));
                entry_at += 2 + length;
                index += 1;
            }
            assert_eq!(entry_at, length);
            previous = sha256(header);
            last = (first, at as u64, previous);
            at += 512 + body.len();
        }
    }
    assert_eq!(index, 40);
    assert_eq!(root, open(&dir).unwrap().1.head().root);
}

fn mark(n: u8) -> ProducerMark {
    let producer = ProducerKey { identity: ORIGIN, id: [n; 16] };
    let claim = Claim { producer, epoch: 1, first_sequence: u64::from(n), count: 1 };
    ProducerMark { claim, offset: u32::from(n) }
}

#[test]
fn a_frame_with_producer_marks_round_trips() {
    let mut header = FrameHeader {
        segment_id: [3; 16],
        before: TreeHead::EMPTY,
        count: 2,
        root_after: ORIGIN,
        time: NOW,
        previous_header: ORIGIN,
        mark_count: 0,
        body_bytes: 0,
        body_crc: 0,
        sparse: Sparse::default(),
    };
    let (marks, mut buffer) = ([mark(0), mark(1)], Vec::new());
    encode_frame(&mut buffer, &mut header, &marks, &[0, 1, 9, 0, 0]);
    let sector: &[u8; 512] = buffer.first_chunk().unwrap();
    assert_eq!(FrameHeader::decode(sector), Ok(header.clone()));
    let frame = OwnedFrame::new(header.clone(), buffer[512..].to_vec()).unwrap();
    assert_eq!((frame.marks(), frame.bundle()), (&marks[..], &[0, 1, 9, 0, 0][..]));
    let mut padding = buffer[512..].to_vec();
    *padding.last_mut().unwrap() = 1;
    assert!(OwnedFrame::new(header.clone(), padding).is_err());
    header.mark_count = u32::MAX;
    assert!(OwnedFrame::new(header, buffer[512..].to_vec()).is_err());
}

#[test]
fn a_segment_header_with_producers_round_trips() {
    let producer = ProducerKey { identity: ORIGIN, id: [1; 16] };
    let claim = Claim { producer, epoch: 2, first_sequence: 5, count: 3 };
    let mut producers = ProducerTable::default();
    producers.take(&claim, LeafIndex::new(9).unwrap()).unwrap();
    let frontier = batch(&Frontier::new(), 13).after;
    let mut header = SegmentHeader {
        id: [3; 16],
        origin_hash: ORIGIN,
        before: frontier.head(),
        time: NOW,
        segment_bytes: 8_192,
        previous: Some(Previous { first: TreeSize::ZERO, last_header_at: 512, last_header: ORIGIN }),
        frontier_count: 0,
        producer_count: 0,
        body_bytes: 0,
        body_crc: 0,
    };
    let bytes = header.encode_with(&frontier, &producers);
    assert_eq!(SegmentHeader::decode(bytes.first_chunk().unwrap()), Ok(header.clone()));
    assert_eq!(header.decode_body(&bytes[512..]), Ok((frontier, producers)));
}

/// `dir` with other bytes in the sector at `at` of `name`, and its checksum made right again.
fn forged(dir: &MemoryDir, name: &str, at: usize, offset: usize, bytes: &[u8]) -> MemoryDir {
    let dir = dir.duplicate();
    let mut sector = dir.content(name).unwrap()[at..at + 512].to_vec();
    sector[offset..offset + bytes.len()].copy_from_slice(bytes);
    let sum = crc(&sector[..508]).to_le_bytes();
    sector[508..].copy_from_slice(&sum);
    dir.damage(name, at, &sector).unwrap();
    dir
}

#[test]
fn a_header_with_a_right_checksum_and_a_wrong_field_is_refused() {
    let dir = written(3);
    let name = segments(&dir)[0].clone();
    let file = dir.content(&name).unwrap();
    let frame_at = (512..).step_by(512).find(|at| file[*at..].starts_with(b"epigfrm\n")).unwrap();
    let check = |at: usize, offset: usize, byte: u8, wanted: &str| {
        let error = open(&forged(&dir, &name, at, offset, &[byte])).err().unwrap().to_string();
        assert!(error.contains(wanted) && error.contains(&name), "{error}");
    };
    for at in [0, frame_at] {
        check(at, 8, 2, "version 2");
        check(at, 300, 1, "bytes that no");
        check(at, 500, 0, "bytes that no");
    }
    check(0, 40, 0, "belongs to the log with origin hash");
    check(0, 64, 1, "it starts at 1");
    check(0, 71, 0x80, "beyond 2^63 - 1");
    check(0, 120, 1, "another shape");
    check(0, 124, 1, "another shape");
    check(0, 132, 1, "is missing");
    check(frame_at, 32, 1, "starts at size 1");
    check(frame_at, 40, 0, "counts that no frame has");
    check(frame_at, 44, 1, "another shape");
    check(frame_at, 56, 1, "the one before ends");
    check(frame_at, 88, 1, "the frame says size");
    check(frame_at, 120, 1, "hash of the header before it");
}

#[test]
fn a_segment_that_does_not_point_at_the_end_of_the_one_before_is_refused() {
    let dir = written(40);
    let (name, size) = (segments(&dir)[1].clone(), TreeSize::new(40).unwrap());
    for (offset, bytes) in [(144, &[0xff; 8][..]), (144, &[0, 0]), (144, &[0, 9]), (152, &[0; 32])] {
        let dir = forged(&dir, &name, 0, offset, bytes);
        assert!(matches!(open(&dir), Err(JournalError::Damaged { .. })), "{offset} {bytes:?}");
        assert!(verify_all(Arc::new(dir), ORIGIN, size, |_| ()).is_err(), "{offset} {bytes:?}");
    }
}
