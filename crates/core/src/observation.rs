//! Observations: what a monitor saw, in a text that it signed. Whoever trusts the monitor can believe it; it proves nothing
//! about the log, and is no [`Evidence`](crate::Evidence).
//!
//! A signed note (C2SP `signed-note`) under a key of type 0x01. Its first line is no origin that a log would have with a size
//! below it, so that a monitor's signature is never one under a checkpoint. This module does not know which observations there
//! are, and does not judge the notes that one quotes. File: docs/formats/observation.md.

use std::fmt::{self, Write as _};

use thiserror::Error;

use crate::decimal;
use crate::environment::UnixMillis;
use crate::key::{KeyType, NameError, Origin, SigningKey, VKey};
use crate::note::{self, NoteError, Parsed};

/// The largest observation in bytes: two notes of 64 KiB, quoted, and the rest with room to spare.
pub const MAX_OBSERVATION_BYTES: usize = 256 * 1024;

/// The most notes that one quotes: what was seen, and what it is compared with.
pub const MAX_NOTES: usize = 2;

const HEADER: &str = "epigraph-observation@v1";

/// The longest code in bytes.
const MAX_CODE_BYTES: usize = 64;

/// The longest subject or detail in bytes; more than a person reads.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// What a monitor saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observation {
    code: String,
    origin: Origin,
    subject: String,
    at: UnixMillis,
    detail: String,
    notes: Vec<String>,
}

/// Why something cannot be stated, or bytes are no statement.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BadObservation {
    /// The signed note around it.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// More than [`MAX_OBSERVATION_BYTES`].
    #[error("an observation has at most {MAX_OBSERVATION_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The first line is something else.
    #[error("not an observation: its first line is not {HEADER}")]
    Header,
    /// A line is not what the format has there; lines count from 1.
    #[error("line {0} of the observation is malformed")]
    Line(usize),
    /// The origin line.
    #[error("the origin in the observation: {0}")]
    Origin(#[from] NameError),
    /// It reads, but is not spelt as it would be written, or has other signatures.
    #[error("the observation is not in its one canonical form: it was edited")]
    NotCanonical,
    /// It is signed with a key that the reader did not name.
    #[error(
        "the observation is signed in the name {0:?} with a key that is none of those given: if that is a monitor that \
         you trust, name its vkey"
    )]
    UnknownKey(String),
}

/// Whether bytes look like an observation, by their first line.
pub fn recognise(bytes: &[u8]) -> bool {
    bytes.starts_with(HEADER.as_bytes())
}

/// Reads an observation and says which of `keys` signed it. Needs nothing else.
pub fn verify(bytes: &[u8], keys: &[VKey]) -> Result<(Observation, VKey), BadObservation> {
    if bytes.len() > MAX_OBSERVATION_BYTES {
        return Err(BadObservation::TooLong(bytes.len()));
    }
    if !recognise(bytes) {
        return Err(BadObservation::Header);
    }
    let parsed = Parsed::parse(bytes)?;
    let of_key = |key: &&VKey, name: &str, id| {
        key.key_type() == KeyType::Ed25519 && key.name().as_str() == name && key.id() == id
    };
    let signed = parsed.verify(|name, id| keys.iter().find(|key| of_key(key, name, id)))?;
    let Some((key, line)) = signed.first() else {
        let name = parsed.signatures().first().map(|line| line.name.clone());
        return Err(BadObservation::UnknownKey(name.unwrap_or_default()));
    };
    let observation = Observation::decode_text(parsed.text())?;
    if note::encode(&observation.encode_text(), [*line]).as_bytes() == bytes {
        Ok((observation, (*key).clone()))
    } else {
        Err(BadObservation::NotCanonical)
    }
}

impl Observation {
    /// `code` is 1 to 64 lower-case letters, digits and hyphens; `subject` and `detail` are one line each, of at most 8 KiB
    /// without control characters; each of at most two `notes` is a text of such lines that ends in LF.
    pub fn new(
        code: &str,
        origin: Origin,
        subject: &str,
        at: UnixMillis,
        detail: &str,
        notes: &[&str],
    ) -> Result<Observation, BadObservation> {
        let observation = Observation {
            code: code.to_owned(),
            origin,
            subject: subject.to_owned(),
            at,
            detail: detail.to_owned(),
            notes: notes.iter().map(|note| (*note).to_owned()).collect(),
        };
        // What would not read back is not stated.
        let text = observation.encode_text();
        if text.len() > MAX_OBSERVATION_BYTES {
            return Err(BadObservation::TooLong(text.len()));
        }
        if Observation::decode_text(&text)? == observation {
            Ok(observation)
        } else {
            Err(BadObservation::NotCanonical)
        }
    }

    /// States it: the file, signed by the monitor's key.
    pub fn sign(&self, key: &SigningKey) -> String {
        let text = self.encode_text();
        note::encode(&text, [&key.sign_assertion(&text)])
    }

    /// What kind of observation it is.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The log.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What it is about.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// When it was seen, by the monitor's clock.
    pub fn at(&self) -> UnixMillis {
        self.at
    }

    /// The particulars.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The notes that it quotes.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn encode_text(&self) -> String {
        let Observation { code, origin, subject, at, detail, notes } = self;
        let mut text = format!(
            "{HEADER}\ncode {code}\norigin {origin}\nsubject {subject}\nat {}\ndetail {detail}\n",
            at.0
        );
        for note in notes {
            text += "note\n";
            for line in note.strip_suffix('\n').unwrap_or(note).split('\n') {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "> {line}");
            }
        }
        text
    }

    fn decode_text(text: &str) -> Result<Observation, BadObservation> {
        let mut lines = (1..).zip(text.strip_suffix('\n').ok_or(BadObservation::Header)?.split('\n'));
        if lines.next().map(|(_, line)| line) != Some(HEADER) {
            return Err(BadObservation::Header);
        }
        let mut value = |word: &str, number: usize| {
            let line = lines.next().and_then(|(_, line)| line.strip_prefix(word)?.strip_prefix(' '));
            line.filter(|line| is_line(line)).ok_or(BadObservation::Line(number))
        };
        let code = value("code", 2)?;
        if !is_code(code) {
            return Err(BadObservation::Line(2));
        }
        let origin = Origin::new(value("origin", 3)?)?;
        let subject = value("subject", 4)?;
        let at = decimal::parse(value("at", 5)?).map(UnixMillis).ok_or(BadObservation::Line(5))?;
        let detail = value("detail", 6)?;
        let mut notes: Vec<String> = Vec::new();
        for (number, line) in lines {
            if line == "note" && notes.len() < MAX_NOTES {
                notes.push(String::new());
                continue;
            }
            let quoted = line.strip_prefix("> ").filter(|quoted| !quoted.chars().any(char::is_control));
            let (Some(quoted), Some(note)) = (quoted, notes.last_mut()) else {
                return Err(BadObservation::Line(number));
            };
            note.push_str(quoted);
            note.push('\n');
        }
        Ok(Observation {
            code: code.to_owned(),
            origin,
            subject: subject.to_owned(),
            at,
            detail: detail.to_owned(),
            notes,
        })
    }
}

fn is_code(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_CODE_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_line(text: &str) -> bool {
    text.len() <= MAX_LINE_BYTES && !text.chars().any(char::is_control)
}

impl fmt::Display for Observation {
    /// What was seen, without saying by whom.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Observation { code, origin, subject, detail, .. } = self;
        write!(f, "{code} about {subject} of the log {origin}: {detail}")
    }
}
