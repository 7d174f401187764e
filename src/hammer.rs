//! `epigraph hammer`: appends made-up entries as fast as asked and tells how long the calls took.
//!
//! It measures the log and verifies no receipt, so that the client's work does not stand in for the log's. What it
//! appends is real and stays for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::Origin;
use epigraph_rpc::limits::MAX_APPEND_BYTES;
use epigraph_rpc::{CallError, Wait, peer};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use crate::cli::append::rate;
use crate::cli::{Hammer, WaitFor};
use crate::failure::{Failure, Outcome};
use crate::profile::{Profile, of_call};
use crate::runtime::{self, Stopwatch};
use crate::terminal::Terminal;

/// How long it goes on if nothing is said.
const DEFAULT_SECONDS: u64 = 10;
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// After a call that failed without saying when to come again: a server that is down is not to be asked in a loop.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait that a refusal may ask for, so that the end comes near the time that was asked for.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// What all workers share.
struct Plan {
    origin: Origin,
    wait: Wait,
    batch: u64,
    size: usize,
    /// How many entries to append; with a duration, more than there is time for.
    count: u64,
    duration: Option<Duration>,
    watch: Stopwatch,
    /// Entries that a worker has taken upon itself.
    taken: AtomicU64,
    appended: AtomicU64,
    stopped: AtomicBool,
}

impl Plan {
    /// The numbers of the next batch's entries; `None` at the end.
    fn take(&self) -> Option<std::ops::Range<u64>> {
        let over = self.duration.is_some_and(|duration| self.watch.elapsed() >= duration);
        if over || self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let first = self.taken.fetch_add(self.batch, Ordering::Relaxed);
        Some(first..self.count.min(first.saturating_add(self.batch))).filter(|batch| !batch.is_empty())
    }

    /// The entry's number in decimal, led by zeros or cut to its last digits.
    fn entry(&self, number: u64) -> Bytes {
        let mut text = format!("{number:0size$}", size = self.size);
        let surplus = text.len().saturating_sub(self.size);
        text.drain(..surplus);
        text.into()
    }
}

/// What came of the calls.
#[derive(Default)]
struct Tally {
    calls: u64,
    appended: u64,
    /// Of those, not published in time.
    unpublished: u64,
    /// Entries of failed calls.
    failed: u64,
    /// Failed calls by reason.
    errors: BTreeMap<&'static str, u64>,
    last_error: Option<CallError>,
    /// Of the calls that succeeded.
    latencies: Latencies,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.calls += other.calls;
        self.appended += other.appended;
        self.unpublished += other.unpublished;
        self.failed += other.failed;
        other.errors.into_iter().for_each(|(reason, calls)| *self.errors.entry(reason).or_default() += calls);
        self.last_error = self.last_error.take().or(other.last_error);
        self.latencies.add(&other.latencies);
    }
}

/// Counts of durations in buckets, 32 for each power of two: a percentile is at most a 32nd too large.
struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { buckets: vec![0; Latencies::bucket(u64::MAX) + 1], count: 0, max: 0 }
    }
}

impl Latencies {
    fn bucket(micros: u64) -> usize {
        let shift = (u64::BITS - micros.leading_zeros()).saturating_sub(SUB_BITS + 1);
        (u64::from(shift) * SUB + (micros >> shift)) as usize
    }

    /// The largest duration of a bucket.
    fn upper(bucket: usize) -> u64 {
        let shift = (bucket as u64 / SUB).saturating_sub(1);
        let within = bucket as u64 - shift * SUB;
        (u128::from(within + 1) << shift).saturating_sub(1).try_into().unwrap_or(u64::MAX)
    }

    fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.buckets[Latencies::bucket(micros)] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    fn add(&mut self, other: &Latencies) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The duration in microseconds that so many of a thousand calls did not exceed; 0 if there were none.
    fn permille(&self, permille: u64) -> u64 {
        let mut left = self.count.saturating_mul(permille).div_ceil(1_000);
        for (bucket, count) in self.buckets.iter().enumerate() {
            left = left.saturating_sub(*count);
            if left == 0 {
                return Latencies::upper(bucket).min(self.max);
            }
        }
        self.max
    }
}

pub fn run(args: &Hammer, terminal: Terminal) -> Outcome {
    // Each entry has two bytes of length on its way to the disk; the wire needs no more.
    let bytes = u64::from(args.batch) * (u64::from(args.size) + 2);
    if bytes > MAX_APPEND_BYTES as u64 {
        return Err(Failure::usage(format_args!(
            "{} entries of {} bytes are too much for one call, which takes {MAX_APPEND_BYTES}: lower --batch or --size",
            args.batch, args.size
        )));
    }
    let profile = Profile::load(&args.profile.profile)?;
    terminal.line(format_args!(
        "appending to {}: these are real entries, and they stay for ever",
        profile.origin
    ));
    let seconds = args.duration.or(args.count.is_none().then_some(DEFAULT_SECONDS));
    let plan = Arc::new(Plan {
        origin: profile.origin.clone(),
        wait: match args.wait {
            WaitFor::Durable => Wait::Durable,
            WaitFor::Published => Wait::Published,
        },
        batch: u64::from(args.batch),
        size: usize::from(args.size),
        count: args.count.unwrap_or(u64::MAX),
        duration: seconds.map(Duration::from_secs),
        watch: Stopwatch::start(),
        taken: AtomicU64::new(0),
        appended: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    });
    let tally =
        runtime::runtime().map_err(Failure::state)?.block_on(hammer(args, &profile, &plan, terminal))?;
    report(args, &plan, &tally, terminal);
    match tally.last_error {
        Some(error) if tally.appended == 0 => Err(of_call(&error)),
        _ => Ok(()),
    }
}

async fn hammer(args: &Hammer, profile: &Profile, plan: &Arc<Plan>, terminal: Terminal) -> Outcome<Tally> {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    tokio::pin!(stop);
    let connections = (0..args.connections).map(|_| profile.log()).collect::<Outcome<Vec<_>>>()?;
    let mut workers = JoinSet::new();
    for log in connections.iter().cycle().take(usize::from(args.concurrency.max(args.connections))) {
        workers.spawn(work(log.clone(), Arc::clone(plan)));
    }
    let mut total = Tally::default();
    let mut ticks = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(tally) => total.add(tally.map_err(Failure::state)?),
                None => return Ok(total),
            },
            // What is under way is waited for and counted.
            () = &mut stop, if !plan.stopped.load(Ordering::Relaxed) => plan.stopped.store(true, Ordering::Relaxed),
            _ = ticks.tick() => {
                let appended = plan.appended.load(Ordering::Relaxed);
                terminal.progress(format_args!("{appended} entries, {}", rate(appended, plan.watch.elapsed())));
            }
        }
    }
}

/// Makes one call after the other.
async fn work(log: peer::Log, plan: Arc<Plan>) -> Tally {
    let mut tally = Tally::default();
    while let Some(numbers) = plan.take() {
        let count = numbers.end - numbers.start;
        let entries = numbers.map(|number| plan.entry(number)).collect();
        let watch = Stopwatch::start();
        let answer = log.append(plan.origin.as_str(), entries, plan.wait, None, None).await;
        tally.calls += 1;
        match answer {
            Ok(answer) => {
                tally.latencies.record(watch.elapsed());
                tally.appended += count;
                if answer.reached < plan.wait {
                    tally.unpublished += count;
                }
                plan.appended.fetch_add(count, Ordering::Relaxed);
            }
            Err(error) => {
                tally.failed += count;
                let (reason, pause) = match &error {
                    CallError::Refused(refusal) => (refusal.reason().as_str(), refusal.retry_delay()),
                    CallError::Unreachable(_) => ("unreachable", None),
                    CallError::TimedOut => ("timed out", None),
                    CallError::Garbled(_) => ("garbled", None),
                };
                *tally.errors.entry(reason).or_default() += 1;
                tally.last_error = Some(error);
                sleep(pause.unwrap_or(ERROR_PAUSE).min(MAX_PAUSE)).await;
            }
        }
    }
    tally
}

fn report(args: &Hammer, plan: &Plan, tally: &Tally, terminal: Terminal) {
    let elapsed = plan.watch.elapsed();
    let [p50, p90, p99, p999] = [500, 900, 990, 999].map(|permille| tally.latencies.permille(permille));
    let errors: u64 = tally.errors.values().sum();
    let row = |name: &str, value: &dyn std::fmt::Display| terminal.line(format_args!("  {name:<12}{value}"));
    row("calls", &format_args!("{} in {:.1} s, {errors} of them failed", tally.calls, elapsed.as_secs_f64()));
    row("entries", &format_args!("{} appended, {}", tally.appended, rate(tally.appended, elapsed)));
    if tally.unpublished > 0 {
        row("", &format_args!("{} of them not published in time", tally.unpublished));
    }
    for (reason, calls) in &tally.errors {
        row("failed", &format_args!("{calls} calls: {reason}"));
    }
    let latencies =
        [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("slowest", tally.latencies.max)];
    for (name, micros) in latencies {
        row(name, &format_args!("{:.3} ms", micros as f64 / 1_000.0));
    }
    terminal.object(&json!({
        "calls": tally.calls,
        "appended": tally.appended,
        "failed": tally.failed,
        "unpublished": tally.unpublished,
        "errors": tally.errors,
        "bytes": tally.appended * u64::from(args.size),
        "seconds": elapsed.as_secs_f64(),
        "entries_per_second": tally.appended as f64 / elapsed.as_secs_f64().max(1e-9),
        "latency_us": {
            "p50": p50, "p90": p90, "p99": p99, "p99.9": p999, "max": tally.latencies.max,
        },
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_it_says_and_is_at_most_a_32nd_wide() {
        let powers = (0..64).map(|power| 1u64 << power);
        for micros in
            (0..5_000).chain(powers.flat_map(|power| [power - 1, power, power + 1])).chain([u64::MAX])
        {
            let upper = Latencies::upper(Latencies::bucket(micros));
            assert!(upper >= micros && upper - micros <= micros / 32, "{micros}: {upper}");
            assert!(
                upper == u64::MAX || Latencies::bucket(upper + 1) == Latencies::bucket(micros) + 1,
                "{micros}"
            );
        }
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.permille(500), 0);
        (1..=1_000).for_each(|micros| latencies.record(Duration::from_micros(micros)));
        for permille in [1, 20, 500, 900, 990, 999, 1_000] {
            let got = latencies.permille(permille);
            assert!(got >= permille && got - permille <= permille / 32, "{permille}: {got}");
        }
        latencies.record(Duration::from_secs(5));
        assert_eq!((latencies.permille(1_000), latencies.max), (5_000_000, 5_000_000));
    }
}
