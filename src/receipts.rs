//! Receipts as files: `000003.tlog-proof` beside `000003.entry`, the number being the leaf index.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use epigraph_core::LeafIndex;
use epigraph_core::tlog_proof::Receipt;

use crate::failure::{Failure, Outcome};

/// A directory of receipts.
pub struct ReceiptDir {
    dir: PathBuf,
}

impl ReceiptDir {
    /// Creates the directory if need be.
    pub fn create(dir: &Path) -> Outcome<ReceiptDir> {
        fs::create_dir_all(dir)
            .map_err(|error| Failure::usage(format!("cannot create {}: {error}", dir.display())))?;
        Ok(ReceiptDir { dir: dir.to_owned() })
    }

    /// Where the receipt of an entry lies.
    pub fn receipt_path(&self, index: LeafIndex) -> PathBuf {
        self.dir.join(format!("{index:06}.tlog-proof"))
    }

    /// Writes an entry alone, under the name that it has beside its receipt.
    pub fn keep_entry(&self, index: LeafIndex, entry: &[u8]) -> Outcome {
        let path = self.receipt_path(index).with_extension("entry");
        write(&path, entry)
            .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())))
    }

    /// Writes an entry and its receipt; a receipt that is already there is replaced, by one of the same entry.
    pub fn keep(&self, receipt: &Receipt, entry: &[u8]) -> Outcome {
        let path = self.receipt_path(receipt.index);
        write(&path.with_extension("entry"), entry)
            .and_then(|()| write(&path, &receipt.encode()))
            .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())))
    }
}

/// Writes a file so that a crash leaves the old or the new one.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    File::create(&fresh)?.write_all(bytes)?;
    fs::rename(&fresh, path)
}
