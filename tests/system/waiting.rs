//! Waiting for what a process does, with an end: what does not come fails the test instead of stopping it. Nothing here looks at a
//! clock to decide what is right.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::metrics::get_any;
use crate::support::{Ended, Serving, signal};

/// Nothing that is tested takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does something, and calls `too_long` meanwhile if it takes too long.
pub fn guarded<T>(too_long: impl FnOnce() + Send + 'static, act: impl FnOnce() -> T) -> T {
    let (acting, ended) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            too_long();
        }
    });
    let outcome = act();
    drop(acting);
    guard.join().unwrap();
    outcome
}

/// Looks again and again until there is something.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let over = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&over);
    let found = guarded(
        move || tell.store(true, Ordering::Relaxed),
        || {
            while !over.load(Ordering::Relaxed) {
                if let Some(found) = look() {
                    return Some(found);
                }
                thread::yield_now();
            }
            None
        },
    );
    found.unwrap_or_else(|| panic!("this has not come: {what}"))
}

/// Until a page of a process is as it should be.
#[track_caller]
pub fn until_page(serving: &Serving, path: &str, what: &str, is: impl Fn(u16, &str) -> bool) -> String {
    until(what, || {
        let (code, text) = get_any(serving, path);
        is(code, &text).then_some(text)
    })
}

/// Until a log says that it acknowledges and publishes.
#[track_caller]
pub fn wait_until_ready(log: &Serving) {
    until_page(log, "/readyz", "ready", |code, _| code == 200);
}

/// Until a log says that it does not, for this reason.
#[track_caller]
pub fn wait_until_not_ready(log: &Serving, because: &str) -> String {
    until_page(log, "/readyz", because, |code, why| code == 503 && why.contains(because))
}

/// Until a process has said this.
#[track_caller]
pub fn wait_for_message(serving: &Serving, says: &str) {
    until(says, || serving.messages().contains(says).then_some(()));
}

/// How a process ended that must end by itself; one that does not is killed, and then fails the test.
pub fn ends(process: &mut Serving) -> Ended {
    let pid = process.pid().to_string();
    guarded(move || signal("KILL", &pid), || process.ended())
}
