//! Batches, leaves and bundles of strangers: what reads is written the same way.
#![no_main]

use epigraph_event::batch::Unverified;
use epigraph_event::{Bundle, Leaf};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Unverified::decode(bytes.to_vec().into()).and_then(|batch| batch.claim());
    if let Ok(leaf) = Leaf::parse(bytes) {
        assert_eq!(leaf.encode(), bytes);
    }
    if let Ok(bundle) = Bundle::parse(bytes) {
        assert_eq!(bundle.encode(), bytes);
    }
});
