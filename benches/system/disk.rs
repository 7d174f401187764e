//! The disk below the journal: what it is, and what one durable write on it costs.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::clock;

/// One write: what most file systems and disks move at least.
const BLOCK: usize = 4096;

/// The file that is overwritten, from its start to its end and over again.
const BLOCKS: u64 = 256;

const WARM_UP: usize = 50;
const MEASURED: usize = 500;

/// Where a directory lies.
pub(crate) struct FileSystem {
    pub(crate) device: String,
    pub(crate) kind: String,
}

impl FileSystem {
    /// The file system of `dir`: of the mount points above it the last one with the longest path.
    pub(crate) fn of(dir: &Path) -> io::Result<FileSystem> {
        let dir = fs::canonicalize(dir)?;
        let mounts = fs::read_to_string("/proc/mounts")?;
        let below = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
            let point = point.replace("\\040", " ");
            dir.starts_with(&point).then(|| (point.len(), device.to_owned(), kind.to_owned()))
        });
        let found = below.max_by_key(|(length, ..)| *length);
        let (_, device, kind) =
            found.ok_or_else(|| io::Error::other("no line of /proc/mounts is above the directory"))?;
        Ok(FileSystem { device, kind })
    }

    /// Bytes that were ever written to the disk below (Documentation/admin-guide/iostats.rst, field 10, in sectors of 512 bytes); none if
    /// the system does not count them there.
    pub(crate) fn written(&self) -> Option<u64> {
        let name = self.device.strip_prefix("/dev/")?;
        let disks = fs::read_to_string("/proc/diskstats").ok()?;
        let mut disks = disks.lines().map(str::split_whitespace);
        let mut disk = disks.find_map(|mut words| (words.nth(2)? == name).then_some(words))?;
        disk.nth(6)?.parse::<u64>().ok()?.checked_mul(512)
    }

    /// Whether it forgets everything when the machine stops: its syncs cost nothing and mean nothing.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.kind.as_str(), "tmpfs" | "ramfs")
    }
}

/// Waits until all that was written before is on the disk, so that nobody pays for what others left behind.
pub(crate) fn settle() -> anyhow::Result<()> {
    let settled = Command::new("sync").status()?;
    anyhow::ensure!(settled.success(), "sync ended with {settled}");
    Ok(())
}

/// Times overwrites of one block, each made durable, in a file that was written with zeros before, as the segments
/// of the journal are.
pub(crate) fn bare_syncs(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = dir.join("bare-sync");
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    file.write_all_at(&vec![0; BLOCK * BLOCKS as usize], 0)?;
    file.sync_all()?;
    let mut times = Vec::with_capacity(MEASURED);
    for (number, block) in (0..BLOCKS).cycle().take(WARM_UP + MEASURED).enumerate() {
        let start = clock::now();
        file.write_all_at(&[1; BLOCK], block * BLOCK as u64)?;
        file.sync_data()?;
        if number >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    fs::remove_file(path)?;
    Ok(times)
}
