//! `decode::mapped`, and all that follows until the event is sealed.
#![no_main]

mod support;

use epigraph_event::decode::mapped::Mapping;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::follow(epigraph_event::decode::mapped::decode(bytes, &Mapping::default(), &support::context()));
});
