//! What the tests of several modules share.

use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_core::Entropy;

/// Bytes that differ from call to call, and are the same in every run.
#[derive(Default)]
pub(crate) struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let call = self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = call[at % call.len()].wrapping_add((at / call.len()) as u8);
        }
    }
}
