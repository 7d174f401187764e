//! The secret that a webhook's receiver shares with the monitor, and what is signed with it. It knows neither messages nor
//! receivers.

use std::fmt::{self, Write};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

/// Below this a secret can be guessed from one signed message: 32 bytes are what SHA-256 is good for, in any encoding.
pub const MIN_SECRET_BYTES: usize = 32;

/// Far above any secret.
pub const MAX_SECRET_BYTES: usize = 4_096;

/// A shared secret. Cannot be copied or printed.
pub struct Secret(Zeroizing<Vec<u8>>);

/// Why a secret was refused. Never quotes it.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file system.
    #[error("cannot read the secret {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Group or others may read it.
    #[error("the secret {} can be read by others (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Too short or too long.
    #[error(
        "the secret {} has {length} bytes, and takes {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}: make one with `openssl rand -hex 32`",
        path.display()
    )]
    Length {
        /// Which file.
        path: PathBuf,
        /// Its length; at most one more than is read.
        length: usize,
    },
}

impl Secret {
    /// Reads a secret from a file that its owner alone can read. A newline at its end is not part of it.
    pub fn load(path: &Path) -> Result<Secret, SecretError> {
        let io_error = |source| SecretError::Io { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(io_error)?;
        // The mode of the open file, so that it cannot be exchanged between the check and the read.
        let mode = file.metadata().map_err(io_error)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { path: path.to_owned(), mode });
        }
        // Room for all of it from the start: a growing buffer would leave copies behind that nobody wipes.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 2));
        file.take(MAX_SECRET_BYTES as u64 + 2).read_to_end(&mut bytes).map_err(io_error)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        let length = bytes.len();
        match length {
            MIN_SECRET_BYTES..=MAX_SECRET_BYTES => Ok(Secret(bytes)),
            _ => Err(SecretError::Length { path: path.to_owned(), length }),
        }
    }

    /// The value of `Epigraph-Signature`: the time in POSIX seconds, and the HMAC-SHA256 of that time, a full stop and the
    /// body. With the time inside, a receiver that refuses old ones cannot be sent a message again by somebody who saw it.
    pub fn sign(&self, at_seconds: u64, body: &[u8]) -> String {
        let mut value = format!("t={at_seconds},v1=");
        // An HMAC takes keys of every length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return value };
        mac.update(at_seconds.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        for byte in mac.finalize().into_bytes() {
            // Writing to a String does not fail.
            let _ = write!(value, "{byte:02x}");
        }
        value
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    /// By Python: hmac.new(b"k" * 32, b'1700000000.{"a":1}', "sha256").hexdigest().
    #[test]
    fn the_signature_is_what_another_implementation_computes() {
        let (_dir, path) = file(&[b'k'; 32], 0o600);
        let signature = Secret::load(&path).unwrap().sign(1_700_000_000, b"{\"a\":1}");
        assert_eq!(
            signature,
            "t=1700000000,v1=6935b796c0fec66e5dee52c86c7fd1218a424c32f1adb239ff2893c31e54f033"
        );
    }

    #[test]
    fn a_newline_at_the_end_is_no_part_of_it() {
        let [(_a, plain), (_b, ended)] =
            [file(&[7; 32], 0o600), file(&[&[7; 32][..], b"\n"].concat(), 0o600)];
        let [plain, ended] = [plain, ended].map(|path| Secret::load(&path).unwrap().sign(1, b"x"));
        assert_eq!(plain, ended);
    }

    #[test]
    fn what_others_can_read_or_anybody_can_guess_is_refused() {
        for mode in [0o640, 0o604, 0o777] {
            let (_dir, path) = file(&[7; 32], mode);
            assert!(Secret::load(&path).unwrap_err().to_string().contains("chmod 600"));
        }
        for length in [0, 31, MAX_SECRET_BYTES + 1, MAX_SECRET_BYTES + 100] {
            let (_dir, path) = file(&vec![7; length], 0o600);
            assert!(matches!(Secret::load(&path), Err(SecretError::Length { .. })), "{length}");
        }
    }

    #[test]
    fn it_is_never_printed() {
        let (_dir, path) = file(b"0123456789abcdef0123456789abcdef", 0o600);
        assert_eq!(format!("{:?}", Secret::load(&path).unwrap()), "Secret(..)");
    }
}
