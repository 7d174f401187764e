//! The limits of the wire, each with its reason. A server refuses what is beyond them; a client never sends it.

use std::time::Duration;

/// Entries in one `Append`: one entry bundle of C2SP holds 256, and sixteen of them keep a frame of the journal
/// below the size that a disk writes in one go.
pub const MAX_APPEND_ENTRIES: usize = 4_096;

/// Bytes of all entries in one `Append`: half of the journal's largest frame.
pub const MAX_APPEND_BYTES: usize = 4 << 20;

/// What the fields around the entries of an `Append` may take: at most four bytes of tag and length per entry, and
/// the origin. The largest request that is allowed therefore still decodes, and is judged by its own limits.
pub const MAX_REQUEST_BYTES: usize = MAX_APPEND_BYTES + 64 * 1024;

/// The largest answer: 4,096 proofs of 63 hashes, each with two bytes of tag and length, are below 9 MiB.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// Hashes in one proof: the height of the tree of 2^63 - 1 leaves (C2SP tlog-witness has the same limit).
pub const MAX_PROOF_HASHES: usize = 63;

/// How long an `Append` waits for publication if it does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// The longest wait for publication. A caller who wants to wait longer calls again: a waiter occupies a stream.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// What a call takes besides waiting on purpose: a proof or a durable append takes milliseconds, and whoever needs
/// longer to send a request is dribbling it.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Characters of a refusal's message. It travels in a header, and quotes what the caller sent.
pub const MAX_MESSAGE_CHARS: usize = 1_024;
