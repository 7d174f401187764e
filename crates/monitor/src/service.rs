//! The monitor on the wire: finds out who calls and what they may, calls [`Monitor`], maps errors. Nothing is decided here.

mod wire;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epigraph_core::{Clock, Entropy, Hash, Origin, TreeSize, VKey};
use epigraph_rpc::limits::{DEFAULT_FINDINGS_PAGE, MAX_FINDINGS_PAGE};
use epigraph_rpc::rate::Rates;
use epigraph_rpc::v1::monitor_service_server::MonitorService;
use epigraph_rpc::{Authorized, Caller, Quota, Reason, Refusal, SpiffeId, convert, v1};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::book::AcknowledgeError;
use crate::drill::{self, DrillError};
use crate::finding::{EvidenceId, Finding, FindingId, Notice};
use crate::monitor::{Monitor, MonitorError, SeenHead};
use crate::sinks::Sinks;

/// When to try again if the monitor is busy.
const RETRY_SOON: Duration = Duration::from_millis(100);
/// When to try again if somebody else has to act first.
const RETRY_LATER: Duration = Duration::from_secs(2);

/// Streams of findings at one time: each holds a task and one finding.
pub const MAX_WATCHERS: usize = 256;

/// Of these, streams of one caller: a person, a dashboard and a tool or two.
pub const MAX_WATCHERS_PER_IDENTITY: usize = 32;

/// Heads and promises that one caller may hand in a second. Each costs the verification of a signature, or a look at the log.
pub const HANDED_IN_PER_SECOND: u32 = 100;

/// Bytes of notes and names in one page of heads, half of an answer: whoever has large notes reads more pages.
const MAX_PAGE_BYTES: usize = epigraph_rpc::limits::MAX_RESPONSE_BYTES / 2;

/// What one time of a sighting takes on the wire, both together.
const SIGHTING_BYTES: usize = 32;

/// What the service shows beside what the monitor knows.
pub struct About {
    /// The key under which it signs what it observes.
    pub vkey: VKey,
    /// Who is told.
    pub sinks: Arc<Sinks>,
    /// For the keys of drills.
    pub entropy: Arc<dyn Entropy>,
    /// For counting how fast is asked.
    pub clock: Arc<dyn Clock>,
    /// Turns true when streams are to end.
    pub draining: watch::Receiver<bool>,
}

/// The monitor of this process.
pub struct MonitorServer {
    monitor: Monitor,
    about: About,
    handed_in: Mutex<Rates<String>>,
    watchers: Arc<Quota<SpiffeId>>,
    /// Held by the drill that is going on.
    drilling: Arc<tokio::sync::Mutex<()>>,
}

impl MonitorServer {
    /// Serves this monitor.
    pub fn new(monitor: Monitor, about: About) -> MonitorServer {
        MonitorServer {
            monitor,
            about,
            handed_in: Mutex::new(Rates::new(HANDED_IN_PER_SECOND)),
            watchers: Quota::new(MAX_WATCHERS, MAX_WATCHERS_PER_IDENTITY),
            drilling: Arc::default(),
        }
    }

    /// The log that the request names, an empty name meaning the only one here, if the caller may use it.
    fn authorize(&self, caller: &Caller, origin: &str) -> Result<Authorized<Origin>, Refusal> {
        let origins = self.monitor.origins();
        let authorized = match (origin, origins.as_slice()) {
            ("", [only]) => caller.authorize(only.as_str()),
            _ => caller.authorize(origin),
        }?;
        match origins.contains(authorized.get()) {
            true => Ok(authorized),
            false => Err(refusal(MonitorError::UnknownOrigin(authorized.get().clone()))),
        }
    }

    /// The log that the request names, an empty name meaning all that the caller may use.
    fn authorize_some(&self, caller: &Caller, origin: &str) -> Result<Vec<Origin>, Refusal> {
        if !origin.is_empty() {
            return Ok(vec![self.authorize(caller, origin)?.get().clone()]);
        }
        let mut origins = self.monitor.origins();
        origins.retain(|origin| caller.authorize(origin.as_str()).is_ok());
        origins.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(origins)
    }

    fn count(&self, caller: &Caller) -> Result<(), Refusal> {
        let now = self.about.clock.now();
        // A bucket is put down as a whole.
        let mut rates = self.handed_in.lock().unwrap_or_else(PoisonError::into_inner);
        rates.take(&caller.identity().as_str().to_owned(), now).map_err(|too_fast| {
            let delay = Duration::from_millis(too_fast.retry_ms);
            Refusal::new(Reason::RateLimited, too_fast.to_string()).retry_after(delay)
        })
    }

    /// A finding of this log.
    fn finding_of(&self, origin: &Origin, id: &str) -> Result<Finding, Refusal> {
        let found = FindingId::from_hex(id).and_then(|id| self.monitor.finding(id));
        found.filter(|finding| finding.origin == *origin).ok_or_else(|| {
            let message = format!("the monitor has no finding {id:?} of {origin}: list those that there are");
            Refusal::new(Reason::FindingNotFound, message).at("finding_id")
        })
    }
}

#[tonic::async_trait]
impl MonitorService for MonitorServer {
    async fn report_checkpoint(
        &self,
        request: Request<v1::ReportCheckpointRequest>,
    ) -> Result<Response<v1::ReportCheckpointResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        self.count(&caller)?;
        let v1::ReportCheckpointRequest { origin, checkpoint } = request.into_inner();
        let origin = self.authorize(&caller, &origin)?;
        let from = caller.identity().as_str();
        self.monitor.report_checkpoint(origin.get(), from, checkpoint).await.map_err(refusal)?;
        Ok(Response::new(v1::ReportCheckpointResponse {}))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListSeenCheckpointsRequest>,
    ) -> Result<Response<v1::ListSeenCheckpointsResponse>, Status> {
        let origin = self.authorize(Caller::of(&request)?, &request.get_ref().origin)?;
        let v1::ListSeenCheckpointsRequest { page_size, page_token, .. } = request.into_inner();
        let after = match page_token.as_str() {
            "" => None,
            token => Some(parse_head_token(token).ok_or_else(no_page_token)?),
        };
        let heads = self.monitor.heads(origin.get()).unwrap_or_default();
        let (page, next_page_token) = page_of_heads(heads, after, convert::list_page(page_size) as usize);
        let checkpoints = page.into_iter().map(wire::seen).collect();
        Ok(Response::new(v1::ListSeenCheckpointsResponse { checkpoints, next_page_token }))
    }

    async fn submit_receipt(
        &self,
        request: Request<v1::SubmitReceiptRequest>,
    ) -> Result<Response<v1::SubmitReceiptResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        self.count(&caller)?;
        let v1::SubmitReceiptRequest { origin, leaf_index, leaf_hash } = request.into_inner();
        let origin = self.authorize(&caller, &origin)?;
        let index = convert::leaf_index(leaf_index).map_err(Refusal::from)?;
        let leaf = convert::hash("leaf_hash", &leaf_hash).map_err(Refusal::from)?;
        let claimant = caller.identity().as_str();
        let due = self.monitor.submit_receipt(origin.get(), claimant, index, leaf).await.map_err(refusal)?;
        Ok(Response::new(v1::SubmitReceiptResponse { due_at_ms: due.0 }))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let origins = self.authorize_some(Caller::of(&request)?, &request.get_ref().origin)?;
        let logs = origins.iter().filter_map(|origin| self.monitor.status(origin)).map(wire::log);
        Ok(Response::new(v1::GetStatusResponse {
            logs: logs.collect(),
            vkey: self.about.vkey.to_string(),
            sinks: self.about.sinks.status().into_iter().map(wire::sink).collect(),
            lost_findings: self.monitor.lost_findings(),
            drill: self.monitor.last_drill().map(wire::finding),
        }))
    }

    async fn list_findings(
        &self,
        request: Request<v1::ListFindingsRequest>,
    ) -> Result<Response<v1::ListFindingsResponse>, Status> {
        let origins = self.authorize_some(Caller::of(&request)?, &request.get_ref().origin)?;
        let v1::ListFindingsRequest { include_resolved, page_size, page_token, .. } = request.into_inner();
        let after = match page_token.as_str() {
            "" => None,
            token => Some(FindingId::from_hex(token).ok_or_else(no_page_token)?),
        };
        let most = match page_size {
            0 => DEFAULT_FINDINGS_PAGE,
            size => size.min(MAX_FINDINGS_PAGE),
        } as usize;
        let mut findings = self.monitor.findings();
        findings.retain(|finding| {
            origins.contains(&finding.origin)
                && (include_resolved || finding.is_open())
                && after.is_none_or(|after| finding.id > after)
        });
        findings.sort_by_key(|finding| finding.id);
        let is_last = findings.len() <= most;
        findings.truncate(most);
        let last = findings.last().filter(|_| !is_last);
        let next_page_token = last.map(|finding| finding.id.to_string()).unwrap_or_default();
        let findings = findings.into_iter().map(wire::finding).collect();
        Ok(Response::new(v1::ListFindingsResponse { findings, next_page_token }))
    }

    type WatchFindingsStream = Pin<Box<dyn Stream<Item = Result<v1::WatchFindingsResponse, Status>> + Send>>;

    async fn watch_findings(
        &self,
        request: Request<v1::WatchFindingsRequest>,
    ) -> Result<Response<Self::WatchFindingsStream>, Status> {
        let caller = Caller::of(&request)?;
        let origins = self.authorize_some(caller, &request.get_ref().origin)?;
        let leave_by = caller.leave_by();
        let share = self.watchers.take(caller.identity().clone(), 1).map_err(|exceeded| {
            let message = format!("too many streams of this monitor are open: {exceeded}");
            Refusal::new(Reason::Overloaded, message).retry_after(RETRY_LATER)
        })?;
        // Before the book is read: what happens in between comes twice, and is not lost.
        let notices = self.monitor.subscribe();
        let mut open = self.monitor.findings();
        open.retain(|finding| finding.is_open() && origins.contains(&finding.origin));
        let (sender, receiver) = mpsc::channel(1);
        let mut draining = self.about.draining.clone();
        tokio::spawn(async move {
            let _share = share;
            tokio::select! {
                () = push_findings(open, notices, origins, sender) => {}
                _ = draining.wait_for(|draining| *draining) => {}
                () = tokio::time::sleep_until(leave_by) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_evidence(
        &self,
        request: Request<v1::GetEvidenceRequest>,
    ) -> Result<Response<v1::GetEvidenceResponse>, Status> {
        let origin = self.authorize(Caller::of(&request)?, &request.get_ref().origin)?;
        let name = request.into_inner().evidence_id;
        let missing = || {
            let message = format!("no finding of {} has a file {name:?}", origin.get());
            Refusal::new(Reason::FindingNotFound, message).at("evidence_id")
        };
        let id = EvidenceId::from_hex(&name).ok_or_else(missing)?;
        // Whose file it is, is known by the finding that names it.
        let is_named = |finding: &Finding| finding.origin == *origin.get() && finding.evidence == Some(id);
        if !self.monitor.findings().iter().any(is_named) {
            return Err(missing().into());
        }
        let file = self.monitor.evidence(id).await.map_err(refusal)?.ok_or_else(missing)?;
        Ok(Response::new(v1::GetEvidenceResponse { file }))
    }

    async fn acknowledge_finding(
        &self,
        request: Request<v1::AcknowledgeFindingRequest>,
    ) -> Result<Response<v1::AcknowledgeFindingResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        let v1::AcknowledgeFindingRequest { origin, finding_id, why } = request.into_inner();
        let origin = self.authorize(&caller, &origin)?;
        let id = self.finding_of(origin.get(), &finding_id)?.id;
        let by = caller.identity().as_str();
        let finding = self.monitor.acknowledge(id, by, &why).await.map_err(refusal)?;
        tracing::info!(finding = %id, by, why, "a finding was acknowledged");
        Ok(Response::new(v1::AcknowledgeFindingResponse { finding: Some(wire::finding(finding)) }))
    }

    async fn run_drill(
        &self,
        request: Request<v1::RunDrillRequest>,
    ) -> Result<Response<v1::RunDrillResponse>, Status> {
        let caller = Caller::of(&request)?;
        let origin = self.authorize(caller, &request.get_ref().origin)?.get().clone();
        let by = caller.identity().as_str().to_owned();
        let going_on = Arc::clone(&self.drilling).try_lock_owned().map_err(|_| {
            Refusal::new(Reason::Overloaded, "a drill is going on: try again when it has ended")
                .retry_after(RETRY_LATER)
        })?;
        tracing::info!(by, "a drill begins");
        let (monitor, sinks) = (self.monitor.clone(), Arc::clone(&self.about.sinks));
        let entropy = Arc::clone(&self.about.entropy);
        // What is planted is taken back, also if the caller does not wait for it.
        let drilling = tokio::spawn(async move {
            let _going_on = going_on;
            drill::drill(&monitor, &sinks, &*entropy, &origin).await
        });
        let drilled = drilling.await.map_err(|_| refusal(MonitorError::Ended))?.map_err(no_drill)?;
        tracing::info!(
            by,
            arrived = drilled.alarms.iter().filter(|alarm| alarm.after_ms.is_some()).count(),
            "a drill has ended"
        );
        Ok(Response::new(wire::drilled(drilled)))
    }
}

/// What is open, then what happens. Ends when the reader has gone, or has missed something.
async fn push_findings(
    open: Vec<Finding>,
    mut notices: broadcast::Receiver<Notice>,
    origins: Vec<Origin>,
    sender: mpsc::Sender<Result<v1::WatchFindingsResponse, Status>>,
) {
    for finding in open {
        let change = v1::FindingChange::Unspecified.into();
        let standing = v1::WatchFindingsResponse { change, finding: Some(wire::finding(finding)) };
        if sender.send(Ok(standing)).await.is_err() {
            return;
        }
    }
    loop {
        let notice = tokio::select! {
            notice = notices.recv() => notice,
            () = sender.closed() => return,
        };
        let Ok(Notice { change, finding }) = notice else { return };
        if !origins.contains(&finding.origin) {
            continue;
        }
        let change = wire::change(change).into();
        let told = v1::WatchFindingsResponse { change, finding: Some(wire::finding(finding)) };
        if sender.send(Ok(told)).await.is_err() {
            return;
        }
    }
}

/// Heads behind the one of the token, as many as fit, and the token of the next page.
fn page_of_heads(
    heads: Vec<SeenHead>,
    after: Option<(TreeSize, Hash)>,
    most: usize,
) -> (Vec<SeenHead>, String) {
    let place = |seen: &SeenHead| (seen.head.size, seen.head.root);
    let mut rest = heads.into_iter().filter(|seen| after.is_none_or(|after| place(seen) > after)).peekable();
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(next) = rest.peek() {
        let sightings = next.sightings.iter().map(|sighting| sighting.vantage.len() + SIGHTING_BYTES);
        bytes += next.note.len() + sightings.sum::<usize>();
        // One at least, however large.
        if page.len() >= most || (bytes > MAX_PAGE_BYTES && !page.is_empty()) {
            break;
        }
        page.extend(rest.next());
    }
    let last = page.last().filter(|_| rest.peek().is_some());
    let token = last.map(|seen| format!("{}-{}", seen.head.size, seen.head.root));
    (page, token.unwrap_or_default())
}

fn parse_head_token(token: &str) -> Option<(TreeSize, Hash)> {
    let (size, root) = token.split_once('-')?;
    Some((TreeSize::new(size.parse().ok()?)?, Hash::from_hex(root)?))
}

fn no_page_token() -> Refusal {
    Refusal::new(
        Reason::Malformed,
        "this is no page token: leave it empty, or give the one of the page before",
    )
    .at("page_token")
}

fn no_drill(error: DrillError) -> Refusal {
    match error {
        DrillError::Monitor(error) => refusal(error),
        DrillError::NotPlanted(_) | DrillError::Name(_) => Refusal::new(Reason::Internal, error.to_string()),
    }
}

fn refusal(error: MonitorError) -> Refusal {
    let refusal = |reason| Refusal::new(reason, error.to_string());
    match &error {
        MonitorError::UnknownOrigin(_) => refusal(Reason::UnknownOrigin).at("origin"),
        MonitorError::NotTheLogs(_) => refusal(Reason::BadLogSignature).at("checkpoint"),
        MonitorError::Acknowledge(AcknowledgeError::Unknown(_)) => {
            refusal(Reason::FindingNotFound).at("finding_id")
        }
        MonitorError::Acknowledge(AcknowledgeError::Resolved(_)) => {
            refusal(Reason::FindingResolved).at("finding_id")
        }
        MonitorError::Acknowledge(AcknowledgeError::NoReason) => refusal(Reason::Malformed).at("why"),
        MonitorError::Busy => refusal(Reason::Overloaded).retry_after(RETRY_SOON),
        MonitorError::Full => refusal(Reason::Overloaded).retry_after(RETRY_LATER),
        MonitorError::Ended => refusal(Reason::Internal),
        MonitorError::Disk(crate::disk::DiskError::Damaged { .. }) => refusal(Reason::DataLoss),
        MonitorError::Disk(_) => refusal(Reason::Internal),
    }
}

#[cfg(test)]
mod tests {
    use epigraph_core::hash::leaf_hash;
    use epigraph_core::{TreeHead, UnixMillis};

    use super::*;
    use crate::heads::Sighting;

    fn seen(size: u64, bytes: usize) -> SeenHead {
        let size = TreeSize::new(size).unwrap();
        let head = TreeHead { size, root: leaf_hash(&size.get().to_be_bytes()) };
        let sighting = Sighting { vantage: "one".into(), first: UnixMillis(1), last: UnixMillis(2) };
        SeenHead { head, note: vec![0; bytes].into(), sightings: vec![sighting] }
    }

    /// All pages, as the sizes of their heads.
    fn pages(heads: &[SeenHead], most: usize) -> Vec<Vec<u64>> {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let (page, token) = page_of_heads(heads.to_vec(), after, most);
            pages.push(page.iter().map(|seen| seen.head.size.get()).collect());
            if token.is_empty() {
                return pages;
            }
            after = Some(parse_head_token(&token).unwrap());
        }
    }

    /// Broken to see it fail: the token of the last page, too; a page without the limit of its bytes; one that takes no head
    /// which is larger than that.
    #[test]
    fn pages_have_every_head_once_and_fit_into_an_answer() {
        let check = |sizes: &[(u64, usize)], most: usize, expected: &[&[u64]]| {
            let heads: Vec<SeenHead> = sizes.iter().map(|(size, bytes)| seen(*size, *bytes)).collect();
            assert_eq!(pages(&heads, most), expected);
        };
        check(&[], 2, &[&[]]);
        check(&[(1, 9), (2, 9)], 2, &[&[1, 2]]);
        check(&[(1, 9), (2, 9), (3, 9)], 2, &[&[1, 2], &[3]]);
        let half = MAX_PAGE_BYTES / 2;
        check(&[(1, half - 99), (2, half - 99), (3, 9)], 9, &[&[1, 2, 3]]);
        check(&[(1, half), (2, half), (3, 9)], 9, &[&[1], &[2, 3]]);
        check(&[(1, 2 * MAX_PAGE_BYTES), (2, 9)], 9, &[&[1], &[2]]);
    }

    #[test]
    fn what_is_no_token_is_none() {
        let root = leaf_hash(b"x");
        assert_eq!(parse_head_token(&format!("7-{root}")), Some((TreeSize::new(7).unwrap(), root)));
        for bad in
            ["", "7", "-", "7-", &format!("-{root}"), &format!("x-{root}"), &format!("{}-{root}", u64::MAX)]
        {
            assert_eq!(parse_head_token(bad), None, "{bad}");
        }
    }
}
