//! Entry bundles: entries in the encoding of C2SP `tlog-tiles`, each a big-endian `u16` length and its bytes.

use thiserror::Error;

/// The largest entry in bytes: what the `u16` length of an entry bundle can say.
pub const MAX_ENTRY_BYTES: usize = 65_535;

/// Bytes that the length prefix of an entry takes.
pub const LENGTH_BYTES: usize = 2;

/// The entry is longer than [`MAX_ENTRY_BYTES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("an entry has at most {MAX_ENTRY_BYTES} bytes, this one has {0}")]
pub struct EntryTooLarge(pub usize);

/// The bytes are not a whole number of encoded entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the entry bundle ends inside the entry that starts at byte {offset}")]
pub struct Truncated {
    /// Where the incomplete entry's length prefix starts.
    pub offset: usize,
}

/// Appends one encoded entry to `bundle`.
pub fn push(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), EntryTooLarge> {
    let length = u16::try_from(entry.len()).map_err(|_| EntryTooLarge(entry.len()))?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// Iterates over the entries of a bundle. The first error ends the iteration.
pub fn entries(bundle: &[u8]) -> Entries<'_> {
    Entries { bundle, offset: 0 }
}

/// The iterator behind [`entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bundle: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<&'a [u8], Truncated>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.bundle.get(offset..).filter(|rest| !rest.is_empty())?;
        let entry = rest
            .split_first_chunk::<LENGTH_BYTES>()
            .and_then(|(length, body)| body.get(..usize::from(u16::from_be_bytes(*length))));
        match entry {
            Some(entry) => {
                self.offset = offset + LENGTH_BYTES + entry.len();
                Some(Ok(entry))
            }
            None => {
                self.offset = self.bundle.len();
                Some(Err(Truncated { offset }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip() {
        let long = vec![7; MAX_ENTRY_BYTES];
        let input: [&[u8]; 4] = [b"", b"a", &long, b""];
        let mut bundle = Vec::new();
        input.iter().for_each(|entry| push(&mut bundle, entry).unwrap());
        assert_eq!(entries(&bundle).collect::<Result<Vec<_>, _>>().unwrap(), input);
        assert_eq!(push(&mut bundle, &vec![0; 65_536]), Err(EntryTooLarge(65_536)));
    }

    #[test]
    fn a_cut_bundle_is_refused_where_it_was_cut() {
        let mut bundle = Vec::new();
        push(&mut bundle, b"one").unwrap();
        push(&mut bundle, b"two").unwrap();
        for cut in 6..bundle.len() {
            let got: Vec<_> = entries(&bundle[..cut]).collect();
            assert_eq!(got, [Ok(&b"one"[..]), Err(Truncated { offset: 5 })], "cut at {cut}");
        }
        assert!(entries(&bundle[..5]).all(|entry| entry.is_ok()));
    }
}
