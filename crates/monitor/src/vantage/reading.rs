//! The entries of a log read under one vantage point, and given to the audit: what is new as it is published, and from the first
//! one again where that is asked for.
//!
//! An audit survives a lost connection and goes on where it was. A log that sends slowly is read for as long as it sends; one
//! that sends nothing of what it published is left, and asked again later.

use std::sync::Arc;
use std::time::Duration;

use epigraph_core::checkpoint::decode_text;
use epigraph_core::note::Parsed;
use epigraph_core::{Frontier, Hash, LeafIndex, TreeHead, UnixMillis};
use epigraph_rpc::entries as wire;
use epigraph_rpc::peer::{Follow, FollowEvent};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::{Come, HEAD_GAP, Message, Outbox, Reader};
use crate::audit::{Audit, CHUNK, EntryRule, Malformed, Rewritten, Sequence, SequenceRule, Step, Stuck};
use crate::event::{Event, Found, Why};

/// Within this time something must come of entries that the log has published.
const STALL: Duration = Duration::from_secs(30);

/// After so many entries what was proven is stored: seconds of reading.
const KEEP_EVERY: u64 = 16 * CHUNK;

/// And not more often than this, however often the log publishes.
const KEEP_EVERY_MS: u64 = 10_000;

/// Streams in a row that may end between a head and the entries that it covers: the log has a reason to end one, not every one.
const MAX_ENDS: u32 = 3;

/// Questions for entries from the first one on that wait at one vantage point. The machine asks again for one that was lost.
pub const MAX_JOBS: usize = 8;

/// What reading from the first entry on may take: this, and a second for each so many entries. Ten times slower than a poor
/// connection; a log that dribbles does not keep the next question waiting for ever.
const JOB_BASE: Duration = Duration::from_secs(600);
/// See [`JOB_BASE`].
const JOB_ENTRIES_A_SECOND: u64 = 1_000;

/// Something to be read from the first entry on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// Everything, once more: entries may have been changed since they were read.
    Again {
        /// Up to this head.
        upto: TreeHead,
        /// Other heads that the log signed, which must lie on the way.
        heads: Vec<TreeHead>,
        /// What was read and proven of it before the process ended, if it did, and what the rule remembers of that.
        from: (Frontier, String),
    },
    /// The consistency proof between two heads, made from the entries because the log does not give it.
    Rehash {
        /// The older head.
        old: TreeHead,
        /// The newer head.
        new: TreeHead,
    },
}

/// The rules that entries must keep.
#[derive(Clone)]
pub struct Rules {
    /// Each by itself.
    pub each: Arc<[Box<dyn EntryRule>]>,
    /// One after the other.
    pub sequence: Option<Arc<dyn SequenceRule>>,
}

/// Reads what is new up to each head that is asked for, for as long as it is polled. `full` says whether an audit from the first
/// entry on has ended before, and `proven` comes with what the rule remembers of it.
pub async fn tail(
    reader: &Reader,
    (proven, remembered): (Frontier, &str),
    mut full: bool,
    mut upto: watch::Receiver<Option<TreeHead>>,
    rules: &Rules,
    outbox: &Outbox,
) {
    let mut audit = Audit::from(proven);
    let mut reading = Reading::new(reader, rules, outbox, Some(Come::Read));
    reading.order = Order::resume(rules, remembered);
    let mut failures = 0;
    loop {
        let asked = *upto.borrow_and_update();
        let read = audit.target();
        let Some(target) = asked.filter(|asked| asked.size > read.size) else {
            // An older head lies behind what is proven, and of one size there is one tree: see the comparing machine.
            if asked.is_some_and(|asked| asked.size < read.size || asked == read) {
                reading.reached(read).await;
            }
            if upto.changed().await.is_err() {
                return;
            }
            continue;
        };
        audit.aim(target);
        match reading.read(&mut audit).await {
            Ok(()) if audit.stuck().is_none() => {
                failures = 0;
                if !full {
                    full = true;
                    reading.come(Come::Full { at: outbox.now() }).await;
                }
                reading.stands(target).await;
                reading.reached(target).await;
                continue;
            }
            Ok(()) => reading.stuck(&audit).await,
            Err(why) => outbox.unreachable(&reader.vantage, &why).await,
        }
        let (vantage, at) = (reader.vantage.clone(), outbox.now());
        outbox.tell(Event::NotAudited { head: target, vantage, at }).await;
        // What was proven stays; the rest is read anew, of what the log then serves.
        audit = Audit::from(audit.proven().clone());
        reading.entries = Entries::new(reader, outbox);
        reading.order.iter_mut().for_each(Order::rewind);
        failures += 1;
        sleep(outbox.wait(failures)).await;
    }
}

/// Does what is asked for from the first entry on, one after the other, for as long as it is polled.
pub async fn jobs(reader: &Reader, mut asked: mpsc::Receiver<Job>, rules: &Rules, outbox: &Outbox) {
    while let Some(job) = asked.recv().await {
        let slow = |_| Err(SLOW.to_owned());
        match job {
            Job::Again { upto, heads, from } => {
                let mut reading = Reading::new(reader, rules, outbox, Some(Come::Again));
                let done = timeout(within(upto), reading.again(upto, heads, from)).await;
                if let Err(why) = done.unwrap_or_else(slow) {
                    outbox.unreachable(&reader.vantage, &why).await;
                }
            }
            Job::Rehash { old, new } => {
                let mut reading = Reading::new(reader, rules, outbox, None);
                let done = timeout(within(new), reading.rehash(old, new)).await;
                let done = done.unwrap_or_else(|_| Err(SLOW.to_owned()));
                let answer = done.unwrap_or_else(|why| {
                    let (vantage, at) = (reader.vantage.clone(), outbox.now());
                    Event::NoProof { old: old.size, new: new.size, vantage, why: Why::Unreachable(why), at }
                });
                outbox.tell(answer).await;
            }
        }
    }
}

/// What is said of a log that takes longer.
const SLOW: &str = "it serves its entries too slowly";

/// How long reading from the first entry on may take.
fn within(upto: TreeHead) -> Duration {
    JOB_BASE + Duration::from_secs(upto.size.get() / JOB_ENTRIES_A_SECOND)
}

struct Reading<'a> {
    reader: &'a Reader,
    rules: &'a Rules,
    /// What is remembered of the order of entries, where that is checked.
    order: Option<Order>,
    outbox: &'a Outbox,
    entries: Entries<'a>,
    /// What a proven tree is stored as, if it is.
    kept_as: Option<fn(Frontier, String) -> Come>,
    /// What was last stored, and when.
    kept: (u64, UnixMillis),
}

impl<'a> Reading<'a> {
    fn new(
        reader: &'a Reader,
        rules: &'a Rules,
        outbox: &'a Outbox,
        kept_as: Option<fn(Frontier, String) -> Come>,
    ) -> Reading<'a> {
        let entries = Entries::new(reader, outbox);
        Reading { reader, rules, order: None, outbox, entries, kept_as, kept: (0, UnixMillis(0)) }
    }

    /// Goes on with an audit until it has reached its head or is stuck. The error says nothing about the log.
    async fn read(&mut self, audit: &mut Audit) -> Result<(), String> {
        let rules: Vec<&dyn EntryRule> = self.rules.each.iter().map(|rule| &**rule).collect();
        loop {
            let proven = audit.proven().size();
            match audit.step() {
                Step::Read { first, .. } => {
                    let (entries, before) = self.entries.from(first).await?;
                    let entries = || entries.iter().skip(before);
                    let taken = audit.take(entries(), &rules);
                    let mut malformed = audit.take_malformed();
                    if let Some(order) = &mut self.order {
                        order.check(first, entries().take(taken), self.outbox.now(), &mut malformed);
                    }
                    self.entries.drop_first(taken);
                    self.malformed(malformed).await;
                }
                Step::Prove { ours, target } => {
                    let answer = self.reader.judged(ours, target).await?;
                    audit.answer(answer);
                }
                Step::Leaf { index, target } => {
                    let leaf = self.reader.leaf(index, target).await?;
                    audit.leaf(leaf);
                    for rewritten in audit.take_rewritten() {
                        self.rewritten(&rewritten).await;
                    }
                }
                Step::Reached | Step::Stuck => return Ok(()),
            }
            if audit.proven().size() > proven {
                self.order.iter_mut().for_each(Order::settle);
                self.keep(audit.proven()).await;
            }
        }
    }

    async fn again(
        &mut self,
        upto: TreeHead,
        heads: Vec<TreeHead>,
        (from, remembered): (Frontier, String),
    ) -> Result<(), String> {
        self.order = Order::resume(self.rules, &remembered);
        let mut audit = Audit::from(from);
        audit.pass_through(heads);
        audit.aim(upto);
        self.read(&mut audit).await?;
        if audit.stuck().is_some() {
            self.stuck(&audit).await;
            return Ok(());
        }
        for (old, beginning) in audit.beginnings() {
            self.proof(old, upto, beginning.carried).await;
        }
        self.come(Come::Full { at: self.outbox.now() }).await;
        self.reached(upto).await;
        Ok(())
    }

    /// The answer of the machine's question.
    async fn rehash(&mut self, old: TreeHead, new: TreeHead) -> Result<Event, String> {
        let mut audit = Audit::from(Frontier::new());
        audit.prove_from(old);
        audit.aim(new);
        self.read(&mut audit).await?;
        let (vantage, at) = (self.reader.vantage.clone(), self.outbox.now());
        let (old, new) = (old.size, new.size);
        Ok(match (audit.beginnings().pop(), audit.stuck()) {
            (Some((_, beginning)), _) => {
                Event::Proof { old, new, hashes: beginning.carried, candidates: Vec::new(), vantage, at }
            }
            (None, stuck) => {
                let why = stuck.map_or_else(|| "the heads are of one size".to_owned(), Stuck::to_string);
                Event::NoProof { old, new, vantage, why: Why::Refused(why), at }
            }
        })
    }

    async fn proof(&self, old: TreeHead, new: TreeHead, hashes: Vec<Hash>) {
        let (old, new, vantage, at) = (old.size, new.size, self.reader.vantage.clone(), self.outbox.now());
        self.outbox.tell(Event::Proof { old, new, hashes, candidates: Vec::new(), vantage, at }).await;
    }

    async fn reached(&self, head: TreeHead) {
        let (vantage, at) = (self.reader.vantage.clone(), self.outbox.now());
        self.outbox.tell(Event::Audited { head, vantage, at }).await;
    }

    /// Has what is proven stored, not too often.
    async fn keep(&mut self, proven: &Frontier) {
        let Some(kept_as) = self.kept_as else { return };
        let (size, now) = (proven.size().get(), self.outbox.now());
        let (kept, at) = self.kept;
        if size.saturating_sub(kept) >= KEEP_EVERY || now.0.saturating_sub(at.0) >= KEEP_EVERY_MS {
            self.kept = (size, now);
            let rules = self.order.as_ref().map(|order| order.proven.write()).unwrap_or_default();
            self.come(kept_as(proven.clone(), rules)).await;
        }
    }

    async fn come(&self, come: Come) {
        let vantage = self.reader.vantage.name.clone();
        self.outbox.send(Message::Audit { vantage, come }).await;
    }

    /// Says what stands as of the head that was reached.
    async fn stands(&self, head: TreeHead) {
        let Some(order) = &self.order else { return };
        self.outbox.send(Message::Order { upto: head.size, conditions: order.proven.stands() }).await;
    }

    async fn found(&self, found: Found) {
        let (vantage, at) = (self.reader.vantage.clone(), self.outbox.now());
        self.outbox.tell(Event::AuditFound { found, vantage, at }).await;
    }

    async fn malformed(&self, malformed: Malformed) {
        let unnamed = malformed.count.saturating_sub(malformed.named.len() as u64);
        for (index, broken) in malformed.named {
            let detail = match unnamed {
                0 => format!("{}: {}", broken.rule, broken.why),
                _ => {
                    format!("{}: {}; {unnamed} entries near it break a rule as well", broken.rule, broken.why)
                }
            };
            self.found(Found::Malformed { index, detail }).await;
        }
    }

    async fn rewritten(&self, rewritten: &Rewritten) {
        let Rewritten { index, served, proven, under } = *rewritten;
        let detail = format!(
            "as it was served has the leaf hash {served}; the log proves {proven} to be there under its signed head of size {} with \
             root {}",
            under.size, under.root
        );
        self.found(Found::Rewritten { head: under, index: Some(index), detail }).await;
    }

    async fn stuck(&self, audit: &Audit) {
        match audit.stuck() {
            // What the two trees have at that size is proven; whether a head was signed there is known to the machine.
            Some(Stuck::Forked { ours, under, other }) => {
                self.proof(*ours, *under, other.carried.clone()).await
            }
            Some(stuck) => {
                let detail = stuck.to_string();
                self.found(Found::Rewritten { head: audit.target(), index: None, detail }).await;
            }
            None => {}
        }
    }
}

/// What is remembered of the order of entries: of those that were read, and of those that were proven to be a beginning of a signed
/// tree. What was read and not proven is read again.
struct Order {
    read: Box<dyn Sequence>,
    proven: Box<dyn Sequence>,
}

impl Order {
    /// Goes on from what was written; from the first entry, if that is nothing.
    fn resume(rules: &Rules, remembered: &str) -> Option<Order> {
        let rule = rules.sequence.as_ref()?;
        // Whether it can be used was found out at the start.
        let proven = rule.resume(remembered).unwrap_or_else(|| rule.begin());
        Some(Order { read: proven.duplicate(), proven })
    }

    fn check<'e>(
        &mut self,
        first: LeafIndex,
        entries: impl Iterator<Item = &'e [u8]>,
        now: UnixMillis,
        malformed: &mut Malformed,
    ) {
        for (offset, entry) in (0..).zip(entries) {
            let Some(index) = first.checked_add(offset) else { continue };
            if let Err(broken) = self.read.check(index, entry, now) {
                malformed.note(index, broken);
            }
        }
    }

    fn settle(&mut self) {
        self.proven = self.read.duplicate();
    }

    fn rewind(&mut self) {
        self.read = self.proven.duplicate();
    }
}

/// Entries in order, over as many streams as it takes.
struct Entries<'a> {
    reader: &'a Reader,
    outbox: &'a Outbox,
    stream: Option<Follow>,
    /// What came, how much of it was taken, and the index of the first that was not.
    held: wire::Entries,
    taken: usize,
    first: LeafIndex,
    /// As far as this stream said that there are entries.
    promised: u64,
}

impl<'a> Entries<'a> {
    fn new(reader: &'a Reader, outbox: &'a Outbox) -> Entries<'a> {
        let first = LeafIndex::default();
        Entries { reader, outbox, stream: None, held: wire::Entries::default(), taken: 0, first, promised: 0 }
    }

    /// Entries from this one on, at least one, behind so many others.
    async fn from(&mut self, first: LeafIndex) -> Result<(&wire::Entries, usize), String> {
        if self.first != first || self.taken >= self.held.len() {
            if self.first.checked_add(self.held.len() as u64 - self.taken as u64) != Some(first) {
                self.stream = None;
            }
            (self.held, self.taken) = (wire::Entries::default(), 0);
            self.held = self.next(first).await?;
            self.first = first;
        }
        Ok((&self.held, self.taken))
    }

    fn drop_first(&mut self, count: usize) {
        self.taken += count;
        if let Some(first) = self.first.checked_add(count as u64) {
            self.first = first;
        }
    }

    async fn next(&mut self, first: LeafIndex) -> Result<wire::Entries, String> {
        let origin = self.reader.origin.as_str();
        let mut ends = 0;
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    self.promised = 0;
                    let opened = self.reader.log.follow(origin, first).await;
                    self.stream.insert(opened.map_err(|error| error.to_string())?)
                }
            };
            let promised = self.promised > first.get();
            let event = if promised {
                let event = timeout(STALL, stream.next()).await;
                event.map_err(|_| "it sends none of the entries that it published".to_owned())?
            } else {
                // Nothing new may be published for as long as it likes.
                stream.next().await
            };
            match event.map_err(|error| error.to_string())? {
                Some(FollowEvent::Entries { first_index, entries }) => {
                    let end = first_index.get().saturating_add(entries.len() as u64);
                    if end > self.promised {
                        return Err("it sends entries that no head of its stream covers".to_owned());
                    }
                    return Ok(entries);
                }
                Some(FollowEvent::Checkpoint(note)) => {
                    self.promised = size_of(&note);
                    self.outbox.head(&self.reader.vantage, &note).await;
                    sleep(HEAD_GAP).await;
                }
                // The log wants its readers to connect anew.
                None | Some(FollowEvent::End(_)) => {
                    self.stream = None;
                    ends += 1;
                    if promised && ends >= MAX_ENDS {
                        return Err("its streams of entries end before the entries".to_owned());
                    }
                    sleep(self.outbox.wait(ends)).await;
                }
            }
        }
    }
}

/// The size that a note claims, which nobody has verified: it says only how long to wait.
fn size_of(note: &[u8]) -> u64 {
    let head = Parsed::parse(note).ok().and_then(|parsed| decode_text(parsed.text()).ok());
    head.map_or(0, |(_, head)| head.size.get())
}
