//! What the kernel says of this process (proc_pid_status(5), proc_pid_stat(5), proc_pid_fd(5)). It knows nothing of logs.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Ticks in a second (USER_HZ): what the kernel promises to programs on every machine that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads its values anew when somebody looks. A value that the kernel does not give is left out.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, unit: &Unit, value: Option<u64>| {
            let Some(value) = value else { return Ok(()) };
            let metric = encoder.encode_descriptor(name, help, Some(unit), MetricType::Gauge)?;
            ConstGauge::new(value as f64).encode(metric)
        };
        let (files, bytes) = (Unit::Other("files".into()), Unit::Bytes);
        gauge("process_resident_memory", "Memory that is in use", &bytes, resident_bytes())?;
        gauge("process_open", "Open file descriptors, sockets included", &files, open_files())?;
        gauge("process_max_open", "File descriptors that it may open", &files, max_open_files())?;
        let Some(seconds) = cpu_seconds() else { return Ok(()) };
        let help = "Processor time, of the program and of the kernel for it";
        let metric =
            encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), MetricType::Counter)?;
        ConstCounter::new(seconds).encode(metric)
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Without the one that looking opens.
fn open_files() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(open).ok()?.checked_sub(1)
}

/// The soft limit; none if there is no limit.
fn max_open_files() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name, in brackets, and may have any character in it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS_PER_SECOND)
}
