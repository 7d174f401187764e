//! What a witness promises: it never vouches for two histories, whatever is asked of it and whatever fails.
#![expect(unreachable_pub, reason = "a test binary has no outside; `pub` says what another module may use")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "whatever does not work here is a failed test")]

mod calls;
mod dial;
mod forks;
mod keeper;
mod split_view;
mod support;
