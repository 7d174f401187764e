//! The one planner of every read, in this order: what exists for this reader, the window, the parameters, the policies, what it would
//! cost, whether the reader has that much left, and whether another person has to agree. The first that does not hold is the answer.
//!
//! A pure function: it asks statistics, keys and approvals of [`Known`] and never a row.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use epigraph_core::{Hash, UnixMillis};

use super::approval::{self, Approval, ApprovalId, Binding, Pending};
use super::limits::LimitTable;
use super::mask::{Mask, Sight};
use super::page::{PageKey, Place};
use super::policy::{Action, Facts, Group, Object, Policies, Verdict};
use super::quota::Standing;
use super::refusal::{Code, Refusal};
use super::{Principal, Stream, Tenants, bounds, question};
use crate::index::MAX_RUNS;
use crate::query::row::Value;
use crate::query::scan::{self, Clause};
use crate::query::{Access, Column, Estimate, Filter, Pseudonym, Reduce, Scan, Window};
use crate::runbook::Runbook;
use crate::runbook::bind::{Given, Wanted};
use crate::runbook::file::MAX_WINDOW_DAYS;
use crate::runbook::shelf::Shelf;

/// The kinds of sources that there are: what the decoders write, and the service itself.
pub const STREAMS: [&str; 8] =
    ["cloudevents", "cloudtrail", "epigraph", "json", "k8s", "otlp", "quarantine", "syslog"];

/// All other kinds there may be, by the word of a source that decodes its events itself. To read every kind takes the right to read these;
/// they cannot be asked for by name.
pub const OTHER_STREAMS: &str = "other";

/// The rules in force. They change together or not at all.
pub struct Guard {
    /// Who may do what.
    pub policies: Policies,
    /// What can be asked.
    pub runbooks: Shelf,
    /// How much.
    pub limits: LimitTable,
}

/// What somebody wants to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What.
    pub question: Question,
    /// Of which kind of source; none for all that the reader sees.
    pub stream: Option<String>,
    /// Whose events; none for all that the reader sees.
    pub tenant: Option<String>,
    /// From when, in nanoseconds since 1970-01-01T00:00:00Z.
    pub from_ns: Option<i64>,
    /// Up to and without when.
    pub to_ns: Option<i64>,
    /// The most rows of a page.
    pub rows: Option<u64>,
    /// Why.
    pub purpose: String,
    /// For which case.
    pub ticket: String,
    /// Whether names are to be seen that would be tokens.
    pub unmask: bool,
    /// Whether the records are to be seen.
    pub body: bool,
    /// The approval to use.
    pub approval: Option<ApprovalId>,
    /// The token of the page to go on with.
    pub page: Option<Vec<u8>>,
    /// Whether every event of the window is given in the place of an answer, for whoever wants to see that none was left out.
    pub audit: bool,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// A runbook, with its parameters.
    Runbook {
        /// Its name.
        id: String,
        /// The parameters, by name.
        parameters: BTreeMap<String, String>,
    },
    /// New events as they come: columns, and which values each may have.
    Tail {
        /// By the names of columns.
        filter: BTreeMap<String, Vec<String>>,
    },
}

/// What could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// What has to be known before a read is decided. None of it reads an event or a row.
pub trait Known {
    /// What a scan costs at most, from statistics; none if it asks for more things at once than its index puts together.
    fn estimate(&self, scan: &Scan) -> Result<Option<Estimate>, Unavailable>;

    /// The pseudonyms of an exact id that stands in `column`, in one tenant or in each that has events in the window: of whoever is called
    /// so for [`Column::Actor`], of the credential, the thing or the address for [`Column::Session`], [`Column::Resource`] and
    /// [`Column::Address`].
    fn pseudonyms(
        &self,
        tenant: Option<&str>,
        window: &Window,
        column: Column,
        id: &str,
    ) -> Result<Vec<Pseudonym>, Unavailable>;

    /// How many events an audit of a window goes through at most: those from the first to the last number that each source has in its
    /// days.
    fn numbered(&self, window: &Window) -> Result<u64, Unavailable>;

    /// A request for approval.
    fn approval(&self, id: &ApprovalId) -> Result<Option<Approval>, Unavailable>;
}

/// What becomes of a request.
#[derive(Clone, PartialEq, Debug)]
pub enum Decision {
    /// It may be made, as planned.
    Run(Box<Plan>),
    /// Another person has to agree.
    NeedsApproval(Box<Pending>),
    /// It is not made.
    Refused(Box<Refusal>),
}

/// How far a read goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// The most rows in its answer, or that are put together into it.
    pub rows: u64,
    /// The most bytes of the index: what was estimated.
    pub bytes: u64,
    /// The longest that it takes, in milliseconds.
    pub timeout_ms: u64,
}

/// A read that may be made.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// What is read: the rows of all of these, each once. None if whom it asks for is not known.
    pub scans: Vec<Scan>,
    /// What is made of the rows. It needs all of them: if they are more than the budget's, there is no answer.
    pub reduce: Option<Reduce>,
    /// What the reader sees of them.
    pub mask: Mask,
    /// How far it goes.
    pub budget: Budget,
    /// What it costs at most.
    pub estimate: Estimate,
    /// A digest of what is asked, of whom and by whom: the same for each page of one answer.
    pub question: Hash,
    /// When.
    pub window: Window,
    /// Of what.
    pub streams: Vec<Stream>,
    /// The runbook; none for a tail.
    pub runbook: Option<Arc<Runbook>>,
    /// The hash of the policies in force.
    pub policies: Hash,
    /// Which of them permitted it.
    pub decided_by: BTreeSet<String>,
    /// The approval under which it is made, used: to be made durable before the read begins.
    pub approval: Option<Approval>,
    /// Whether it is made under an approval, this one or one of an earlier page.
    pub approved: bool,
}

/// What the policies grant for a read.
struct Rights {
    /// How names are shown; [`Sight::Own`] does not say yet whose.
    identity: Sight,
    body: bool,
    decided_by: BTreeSet<String>,
}

/// What is known at the moment of a decision.
struct At<'a> {
    known: &'a dyn Known,
    standing: &'a Standing,
    pages: &'a PageKey,
    now: UnixMillis,
}

/// Who asks for what, and under which rules: what every step of the planner looks at.
struct Asking<'a> {
    guard: &'a Guard,
    who: &'a Principal,
    request: &'a Request,
    streams: Vec<Stream>,
}

impl Guard {
    /// Decides. `standing` is where the reader stands now.
    pub fn plan(
        &self,
        who: &Principal,
        request: &Request,
        known: &dyn Known,
        standing: &Standing,
        pages: &PageKey,
        now: UnixMillis,
    ) -> Decision {
        let at = At { known, standing, pages, now };
        match self.decide(who, request, &at, true) {
            Ok(decision) => decision,
            Err(refusal) if refusal.code == Code::WindowTooLong => {
                let estimate = self.cost_all_the_same(who, request, &at);
                Decision::Refused(Box::new(Refusal { estimate, ..refusal }))
            }
            Err(refusal) => Decision::Refused(Box::new(refusal)),
        }
    }

    /// What a read would cost whose window is too long: what the reader may ask for in shorter ones it may know for all of them. None
    /// beyond the longest window of any runbook, and where it would be refused all the same.
    fn cost_all_the_same(&self, who: &Principal, request: &Request, at: &At<'_>) -> Option<Estimate> {
        let length_ns = request.to_ns?.abs_diff(request.from_ns?);
        if length_ns > MAX_WINDOW_DAYS.saturating_mul(scan::DAY_NS.unsigned_abs()) {
            return None;
        }
        let request = Request { approval: None, page: None, ..request.clone() };
        match self.decide(who, &request, at, false) {
            Ok(Decision::Run(plan)) => Some(plan.estimate),
            Ok(Decision::NeedsApproval(pending)) => Some(pending.ceiling),
            Ok(Decision::Refused(refusal)) => refusal.estimate,
            Err(refusal) => refusal.estimate,
        }
    }

    /// The runbooks that exist for a reader.
    pub fn runbooks_of(&self, who: &Principal) -> Vec<&Arc<Runbook>> {
        self.runbooks.iter().filter(|runbook| !runbook.roles.is_disjoint(&who.roles)).collect()
    }

    /// The kinds of sources that exist for a reader, in a tenant or, where that is empty, in every one.
    pub fn streams_of(&self, who: &Principal, tenant: &str) -> Vec<Stream> {
        let stream = |kind: &str| Stream { kind: kind.into(), tenant: tenant.into() };
        let sees = |stream: &Stream| {
            let facts = Facts::default();
            self.policies.judge(who, Action::See, stream, Object::Stream, &facts).allowed
        };
        STREAMS.into_iter().chain([OTHER_STREAMS]).map(stream).filter(sees).collect()
    }

    fn decide(
        &self,
        who: &Principal,
        request: &Request,
        at: &At<'_>,
        bounded: bool,
    ) -> Result<Decision, Refusal> {
        let At { known, standing, pages, now } = *at;
        let unavailable = |why: Unavailable| {
            Refusal::new(
                Code::Unavailable,
                format!("what has to be known before could not be read: {why}"),
                "Ask again.",
            )
        };
        question::check_texts(request)?;
        let tenant = bounds::tenant_of(who, request)?;
        let streams = match request.audit {
            true => self.everything(who)?,
            false => self.catalogue(who, request, tenant.as_deref().unwrap_or_default())?,
        };
        let runbook = question::resolve(self, who, request)?;
        let limits = self.limits.of(who);
        let window = bounds::window_of(request, &limits, runbook.as_deref(), bounded)?;
        let asked = question::Asked::new(request, runbook)?;
        let reduce = asked.reduce(&window)?;

        let asking = Asking { guard: self, who, request, streams };
        let mut facts = Facts {
            window_s: window.length_ns().div_ceil(1_000_000_000),
            purpose: request.purpose.clone(),
            ticket: request.ticket.clone(),
            runbook: asked.runbook().map_or_else(String::new, |runbook| runbook.id.clone()),
            approved: true,
            hour: approval::hour(now),
            ..Facts::default()
        };
        // What is refused even with everybody's consent is refused before a name is looked up.
        let all_wanted = asked.wanted();
        asking.rights(&facts, &all_wanted)?;

        let mut found = BTreeMap::new();
        for wanted in all_wanted.iter().cloned() {
            let tokens = match &wanted.given {
                Given::Token(token) => vec![*token],
                Given::Id(id) => {
                    known.pseudonyms(tenant.as_deref(), &window, wanted.column, id).map_err(unavailable)?
                }
                _ => Vec::new(),
            };
            if tokens.len() > scan::MAX_SUBJECTS {
                return Err(Refusal::new(
                    Code::BadParameter,
                    format!(
                        "{} tenants know this id, and one read asks for at most {}",
                        tokens.len(),
                        scan::MAX_SUBJECTS
                    ),
                    "Say which tenant.",
                ));
            }
            found.insert(wanted, tokens);
        }
        let question = asking.question(&asked, &window, tenant.as_deref());
        let page =
            request.page.as_ref().map(|token| pages.open(token, &who.name, &question, now)).transpose()?;
        let rows = bounds::rows_of(request, &limits, reduce.is_some())?;
        let mut scans = asking.scans(&asked, &found, &window, tenant.as_deref(), rows, page);
        let mut estimate = Estimate::default();
        for scan in &mut scans {
            let mut one = known.estimate(scan).map_err(unavailable)?;
            if one.is_none()
                && let Some(by_time) = scan.by_time()
            {
                *scan = by_time;
                one = known.estimate(scan).map_err(unavailable)?;
            }
            let one = one.ok_or_else(too_many)?;
            estimate.rows = estimate.rows.saturating_add(one.rows);
            estimate.bytes = estimate.bytes.saturating_add(one.bytes);
            estimate.days = estimate.days.max(one.days);
        }
        let mut runbook_bounds = asked.runbook().map(|runbook| &**runbook);
        if request.audit {
            // Events cost more than rows of an index: what a runbook may cost is about those.
            runbook_bounds = None;
            estimate = bounds::audited(known.numbered(&window).map_err(unavailable)?, &window)?;
        }
        facts.estimate_rows = estimate.rows;
        facts.estimate_bytes = estimate.bytes;

        let budget = bounds::within_budget(&limits, runbook_bounds, &window, &estimate)?;
        standing.allows(estimate.bytes, &limits).map_err(|refusal| refusal.costing(estimate))?;

        let mut used = None;
        if let Some(id) = &request.approval {
            let approval = known.approval(id).map_err(unavailable)?.ok_or_else(approval::unknown)?;
            used = Some(approval.spend(who, &question, &estimate, now)?);
        }
        let approved = used.is_some() || page.is_some_and(|page| page.approved);
        facts.approved = approved;
        let without = asking.rights(&facts, &all_wanted);
        let reason = match &without {
            Err(_) if !approved => Some("the policies ask for another person's consent".to_owned()),
            Ok(_) if !approved && estimate.bytes > limits.approval_bytes => Some(format!(
                "it may read {} bytes, and above {} another person has to agree",
                estimate.bytes, limits.approval_bytes
            )),
            _ => None,
        };
        if let Some(reason) = reason {
            // Nobody is asked to consent to what would be refused all the same.
            let consented = asking.rights(&Facts { approved: true, ..facts }, &all_wanted);
            consented.map_err(|refusal| refusal.costing(estimate))?;
            return Ok(Decision::NeedsApproval(Box::new(Pending {
                binding: question,
                ceiling: estimate,
                requester: who.name.clone(),
                streams: asking.streams,
                question: asked.describe(&window, request.audit),
                purpose: request.purpose.clone(),
                reason,
            })));
        }
        let rights = without.map_err(|refusal| refusal.costing(estimate))?;
        let identity = match (rights.identity, &who.subject) {
            (Sight::Own(_), Some(subject)) => {
                let own = known.pseudonyms(tenant.as_deref(), &window, Column::Actor, subject);
                Sight::Own(own.map_err(unavailable)?)
            }
            (identity, _) => identity,
        };
        let reduce = bounds::big_enough(reduce, &identity, &limits, &estimate)?;
        Ok(Decision::Run(Box::new(Plan {
            scans,
            reduce,
            mask: Mask { identity, body: rights.body },
            budget: Budget { rows, ..budget },
            estimate,
            question,
            window,
            streams: asking.streams,
            runbook: asked.runbook().cloned(),
            policies: self.policies.hash(),
            decided_by: rights.decided_by,
            approval: used,
            approved,
        })))
    }

    /// All that there is, for an audit: it follows the numbers of whole sources, whoever and whatever their events are about.
    fn everything(&self, who: &Principal) -> Result<Vec<Stream>, Refusal> {
        let streams = self.streams_of(who, "");
        let all = who.tenants == Tenants::Every && streams.len() > STREAMS.len();
        if all { Ok(streams) } else { Err(no_audit("some of them are not for you")) }
    }

    /// What exists for this reader: what it may not see is answered like what is not there.
    fn catalogue(&self, who: &Principal, request: &Request, tenant: &str) -> Result<Vec<Stream>, Refusal> {
        let mut streams = self.streams_of(who, tenant);
        if let Some(kind) = &request.stream {
            streams.retain(|stream| stream.kind == *kind);
        }
        if streams.iter().all(|stream| stream.kind == OTHER_STREAMS) {
            return Err(unknown_stream());
        }
        Ok(streams)
    }
}

impl Asking<'_> {
    /// Whether an action is permitted on every stream that is read.
    fn judge(&self, action: Action, object: Object, facts: &Facts) -> Verdict {
        let mut all = BTreeSet::new();
        for stream in &self.streams {
            let verdict = self.guard.policies.judge(self.who, action, stream, object, facts);
            if !verdict.allowed {
                return verdict;
            }
            all.extend(verdict.policies);
        }
        let policies = all.into_iter().collect();
        Verdict { allowed: true, policies, code: Code::Forbidden, suggestion: None }
    }

    /// What the policies grant for this read, if they permit it and everybody that it asks for.
    fn rights(&self, facts: &Facts, wanted: &[Wanted]) -> Result<Rights, Refusal> {
        let mut decided_by = BTreeSet::new();
        let mut may = |action, object| {
            let verdict = self.judge(action, object, facts);
            if verdict.allowed {
                decided_by.extend(verdict.policies.iter().cloned());
            }
            verdict
        };
        let (action, what) = match self.request.question {
            Question::Runbook { .. } => (Action::RunRunbook, "run runbooks here"),
            Question::Tail { .. } => (Action::Tail, "follow new events here"),
        };
        refuse_unless(may(action, Object::Stream), what)?;
        let of_identity = Object::Columns(Group::Identity);
        let identity = if may(Action::ReadIdentity, of_identity).allowed {
            Sight::Clear
        } else if self.request.unmask {
            refuse_unless(may(Action::Unmask, of_identity), "see names here")?;
            Sight::Clear
        } else if may(Action::ReadOwnIdentity, of_identity).allowed {
            Sight::Own(Vec::new())
        } else {
            Sight::Tokens
        };
        if self.request.audit && identity != Sight::Clear {
            return Err(no_audit("you see tokens"));
        }
        if self.request.body {
            refuse_unless(may(Action::ReadBody, Object::Columns(Group::Body)), "see records here")?;
        }
        for wanted in wanted {
            self.may_match(wanted, &identity, facts)?;
        }
        Ok(Rights { identity, body: self.request.body, decided_by })
    }

    /// Whether the reader may ask for the rows of this one. Masks lie below filters: who may not see a name must not find it out by asking.
    fn may_match(&self, wanted: &Wanted, identity: &Sight, facts: &Facts) -> Result<(), Refusal> {
        let is_own = |id: &String| wanted.column == Column::Actor && self.who.subject.as_ref() == Some(id);
        let (action, what) = match (&wanted.given, identity) {
            (_, Sight::Clear) => return Ok(()),
            (Given::Id(id), Sight::Own(_)) if is_own(id) => return Ok(()),
            (Given::Token(_), _) => (Action::MatchTokens, "a token"),
            _ => (Action::MatchIds, "an id"),
        };
        let facts = match action {
            Action::MatchIds => Facts { column: wanted.column.as_str(), ..facts.clone() },
            _ => facts.clone(),
        };
        let verdict = self.judge(action, Object::Columns(Group::Identity), &facts);
        if verdict.allowed {
            return Ok(());
        }
        let column = wanted.column;
        Err(Refusal {
            policies: verdict.policies,
            ..Refusal::new(
                Code::MaskedColumn,
                format!("`{column}` is masked for you, and you may not ask for {what} in it"),
                verdict.suggestion.as_deref().map_or_else(
                    || {
                        "Ask with a token from an answer that you have, as `token:` and its digits, or ask somebody who sees names."
                            .into()
                    },
                    sentence,
                ),
            )
        })
    }

    /// Exactly what is asked, by whom, of what, under which rules: what a page token and an approval are bound to.
    fn question(&self, asked: &question::Asked, window: &Window, tenant: Option<&str>) -> Hash {
        let request = self.request;
        let mut binding = Binding::default()
            .with(&self.who.name)
            .with(self.guard.policies.hash().as_bytes())
            .with(asked.runbook().map_or([0; Hash::LEN], |runbook| *runbook.hash.as_bytes()))
            .with(window.from_ns().to_le_bytes())
            .with(window.to_ns().to_le_bytes())
            .with([request.unmask, request.body, request.audit, tenant.is_some()].map(u8::from))
            .with(tenant.unwrap_or_default())
            .with(&request.purpose)
            .with(&request.ticket)
            .with((self.streams.len() as u64).to_le_bytes());
        for stream in &self.streams {
            binding = binding.with(&stream.kind);
        }
        for (name, value) in asked.canonical() {
            binding = binding.with(name).with(value);
        }
        binding.digest()
    }

    fn scans(
        &self,
        asked: &question::Asked,
        found: &BTreeMap<Wanted, Vec<Pseudonym>>,
        window: &Window,
        tenant: Option<&str>,
        limit: u64,
        page: Option<Place>,
    ) -> Vec<Scan> {
        let Some((reads, Filter(mut clauses))) = asked.reads(found) else { return Vec::new() };
        // One kind is part of the scan; of several, only what this reader sees.
        let stream = match &self.streams[..] {
            [one] => Some(one.kind.clone()),
            all if all.len() > STREAMS.len() => None,
            several => {
                let named = several.iter().filter(|stream| stream.kind != OTHER_STREAMS);
                let any_of = named.map(|stream| Value::Text(stream.kind.clone())).collect();
                clauses.push(Clause { column: Column::Stream, any_of });
                None
            }
        };
        let scan = |access: Access| Scan {
            stream: stream.clone(),
            tenant: tenant.map(str::to_owned),
            access,
            window: *window,
            filter: Filter(clauses.clone()),
            newest_first: asked.newest_first(),
            limit,
            after: page.map(|page| page.row),
        };
        reads.into_iter().map(scan).collect()
    }
}

fn refuse_unless(verdict: Verdict, what: &str) -> Result<(), Refusal> {
    if verdict.allowed {
        return Ok(());
    }
    let message = match verdict.code {
        Code::PurposeRequired => "it has to be said what the answer is for".to_owned(),
        Code::TicketRequired => "it has to be said for which case".to_owned(),
        _ if verdict.policies.is_empty() => format!("no policy permits you to {what}"),
        _ => format!("you may not {what}: {}", verdict.policies.join(", ")),
    };
    let suggestion = verdict.suggestion.as_deref().map_or_else(
        || "Ask whoever gives out roles, or somebody who has one: `epigraph runbook list` shows what you may.".into(),
        sentence,
    );
    Err(Refusal { policies: verdict.policies, ..Refusal::new(verdict.code, message, suggestion) })
}

fn no_audit(why: &str) -> Refusal {
    let message = format!("an audit shows every event of the window with its names, and {why}");
    Refusal::new(Code::Forbidden, message, "Ask an auditor.")
}

/// A suggestion of a policy, as a sentence.
fn sentence(text: &str) -> String {
    let mut letters = text.trim_end_matches('.').chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).chain(['.']).collect()).unwrap_or_default()
}

fn too_many() -> Refusal {
    Refusal::new(
        Code::BadParameter,
        format!("this is about more than {MAX_RUNS} people, things or actions of one day"),
        "Say which tenant, or which action.",
    )
}

pub(super) fn unknown_stream() -> Refusal {
    Refusal::new(
        Code::UnknownStream,
        "there is no such stream or tenant for you",
        format!("The kinds of sources are {}; leave it out for all that you see.", STREAMS.join(", ")),
    )
}
