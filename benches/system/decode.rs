//! What a collector does with each record before the spool: decode, tokenise, seal, and sign with 255 others; on one thread, against
//! parsing the same JSON and no more.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use epigraph_core::{Entropy, SourceKey};
use epigraph_event::chain::Tip;
use epigraph_event::decode::{Context as Source, cloudtrail, k8s};
use epigraph_event::sensitive::{ALL, Detectors, TokenKey};
use epigraph_event::{Batch, Event};
use zeroize::Zeroizing;

use crate::collect::BATCH;
use crate::load::Load;
use crate::records::{Kind, Records};
use crate::report::Comparison;
use crate::{Plan, clock};

const SEED: u64 = 20_260_302;

/// Records that are gone through again and again: more than any cache holds.
const RECORDS: u64 = 64 * BATCH;

/// Bytes that differ from call to call: what the system's random numbers cost a collector is not JSON's, and one call an event.
#[derive(Default)]
struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        let call = self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        bytes.iter_mut().zip(call.into_iter().cycle()).for_each(|(byte, call)| *byte = call);
    }
}

/// A record, as a collector decodes it.
pub(crate) fn decoded((kind, record): &(Kind, String)) -> anyhow::Result<Event> {
    let context = Source { tenant: "cluster-one".into(), ..Source::default() };
    let decoded = match kind {
        Kind::CloudTrail => cloudtrail::decode(record.as_bytes(), &context),
        Kind::Kubernetes => k8s::decode(record.as_bytes(), &context),
    };
    let event = decoded.into_iter().next().and_then(Result::ok);
    event.with_context(|| format!("a record was not understood: {record}"))
}

pub(crate) fn decode(plan: &Plan, dir: &Path) -> anyhow::Result<Comparison> {
    fs::create_dir(dir)?;
    let records = Records { seed: SEED, count: RECORDS };
    let records: Vec<_> = (0..RECORDS).map(|number| records.record(number)).collect();
    let key = SourceKey::from_seed("bench".parse()?, &Zeroizing::new([7; 32]));
    let detectors = Detectors::new(TokenKey::from_bytes(Zeroizing::new([7; 32])), &ALL);
    let (entropy, mut tip) = (Arc::new(Counting::default()), Tip::default());
    let mut parse = |records: &[(Kind, String)]| {
        for (_, record) in records {
            std::hint::black_box(serde_json::from_str::<serde_json::Value>(record)?);
        }
        anyhow::Ok(())
    };
    let mut sign = |records: &[(Kind, String)]| {
        let mut events = Vec::with_capacity(records.len());
        for record in records {
            let mut event = decoded(record)?;
            detectors.apply(&mut event);
            events.push(event.seal(&*entropy)?);
        }
        let batch = Batch::sign(&key, &tip, events, clock::clock().now())?;
        tip = Tip::after(batch.signed());
        std::hint::black_box(batch.encode());
        anyhow::Ok(())
    };
    for records in records.chunks(BATCH as usize) {
        parse(records)?;
        sign(records)?;
    }
    let mut rounds = Vec::with_capacity(plan.rounds);
    for _ in 0..plan.rounds {
        rounds.push([
            gone_through(&records, plan.half_round, &mut parse)?,
            gone_through(&records, plan.half_round, &mut sign)?,
        ]);
    }
    Ok(Comparison {
        title: format!(
            "decode: decode, tokenise, seal and sign records of CloudTrail and Kubernetes in batches of {BATCH} against parsing them \
             with serde_json, one thread, by its processor time"
        ),
        unit: "kB",
        names: ["parse", "decode"],
        mark: None,
        rounds,
    })
}

/// What is done with a batch of records.
type Work<'w> = dyn FnMut(&[(Kind, String)]) -> anyhow::Result<()> + 'w;

/// Does something with the records, batch after batch, for a while.
fn gone_through(records: &[(Kind, String)], time: Duration, work: &mut Work<'_>) -> anyhow::Result<Load> {
    let start = cpu()?;
    let (mut load, mut bytes) = (Load::default(), 0);
    for batch in records.chunks(BATCH as usize).cycle() {
        if cpu()? - start >= time {
            break;
        }
        let began = clock::now();
        work(batch)?;
        bytes += batch.iter().map(|(_, record)| record.len() as u64).sum::<u64>();
        load.latencies.push(began.elapsed());
    }
    load.elapsed = cpu()? - start;
    (load.done, load.server_cpu) = (bytes / 1_000, load.elapsed);
    Ok(load)
}

/// What this thread has used of its core.
fn cpu() -> anyhow::Result<Duration> {
    // Nanoseconds on the core, nanoseconds of waiting for it, slices.
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().context("/proc/thread-self/schedstat is empty")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
