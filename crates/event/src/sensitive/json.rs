//! Replacing inside of JSON without writing it anew: every string and number is looked at, with its escapes undone,
//! and what nothing was found in stays as it stands, byte by byte.

use std::borrow::Cow;

use crate::fit::MAX_TEXT_BYTES;

/// What surrounds the place in the text that is being looked at.
#[derive(Clone, Copy)]
enum Inside {
    /// An object, and the name of the member: where its literal stands in the text.
    Object { name: Option<(usize, usize)>, at_name: bool },
    /// An array, and how many items came before.
    Array(usize),
}

/// Copies JSON and asks about every text in it: `replace` gets the text and a way to say where it stands, and answers
/// with another text or with none. What is not JSON is copied too, with the texts that can be made out.
pub(super) fn rewrite(
    json: &[u8],
    mut replace: impl FnMut(&[u8], &dyn Fn() -> String) -> Option<Vec<u8>>,
) -> Vec<u8> {
    let mut written = Vec::with_capacity(json.len());
    let mut around: Vec<Inside> = Vec::new();
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        let end = match byte {
            b'"' => string_end(json, at),
            b'-' | b'0'..=b'9' => {
                at + json[at..].iter().take_while(|b| b"+-.eE0123456789".contains(b)).count()
            }
            _ => {
                step(*byte, &mut around);
                written.push(*byte);
                at += 1;
                continue;
            }
        };
        let literal = &json[at..end];
        if let (b'"', Some(Inside::Object { name, at_name: true })) = (byte, around.last_mut()) {
            *name = Some((at, end));
        }
        let text = if *byte == b'"' { unescaped(literal) } else { literal.into() };
        let path = || path(json, &around);
        match replace(&text, &path) {
            Some(other) => written.extend(escaped(&other)),
            None => written.extend(literal),
        }
        at = end;
    }
    written
}

/// What a byte outside of texts and numbers does to where we are.
fn step(byte: u8, around: &mut Vec<Inside>) {
    match (byte, around.last_mut()) {
        (b'{', _) => around.push(Inside::Object { name: None, at_name: true }),
        (b'[', _) => around.push(Inside::Array(0)),
        (b'}' | b']', _) => drop(around.pop()),
        (b':', Some(Inside::Object { at_name, .. })) => *at_name = false,
        (b',', Some(Inside::Object { at_name, .. })) => *at_name = true,
        (b',', Some(Inside::Array(items))) => *items += 1,
        _ => {}
    }
}

/// Behind the closing quote, or the end of the text.
fn string_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    loop {
        match json.get(at) {
            None => return json.len(),
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
        }
    }
}

/// The text that a literal means; what stands between its quotes, if it is no string of JSON.
fn unescaped(literal: &[u8]) -> Cow<'_, [u8]> {
    if literal.contains(&b'\\') {
        return match serde_json::from_slice::<String>(literal) {
            Ok(text) => text.into_bytes().into(),
            Err(_) => literal[1..].into(),
        };
    }
    let inner = &literal[1..];
    inner.strip_suffix(b"\"").unwrap_or(inner).into()
}

fn escaped(text: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&String::from_utf8_lossy(text)).unwrap_or_default()
}

/// Where we are, as a JSON pointer, as far down as a field's path may be long.
fn path(json: &[u8], around: &[Inside]) -> String {
    let mut path = String::new();
    for inside in around {
        if path.len() > MAX_TEXT_BYTES {
            break;
        }
        path.push('/');
        match inside {
            Inside::Object { name: Some((start, end)), .. } => {
                let name = unescaped(&json[*start..*end]);
                path.push_str(&String::from_utf8_lossy(&name).replace('~', "~0").replace('/', "~1"));
            }
            Inside::Object { name: None, .. } => {}
            Inside::Array(items) => path.push_str(&items.to_string()),
        }
    }
    path
}
