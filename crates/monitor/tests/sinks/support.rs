//! Findings, a clock that follows the runtime's, and a channel that fails when it is told to.

use std::future::Future;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use epigraph_core::{Clock, Entropy, Origin, UnixMillis};
use epigraph_monitor::finding::{
    Acknowledgement, Change, Code, EvidenceId, Finding, FindingId, Notice, State,
};
use epigraph_monitor::sinks::http::{Post, PostError, Transport};
use epigraph_monitor::sinks::secret::Secret;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

pub(crate) const ORIGIN: &str = "log.example/one";

/// 2026-01-01T00:00:00Z and what the runtime's clock has run since.
pub(crate) struct VirtualClock(Instant);

pub(crate) const START: u64 = 1_767_225_600_000;

impl VirtualClock {
    pub(crate) fn new() -> Arc<VirtualClock> {
        Arc::new(VirtualClock(Instant::now()))
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(START + self.0.elapsed().as_millis() as u64)
    }
}

/// The longest waits.
pub(crate) struct Longest;

impl Entropy for Longest {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0xff);
    }
}

pub(crate) fn finding(code: Code, subject: &str) -> Finding {
    let origin = Origin::new(ORIGIN).unwrap();
    Finding {
        id: FindingId::of(&origin, code, subject),
        code,
        origin,
        subject: subject.into(),
        first_at: UnixMillis(START - 1_000),
        last_at: UnixMillis(START),
        count: 1,
        detail: "seen".into(),
        evidence: Some(EvidenceId::of(b"file")),
        state: State::Open,
        acknowledged: None,
    }
}

pub(crate) fn opened(code: Code, subject: &str) -> Notice {
    Notice { change: Change::Opened, finding: finding(code, subject) }
}

pub(crate) fn resolved(code: Code, subject: &str, at: u64) -> Notice {
    let state = State::Resolved { at: UnixMillis(at) };
    Notice { change: Change::Resolved, finding: Finding { state, ..finding(code, subject) } }
}

pub(crate) fn acknowledged(code: Code, subject: &str, at: u64) -> Notice {
    let acknowledged = Acknowledgement { by: "x".into(), why: "seen it".into(), at: UnixMillis(at) };
    let finding = Finding { acknowledged: Some(acknowledged), ..finding(code, subject) };
    Notice { change: Change::Acknowledged, finding }
}

pub(crate) fn secret() -> Secret {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(&[b'k'; 32]).unwrap();
    Secret::load(&path).unwrap()
}

/// A post that a receiver saw, and when.
pub(crate) struct Seen {
    pub(crate) at: UnixMillis,
    pub(crate) taken: bool,
    pub(crate) post: Post,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.post.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let mut found = self.post.headers.iter().filter(|(header, _)| header == name);
        found.next().unwrap_or_else(|| panic!("no {name}")).1.to_str().unwrap()
    }
}

/// The next post. By the runtime's clock a day is far more than any wait.
pub(crate) async fn shown(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Seen {
    timeout(Duration::from_secs(86_400), seen.recv()).await.expect("nothing is sent").unwrap()
}

type Judge = Box<dyn FnMut(&Post) -> bool + Send>;

/// A receiver that takes what `takes` says, and shows everything that it saw.
pub(crate) struct Channel {
    takes: Mutex<Judge>,
    seen: mpsc::UnboundedSender<Seen>,
    clock: Arc<VirtualClock>,
}

impl Channel {
    pub(crate) fn watched(
        clock: &Arc<VirtualClock>,
        takes: impl FnMut(&Post) -> bool + Send + 'static,
    ) -> (Box<dyn Transport>, mpsc::UnboundedReceiver<Seen>) {
        let (seen, shown) = mpsc::unbounded_channel();
        let takes = Mutex::new(Box::new(takes) as Judge);
        (Box::new(Channel { takes, seen, clock: Arc::clone(clock) }), shown)
    }
}

impl Transport for Channel {
    fn post(&self, post: Post) -> Pin<Box<dyn Future<Output = Result<(), PostError>> + Send + '_>> {
        let taken = (self.takes.lock().unwrap())(&post);
        let _ = self.seen.send(Seen { at: self.clock.now(), taken, post });
        Box::pin(async move { if taken { Ok(()) } else { Err(PostError::TimedOut) } })
    }
}
