//! The door that speaks syslog over TLS (RFC 5425): messages of RFC 5424 that say their length before them, or, as many senders do
//! it, one a line. Which of both is seen in the first byte of a connection.
//!
//! Nobody is answered in this protocol. What was read is kept in hand until it is durable, and nothing more is read meanwhile, so
//! that a full spool holds the sender back; what was on its way when either side stopped is lost, and neither can know it.

use std::sync::Arc;
use std::time::Duration;

use epigraph_event::decode::frame::{Frame, Lines, NotCounted, Octets};
use epigraph_event::decode::{Reason, Rejected, syslog};
use epigraph_event::v1::Format;
use epigraph_event::{Context, Decoded};
use epigraph_rpc::guests::Guest;
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

use super::desk::{Answer, Desk, RETRY_AFTER};

/// What is read at once, and made durable together.
const READ_BYTES: usize = 64 * 1024;

/// How long a message that has begun may take. Between messages a sender may be silent for as long as it likes.
const MESSAGE_TIME: Duration = Duration::from_secs(60);

/// How a connection's stream falls into messages.
enum Framing {
    Unknown,
    Octets(Octets),
    /// And whether a line has begun.
    Lines(Lines, bool),
}

impl Framing {
    fn push(&mut self, bytes: &[u8], frames: &mut Vec<Frame>) -> Result<(), NotCounted> {
        if let (Framing::Unknown, [first, ..]) = (&*self, bytes) {
            *self = match first {
                b'0'..=b'9' => Framing::Octets(Octets::default()),
                _ => Framing::Lines(Lines::default(), false),
            };
        }
        match self {
            Framing::Unknown => Ok(()),
            Framing::Octets(octets) => octets.push(bytes, |frame| frames.push(frame)),
            Framing::Lines(lines, begun) => {
                lines.push(bytes, |frame| frames.push(frame));
                *begun = bytes.last() != Some(&b'\n');
                Ok(())
            }
        }
    }

    /// Whether half a message is there.
    fn has_begun(&self) -> bool {
        match self {
            Framing::Unknown => false,
            Framing::Octets(octets) => !octets.is_complete(),
            Framing::Lines(_, begun) => *begun,
        }
    }

    /// The stream has ended: a line without its end is a message.
    fn finish(&mut self, frames: &mut Vec<Frame>) {
        if let Framing::Lines(lines, _) = self {
            lines.finish(|frame| frames.push(frame));
        }
    }
}

/// Serves one connection.
pub async fn attend(guest: Guest, desk: Arc<Desk>) {
    let Guest { mut stream, name, mut stopping, address, .. } = guest;
    let Some(_share) = desk.hold(2 * READ_BYTES) else {
        desk.counts().pushed_back.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return;
    };
    let mut framing = Framing::Unknown;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let time = if framing.has_begun() { MESSAGE_TIME } else { Duration::MAX };
        let read = tokio::select! {
            read = timeout(time, stream.read(&mut buffer)) => read,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let count = match read {
            Ok(Ok(count)) => count,
            // It is gone or stuck; what is half there is all that there will be.
            Ok(Err(_)) | Err(_) => 0,
        };
        let bytes = &buffer[..count];
        let mut frames = Vec::new();
        let pushed = framing.push(bytes, &mut frames);
        let mut unframed = None;
        if let Err(error) = pushed {
            tracing::warn!(%address, %error, "a stream of syslog is of no use from here on");
            unframed = Some(Rejected::new(Reason::NotSyslog, Format::Syslog, 0, bytes));
        }
        let ended = count == 0 || unframed.is_some();
        if count == 0 {
            framing.finish(&mut frames);
            if matches!(&framing, Framing::Octets(octets) if !octets.is_complete()) {
                desk.counts().reject("INCOMPLETE");
                tracing::warn!(%address, "a syslog message was cut off: its sender hung up within it");
            }
        }
        if !frames.is_empty() || unframed.is_some() {
            let messages = Arc::new((frames, unframed));
            loop {
                let (taking, sender) = (Arc::clone(&messages), name.clone());
                let answer = desk.take_unheard(sender, move |context| decode(&taking, context)).await;
                if matches!(answer, Answer::Taken { .. }) {
                    break;
                }
                tokio::select! {
                    () = sleep(RETRY_AFTER) => {}
                    _ = stopping.wait_for(|stopping| *stopping) => {
                        let lost = messages.0.len();
                        tracing::warn!(%address, lost, "messages of syslog were read and could not be kept: the collector is stopping");
                        return;
                    }
                }
            }
        }
        if ended {
            return;
        }
    }
}

fn decode((frames, unframed): &(Vec<Frame>, Option<Rejected>), context: &Context) -> Vec<Decoded> {
    let decoded = frames.iter().flat_map(|frame| match frame.clone().record(Format::Syslog) {
        Ok(record) => syslog::decode(&record, context),
        Err(rejected) => vec![Err(rejected)],
    });
    decoded.chain(unframed.clone().map(Err)).collect()
}
