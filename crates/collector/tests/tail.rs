//! Tailed files: every record once, whatever happens to the file and whenever the reader is started again.
#![expect(clippy::unwrap_used, reason = "a test ends where its promise is broken")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use epigraph_collector::position::Position;
use epigraph_collector::tail::{Tail, Turn};
use epigraph_event::decode::frame::Frame;

/// Reads until nothing more comes; the records, and where the last one ended.
fn read(tail: &mut Tail) -> (Vec<String>, Option<Position>) {
    let (mut found, mut position, mut idle) = (Vec::new(), None, 0);
    // A file that was renamed is let go of at the third look.
    while idle < 3 {
        match tail.turn().unwrap() {
            Turn::Records(records) => {
                for record in records {
                    found.push(match record.frame {
                        Frame::Record { bytes, .. } => String::from_utf8(bytes).unwrap(),
                        Frame::TooLarge { length, .. } => format!("{length} bytes"),
                    });
                    position = Some(record.end);
                }
            }
            Turn::Idle => idle += 1,
            Turn::Ended => break,
        }
    }
    (found, position)
}

fn add(path: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn log(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("audit.log")
}

#[test]
fn half_a_line_waits_for_its_end_and_is_a_record_where_the_file_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = log(&dir);
    add(&path, "one\n\r\ntwo\r\nthr");
    let mut tail = Tail::new(path.clone(), false, None);
    assert_eq!(read(&mut tail).0, ["one", "two"]);
    add(&path, "ee\n");
    assert_eq!(read(&mut tail).0, ["three"]);
    add(&path, "four");
    assert_eq!(read(&mut Tail::new(path, true, None)).0, ["one", "two", "three", "four"]);
}

/// Broken by hand: a reader that forgets the rotated file on a restart loses `two` here.
#[test]
fn a_rotated_file_is_read_to_its_end_before_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = log(&dir);
    add(&path, "one\n");
    let mut tail = Tail::new(path.clone(), false, None);
    let (_, position) = read(&mut tail);
    add(&path, "two\n");
    fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
    add(&path, "three\n");
    assert_eq!(read(&mut tail).0, ["two", "three"]);
    // The same after a restart.
    assert_eq!(read(&mut Tail::new(path, false, position)).0, ["two", "three"]);
}

#[test]
fn a_truncated_file_is_read_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let path = log(&dir);
    add(&path, "one\ntwo\n");
    let mut tail = Tail::new(path.clone(), false, None);
    let (_, position) = read(&mut tail);
    // Shorter, and then longer than it was when it is looked at again.
    fs::write(&path, "new\n").unwrap();
    assert_eq!(read(&mut tail).0, ["new"]);
    fs::write(&path, "other\nlonger than before\n").unwrap();
    assert_eq!(read(&mut tail).0, ["other", "longer than before"]);
    assert_eq!(read(&mut Tail::new(path, false, position)).0, ["other", "longer than before"]);
}

#[test]
fn every_position_is_a_place_to_go_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = log(&dir);
    let lines: Vec<String> = (0..200).map(|n| format!("{n}-{}", "x".repeat(n % 40))).collect();
    add(&path, &lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    let mut tail = Tail::new(path.clone(), true, None);
    tail.turn().unwrap();
    let Turn::Records(records) = tail.turn().unwrap() else { unreachable!() };
    assert_eq!(records.len(), lines.len());
    for (nth, record) in records.into_iter().enumerate() {
        let rest = read(&mut Tail::new(path.clone(), true, Some(record.end))).0;
        assert_eq!(rest, lines[nth + 1..]);
    }
}

#[test]
fn a_line_of_many_mebibytes_is_named_and_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = log(&dir);
    add(&path, &format!("one\n{}\ntwo\n", "y".repeat(64 << 20)));
    let found = read(&mut Tail::new(path, true, None)).0;
    assert_eq!(found, ["one", "67108864 bytes", "two"]);
}
