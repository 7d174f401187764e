//! Finding what a record should not say, in bytes of any kind. One pass; each finder looks no further than its own
//! match, so the time is linear in the input, whoever wrote it.

use std::ops::Range;

use crate::v1::Detected;

/// Something that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Match {
    pub(super) kind: Detected,
    pub(super) range: Range<usize>,
}

/// The most digits of a card number (ISO/IEC 7812-1).
const MAX_CARD_DIGITS: usize = 19;

/// An AWS access key id: four letters and this many more characters.
const AWS_KEY_BYTES: usize = 20;

/// The shortest token behind `Bearer`, and the shortest parts of a JSON Web Token: shorter ones guard nothing.
const MIN_BEARER: usize = 16;
const MIN_JWT_PART: usize = 8;

const PEM_BEGIN: &[u8] = b"-----BEGIN ";
const PEM_END: &[u8] = b"-----END ";

/// The longest label of a PEM block that is looked at.
const MAX_PEM_LABEL: usize = 64;

/// Everything that is found, from left to right, without overlaps.
pub(super) fn matches(text: &[u8]) -> Vec<Match> {
    let mut found: Vec<Match> = Vec::new();
    let (mut at, mut free) = (0, 0);
    while let Some(byte) = text.get(at) {
        let one = |kind, range: Option<Range<usize>>| Some(Match { kind, range: range? });
        let next = match byte {
            b'@' | b'%' | b'\\' => one(Detected::Email, email(text, free, at)),
            b'2'..=b'6' => one(Detected::CardNumber, card_number(text, at)),
            b'A' => one(Detected::AwsAccessKey, aws_access_key(text, at)),
            b'B' | b'b' => one(Detected::BearerToken, bearer_token(text, at)),
            b'e' => one(Detected::BearerToken, json_web_token(text, at)),
            b'-' => one(Detected::PrivateKey, private_key(text, at)),
            _ => None,
        };
        at += 1;
        if let Some(next) = next {
            free = next.range.end;
            at = free;
            found.push(next);
        }
    }
    found
}

/// Whether these digits are a card's.
fn is_card_number(digits: &[u8]) -> bool {
    has_issuer(digits) && passes_luhn(digits)
}

/// Around an `@`, or what stands for one in a URL or in JSON, back to `free` at most. No `@` is inside an address, so
/// addresses are walked over twice at most.
fn email(text: &[u8], free: usize, at: usize) -> Option<Range<usize>> {
    let ats: [&[u8]; 3] = [b"@", b"%40", b"\\u0040"];
    let sign = ats.iter().find(|sign| text[at..].starts_with(sign))?;
    let is_of_name = |b: &u8| b.is_ascii_alphanumeric() || *b >= 0x80 || b"._+-~!#$*".contains(b);
    let name = text[free..at].iter().rev().take_while(|b| is_of_name(b)).count();
    let is_of_domain = |b: &u8| b.is_ascii_alphanumeric() || *b >= 0x80 || b".-".contains(b);
    let start = at + sign.len();
    let mut domain = &text[start..start + text[start..].iter().take_while(|b| is_of_domain(b)).count()];
    // The longest beginning that ends in a top-level domain: what else stands behind it is not the address's.
    loop {
        while let [before @ .., b'.' | b'-'] = domain {
            domain = before;
        }
        let dot = domain.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
        let top = &domain[dot + 1..];
        if top.len() >= 2 && (top[0].is_ascii_alphabetic() || top[0] >= 0x80) {
            break;
        }
        domain = &domain[..dot];
    }
    (name > 0).then(|| at - name..start + domain.len())
}

/// Groups of digits, a space or a hyphen between them: the longest beginning of them that ends with a group and is one.
fn card_number(text: &[u8], at: usize) -> Option<Range<usize>> {
    let before = at.checked_sub(1).map(|before| text[before]);
    if before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'.') {
        return None;
    }
    let mut digits = Vec::with_capacity(MAX_CARD_DIGITS + 1);
    let (mut end, mut found) = (at, None);
    while let Some(digit) = text.get(end).filter(|byte| byte.is_ascii_digit()) {
        digits.push(*digit);
        end += 1;
        let after = text.get(end);
        if !after.is_some_and(u8::is_ascii_alphanumeric) && is_card_number(&digits) {
            found = Some(at..end);
        }
        let separated =
            matches!(after, Some(b' ' | b'-')) && text.get(end + 1).is_some_and(u8::is_ascii_digit);
        end += usize::from(separated);
        if digits.len() > MAX_CARD_DIGITS {
            break;
        }
    }
    found
}

/// Whether an issuer's numbers begin so and are that long: in turn Visa, Mastercard, American Express, Diners, JCB, and
/// those of Discover, UnionPay and Maestro. Without the lengths every tenth number of a clock or a counter would be a card's.
fn has_issuer(digits: &[u8]) -> bool {
    let lengths: &[usize] = match digits {
        [b'4', ..] => &[13, 16, 19],
        [b'5', b'1'..=b'5', ..] | [b'2', b'2'..=b'7', ..] => &[16],
        [b'3', b'4' | b'7', ..] => &[15],
        [b'3', b'0' | b'6' | b'8' | b'9', ..] => &[14, 16, 17, 18, 19],
        [b'3', b'5', ..] | [b'5', b'0' | b'6'..=b'8', ..] | [b'6', ..] => &[16, 17, 18, 19],
        _ => &[],
    };
    lengths.contains(&digits.len())
}

/// ISO/IEC 7812-1, annex B.
fn passes_luhn(digits: &[u8]) -> bool {
    let sum: u32 =
        digits.iter().rev().zip([false, true].into_iter().cycle()).fold(0, |sum, (digit, twice)| {
            let value = u32::from(digit - b'0') << u32::from(twice);
            sum + value / 10 + value % 10
        });
    sum.is_multiple_of(10)
}

fn aws_access_key(text: &[u8], at: usize) -> Option<Range<usize>> {
    let key = text.get(at..at + AWS_KEY_BYTES)?;
    let begins = [b"AKIA", b"ASIA", b"ABIA", b"ACCA"].iter().any(|prefix| key.starts_with(*prefix));
    let fits = key.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    (begins && fits && is_word(text, at, at + AWS_KEY_BYTES)).then_some(at..at + AWS_KEY_BYTES)
}

/// The token of an `Authorization` header (RFC 6750 section 2.1); the word before it stays.
fn bearer_token(text: &[u8], at: usize) -> Option<Range<usize>> {
    let (word, rest) = text[at..].split_first_chunk::<6>()?;
    if !word.eq_ignore_ascii_case(b"bearer") || !is_word(text, at, at + 6) {
        return None;
    }
    let spaces = rest.iter().take_while(|byte| matches!(byte, b' ' | b':' | b'=' | b'+')).count();
    let is_of_token = |b: &&u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(b);
    let token = rest[spaces..].iter().take_while(is_of_token).count();
    let start = at + 6 + spaces;
    (spaces > 0 && token >= MIN_BEARER).then_some(start..start + token)
}

/// RFC 7515 section 3.1: parts in base64url, dots between them; the first is an object, `{"`, which begins with `eyJ`.
fn json_web_token(text: &[u8], at: usize) -> Option<Range<usize>> {
    let is_of_part = |b: &u8| b.is_ascii_alphanumeric() || b"-_".contains(b);
    let inside = at.checked_sub(1).is_some_and(|before| is_of_part(&text[before]));
    if inside || !text[at..].starts_with(b"eyJ") {
        return None;
    }
    let part = |from: usize| from + text[from..].iter().take_while(|b| is_of_part(b)).count();
    let (mut end, mut parts) = (part(at), 1);
    let is_long = end - at >= MIN_JWT_PART;
    while is_long && text.get(end) == Some(&b'.') {
        let next = part(end + 1);
        if parts == 1 && next - end <= MIN_JWT_PART {
            return None;
        }
        (end, parts) = (next, parts + 1);
    }
    (parts >= 3).then_some(at..end)
}

/// From the first line of a PEM block (RFC 7468) to its last, or to the end of the text: half a key is one too.
fn private_key(text: &[u8], at: usize) -> Option<Range<usize>> {
    let label = text[at..].strip_prefix(PEM_BEGIN)?;
    let label = &label[..label.len().min(MAX_PEM_LABEL)];
    let label = &label[..find(label, b"-----")?];
    find(label, b"PRIVATE KEY")?;
    let start = at + PEM_BEGIN.len() + label.len();
    let Some(last) = find(&text[start..], PEM_END) else { return Some(at..text.len()) };
    let last = start + last + PEM_END.len();
    let dashes = find(&text[last..text.len().min(last + MAX_PEM_LABEL)], b"-----");
    Some(at..dashes.map_or(text.len(), |dashes| last + dashes + 5))
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|window| window == needle)
}

/// Whether no letter or digit stands before or behind.
fn is_word(text: &[u8], start: usize, end: usize) -> bool {
    let before = start.checked_sub(1).and_then(|before| text.get(before));
    ![before, text.get(end)].into_iter().flatten().any(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(Detected, &str)]) {
        let found = matches(text.as_bytes());
        let found: Vec<_> = found.iter().map(|found| (found.kind, &text[found.range.clone()])).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn addresses() {
        let email = |text: &str, address: &str| check(text, &[(Detected::Email, address)]);
        email("alice@example.com", "alice@example.com");
        email("to <alice.b+c@mail.example.co.uk>, and", "alice.b+c@mail.example.co.uk");
        email("/users/alice%40example.com?x", "alice%40example.com");
        email("alice\\u0040example.com", "alice\\u0040example.com");
        email("ends with alice@example.com.", "alice@example.com");
        email("josé@exämple.fr", "josé@exämple.fr");
        email("a@b@c.de", "b@c.de");
        email("alice@example.com.2 and", "alice@example.com");
        email("alice@example.com..-6", "alice@example.com");
        for none in
            ["@", "a@", "@b.de", "a@b", "a@b.c", "a@.de", "a@b.12", "image@sha256:0f", "100% of 40", "a@-.-"]
        {
            check(none, &[]);
        }
    }

    // Numbers that schemes publish for tests.
    #[test]
    fn card_numbers() {
        let card = |text: &str, number: &str| check(text, &[(Detected::CardNumber, number)]);
        card("4111111111111111", "4111111111111111");
        card("pan=4111 1111 1111 1111 123", "4111 1111 1111 1111");
        card("(5500-0055-5555-5559)", "5500-0055-5555-5559");
        card("378282246310005,", "378282246310005");
        card("6011111111111117", "6011111111111117");
        card("30569309025904", "30569309025904");
        card("3530111333300000", "3530111333300000");
        for none in [
            "4111111111111112",
            "a4111111111111111",
            "41111111111111111111",
            "4111111111111111f",
            "0.4111111111111111",
            "4111  1111 1111 1111",
            "411111111111",
            "1722376393000000000",
            "9f4111111111111111",
        ] {
            check(none, &[]);
        }
    }

    #[test]
    fn keys_and_tokens() {
        let is = |text: &str, kind, found: &str| check(text, &[(kind, found)]);
        let key = format!("AKIA{}", "B7".repeat(8));
        is(&format!("id={key};"), Detected::AwsAccessKey, &key);
        check(&format!("x{key}"), &[]);
        check(&format!("{key}9"), &[]);
        check(&key.to_lowercase(), &[]);
        is("Authorization: bearer abcdefghijklmnop==", Detected::BearerToken, "abcdefghijklmnop==");
        check("Bearer of good news", &[]);
        check("forbearer abcdefghijklmnopqrst", &[]);
        let token = format!("eyJ{}.{}.{}", "a".repeat(9), "b-_".repeat(5), "c");
        is(&format!("jwt {token}\""), Detected::BearerToken, &token);
        is(&format!("Bearer {token}"), Detected::BearerToken, &token);
        check("eyJ.eyJ.eyJ", &[]);
        check(&format!("eyJ{}", "a".repeat(99)), &[]);
        // In two parts, so that nobody's search for keys finds this file.
        let pem = concat!("-----BEGIN EC PRIVATE", " KEY-----\nMHc\n-----END EC PRIVATE", " KEY-----");
        is(&format!("key: {pem}\n"), Detected::PrivateKey, pem);
        is(&format!("key: {}", &pem[..40]), Detected::PrivateKey, &pem[..40]);
        check("-----BEGIN CERTIFICATE-----\nMHc\n-----END CERTIFICATE-----", &[]);
        check("-----BEGIN", &[]);
    }

    /// What makes backtracking search take the square of its input is found in one pass. A loop that did not advance
    /// or looked back would not end here.
    #[test]
    fn hostile_texts_take_one_pass() {
        for pattern in [
            "a@",
            "@",
            "a.",
            "eyJ",
            "eyJ.",
            "eyJaaaaaaaaa.",
            "4 ",
            "4-",
            "-----BEGIN ",
            "bearer ",
            "AKIA",
            "%40",
            "\\u0040",
        ] {
            let text = pattern.repeat(256 * 1024 / pattern.len());
            let last = matches(text.as_bytes()).last().map_or(0, |found| found.range.end);
            assert!(last <= text.len(), "{pattern}");
        }
    }
}
