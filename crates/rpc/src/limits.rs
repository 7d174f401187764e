//! The limits of the wire, each with its reason. A server refuses what is beyond them; a client never sends it.

use std::time::Duration;

/// Entries in one `Append`: sixteen entry bundles of C2SP, and few enough that one answer carries a proof for each.
pub const MAX_APPEND_ENTRIES: usize = 4_096;

/// Bytes of all entries in one `Append`: half of the journal's largest frame.
pub const MAX_APPEND_BYTES: usize = 4 << 20;

/// Entries in one answer of `GetEntries`, as many as in one `Append`: what was appended in one call comes back in one.
pub const MAX_READ_ENTRIES: u32 = MAX_APPEND_ENTRIES as u32;

/// Entries in one answer of `GetEntries` if the caller does not say.
pub const DEFAULT_READ_ENTRIES: u32 = 1_024;

/// Bytes of all entries in one answer of `GetEntries`, as many as in one `Append`. The largest entry is far below, so
/// that every answer has one.
pub const MAX_READ_BYTES: usize = MAX_APPEND_BYTES;

/// Checkpoints in one answer of `ListCheckpoints`. With one signature each they take a fifth of a megabyte; the largest
/// notes do not fit, and then the answer has fewer.
pub const MAX_LIST_CHECKPOINTS: u32 = 1_000;

/// Checkpoints in one answer of `ListCheckpoints` if the caller does not say.
pub const DEFAULT_LIST_CHECKPOINTS: u32 = 100;

/// What the fields around the entries of an `Append` may take: at most four bytes of tag and length per entry, and
/// the origin. The largest request that is allowed therefore still decodes, and is judged by its own limits.
pub const MAX_REQUEST_BYTES: usize = MAX_APPEND_BYTES + 64 * 1024;

/// The largest proposal to a witness: a note, a proof, an origin. A log has no reason to send more.
pub const MAX_PROPOSAL_BYTES: usize = epigraph_core::note::MAX_NOTE_BYTES + 16 * 1024;

/// Logs in one page of `ListLogs`: two names of 255 bytes and a key each, far below an answer's limit.
pub const MAX_LOGS_PAGE: u32 = 1_000;

/// Logs in one page of `ListLogs` if the caller does not say.
pub const DEFAULT_LOGS_PAGE: u32 = 100;

/// Findings in one page of `ListFindings`. Their texts are bounded by the monitor; where they are long, the page has fewer.
pub const MAX_FINDINGS_PAGE: u32 = 1_000;

/// Findings in one page of `ListFindings` if the caller does not say.
pub const DEFAULT_FINDINGS_PAGE: u32 = 100;

/// Logs that one monitor watches: as many as one process runs, each with an audit of its own.
pub const MAX_MONITORED_LOGS: usize = 64;

/// Vantage points of one log: itself under a few identities, each of its witnesses, a few monitors and a directory.
pub const MAX_VANTAGES: usize = 64;

/// The longest reason that an acknowledgement gives: a paragraph.
pub const MAX_WHY_BYTES: usize = 1_000;

/// A batch of events, encoded: as large as docs/formats/event-batch.md allows, and what stands around it.
pub const MAX_EVENT_BATCH_BYTES: usize = (2 << 20) + 4_096;

/// Events in one message of `Collect`: four signed batches.
pub const MAX_COLLECT_EVENTS: usize = 1_024;

/// Bytes of all events in one message of `Collect`: four of the largest.
pub const MAX_COLLECT_BYTES: usize = 4 << 20;

/// Sources in one page of `ListSources`.
pub const MAX_SOURCES_PAGE: u32 = 1_000;

/// Sources in one page of `ListSources` if the caller does not say.
pub const DEFAULT_SOURCES_PAGE: u32 = 100;

/// Gaps of one source that are listed: whoever has more of them needs no list.
pub const MAX_LISTED_GAPS: usize = 100;

/// The longest purpose of a read: a sentence, or the number of a ticket.
pub const MAX_PURPOSE_BYTES: usize = 256;

/// The largest answer: 4,096 proofs of 63 hashes, each with two bytes of tag and length, are below 9 MiB.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// The largest request and answer of a signer: a proof of 63 hashes takes 2 KiB, a signed note with a name of 255 bytes less
/// than that with any signature we know. A proof with too many hashes is still read, to be refused in words.
pub const MAX_SIGNER_MESSAGE_BYTES: usize = 64 * 1024;

pub use epigraph_core::proof::MAX_PROOF_HASHES;

/// How long an `Append` waits for publication if it does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// The longest wait for publication. A caller who wants to wait longer calls again: a waiter occupies a stream.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// What a call takes besides waiting on purpose: a proof or a durable append takes milliseconds, and whoever needs
/// longer to send a request is dribbling it.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// For the call that rehearses an alarm, which waits up to 20 s for those who are told.
pub const DRILL_DEADLINE: Duration = Duration::from_secs(40);

/// Who is told by a monitor, at most: it is configured to have 16.
pub const MAX_SINKS: usize = 64;

/// Characters of a refusal's message. It travels in a header, and quotes what the caller sent.
pub const MAX_MESSAGE_CHARS: usize = 1_024;

/// Characters of a reason that is shown to people: the names of some witnesses, and no more than a screen of a liar's words.
pub const MAX_REASON_CHARS: usize = 1_024;
