//! XChaCha20-Poly1305 of draft-irtf-cfrg-xchacha-03, section 2.3: a key and a nonce of 192 bits become the key that HChaCha20 makes of
//! both, and the nonce of ChaCha20-Poly1305 (RFC 8439). That cipher is ring's, which the process has for TLS: for the short texts that
//! segments are it is several times as fast as the portable one.

use chacha20::{R20, hchacha};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::{KEY_BYTES, SealError};

/// The nonce, 192 bits: random ones do not meet under one key.
pub(super) const NONCE_BYTES: usize = 24;

/// The tag of Poly1305.
pub(super) const TAG_BYTES: usize = 16;

/// What HChaCha20 takes of the nonce. The rest stands behind four zero bytes in the nonce of the inner cipher.
const OUTER_BYTES: usize = 16;

/// Seals bytes in their place; returns the tag.
pub(super) fn seal(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    place: &[u8],
    bytes: &mut [u8],
) -> Result<[u8; TAG_BYTES], SealError> {
    let (key, nonce) = inner(key, nonce).ok_or(SealError::TooLong)?;
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(place), bytes);
    tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or(SealError::TooLong)
}

/// Opens sealed bytes with their tag behind them.
pub(super) fn open(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    place: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (key, nonce) = inner(key, nonce).ok_or(SealError::NotOpened)?;
    let mut bytes = Zeroizing::new(sealed.to_vec());
    let opened = key.open_in_place(nonce, Aad::from(place), &mut bytes);
    let length = opened.map_err(|_| SealError::NotOpened)?.len();
    bytes.truncate(length);
    Ok(bytes)
}

/// The key and the nonce of the inner cipher. Always some: the lengths are right.
fn inner(key: &[u8; KEY_BYTES], nonce: &[u8; NONCE_BYTES]) -> Option<(LessSafeKey, Nonce)> {
    let (outer, rest) = nonce.split_at(OUTER_BYTES);
    let key = Zeroizing::new(<[u8; KEY_BYTES]>::from(hchacha::<R20>(key.into(), outer.try_into().ok()?)));
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - rest.len()..].copy_from_slice(rest);
    let key = UnboundKey::new(&CHACHA20_POLY1305, &*key).ok()?;
    Some((LessSafeKey::new(key), Nonce::assume_unique_for_key(nonce)))
}
