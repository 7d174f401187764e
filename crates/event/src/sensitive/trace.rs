//! Where something may stand that a record should not say, found without looking at most of it. What is passed over holds
//! nothing that [`super::scan`] would find, also once the escapes of JSON are undone; what is stopped at may hold nothing too.

/// The fewest digits of a card number: a run of so many bytes lies over one of every so many places.
const MIN_CARD_DIGITS: usize = 13;

/// Escapes of JSON that stand for what is part of nothing that is found: `<`, `>` and `&`, which encoders escape that write for web pages.
const HARMLESS: [&[u8]; 5] = [b"003c", b"003e", b"003C", b"003E", b"0026"];

/// A byte that everything of some kind has, other than a card's number: the least usual one.
const IS_SIGN: [bool; 256] = {
    let mut is_sign = [false; 256];
    let signs = b"@%\\ABbJG";
    let mut at = 0;
    while at < signs.len() {
        is_sign[signs[at] as usize] = true;
        at += 1;
    }
    is_sign
};

/// The places of a text where something may stand, from left to right.
pub(super) struct Traces<'t> {
    text: &'t [u8],
    /// The next ones that are known: of signs, and of digits. Kept apart, or each would be searched for again up to the other.
    sign: Option<usize>,
    digits: Option<usize>,
}

/// Whether anything may stand in a text.
pub(super) fn may_hold(text: &[u8]) -> bool {
    sign(text, 0).is_some() || digits(text, 0).is_some()
}

impl<'t> Traces<'t> {
    pub(super) fn of(text: &'t [u8]) -> Traces<'t> {
        Traces { text, sign: sign(text, 0), digits: digits(text, 0) }
    }

    /// The first place from `from` on; nothing that is found begins at or behind `from` and ends at or before this place.
    pub(super) fn next(&mut self, from: usize) -> Option<usize> {
        if self.sign.is_some_and(|at| at < from) {
            self.sign = sign(self.text, from);
        }
        if self.digits.is_some_and(|at| at < from) {
            self.digits = digits(self.text, from);
        }
        [self.sign, self.digits].into_iter().flatten().min()
    }
}

fn sign(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += text.get(at..)?.iter().position(|byte| IS_SIGN[usize::from(*byte)])?;
        if is_sign(text, at) {
            return Some(at);
        }
        at += 1;
    }
}

/// Whether the sign at this place is part of more: every byte that is looked at here stands in the text itself, because no escape of
/// JSON that is not stopped at stands for a letter, a digit, a dash or a percent sign.
fn is_sign(text: &[u8], at: usize) -> bool {
    let (before, rest) = text.split_at(at);
    match rest {
        [b'@', ..] => true,
        [b'%', rest @ ..] => rest.starts_with(b"40"),
        [b'\\', b'u', rest @ ..] => !HARMLESS.iter().any(|code| rest.starts_with(code)),
        [b'A', b'K' | b'S' | b'B', b'I', b'A', ..] | [b'A', b'C', b'C', b'A', ..] => true,
        [b'B' | b'b', rest @ ..] => rest.get(..5).is_some_and(|rest| rest.eq_ignore_ascii_case(b"earer")),
        [b'J', ..] => before.ends_with(b"ey"),
        [b'G', ..] => before.ends_with(b"-----BE"),
        _ => false,
    }
}

/// Where digits stand, at least [`MIN_CARD_DIGITS`] of them in groups with a space or a hyphen between: a place among the first
/// [`MIN_CARD_DIGITS`] bytes of them. Between the places that are looked at there is no room for so many.
fn digits(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(byte) = text.get(at) {
        if is_of_groups(byte) && digits_around(text, from, at) >= MIN_CARD_DIGITS {
            return Some(at);
        }
        at += MIN_CARD_DIGITS;
    }
    None
}

fn is_of_groups(byte: &u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b' ' | b'-')
}

/// How many digits stand in the groups around a place, counted no further than needed: a text of digits alone must not be walked over
/// at each place of it.
fn digits_around(text: &[u8], from: usize, at: usize) -> usize {
    let near = |byte: &&u8| is_of_groups(byte);
    let before = text[from..at].iter().rev().take(2 * MIN_CARD_DIGITS).take_while(near);
    let behind = text[at..].iter().take(2 * MIN_CARD_DIGITS).take_while(near);
    before.chain(behind).filter(|byte| byte.is_ascii_digit()).count()
}
