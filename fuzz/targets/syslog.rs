//! `decode::syslog`, and all that follows until the event is sealed.
#![no_main]

mod support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::follow(epigraph_event::decode::syslog::decode(bytes, &support::context()));
});
