//! What an audit service tells of its sources.
//!
//! Where the sources stand is looked at every few seconds and kept, so that whoever asks for metrics never waits for the store. At most
//! [`MAX_SERIES`] sources have series of their own, whoever enrols how many; all are in the sums.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epigraph_audit::ask::Asker;
use epigraph_audit::ask::tally::{CLASSES_MS, Tally};
use epigraph_audit::audit::Audit;
use epigraph_audit::guard::refusal::Code;
use epigraph_audit::source::{Enrolled, Kind, State};
use epigraph_core::UnixMillis;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::samples::{Samples, flag};
use super::{Role, seconds};

/// Sources with series of their own: the first ones by the ids of their keys, so that they do not come and go.
pub const MAX_SERIES: usize = 200;

/// How often the sources are looked at: a scrape sees nothing older than one scrape interval.
const LOOK: Duration = Duration::from_secs(5);

/// Sources that are asked for at once.
const PAGE: usize = 500;

/// The audit service of this process.
#[derive(Clone)]
pub struct Auditing {
    pub audit: Arc<Audit>,
    /// What answers questions.
    pub asker: Arc<Asker>,
    /// Why leaves wait for the log; none if they do not.
    pub trouble: Arc<Mutex<Option<String>>>,
    /// What [`look`] last saw.
    pub sources: watch::Receiver<Arc<Sources>>,
}

/// Where all sources stood when they were last looked at.
#[derive(Default)]
pub struct Sources {
    listed: Vec<Source>,
    all: u64,
    silent: u64,
    with_gaps: u64,
    /// By the places of [`Kind::ALL`].
    troubles: [u64; Kind::ALL.len()],
}

struct Source {
    name: String,
    /// The beginning of its key's id, as in the findings of monitors.
    key: String,
    silent: bool,
    state: State,
}

impl Sources {
    fn add(&mut self, enrolled: &Enrolled, state: State, now: UnixMillis) {
        let owes = enrolled.heartbeat_ms > 0 && enrolled.retired_at.is_none();
        let silent = owes && state.is_silent(enrolled.heartbeat_ms, now);
        self.all += 1;
        self.silent += u64::from(silent);
        self.with_gaps += u64::from(state.gap_count() > 0);
        for trouble in &state.troubles {
            let place = Kind::ALL.iter().position(|kind| *kind == trouble.kind);
            if let Some(count) = place.and_then(|place| self.troubles.get_mut(place)) {
                *count = count.saturating_add(trouble.count);
            }
        }
        if self.listed.len() < MAX_SERIES {
            let key = enrolled.vkey.id().to_string();
            let key = key.get(..16).unwrap_or_default().to_owned();
            self.listed.push(Source { name: enrolled.vkey.name().to_string(), key, silent, state });
        }
    }

    /// What each listed source has, under its name and key.
    fn each<V>(&self, value: fn(&Source) -> V) -> impl Iterator<Item = ([(&'static str, &str); 2], V)> {
        self.listed.iter().map(move |source| {
            ([("source", source.name.as_str()), ("key", source.key.as_str())], value(source))
        })
    }
}

/// Looks at the sources again and again, for as long as it is polled.
pub async fn look(audit: &Audit, seen: watch::Sender<Arc<Sources>>) -> Infallible {
    loop {
        let (mut sources, mut after) = (Sources::default(), None);
        // A store that has ended ends the process.
        while let Ok(page) = audit.sources(after.as_ref(), PAGE).await {
            let last = page.last().map(|(enrolled, _)| enrolled.vkey.id());
            let whole = page.len() == PAGE;
            let now = audit.now();
            page.into_iter().for_each(|(enrolled, state)| sources.add(&enrolled, state, now));
            if !whole {
                break;
            }
            after = last;
        }
        seen.send_replace(Arc::new(sources));
        tokio::time::sleep(LOOK).await;
    }
}

impl fmt::Debug for Auditing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auditing")
    }
}

impl Role for Auditing {
    fn ready(&self) -> Result<(), String> {
        if !self.audit.has_room() {
            return Err("the disk is nearly full: nothing is taken until there is room".into());
        }
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(why) => Err(format!("events are kept, and their leaves wait for the log: {why}")),
        }
    }
}

impl Collector for Auditing {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Samples(encoder);
        let (durable, placed) = self.audit.slots();
        out.value(
            "audit_ready",
            "1 if leaves go into the log and there is room for events",
            None,
            flag(self.ready().is_ok()),
        )?;
        let events = Unit::Other("events".into());
        out.value("audit", "Events that are durable", Some(&events), durable as f64)?;
        out.value(
            "audit_unplaced",
            "Events whose leaf is not in the log yet",
            Some(&events),
            (durable - placed) as f64,
        )?;
        let refused = self.audit.refused().map(|(reason, count)| ([("reason", reason)], count));
        out.counter("audit_refused_batches", "Batches that were not taken", refused)?;
        let help = "Events that are in no answer yet, because the indexes have not come to them";
        out.value("audit_unindexed", help, Some(&events), self.asker.unindexed() as f64)?;
        let running = self.asker.running().list().len();
        out.value("audit_running_queries", "Questions that are being answered", None, running as f64)?;
        let refused = self.asker.refused().into_iter().map(|(code, count)| ([("code", code)], count));
        out.counter("audit_refused_queries", "Questions that were refused", refused)?;
        of_runbooks(&mut out, &self.asker.answered())?;
        let sources = Arc::clone(&self.sources.borrow());
        all_of(&mut out, &sources)?;
        each_of(&mut out, &sources)
    }
}

/// Named by the runbooks that there are: nobody who asks makes a series.
fn of_runbooks(out: &mut Samples<'_>, runbooks: &[(String, Tally)]) -> fmt::Result {
    let took = runbooks.iter().map(|(id, tally)| {
        let ends = CLASSES_MS.iter().map(|ms| *ms as f64 / 1_000.0).chain([f64::INFINITY]);
        ([("runbook", id.as_str())], (tally.took_ms as f64 / 1_000.0, ends.zip(tally.took).collect()))
    });
    let help = "From a question to the end of its answer, the record of both included";
    out.histogram("audit_runbook_duration", help, &Unit::Seconds, took)?;
    let each = |value: fn(&Tally) -> u64| {
        runbooks.iter().map(move |(id, tally)| ([("runbook", id.as_str())], value(tally)))
    };
    let help = "Rows of the indexes that were looked at for answers";
    out.counter("audit_runbook_examined_rows", help, each(|tally| tally.rows_examined))?;
    let help = "Bytes of the indexes that were read for answers";
    out.counter("audit_runbook_read_bytes", help, each(|tally| tally.bytes_read))?;
    out.counter("audit_runbook_answered_rows", "Rows of answers", each(|tally| tally.rows_answered))?;
    let refused = runbooks.iter().flat_map(|(id, tally)| {
        let labels = |code: &Code| [("runbook", id.as_str()), ("code", code.as_str())];
        tally.refused.iter().map(move |(code, count)| (labels(code), *count))
    });
    out.counter("audit_runbook_refused_queries", "Questions that were refused", refused)
}

fn all_of(out: &mut Samples<'_>, sources: &Sources) -> fmt::Result {
    out.value("audit_sources", "Sources that were ever enrolled", None, sources.all as f64)?;
    let help = "Of these, those without series of their own";
    let unlisted = sources.all - sources.listed.len() as u64;
    out.value("audit_unlisted_sources", help, None, unlisted as f64)?;
    let help = "Of all, those that did not say in time that they are alive";
    out.value("audit_silent_sources", help, None, sources.silent as f64)?;
    let help = "Of all, those of which events are missing";
    out.value("audit_gap_sources", help, None, sources.with_gaps as f64)?;
    let troubles = Kind::ALL.iter().zip(sources.troubles);
    let troubles = troubles.map(|(kind, count)| ([("kind", kind.as_str())], count));
    out.counter("audit_troubles", "What was wrong with sources since each was enrolled", troubles)
}

fn each_of(out: &mut Samples<'_>, sources: &Sources) -> fmt::Result {
    let events = sources.each(|source| source.state.events);
    out.counter("audit_source_events", "Events that were taken from a source", events)?;
    let next = sources.each(|source| source.state.next_sequence as f64);
    out.gauge("audit_source_next_sequence", "The number of a source's next event in its epoch", None, next)?;
    let gaps = sources.each(|source| source.state.gap_count() as f64);
    out.gauge("audit_source_gaps", "Runs of numbers of which no event came", None, gaps)?;
    let seen = sources.each(|source| seconds(UnixMillis(source.state.last_seen_ms)));
    let help = "When the last batch of a source came, 0 if none did";
    out.gauge("audit_source_last_seen_timestamp", help, Some(&Unit::Seconds), seen)?;
    let lag = sources.each(|source| source.state.lag_ms as f64 / 1_000.0);
    let help = "How long after it happened the newest event of a source was taken";
    out.gauge("audit_source_lag", help, Some(&Unit::Seconds), lag)?;
    let silent = sources.each(|source| flag(source.silent));
    out.gauge("audit_source_silent", "1 if a source did not say in time that it is alive", None, silent)?;
    let troubles = sources.each(|source| source.state.troubles.iter().map(|trouble| trouble.count).sum());
    out.counter("audit_source_troubles", "What was wrong with a source since it was enrolled", troubles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_audit::source::Gap;
    use epigraph_core::SourceKey;
    use zeroize::Zeroizing;

    /// F57: however many are enrolled, the series are bounded and the sums are of all.
    #[test]
    fn all_sources_are_counted_and_some_are_named() {
        let mut sources = Sources::default();
        for n in 0..MAX_SERIES as u64 + 3 {
            let seed = epigraph_core::hash::sha256(&n.to_be_bytes());
            let key = SourceKey::from_seed("a-source".parse().unwrap(), &Zeroizing::new(*seed.as_bytes()));
            let enrolled = Enrolled {
                vkey: key.vkey().clone(),
                owner: "a team".into(),
                collector: "spiffe://a/b".into(),
                enrolled_at: UnixMillis(1),
                retired_at: (n == 0).then_some(UnixMillis(2)),
                heartbeat_ms: 10,
            };
            let gaps = vec![Gap { epoch: 0, first: 1, end: 2 }];
            let mut state = State { seen: true, gaps, ..State::default() };
            state.note(Kind::ClockSkew, UnixMillis(5));
            sources.add(&enrolled, state, UnixMillis(100));
        }
        let all = MAX_SERIES as u64 + 3;
        // Who is retired owes nobody a word.
        assert_eq!((sources.all, sources.with_gaps, sources.silent), (all, all, all - 1));
        assert_eq!(sources.troubles.iter().sum::<u64>(), all);
        assert_eq!(sources.listed.len(), MAX_SERIES);
    }
}
