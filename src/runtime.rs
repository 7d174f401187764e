//! What the operating system provides: the one clock, the one source of randomness, the one stopwatch, signals, and
//! the asynchronous runtime. Nothing else in Epigraph reaches for any of them.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use epigraph_core::{Clock, Entropy, UnixMillis};
use tokio::signal::unix::{SignalKind, signal};

/// The system's wall clock.
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the system clock")]
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The system's random number generator.
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that asks the system for randomness"
    )]
    #[expect(
        clippy::panic,
        reason = "without randomness no key and no id can be made; going on would be worse"
    )]
    fn fill(&self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            panic!("the system gives no random bytes: {error}");
        }
    }
}

/// The clock as the roles take it.
pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// The randomness as the roles take it.
pub fn entropy() -> Arc<dyn Entropy> {
    Arc::new(SystemEntropy)
}

/// Measures how long something takes, for people.
#[derive(Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "durations shown to people are measured here")]
    pub fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// A runtime on the calling thread: on few cores faster than several threads, and disks have threads of their own.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// How nice the threads are that nobody waits for: as long as others want all of a core, they get a tenth of it.
const BEHIND: i32 = 10;

/// Lets everybody else go first on the cores, whoever calls it: the priority of one thread is Linux's to give.
pub fn stand_back() {
    // A thread may always become nicer; where it may not, it is only less polite than it could be.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), BEHIND);
}

/// Completes when the process is asked to stop, by Ctrl-C or by SIGTERM. Call it before anything is served, so that
/// no signal falls into a gap.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Broken to see it fail: the priority of the process given instead of the thread's.
    #[test]
    fn only_the_thread_that_stands_back_is_nicer() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // The name, in parentheses, may have spaces: what comes behind it is counted, from the state, which is the third.
            let fields = stat.rsplit_once(')').unwrap().1.trim();
            fields.split(' ').nth(19 - 3).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let there = std::thread::spawn(move || {
            stand_back();
            nice()
        });
        assert_eq!((there.join().unwrap(), nice()), (BEHIND.max(before), before));
    }
}
