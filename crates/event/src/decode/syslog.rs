//! Syslog messages of RFC 5424. How a stream falls into messages is [`super::frame`]'s.
//!
//! What a message says in structured data and in words stays in the record: both may name people.

use super::{Context, Decoded, Reason, Rejected, overwrite, when};
use crate::collected::Event;
use crate::segment::MAX_RECORD_BYTES;
use crate::v1::{Category, Format, Severity};

const NIL: &str = "-";

/// What may begin a message's words to say that they are UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The largest priority: facility 23, severity 7.
const MAX_PRIORITY: u8 = 191;

/// Decodes one message.
pub fn decode(bytes: &[u8], context: &Context) -> Vec<Decoded> {
    let decoded = if bytes.len() > MAX_RECORD_BYTES { Err(Reason::TooLarge) } else { event(bytes, context) };
    vec![decoded.map_err(|reason| Rejected::new(reason, Format::Syslog, 0, bytes))]
}

fn event(bytes: &[u8], context: &Context) -> Result<Event, Reason> {
    let (priority, rest) = priority(bytes).ok_or(Reason::NotSyslog)?;
    let mut header = Header(rest);
    if header.word(3) != Some("1") {
        return Err(Reason::NotSyslog);
    }
    // The longest that RFC 5424 section 6 allows each to be; a time has 32 characters at most.
    let mut word = |most| header.word(most).ok_or(Reason::NotSyslog);
    let (time, host, app, process, message_id) = (word(32)?, word(255)?, word(48)?, word(128)?, word(32)?);
    let words = structured_data(header.0)?;
    if words.starts_with(BOM) && std::str::from_utf8(words).is_err() {
        return Err(Reason::NotUtf8);
    }

    let said =
        |word: &'static str, value: &str| if value == NIL { String::new() } else { format!("{word}{value}") };
    let mut event = Event::of(context, Format::Syslog, "syslog", bytes);
    event.set_time(when::of_text(&said("", time)));
    event.set_source(|source| {
        overwrite(&mut source.id, &said("", app));
        overwrite(&mut source.instance, &said("", host));
    });
    event.label("procid", said("", process));
    event.label("facility", (priority / 8).to_string());
    event.core.action = match (app, message_id) {
        (NIL, NIL) => "syslog".to_owned(),
        (app, NIL) => app.to_owned(),
        (NIL, id) => id.to_owned(),
        (app, id) => format!("{app}:{id}"),
    };
    event.core.category = match priority / 8 {
        4 | 10 => Category::Auth,
        13 => Category::Audit,
        _ => Category::System,
    }
    .into();
    event.core.severity = match priority % 8 {
        0 => Severity::Fatal,
        1 | 2 => Severity::Critical,
        3 => Severity::High,
        4 => Severity::Medium,
        5 => Severity::Low,
        _ => Severity::Informational,
    }
    .into();
    Ok(event)
}

/// `<0>` to `<191>`, without leading zeros.
fn priority(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let rest = bytes.strip_prefix(b"<")?;
    let end = rest.iter().take(4).position(|byte| *byte == b'>')?;
    let digits = std::str::from_utf8(&rest[..end]).ok()?;
    let canonical = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let priority = digits.parse().ok().filter(|priority| canonical && *priority <= MAX_PRIORITY)?;
    Some((priority, &rest[end + 1..]))
}

struct Header<'a>(&'a [u8]);

impl<'a> Header<'a> {
    /// The next word of printable ASCII, of 1 to `most` characters and ended by a space.
    fn word(&mut self, most: usize) -> Option<&'a str> {
        let end = self.0.iter().take(most + 1).position(|byte| *byte == b' ')?;
        let word = &self.0[..end];
        let fits = end > 0 && word.iter().all(u8::is_ascii_graphic);
        self.0 = &self.0[end + 1..];
        std::str::from_utf8(word).ok().filter(|_| fits)
    }
}

/// Passes over structured data, which must be well-formed, and returns the words behind it.
fn structured_data(bytes: &[u8]) -> Result<&[u8], Reason> {
    let mut rest = bytes;
    let mut ids: Vec<&[u8]> = Vec::new();
    if let Some(after) = rest.strip_prefix(NIL.as_bytes()) {
        rest = after;
    } else {
        while let Some(element) = rest.strip_prefix(b"[") {
            let (id, after) = structured_element(element).ok_or(Reason::NotSyslog)?;
            // RFC 5424 section 6.3.2: an id stands once in a message. A search through all of them per element would
            // take the square of a hostile message's length, so they are compared when all are known.
            ids.push(id);
            rest = after;
        }
        if ids.is_empty() {
            return Err(Reason::NotSyslog);
        }
    }
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Reason::DuplicateKey);
    }
    match rest {
        [] => Ok(rest),
        [b' ', words @ ..] => Ok(words),
        _ => Err(Reason::NotSyslog),
    }
}

/// The id of an element, and what follows its bracket.
fn structured_element(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (id, mut rest) = name(bytes)?;
    loop {
        match rest {
            [b']', after @ ..] => return Some((id, after)),
            [b' ', parameter @ ..] => {
                let (_, after) = name(parameter)?;
                rest = parameter_value(after.strip_prefix(b"=\"")?)?;
            }
            _ => return None,
        }
    }
}

/// An SD-NAME: 1 to 32 printable characters without `=`, `]`, `"` and space.
fn name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_of_name = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'=' | b']' | b'"');
    let end = bytes.iter().take(33).position(|byte| !is_of_name(byte))?;
    (end > 0).then(|| bytes.split_at(end))
}

/// What follows the closing quote of a value, in which `"`, `\` and `]` are escaped and which is UTF-8.
fn parameter_value(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'"' => break,
            b']' => return None,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    std::str::from_utf8(bytes.get(..at)?).ok()?;
    bytes.get(at + 1..)
}
