//! Streams cut anywhere fall into the same records.
#![no_main]

use epigraph_event::decode::frame::{Lines, Octets};

libfuzzer_sys::fuzz_target!(|input: (usize, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(cut.min(stream.len()));
    let lines = |parts: &[&[u8]]| {
        let (mut lines, mut frames) = (Lines::default(), Vec::new());
        parts.iter().for_each(|part| lines.push(part, |frame| frames.push(frame)));
        lines.finish(|frame| frames.push(frame));
        frames
    };
    assert_eq!(lines(&[stream]), lines(&[first, second]));
    let octets = |parts: &[&[u8]]| {
        let (mut octets, mut frames) = (Octets::default(), Vec::new());
        let all = parts.iter().try_for_each(|part| octets.push(part, |frame| frames.push(frame)));
        (frames, all)
    };
    assert_eq!(octets(&[stream]), octets(&[first, second]));
});
