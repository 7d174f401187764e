//! Findings: what a monitor can find, in stable codes, each with a plain sentence and what to do next.
//!
//! Two classes that never mix. A *proof* carries an evidence file that convinces whoever knows the accused's public key. An
//! *observation* is the word of the monitor that saw it, under that monitor's key. This module does not know how something is
//! found, who is told, and what was told before.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use epigraph_core::evidence::DRILL_ORIGIN;
use epigraph_core::hash::sha256;
use epigraph_core::{Hash, Origin, UnixMillis};
use thiserror::Error;

/// The longest subject in bytes: the name of a vantage point or a witness, or an entry, with a word beside it.
pub const MAX_SUBJECT_BYTES: usize = 512;

/// The longest detail in bytes: some heads and the names of a policy's witnesses, still read by a person.
pub const MAX_DETAIL_BYTES: usize = 4096;

/// What a finding's evidence is worth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// It convinces anyone who has the named public key.
    Proof,
    /// It is the signed word of the monitor that saw it.
    Observation,
}

/// Whom a finding concerns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Somebody should look at it in the next working hours.
    Warn,
    /// Somebody should get out of bed.
    Page,
}

/// What was found. The text forms are stable: they stand in files, on the wire and in people's alert rules.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Code {
    /// The log signed two histories, and that is proven.
    SplitView,
    /// A head that nobody can connect to another head of the log.
    InconsistentHead,
    /// Entries do not hash to the signed root.
    RewrittenEntry,
    /// A vantage point shows a smaller head than it showed before.
    Rollback,
    /// Nothing new, or nothing new at one vantage point.
    StaleHead,
    /// An acknowledged entry is not in the log.
    MissingEntry,
    /// What a vantage point shows is not properly signed.
    BadSignature,
    /// What a vantage point shows is signed by a key that the policy does not know.
    UnknownKey,
    /// Too few witnesses vouch for what is published.
    QuorumLost,
    /// A witness cosigned two histories, and that is proven.
    WitnessEquivocation,
    /// A witness says nothing more.
    WitnessSilent,
    /// A clock is wrong.
    ClockSkew,
    /// The log answers nobody.
    LogUnreachable,
    /// One vantage point does not answer.
    VantageUnreachable,
    /// An entry breaks a rule for entries.
    MalformedEntry,
    /// The monitor does not keep up.
    MonitorBehind,
    /// The monitor's own test of its alarms failed.
    SelfTestFailed,
    /// Numbers of a source are missing.
    SourceGap,
    /// A source has not said in time that it is alive.
    SourceSilent,
    /// Two histories under one source's key.
    SourceConflict,
    /// Batches in a source's name that its key did not sign.
    SourceForged,
    /// Batches under a key that was retired.
    SourceRetired,
    /// A source's clock.
    SourceSkew,
    /// One event id, two events.
    EventIdReused,
    /// An event is not what its leaf commits to.
    PayloadMismatch,
    /// The audit service does not answer.
    AuditUnreachable,
}

impl Code {
    /// All of them, in the order of this file.
    pub const ALL: [Code; 26] = [
        Code::SplitView,
        Code::InconsistentHead,
        Code::RewrittenEntry,
        Code::Rollback,
        Code::StaleHead,
        Code::MissingEntry,
        Code::BadSignature,
        Code::UnknownKey,
        Code::QuorumLost,
        Code::WitnessEquivocation,
        Code::WitnessSilent,
        Code::ClockSkew,
        Code::LogUnreachable,
        Code::VantageUnreachable,
        Code::MalformedEntry,
        Code::MonitorBehind,
        Code::SelfTestFailed,
        Code::SourceGap,
        Code::SourceSilent,
        Code::SourceConflict,
        Code::SourceForged,
        Code::SourceRetired,
        Code::SourceSkew,
        Code::EventIdReused,
        Code::PayloadMismatch,
        Code::AuditUnreachable,
    ];

    /// The stable text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::SplitView => "split-view",
            Code::InconsistentHead => "inconsistent-head",
            Code::RewrittenEntry => "rewritten-entry",
            Code::Rollback => "rollback",
            Code::StaleHead => "stale-head",
            Code::MissingEntry => "missing-entry",
            Code::BadSignature => "bad-signature",
            Code::UnknownKey => "unknown-key",
            Code::QuorumLost => "quorum-lost",
            Code::WitnessEquivocation => "witness-equivocation",
            Code::WitnessSilent => "witness-silent",
            Code::ClockSkew => "clock-skew",
            Code::LogUnreachable => "log-unreachable",
            Code::VantageUnreachable => "vantage-unreachable",
            Code::MalformedEntry => "malformed-entry",
            Code::MonitorBehind => "monitor-behind",
            Code::SelfTestFailed => "self-test-failed",
            Code::SourceGap => "source-gap",
            Code::SourceSilent => "source-silent",
            Code::SourceConflict => "source-conflict",
            Code::SourceForged => "source-forged",
            Code::SourceRetired => "source-retired",
            Code::SourceSkew => "source-skew",
            Code::EventIdReused => "event-id-reused",
            Code::PayloadMismatch => "payload-mismatch",
            Code::AuditUnreachable => "audit-unreachable",
        }
    }

    /// What its evidence is worth.
    pub const fn class(self) -> Class {
        match self {
            Code::SplitView | Code::WitnessEquivocation => Class::Proof,
            _ => Class::Observation,
        }
    }

    /// Whether it can wait until morning.
    pub const fn severity(self) -> Severity {
        match self {
            Code::SplitView
            | Code::InconsistentHead
            | Code::RewrittenEntry
            | Code::Rollback
            | Code::StaleHead
            | Code::MissingEntry
            | Code::QuorumLost
            | Code::WitnessEquivocation
            | Code::LogUnreachable
            | Code::SelfTestFailed
            | Code::SourceGap
            | Code::SourceSilent
            | Code::SourceConflict
            | Code::SourceForged
            | Code::PayloadMismatch => Severity::Page,
            Code::BadSignature
            | Code::UnknownKey
            | Code::WitnessSilent
            | Code::ClockSkew
            | Code::VantageUnreachable
            | Code::MalformedEntry
            | Code::MonitorBehind
            | Code::SourceRetired
            | Code::SourceSkew
            | Code::EventIdReused
            | Code::AuditUnreachable => Severity::Warn,
        }
    }

    /// What happened, in a sentence for the person on call.
    pub const fn sentence(self) -> &'static str {
        match self {
            Code::SplitView => {
                "The log has signed two histories that cannot both be true: different readers were shown different logs."
            }
            Code::InconsistentHead => {
                "The log signed a head that neither its proofs nor its entries connect to another head that it signed."
            }
            Code::RewrittenEntry => {
                "The log hands out entries that are not those it signed: somebody changed bytes behind valid proofs."
            }
            Code::Rollback => {
                "The log goes on showing a smaller tree than it showed before: it was put back, or wants to forget."
            }
            Code::StaleHead => {
                "No newer head is shown: the log stands still, or readers at this vantage point are held back on an old one."
            }
            Code::MissingEntry => {
                "An entry that the log is said to have acknowledged is not in it after its deadline."
            }
            Code::BadSignature => {
                "This vantage point shows something that is not properly signed. Anybody can make such a thing: it says nothing \
                 about the log."
            }
            Code::UnknownKey => {
                "This vantage point shows a head in the log's name under a key that the policy does not know: a key was replaced \
                 without telling, or somebody poses as the log."
            }
            Code::QuorumLost => {
                "Too few witnesses vouch for the newest heads to satisfy this monitor's policy."
            }
            Code::WitnessEquivocation => {
                "A witness has cosigned two histories that cannot both be true: nothing it signs counts any more."
            }
            Code::WitnessSilent => "A witness has not cosigned anything new while others have.",
            Code::ClockSkew => {
                "A clock is wrong by more than is tolerated, so that times in signatures cannot be relied on."
            }
            Code::LogUnreachable => {
                "The log answers at no vantage point: nobody can check it, or see what it does."
            }
            Code::VantageUnreachable => {
                "One vantage point does not answer. Others do; a split view could hide behind this one."
            }
            Code::MalformedEntry => {
                "An entry breaks a rule for entries. It is in the log for good, and the audit goes on."
            }
            Code::MonitorBehind => "The monitor does not keep up: what it has not read, it has not checked.",
            Code::SelfTestFailed => {
                "The monitor's test of its own alarms did not arrive everywhere: a real alarm might not either."
            }
            Code::SourceGap => {
                "Events of a source are missing: it has numbered what never arrived in the log."
            }
            Code::SourceSilent => {
                "A source has not said in time that it is alive: nobody knows what happens there."
            }
            Code::SourceConflict => {
                "Under one source's key came two histories: numbers used twice, an epoch that is over, or batches \
                 that do not follow each other."
            }
            Code::SourceForged => "Somebody sends batches in the name of a source that its key did not sign.",
            Code::SourceRetired => "A source goes on signing under a key that was retired.",
            Code::SourceSkew => {
                "Events of a source lie ahead of the time at which they were seen or taken in, or were seen long before: \
                 its clock or its collector's is wrong, or says a local time."
            }
            Code::EventIdReused => "One event id stands on two events with different content. Both are kept.",
            Code::PayloadMismatch => {
                "The audit service does not give an event as its leaf in the log commits to it: it was changed, or \
                 is gone."
            }
            Code::AuditUnreachable => {
                "The audit service does not say where its sources stand: gaps and silences may go unseen."
            }
        }
    }

    /// What to do now, in a sentence or two.
    pub const fn next_step(self) -> &'static str {
        match self {
            Code::SplitView => {
                "Save the evidence file and send it to everybody who relies on the log; anyone can judge it with `epigraph verify`. \
                 Stop relying on the log, treat its key as stolen until shown otherwise, and find out which readers saw which history."
            }
            Code::InconsistentHead => {
                "Ask the log's operator for the missing proof now, and keep all files. Until it is there, rely on entries under \
                 witnessed heads only. If it never comes, treat it like a split view."
            }
            Code::RewrittenEntry => {
                "Do not let the log's disks be cleaned up. Compare the named entries with copies that others hold; the signed root \
                 tells which copy is the true one. Restore the true bytes from a copy or the journal."
            }
            Code::Rollback => {
                "Ask the operator whether the log was restored from a backup, and stop it from signing until its gate has passed. \
                 Keep the signed heads in the observation: they show what it had promised."
            }
            Code::StaleHead => {
                "Compare with the other vantage points: if they are ahead, this one is held back and its readers must be warned. If \
                 all stand still, look at the log's signer, its witnesses and its disk."
            }
            Code::MissingEntry => {
                "Ask the claimant for the log's answer to the append, and the operator where the entry went. The claim is the \
                 claimant's word; that the entry is not there, this monitor has seen itself."
            }
            Code::BadSignature => {
                "Find out who feeds this vantage point. If it is the log itself, look for damage on its side or a man in the middle."
            }
            Code::UnknownKey => {
                "Ask the operator over another channel whether the key was replaced. If so, put the new vkey into the policy; if not, \
                 warn the readers: somebody is signing in the log's name."
            }
            Code::QuorumLost => {
                "Look which witnesses are missing, and ask their operators. Rely on nothing newer than the last head that satisfied \
                 the policy."
            }
            Code::WitnessEquivocation => {
                "Take the witness out of every policy and send the evidence file to its operator and to everybody who lists it. Its \
                 key is lying or stolen. Look for the split view behind it."
            }
            Code::WitnessSilent => {
                "Ask the witness's operator. Count how many more may fail before the quorum is lost: `epigraph policy explain`."
            }
            Code::ClockSkew => "Look at time synchronisation on the machine that is named.",
            Code::LogUnreachable => {
                "Look whether the log runs and whether the network between is up. If it stays away, keep the newest head that is held \
                 here: the log must extend it when it returns."
            }
            Code::VantageUnreachable => {
                "Look at the network and at the certificates between the monitor and this vantage point."
            }
            Code::MalformedEntry => "Find out from the entry's index who appended it, and mend the appender.",
            Code::MonitorBehind => {
                "Look at the monitor's machine and its connection to the log. Until it has caught up, newer entries are unaudited. If it is \
                 behind under one identity alone, the log may be withholding entries from that reader."
            }
            Code::SelfTestFailed => {
                "See which alarms are missing in the detail, and mend that channel before anything else."
            }
            Code::SourceGap => {
                "Ask the owner of the source what was in its spool, and look whether its collector still has the \
                 events: a batch that comes late fills the gap. If they are lost, have the loss put on record; \
                 somebody may have taken them out."
            }
            Code::SourceSilent => {
                "Ask its owner, and look at its collector: whether it runs, whether its spool is full, and what it \
                 says of the audit service. If the source is gone for good, retire its key."
            }
            Code::SourceConflict => {
                "Look whether two collectors have one key, or whether one was put back from an old copy: give each a \
                 key of its own. If neither is so, somebody else has the key: retire it."
            }
            Code::SourceForged => {
                "Look at the collector that is enrolled for the source: only under its certificate such a batch gets \
                 so far. Look for damage on its disk, and for somebody who uses its certificate."
            }
            Code::SourceRetired => {
                "Give its collector a new key and enrol that. If the key was retired because it was stolen, this is \
                 the thief."
            }
            Code::SourceSkew => {
                "Look at time synchronisation at the source and at its collector, and at the time zone in its records. \
                 The order of its events is that of their numbers, whatever their times say."
            }
            Code::EventIdReused => {
                "Read both with `epigraph events get`. Ids are chosen by sources and those who call them: somebody \
                 may want one event to be taken for another."
            }
            Code::PayloadMismatch => {
                "Stop the service and keep its disk as it is. Compare with a backup of its store: the leaf in the \
                 log tells which bytes are the true ones."
            }
            Code::AuditUnreachable => {
                "Look whether the service runs, and whether it grants this monitor the role `monitor`, and `reader` \
                 for samples."
            }
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no finding's code.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "{0:?} is not the code of a finding: this program is older than what wrote it, or the file was edited"
)]
pub struct UnknownCode(pub String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Code, UnknownCode> {
        let found = Code::ALL.into_iter().find(|code| code.as_str() == text);
        found.ok_or_else(|| UnknownCode(text.chars().take(64).collect()))
    }
}

/// Something that was found, once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// What.
    pub code: Code,
    /// The log.
    pub origin: Origin,
    /// What it is about: `log`, a vantage point, a witness, an entry. Together with origin and code it is what triggers
    /// are grouped by.
    pub subject: String,
    /// When the monitor saw it, by its own clock.
    pub at: UnixMillis,
    /// The particulars, in one line.
    pub detail: String,
    /// The signed notes that an observation rests on, which its statement quotes.
    pub notes: Vec<Bytes>,
    /// The evidence file of a proof, verbatim, or the statement of an observation once it is signed.
    pub evidence: Option<Bytes>,
}

impl Trigger {
    /// A trigger without notes and evidence. What cannot stand in one line of a file is replaced, and what is too long cut:
    /// subject and detail may quote what a stranger sent.
    pub fn new(code: Code, origin: &Origin, subject: &str, at: UnixMillis, detail: &str) -> Trigger {
        Trigger {
            code,
            origin: origin.clone(),
            subject: one_line(subject, MAX_SUBJECT_BYTES),
            at,
            detail: one_line(detail, MAX_DETAIL_BYTES),
            notes: Vec::new(),
            evidence: None,
        }
    }

    /// The group that it belongs to.
    pub fn id(&self) -> FindingId {
        FindingId::of(&self.origin, self.code, &self.subject)
    }
}

/// A text without control characters, of at most this many bytes.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if line.len() + c.len_utf8() > most {
            break;
        }
        line.push(c);
    }
    line
}

/// That something is no longer so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clear {
    /// What.
    pub code: Code,
    /// The log.
    pub origin: Origin,
    /// What it was about.
    pub subject: String,
    /// Since when, by the monitor's clock.
    pub at: UnixMillis,
}

/// The name of a group of triggers, the same on every monitor: the first 16 bytes of
/// `SHA-256("epigraph-finding@v1" LF origin LF code LF subject)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FindingId([u8; FindingId::LEN]);

impl FindingId {
    const LEN: usize = 16;

    /// The group of an origin, a code and a subject.
    pub fn of(origin: &Origin, code: Code, subject: &str) -> FindingId {
        let digest = sha256(format!("epigraph-finding@v1\n{origin}\n{code}\n{subject}").as_bytes());
        let mut id = [0; FindingId::LEN];
        id.copy_from_slice(&digest.as_bytes()[..FindingId::LEN]);
        FindingId(id)
    }

    /// Parses the 32 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<FindingId> {
        let padded =
            Hash::from_hex(&format!("{text}{:032}", 0)).filter(|_| text.len() == 2 * FindingId::LEN)?;
        let mut id = [0; FindingId::LEN];
        id.copy_from_slice(&padded.as_bytes()[..FindingId::LEN]);
        Some(FindingId(id))
    }
}

impl fmt::Display for FindingId {
    /// Lower-case hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FindingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of an evidence file or a statement: SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EvidenceId(pub Hash);

impl EvidenceId {
    /// The name of these bytes.
    pub fn of(file: &[u8]) -> EvidenceId {
        EvidenceId(sha256(file))
    }

    /// Parses the 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<EvidenceId> {
        Hash::from_hex(text).map(EvidenceId)
    }
}

impl fmt::Display for EvidenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for EvidenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Whether a finding still holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It does, as far as is known.
    Open,
    /// It no longer does.
    Resolved {
        /// Since when.
        at: UnixMillis,
    },
}

/// That somebody has taken a finding on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acknowledgement {
    /// Who, by the identity that the call was made under.
    pub by: String,
    /// Why it needs no more reminding, in that person's words.
    pub why: String,
    /// When.
    pub at: UnixMillis,
}

/// All triggers of one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The group's name.
    pub id: FindingId,
    /// What.
    pub code: Code,
    /// The log.
    pub origin: Origin,
    /// What it is about.
    pub subject: String,
    /// When it was first seen since it was last opened.
    pub first_at: UnixMillis,
    /// When it was last seen.
    pub last_at: UnixMillis,
    /// How often, over all its life.
    pub count: u64,
    /// The newest particulars.
    pub detail: String,
    /// Its evidence or statement, of the time that it was opened.
    pub evidence: Option<EvidenceId>,
    /// Whether it still holds.
    pub state: State,
    /// Who has taken it on, since it was last opened.
    pub acknowledged: Option<Acknowledgement>,
}

impl Finding {
    /// Whether it was found in a drill, so that nobody takes it for true: it is of a log that never was.
    pub fn is_drill(&self) -> bool {
        self.origin.as_str() == DRILL_ORIGIN
    }

    /// Whether it still holds.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }
}

/// What happened to a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Change {
    /// It is new.
    Opened,
    /// It still holds, and nobody has taken it on for a while.
    Reminded,
    /// It was resolved and is back.
    Reopened,
    /// It no longer holds.
    Resolved,
    /// Somebody has taken it on.
    Acknowledged,
}

impl Change {
    /// The stable text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Change::Opened => "opened",
            Change::Reminded => "reminded",
            Change::Reopened => "reopened",
            Change::Resolved => "resolved",
            Change::Acknowledged => "acknowledged",
        }
    }
}

/// What the sinks are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// What happened.
    pub change: Change,
    /// To which finding, as it stands afterwards.
    pub finding: Finding,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_says_what_to_do() {
        for code in Code::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
            assert!(
                code.sentence().ends_with('.')
                    && code.next_step().ends_with('.') | code.next_step().ends_with('`')
            );
            assert!(code.as_str().bytes().all(|b| b == b'-' || b.is_ascii_lowercase()), "{code}");
        }
        let error = "other".parse::<Code>().unwrap_err();
        assert!(error.to_string().starts_with("\"other\" is not the code of a finding"));
    }

    #[test]
    fn an_id_is_of_origin_code_and_subject_and_reads_back() {
        let origin = Origin::new("log.example").unwrap();
        let id = FindingId::of(&origin, Code::Rollback, "log/1");
        // printf 'epigraph-finding@v1\nlog.example\nrollback\nlog/1' | sha256sum
        assert_eq!(id.to_string(), "0eba2c5b48cfb6c08ae3023d59827d9e");
        assert_eq!(FindingId::from_hex(&id.to_string()), Some(id));
        for bad in ["", "00", &"g".repeat(32), &"0".repeat(31), &"0".repeat(33), &"0".repeat(64)] {
            assert_eq!(FindingId::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_a_stranger_sent_stays_in_one_line() {
        let origin = Origin::new("log.example").unwrap();
        let long = "é".repeat(MAX_DETAIL_BYTES);
        let trigger = Trigger::new(Code::BadSignature, &origin, "a\nb\u{1b}[31m", UnixMillis(0), &long);
        assert_eq!(trigger.subject, "a b [31m");
        assert_eq!(trigger.detail.len(), MAX_DETAIL_BYTES);
    }
}
