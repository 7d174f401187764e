//! Unsigned decimals, canonical: no sign, no leading zero, nothing above 2^64 - 1.

pub(crate) fn parse(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if canonical && digits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_spelling_parses() {
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "00", "01", "+1", "-0", "1 ", " 1", "18446744073709551616", "١", "0x1", "1\r"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
