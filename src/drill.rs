//! `epigraph drill tamper`: one byte of a copy is changed, and whoever must find it is asked: the next read, the check of everything, and a
//! verification by somebody who has public keys alone.
//!
//! It knows where each kind of bytes lies; what counts as sound is for those who are asked to say.

mod events;
mod index;
mod log;

use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::drill::{Place, Tamper};
use crate::failure::{Failure, Outcome};
use crate::fsck::Finding;
use crate::scratch::{Scratch, copy_files};
use crate::state;
use crate::terminal::Terminal;

/// The configuration of an audit service.
const AUDIT: &str = "audit.toml";

/// Places in a file with the same bytes, some of which may be old copies that nothing reads: so many are tried.
const MAX_PLACES: usize = 64;

pub fn run(args: &Tamper, terminal: Terminal) -> Outcome {
    let dir = &args.profile.profile;
    let drilled = match args.place {
        Place::Journal => log::journal(dir, terminal),
        Place::Tile => log::tile(dir, terminal),
        Place::Index if state::audit::there(&dir.join(AUDIT))? => index::row(dir, terminal),
        Place::Index | Place::Lookup => log::lookup(dir, terminal),
        Place::Payload => events::payload(dir, terminal),
        Place::Spool => events::spool(dir, terminal),
    }?;
    let Drilled { what, file, offset, .. } = &drilled;
    terminal.line(format_args!(
        "in a copy, one bit of {what} was changed: {file}, byte {offset}. The original is as it was",
    ));
    let found = [("read", &drilled.read), ("scrub", &drilled.scrub), ("verify", &drilled.verify)];
    for (who, named) in found {
        match named {
            Some(named) => terminal.line(format_args!("  {:<7} {} {named}", who, terminal.good("names it:"))),
            None => terminal.line(format_args!("  {:<7} {}", who, terminal.bad("did not find it"))),
        }
    }
    terminal.object(&json!({
        "where": args.place.name(),
        "what": what,
        "file": file,
        "offset": offset,
        "read": drilled.read,
        "scrub": drilled.scrub,
        "verify": drilled.verify,
    }));
    match found.iter().find(|(_, named)| named.is_none()) {
        None => Ok(()),
        Some((who, _)) => Err(Failure::no(format_args!(
            "the changed {} was not found by the {who}: this is a fault of the program, please report it",
            args.place.name()
        ))),
    }
}

/// What was changed, and what each said who must find it; none if it did not.
struct Drilled {
    what: String,
    /// The file, within the directory that was copied.
    file: String,
    offset: u64,
    read: Option<String>,
    scrub: Option<String>,
    verify: Option<String>,
}

/// A copy of the directory of a stopped process.
struct Copy {
    original: PathBuf,
    scratch: Scratch,
}

impl Copy {
    /// The caller has locked the original.
    fn of(original: &Path, what: &str) -> Outcome<Copy> {
        let cannot = |error: io::Error| {
            Failure::state(format!(
                "cannot copy {} to the directory for temporary files: {error}; TMPDIR names another one",
                original.display()
            ))
        };
        let scratch = Scratch::new(&format!("drill-{what}")).map_err(cannot)?;
        copy_files(original, &scratch.path().join("copy")).map_err(cannot)?;
        Ok(Copy { original: original.to_owned(), scratch })
    }

    fn path(&self) -> PathBuf {
        self.scratch.path().join("copy")
    }

    /// The same place in the copy.
    fn of_path(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.original).map_or_else(|_| path.to_owned(), |rest| self.path().join(rest))
    }

    /// A message about a file of the copy, as one about the original would be.
    fn named(&self, message: impl Display) -> String {
        message.to_string().replace(&self.path().display().to_string(), &self.original.display().to_string())
    }

    fn name(&self, file: &Path) -> String {
        file.strip_prefix(self.path()).unwrap_or(file).display().to_string()
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::state(format!("cannot read or change the copy {}: {error}", path.display()))
}

/// Where some bytes begin in a file, each place.
fn places_of(path: &Path, wanted: &[u8]) -> Outcome<Vec<u64>> {
    let bytes = fs::read(path).map_err(|error| cannot_read(path, &error))?;
    let Some((first, _)) = wanted.split_first() else { return Ok(Vec::new()) };
    let begins = bytes.iter().enumerate().filter(|(_, byte)| *byte == first);
    let places = begins.filter(|(at, _)| bytes[*at..].starts_with(wanted));
    Ok(places.map(|(at, _)| at as u64).take(MAX_PLACES).collect())
}

/// Changes one bit of the byte at this place. The same again puts it back.
fn flip(path: &Path, offset: u64) -> Outcome {
    let flip = || {
        let mode = fs::metadata(path)?.permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let file = File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset)?;
        byte[0] ^= 1;
        file.write_all_at(&byte, offset)?;
        fs::set_permissions(path, mode)
    };
    flip().map_err(|error| cannot_read(path, &error))
}

/// The first finding about a file, or below a directory.
fn about(findings: &[Finding], path: &Path, copy: &Copy) -> Option<String> {
    findings.iter().find(|finding| finding.file.starts_with(path)).map(|finding| copy.named(finding))
}

/// The files of a directory whose names end so, in order.
fn files(directory: &Path, extension: &str) -> Outcome<Vec<PathBuf>> {
    let list = || {
        let paths: io::Result<Vec<_>> =
            fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = paths?;
        paths.retain(|path| path.extension().is_some_and(|is| is == extension));
        paths.sort();
        Ok(paths)
    };
    list().map_err(|error| cannot_read(directory, &error))
}
