//! Files behind a trait, so that every byte which Epigraph writes can be torn, lost, flipped or refused in a test.
//!
//! Three implementations: [`real`] (the operating system), [`memory`] (pending and synced bytes apart, so that a
//! power cut can be played), and [`fault`] (a wrapper that fails the chosen operation).

use std::io;

pub mod fault;
pub mod memory;
pub mod real;

/// One open file, read and written at offsets. There is no cursor and no buffering: `write_at` hands all bytes
/// to the system or fails.
pub trait File: Send + Sync {
    /// Fills `buffer` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`; the file grows if it must. Not durable before [`File::sync`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Takes space for the first `length` bytes without writing them: what was not written yet reads as zeros, and the file is at least
    /// that long. Not durable before [`File::sync`]. A full volume shows here; `Unsupported` where a file system cannot do it, and then
    /// nothing was done.
    fn reserve(&self, length: u64) -> io::Result<()>;

    /// Makes content and length durable (`fdatasync`). After an error nobody knows what is on the disk: the
    /// caller must not try again, it must stop (PostgreSQL's fsync lesson of 2018).
    fn sync(&self) -> io::Result<()>;

    /// The length in bytes.
    fn length(&self) -> io::Result<u64>;
}

/// One directory and the flat files in it. Names carry no path separators.
pub trait Dir: Send + Sync {
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// Opens an existing file for reading; it may be write-protected.
    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// Creates a file that must not exist yet, readable by its owner alone.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// Renames within the directory, replacing `to`. Not durable before [`Dir::sync`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Not durable before [`Dir::sync`].
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Takes the write permission off a file that will not change any more.
    fn protect(&self, name: &str) -> io::Result<()>;

    /// Whether [`Dir::protect`] was called on it (or somebody took the write permission off by hand).
    fn is_protected(&self, name: &str) -> io::Result<bool>;

    /// The names of the files in it, sorted.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes creations, renames and removals durable.
    fn sync(&self) -> io::Result<()>;

    /// A named place where a crash is worth trying (`journal.frame.written`, …). Does nothing, but for a
    /// directory that a test told to end the process there.
    fn crash_point(&self, _name: &'static str) {}
}
