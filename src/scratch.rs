//! A directory for something that is looked at and thrown away, and copies into it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::{env, io, process};

/// A directory of this process alone. It goes when this is dropped; what stays is in the system's directory for what may be deleted.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one; what it is for is in its name.
    pub fn new(what: &str) -> io::Result<Scratch> {
        let path = env::temp_dir().join(format!("epigraph-{what}-{}", process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Scratch(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies a directory with all below it to a place that is not there yet.
pub fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for item in fs::read_dir(from)? {
        let item = item?;
        let (path, target) = (item.path(), to.join(item.file_name()));
        if item.file_type()?.is_dir() {
            copy_files(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
