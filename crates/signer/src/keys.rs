//! Key files: the one door through which a private key enters or leaves the process.
//!
//! `<name>.key` holds the signing key in its text form and is readable by its owner alone; `<name>.vkey` beside it
//! holds the public half.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use epigraph_core::cosignature::CosigningKey;
use epigraph_core::key::KeyError;
use epigraph_core::{SigningKey, SourceKey};
use thiserror::Error;
use zeroize::Zeroizing;

/// The longest key file in bytes; an Ed25519 key with the longest name has 333.
const MAX_KEY_FILE_BYTES: u64 = 4096;

/// Why a key file was refused. Never quotes what is in it.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The file system.
    #[error("cannot {action} the key file {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Group or others may read it.
    #[error("the key file {} can be read by others (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content.
    #[error("the key file {} holds no usable key: {source}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
    /// Too long or not text.
    #[error("the key file {} is not a key file: it is too long or not text", path.display())]
    NotText {
        /// Which file.
        path: PathBuf,
    },
}

/// Reads a signing key from a file that its owner alone can read.
pub fn load(path: &Path) -> Result<SigningKey, KeyFileError> {
    load_as(path)
}

/// Reads a witness's key from a file that its owner alone can read.
pub fn load_cosigning(path: &Path) -> Result<CosigningKey, KeyFileError> {
    load_as(path)
}

/// Reads an event source's key from a file that its owner alone can read.
pub fn load_source(path: &Path) -> Result<SourceKey, KeyFileError> {
    load_as(path)
}

fn load_as<K: FromStr<Err = KeyError>>(path: &Path) -> Result<K, KeyFileError> {
    load_text(path)?.parse().map_err(|source| KeyFileError::Key { path: path.to_owned(), source })
}

/// Reads the text of a key file that its owner alone can read, without the newline at its end.
pub fn load_text(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let io_error = |source| KeyFileError::Io { action: "read", path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(io_error)?;
    // The mode of the open file, so that it cannot be exchanged between the check and the read.
    let mode = file.metadata().map_err(io_error)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    // Room for all of it from the start: a growing buffer would leave copies behind that nobody wipes.
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE_BYTES as usize + 1));
    let read = file.take(MAX_KEY_FILE_BYTES + 1).read_to_string(&mut text);
    let not_text = || KeyFileError::NotText { path: path.to_owned() };
    read.map_err(
        |error| if error.kind() == io::ErrorKind::InvalidData { not_text() } else { io_error(error) },
    )?;
    if text.len() as u64 > MAX_KEY_FILE_BYTES {
        return Err(not_text());
    }
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Writes a key and its vkey to files that must not exist yet: `path` with mode 0600, and beside it `.vkey`.
pub fn create(path: &Path, key: &SigningKey) -> Result<(), KeyFileError> {
    create_as(path, &key.to_text(), key.vkey())
}

/// The same for a witness's key.
pub fn create_cosigning(path: &Path, key: &CosigningKey) -> Result<(), KeyFileError> {
    create_as(path, &key.to_text(), key.vkey())
}

/// The same for an event source's key.
pub fn create_source(path: &Path, key: &SourceKey) -> Result<(), KeyFileError> {
    create_as(path, &key.to_text(), key.vkey())
}

fn create_as(path: &Path, secret: &Zeroizing<String>, vkey: &dyn Display) -> Result<(), KeyFileError> {
    create_text(path, 0o600, secret)?;
    create_text(&path.with_extension("vkey"), 0o644, &vkey.to_string())
}

/// Writes a line to a file that must not exist yet, with this mode from its first byte on.
pub fn create_text(path: &Path, mode: u32, content: &str) -> Result<(), KeyFileError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(|source| KeyFileError::Io { action: "create", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::KeyName;

    fn key() -> SigningKey {
        SigningKey::from_seed(KeyName::new("log.example").unwrap(), &Zeroizing::new([7; 32]))
    }

    #[test]
    fn a_key_file_round_trips_and_is_private_from_its_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        create(&path, &key()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&path).unwrap().vkey(), key().vkey());
        let vkey = fs::read_to_string(dir.path().join("log.vkey")).unwrap();
        assert_eq!(vkey, format!("{}\n", key().vkey()));
        assert!(create(&path, &key()).is_err(), "an existing key must never be overwritten");
    }

    #[test]
    fn a_sources_key_file_is_no_other_roles() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source.key");
        let key = SourceKey::from_seed(KeyName::new("source.example").unwrap(), &Zeroizing::new([7; 32]));
        create_source(&path, &key).unwrap();
        assert_eq!(load_source(&path).unwrap().vkey(), key.vkey());
        assert!(load(&path).is_err() && load_cosigning(&path).is_err());
        let vkey = fs::read_to_string(dir.path().join("source.vkey")).unwrap();
        assert_eq!(vkey, format!("{}\n", key.vkey()));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        create(&path, &key()).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:03o}")) && error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn no_error_and_no_debug_output_shows_key_material() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        let text = key().to_text();
        let secret = text.rsplit('+').next().unwrap();
        assert!(!format!("{:?}", key()).contains(secret));
        for damaged in [text.replace("log.example", "other"), format!("{}x", *text), text[8..].to_owned()] {
            fs::write(&path, damaged).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load(&path).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(&secret[..20]), "{error}");
        }
    }
}
