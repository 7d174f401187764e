//! What the rounds say together, and how it is printed.
#![expect(clippy::print_stdout, reason = "the report is the bench's output")]

use std::time::Duration;

use crate::disk::FileSystem;
use crate::load::Load;

/// A yardstick that moved more than this during a run says that something else used the machine.
const NOISY: f64 = 0.20;

/// The measured value in the middle; 0 for none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max))
}

/// The value that `part` of the sorted values do not exceed.
fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// What it runs on.
pub(crate) fn machine(cores: usize) {
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    println!("{cores} cores, {}", model.map_or("of an unknown model", |(_, name)| name));
}

/// What is below the journal.
pub(crate) fn disk(file_system: &FileSystem, mut syncs: Vec<Duration>) {
    syncs.sort();
    println!(
        "journal on {} ({}); bare 4 KiB overwrite + fdatasync: p50 {:.0} us, p99 {:.0} us",
        file_system.kind,
        file_system.device,
        micros(quantile(&syncs, 0.5)),
        micros(quantile(&syncs, 0.99)),
    );
}

/// What a measure gave.
pub(crate) trait Report {
    /// Prints every round, then both sides and their ratio.
    fn print(&self);
}

impl<R: Report> Report for Vec<R> {
    fn print(&self) {
        self.iter().for_each(R::print);
    }
}

/// One thing measured against its yardstick, in rounds of both.
pub(crate) struct Comparison {
    /// What is compared with what, under which load.
    pub(crate) title: String,
    /// What the rates count.
    pub(crate) unit: &'static str,
    /// The names of yardstick and subject.
    pub(crate) names: [&'static str; 2],
    /// The ratio that the project set out to reach first, if it did. Shown, never asserted.
    pub(crate) mark: Option<f64>,
    /// Each round: yardstick and subject, one right after the other.
    pub(crate) rounds: Vec<[Load; 2]>,
}

impl Report for Comparison {
    fn print(&self) {
        let [yardstick, subject] = self.names;
        println!("\n{}: {}/s", self.title, self.unit);
        println!(
            "{:>7} {:>12} {:>12} {:>7}",
            "round",
            format!("{yardstick}/s"),
            format!("{subject}/s"),
            "ratio"
        );
        let middle = median(self.rates(0));
        for (number, round) in (1..).zip(&self.rounds) {
            let [yardstick, subject] = [round[0].rate(), round[1].rate()];
            let mark = if (yardstick / middle - 1.0).abs() > NOISY { "  noisy" } else { "" };
            println!("{number:>7} {yardstick:>12.0} {subject:>12.0} {:>7.2}{mark}", subject / yardstick);
        }
        println!(
            "{:>7} {:>10} {:>18} {:>8} {:>8} {:>8} {:>8} {:>12}",
            "", "median/s", "[min..max]", "p50 us", "p90 us", "p99 us", "p99.9 us", "cpu us/call"
        );
        for (side, name) in self.names.iter().enumerate() {
            let (min, max) = range(self.rates(side));
            let mut all: Vec<Duration> =
                self.rounds.iter().flat_map(|round| round[side].latencies.iter().copied()).collect();
            all.sort();
            print!("{name:>7} {:>10.0} {:>18}", median(self.rates(side)), format!("[{min:.0}..{max:.0}]"));
            for part in [0.5, 0.9, 0.99, 0.999] {
                print!(" {:>8.0}", micros(quantile(&all, part)));
            }
            let cpu: Duration = self.rounds.iter().map(|round| round[side].server_cpu).sum();
            println!(" {:>12.1}", micros(cpu) / all.len().max(1) as f64);
        }
        let ratios = self.rounds.iter().map(|round| round[1].rate() / round[0].rate());
        let (min, max) = range(ratios.clone());
        println!(
            "{subject} / {yardstick}: {:.3} [{min:.3}..{max:.3}], the median of {} rounds{}",
            median(ratios),
            self.rounds.len(),
            self.mark.map_or_else(String::new, |mark| format!("; first mark {mark:.2}"))
        );
        let (min, max) = range(self.rates(0));
        let spread = (max - min) / middle;
        if spread > NOISY {
            println!(
                "NOISY: the {yardstick} moved by {:.0} % during the run. Something else used the machine; run again",
                spread * 100.0
            );
        }
    }
}

impl Comparison {
    fn rates(&self, side: usize) -> impl Iterator<Item = f64> + Clone {
        self.rounds.iter().map(move |round| round[side].rate())
    }
}

/// A part of what is not to be avoided.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) times: Vec<Duration>,
}

/// How long something takes at several rates, against the sum of what is not to be avoided.
pub(crate) struct Delays {
    /// What is compared with what.
    pub(crate) title: String,
    /// The names of yardstick and subject.
    pub(crate) names: [&'static str; 2],
    /// The ratio that the project set out to stay below. Shown, never asserted.
    pub(crate) mark: f64,
    /// What the yardstick is made of.
    pub(crate) parts: Vec<Part>,
    /// The calls a second, and the rounds: yardstick and subject, one right after the other.
    pub(crate) rates: Vec<(u32, Vec<[Load; 2]>)>,
}

impl Report for Delays {
    fn print(&self) {
        let [yardstick, subject] = self.names;
        println!("\n{}", self.title);
        for Part { name, times } in &self.parts {
            let [p50, p99] = part_of(times.clone());
            println!("{name:>40}: p50 {p50:>7.0} us, p99 {p99:>7.0} us");
        }
        for (rate, rounds) in &self.rates {
            println!("{rate} a second");
            println!(
                "{:>7} {:>12} {:>12} {:>7}",
                "round",
                format!("{yardstick} us"),
                format!("{subject} us"),
                "ratio"
            );
            let middles =
                rounds.iter().map(|round| round.each_ref().map(|side| part_of(side.latencies.clone())[0]));
            let middle = median(middles.clone().map(|[yardstick, _]| yardstick));
            for (number, [yardstick, subject]) in (1..).zip(middles.clone()) {
                let mark = if (yardstick / middle - 1.0).abs() > NOISY { "  noisy" } else { "" };
                println!("{number:>7} {yardstick:>12.0} {subject:>12.0} {:>7.2}{mark}", subject / yardstick);
            }
            let all = |side: usize| {
                part_of(rounds.iter().flat_map(|round| round[side].latencies.iter().copied()).collect())
            };
            let (limit, whole) = (all(0), all(1));
            let cpu: Duration = rounds.iter().map(|round| round[1].server_cpu).sum();
            let calls: u64 = rounds.iter().map(|round| round[1].done).sum();
            println!(
                "{yardstick}: p50 {:.0} us, p99 {:.0} us; {subject}: p50 {:.0} us, p99 {:.0} us; cpu {:.1} us/call of the log",
                limit[0],
                limit[1],
                whole[0],
                whole[1],
                micros(cpu) / calls.max(1) as f64
            );
            let ratios = middles.map(|[yardstick, subject]| subject / yardstick);
            let (min, max) = range(ratios.clone());
            println!(
                "{subject} / {yardstick}: p50 {:.2} [{min:.2}..{max:.2}], the median of {} rounds; p99 {:.2}, of all rounds; first \
                 mark {:.2}",
                median(ratios),
                rounds.len(),
                whole[1] / limit[1],
                self.mark
            );
        }
    }
}

/// The median and the 99th percentile, in microseconds.
fn part_of(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort();
    [0.5, 0.99].map(|part| micros(quantile(&times, part)))
}
