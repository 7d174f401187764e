//! Text files of one word and one value a line, as the monitor keeps its state. What decodes must re-encode to the same bytes;
//! whoever uses this checks that. It does not know what the values mean.

use std::fmt::{Display, Write as _};

use thiserror::Error;

/// Why a file of the monitor's own is not what it wrote.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum StateError {
    /// The first line is something else.
    #[error(
        "it does not begin with {0}: it is another file, or was written by another version of this program"
    )]
    Header(&'static str),
    /// A line is not what belongs there; lines count from 1.
    #[error(
        "line {0} is not what belongs there: the file was damaged or edited. Put a backup of the monitor's directory back"
    )]
    Line(usize),
    /// A head in it is not signed as it was when it was written.
    #[error(
        "a head in it is not one of the log under this policy: {0}. Keep a replaced key of the log in the policy beside the new one"
    )]
    Head(String),
    /// It reads, but is not spelt as it would be written.
    #[error(
        "it is not in its one canonical form: it was edited. Put a backup of the monitor's directory back"
    )]
    NotCanonical,
}

/// A file being written.
pub(crate) struct Writer(String);

impl Writer {
    pub(crate) fn new(header: &str) -> Writer {
        Writer(format!("{header}\n"))
    }

    /// One line. The value has no line breaks in it.
    pub(crate) fn line(&mut self, word: &str, value: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{word} {value}");
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

/// A file being read, one line after the other.
pub(crate) struct Reader<'a> {
    lines: std::iter::Peekable<std::str::Split<'a, char>>,
    number: usize,
}

impl<'a> Reader<'a> {
    /// Behind the header. The last line must end too.
    pub(crate) fn new(bytes: &'a [u8], header: &'static str) -> Result<Reader<'a>, StateError> {
        let text = std::str::from_utf8(bytes).map_err(|_| StateError::Header(header))?;
        let lines = text.strip_prefix(header).and_then(|text| text.strip_prefix('\n'));
        let body = lines.ok_or(StateError::Header(header))?;
        let mut lines = body.strip_suffix('\n').unwrap_or(body).split('\n').peekable();
        if body.is_empty() {
            lines.next();
        }
        Ok(Reader { lines, number: 1 })
    }

    /// The next line's value, which must stand behind this word.
    pub(crate) fn value<T>(
        &mut self,
        word: &str,
        read: impl Fn(&'a str) -> Option<T>,
    ) -> Result<T, StateError> {
        let line = self.lines.next();
        self.number += 1;
        let value = line.and_then(|line| line.strip_prefix(word)).and_then(|rest| rest.strip_prefix(' '));
        value.and_then(read).ok_or(StateError::Line(self.number))
    }

    /// The same if the next line begins with this word; `None` if not.
    pub(crate) fn maybe<T>(
        &mut self,
        word: &str,
        read: impl Fn(&'a str) -> Option<T>,
    ) -> Result<Option<T>, StateError> {
        let next = self.lines.peek().and_then(|line| line.strip_prefix(word));
        if next.is_some_and(|rest| rest.starts_with(' ')) {
            self.value(word, read).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Whether all lines are read.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.lines.peek().is_none()
    }

    /// The error for the line that was read last.
    pub(crate) fn bad(&self) -> StateError {
        StateError::Line(self.number)
    }
}

/// A decimal; that it is canonical is seen when the file is written again.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}
