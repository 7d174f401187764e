//! Input by lines, or whole: an entry is the bytes up to LF, CR kept; an empty line is an entry of zero bytes.

use std::io::{self, BufRead};

use bytes::Bytes;
use epigraph_core::bundle::MAX_ENTRY_BYTES;

/// What a line came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// An entry.
    Entry(Bytes),
    /// A line that is too long for an entry, and how long it is. Nothing of it was kept.
    TooLong(u64),
}

/// Reads lines with bounded memory, however long they are.
pub struct Lines<R> {
    reader: R,
    number: u64,
    /// Line feeds are bytes like others, and what there is is one line.
    whole: bool,
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R) -> Lines<R> {
        Lines { reader, number: 0, whole: false }
    }

    /// All of the input as one entry, empty if it is empty.
    pub fn whole(reader: R) -> Lines<R> {
        Lines { reader, number: 0, whole: true }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<(u64, Line)>;

    /// The line's number, from 1, and what it came to.
    fn next(&mut self) -> Option<Self::Item> {
        if self.whole && self.number > 0 {
            return None;
        }
        let mut entry = Vec::new();
        let mut length: u64 = 0;
        let mut started = self.whole;
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Some(Err(error)),
            };
            if buffer.is_empty() && !started {
                return None;
            }
            let newline = if self.whole { None } else { buffer.iter().position(|byte| *byte == b'\n') };
            let piece = &buffer[..newline.unwrap_or(buffer.len())];
            let room = MAX_ENTRY_BYTES.saturating_sub(entry.len());
            entry.extend_from_slice(&piece[..piece.len().min(room)]);
            length += piece.len() as u64;
            started = true;
            let (taken, last) =
                (piece.len() + usize::from(newline.is_some()), newline.is_some() || buffer.is_empty());
            self.reader.consume(taken);
            if last {
                break;
            }
        }
        self.number += 1;
        let line =
            if length > MAX_ENTRY_BYTES as u64 { Line::TooLong(length) } else { Line::Entry(entry.into()) };
        Some(Ok((self.number, line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn check(input: &[u8], expected: &[&[u8]]) {
        for capacity in [1, 2, 3, 64] {
            let lines: Vec<_> = Lines::new(BufReader::with_capacity(capacity, input))
                .map(|line| match line.unwrap() {
                    (_, Line::Entry(entry)) => entry.to_vec(),
                    (number, Line::TooLong(_)) => panic!("line {number}"),
                })
                .collect();
            assert_eq!(lines, expected, "{input:?} in pieces of {capacity}");
        }
    }

    #[test]
    fn an_entry_is_the_bytes_up_to_the_line_feed() {
        check(b"", &[]);
        check(b"\n", &[b""]);
        check(b"a", &[b"a"]);
        check(b"a\n", &[b"a"]);
        check(b"a\r\n\nb\0\xff", &[b"a\r", b"", b"b\0\xff"]);
        check(b"\n\n", &[b"", b""]);
    }

    #[test]
    fn as_a_whole_the_input_is_one_entry_whatever_is_in_it() {
        for input in [&b""[..], b"\n", b"a\n\nb", b"a"] {
            for capacity in [1, 2, 64] {
                let lines = Lines::whole(BufReader::with_capacity(capacity, input));
                let lines: Vec<_> = lines.map(Result::unwrap).collect();
                assert_eq!(lines, [(1, Line::Entry(Bytes::copy_from_slice(input)))], "pieces of {capacity}");
            }
        }
        let long = vec![b'\n'; MAX_ENTRY_BYTES + 1];
        let lines: Vec<_> = Lines::whole(&long[..]).map(Result::unwrap).collect();
        assert_eq!(lines, [(1, Line::TooLong(MAX_ENTRY_BYTES as u64 + 1))]);
    }

    #[test]
    fn a_line_that_is_too_long_is_named_and_the_rest_goes_on() {
        let mut input = vec![b'x'; MAX_ENTRY_BYTES];
        input.extend_from_slice(b"\n");
        input.extend_from_slice(&vec![b'y'; MAX_ENTRY_BYTES + 1]);
        input.extend_from_slice(b"\nz");
        let lines: Vec<_> = Lines::new(&input[..]).map(Result::unwrap).collect();
        assert_eq!(lines[0], (1, Line::Entry(vec![b'x'; MAX_ENTRY_BYTES].into())));
        assert_eq!(lines[1], (2, Line::TooLong(MAX_ENTRY_BYTES as u64 + 1)));
        assert_eq!(lines[2], (3, Line::Entry(Bytes::from_static(b"z"))));
        assert_eq!(lines.len(), 3);
    }
}
