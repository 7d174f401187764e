//! What follows a decoder: detectors, sealing, reading back.

use epigraph_core::{Entropy, UnixMillis};
use epigraph_event::sensitive::{ALL, Detectors, TokenKey};
use epigraph_event::{Context, Decoded};

struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

pub fn context() -> Context {
    Context { observed_at: UnixMillis(1_700_000_000_000), ..Context::default() }
}

pub fn follow(decoded: Vec<Decoded>) {
    let detectors = Detectors::new(TokenKey::from_bytes([1; 32].into()), &ALL);
    for decoded in decoded {
        let mut event = decoded.unwrap_or_else(|rejected| rejected.into_event(&context()));
        detectors.apply(&mut event);
        let once = event.clone();
        assert_eq!(detectors.apply(&mut event).counts(), []);
        assert_eq!(event.body.record, once.body.record);
        event.seal(&Zeros).unwrap().event().unwrap();
    }
}
