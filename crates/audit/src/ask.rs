//! Questions about events: from a caller and what it asks to an answer, each step on the record.
//!
//! [`Asker`] plans a question ([`crate::guard`]), puts it on the record, and only then reads: [`run`] carries a plan out, [`show`] turns
//! rows into texts, [`desk`] remembers requests for approval and what was read today, [`running`] lists what is under way. It decides
//! nothing about who may see what.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use epigraph_core::{Checkpoint, Clock, Entropy, LeafIndex, Verified};
use epigraph_event::v1::Result as Outcome;
use epigraph_rpc::{SpiffeId, SpiffePattern};
use serde_json::json;
use thiserror::Error;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::audit::{Audit, Published, ReadError};
use crate::guard::approval::Approval;
use crate::guard::page::PageKey;
use crate::guard::plan::{Decision, Guard, Plan, Request};
use crate::guard::policy::{Action, Facts, Object};
use crate::guard::quota::Counted;
use crate::guard::refusal::{Code, Refusal};
use crate::guard::{Kind, Principal, Role, Stream, Tenants, approval};
use crate::index::View;
use crate::index::follow::Following;
use crate::keeper::{Ended, Keeper};
use crate::query::{Estimate, Meter};
use crate::runbook::Runbook;
use crate::store::{Reader as StoreReader, StoreError};
use desk::{Counting, Desk};
use record::{By, Entry};
use run::Run;
use running::{Running, Slot};
use tally::{Tallies, Tally};

mod consent;
pub mod desk;
mod entries;
pub mod event;
mod find;
mod known;
pub mod record;
pub mod run;
pub mod running;
pub mod show;
pub mod tail;
pub mod tally;
pub mod window;

/// How long a question waits for a checkpoint, and then for the indexes to have what is under it: longer than a start takes, shorter than a
/// call.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(5);

/// Somebody who may ask, as configured.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Whose certificates.
    pub spiffe: SpiffePattern,
    /// What they are by nature.
    pub kind: Kind,
    /// What they may be.
    pub roles: std::collections::BTreeSet<Role>,
    /// Whose events they see.
    pub tenants: Tenants,
    /// The id under which they stand in events themselves.
    pub subject: Option<String>,
}

/// Who may ask, and under which rules. They change together or not at all.
pub struct Rules {
    /// The rules.
    pub guard: Guard,
    /// The readers; the first that matches counts.
    pub readers: Vec<Reader>,
}

impl Rules {
    /// Who has this name; none who may ask.
    pub fn principal(&self, name: &SpiffeId) -> Option<Principal> {
        let reader = self.readers.iter().find(|reader| reader.spiffe.matches(name))?;
        Some(Principal {
            name: name.as_str().to_owned(),
            kind: reader.kind,
            roles: reader.roles.clone(),
            tenants: reader.tenants.clone(),
            subject: reader.subject.clone(),
        })
    }
}

/// The asking side of an audit service.
pub struct Asker {
    audit: Arc<Audit>,
    keeper: Keeper,
    following: Following,
    published: Published,
    rules: RwLock<Arc<Rules>>,
    desk: Arc<Mutex<Desk>>,
    /// Held while what was read is made durable.
    keeping: tokio::sync::Mutex<()>,
    /// Held while a request is answered.
    answering: tokio::sync::Mutex<()>,
    running: Running,
    /// Refusals since the start, by code.
    refused: Mutex<BTreeMap<Code, u64>>,
    /// Since the start, by runbook.
    tallies: Mutex<Tallies>,
    pages: PageKey,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

/// What becomes of a question.
pub enum Asked {
    /// It was planned only, and could run.
    Planned(Planned),
    /// It is not answered.
    Refused(Refusal),
    /// Another person has to agree.
    NeedsApproval {
        /// The request.
        approval: Approval,
        /// Why.
        reason: String,
    },
    /// It is answered: [`Asker::answer`] carries it out.
    Runs(Box<Run>),
}

/// What is known of a question that may run.
#[derive(Clone, PartialEq, Debug)]
pub struct Planned {
    /// The question's id; empty if it is only planned.
    pub id: String,
    /// The runbook.
    pub runbook: Arc<Runbook>,
    /// What it costs at most.
    pub estimate: Estimate,
    /// The columns of its answer.
    pub columns: Vec<String>,
    /// Those that this reader sees as tokens.
    pub masked: Vec<String>,
}

/// Why a question came to nothing, whoever asked it.
#[derive(Debug, Error)]
pub enum AskError {
    /// The store's thread.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Events could not be read or proven, or the question not be put on the record.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The indexes.
    #[error(transparent)]
    Index(#[from] crate::index::IndexError),
    /// Somebody ended it.
    #[error("the question was cancelled")]
    Cancelled,
    /// It may not go on.
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    /// There is no question, or no request, of this id for the caller.
    #[error("there is none of this id for you")]
    NotFound,
}

/// What the policies are asked when nothing is read.
fn nothing() -> Facts {
    Facts::default()
}

impl Asker {
    /// Over a service whose store is kept and whose indexes follow. What was asked and approved before is taken from the store.
    pub fn new(
        audit: Arc<Audit>,
        keeper: Keeper,
        following: Following,
        published: Published,
        rules: Rules,
        (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>),
    ) -> Result<Asker, StoreError> {
        let desk = Arc::new(Mutex::new(Desk::load(keeper.reader(), clock.now())?));
        let mut key = Zeroizing::new([0; 32]);
        entropy.fill(&mut *key);
        Ok(Asker {
            audit,
            keeper,
            following,
            published,
            rules: RwLock::new(Arc::new(rules)),
            desk,
            keeping: tokio::sync::Mutex::default(),
            answering: tokio::sync::Mutex::default(),
            running: Running::default(),
            refused: Mutex::default(),
            tallies: Mutex::default(),
            pages: PageKey::from_bytes(key),
            clock,
            entropy,
        })
    }

    /// Puts other rules in force, for questions that are asked from now on.
    pub fn replace(&self, rules: Rules) {
        self.tallies().keep(&rules.guard.runbooks);
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// The service that is asked.
    pub fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    /// What is under way.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// How many events are published and not in the indexes yet: they are in no answer.
    pub fn unindexed(&self) -> u64 {
        self.audit.slots().1.saturating_sub(self.following.next())
    }

    /// How many questions were refused since the start, for each reason that there is.
    pub fn refused(&self) -> Vec<(&'static str, u64)> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        Code::ALL.into_iter().map(|code| (code.as_str(), refused.get(&code).copied().unwrap_or(0))).collect()
    }

    /// How each runbook that there is was answered since the start.
    pub fn answered(&self) -> Vec<(String, Tally)> {
        self.tallies().of_all(&self.rules().guard.runbooks)
    }

    fn tallies(&self) -> MutexGuard<'_, Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_refusal(&self, refusal: &Refusal) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(refusal.code).or_default() += 1;
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> &StoreReader {
        self.keeper.reader()
    }

    /// The newest checkpoint; nothing beyond it is answered, because nothing beyond it can be proven.
    fn checkpoint(&self) -> Option<Arc<Verified<Checkpoint>>> {
        self.published.borrow().clone()
    }

    /// Waits, not for long, until a checkpoint is known and the indexes have what is under it: a service that has just started, or has just
    /// taken an event, is asked about it at once. Answers the checkpoint, and the slot after the last event that is known to be under it.
    async fn caught_up(&self) -> Result<(Option<Arc<Verified<Checkpoint>>>, u64), AskError> {
        let mut published = self.published.clone();
        let _ = timeout(CAUGHT_UP_WITHIN, published.wait_for(Option::is_some)).await;
        let Some(checkpoint) = self.checkpoint() else { return Ok((None, 0)) };
        let (size, store) = (checkpoint.head().size.get(), self.store().clone());
        let end = match LeafIndex::new(size) {
            Some(size) => blocking(move || Ok(store.slot_from_leaf(size)?)).await?,
            None => 0,
        };
        let end = end.min(*self.keeper.placed().borrow());
        let _ = timeout(CAUGHT_UP_WITHIN, self.following.reached(end)).await;
        Ok((Some(checkpoint), end))
    }

    /// The runbooks that somebody may run.
    pub fn runbooks(&self, who: &SpiffeId) -> Vec<Arc<Runbook>> {
        let rules = self.rules();
        let Some(principal) = rules.principal(who) else { return Vec::new() };
        rules.guard.runbooks_of(&principal).into_iter().cloned().collect()
    }

    /// Decides a question and puts it on the record; an approval that it uses is used up when this returns. Reads no row.
    pub async fn ask(
        self: &Arc<Self>,
        who: &SpiffeId,
        request: Request,
        plan_only: bool,
    ) -> Result<Asked, AskError> {
        let begun = self.clock.now();
        let rules = self.rules();
        let Some(principal) = rules.principal(who) else {
            let refusal = stranger();
            self.refuse(who.as_str(), By::Service, &request, &refusal).await?;
            return Ok(Asked::Refused(refusal));
        };
        let (checkpoint, end) = self.caught_up().await?;
        let (asker, of, asked) = (Arc::clone(self), principal.clone(), request.clone());
        let decided = blocking(move || asker.decide(&rules, &of, &asked, plan_only)).await?;
        match decided {
            Decided::Refused(refusal) => {
                self.refuse(&principal.name, by(principal.kind), &request, &refusal).await?;
                Ok(Asked::Refused(*refusal))
            }
            Decided::NeedsApproval(pending) => self.request(&principal, &request, *pending, plan_only).await,
            Decided::Planned(plan) => {
                let Some(planned) = planned(String::new(), &plan) else {
                    return Ok(Asked::Refused(no_runbook()));
                };
                self.audit
                    .put_on_record(self.of_plan("runbook.planned", &principal, &request, &plan, ""))
                    .await?;
                Ok(Asked::Planned(planned))
            }
            Decided::Runs(decided) => {
                let (plan, counting, view) = *decided;
                // From here on the question counts, whatever becomes of it.
                let Some(planned) = planned(self.id(), &plan) else {
                    return Ok(Asked::Refused(no_runbook()));
                };
                let mut run = Run {
                    planned,
                    checkpoint,
                    unindexed: end.saturating_sub(view.next()),
                    principal,
                    request,
                    view: Mutex::new(Some(view)),
                    meter: Arc::clone(counting.meter()),
                    counting: Some(counting),
                    slot: None,
                    plan,
                    begun,
                    answered: 0,
                };
                if let Err(error) = self.begin(&run).await {
                    self.settle(&mut run).await?;
                    return Err(error);
                }
                run.slot = Some(self.list(&run));
                Ok(Asked::Runs(Box::new(run)))
            }
        }
    }

    /// Everything that must be durable before a plan is carried out.
    async fn begin(&self, run: &Run) -> Result<(), AskError> {
        self.keep_standing(&run.principal.name).await?;
        if let Some(used) = &run.plan.approval {
            desk::keep(&self.keeper, used).await?;
        }
        let entry = self.of_plan("runbook.run", &run.principal, &run.request, &run.plan, &run.planned.id);
        Ok(self.audit.put_on_record(entry).await?)
    }

    /// Makes durable what a reader has read today, and what it may still read in the questions that run.
    async fn keep_standing(&self, name: &str) -> Result<(), AskError> {
        // One after the other: what is kept last is what is true last.
        let _turn = self.keeping.lock().await;
        let now = self.clock.now();
        let read_today = self.desk().ledger.standing(name, now).bytes_today;
        Ok(desk::keep_read(&self.keeper, name, read_today, now).await?)
    }

    fn decide(
        &self,
        rules: &Rules,
        who: &Principal,
        request: &Request,
        plan_only: bool,
    ) -> Result<Decided, AskError> {
        let unavailable = |why: String| {
            let refusal = Refusal::new(Code::Unavailable, why, "Ask again.");
            Ok(Decided::Refused(Box::new(refusal)))
        };
        let Some(index) = self.following.index() else {
            return unavailable(
                self.following.trouble().unwrap_or_else(|| "the indexes are being opened".to_owned()),
            );
        };
        let view = match index.view() {
            Ok(view) => view,
            Err(error) => return unavailable(error.to_string()),
        };
        if self.published.borrow().is_none() {
            return unavailable(
                "the log has not published a checkpoint yet that events can be proven under".into(),
            );
        }
        let vault = self.store().follow()?;
        let now = self.clock.now();
        // Held until the question is counted and its approval used: two that are decided at once must not both find what there is once.
        let mut desk = self.desk();
        let Desk { approvals, ledger } = &mut *desk;
        let standing = ledger.standing(&who.name, now);
        let known = known::Sight::new(&view, vault, approvals);
        let decision = rules.guard.plan(who, request, &known, &standing, &self.pages, now);
        Ok(match decision {
            Decision::Refused(refusal) => Decided::Refused(refusal),
            Decision::NeedsApproval(pending) => Decided::NeedsApproval(pending),
            Decision::Run(plan) if plan_only => Decided::Planned(plan),
            Decision::Run(plan) => {
                let limits = rules.guard.limits.of(who);
                match ledger.count(&who.name, plan.estimate.bytes, &limits, now) {
                    Err(refusal) => Decided::Refused(Box::new(refusal)),
                    Ok(counted) => {
                        if let Some(used) = &plan.approval {
                            approvals.insert(used.id, used.clone());
                        }
                        let meter = Arc::new(Meter::of(&plan.estimate));
                        Decided::Runs(Box::new((*plan, self.counting(counted, meter), view)))
                    }
                }
            }
        })
    }

    /// Gives back what a question did not read of what it was counted for.
    async fn settle(&self, run: &mut Run) -> Result<(), AskError> {
        drop(run.counting.take());
        self.keep_standing(&run.principal.name).await
    }

    fn counting(&self, counted: Counted, meter: Arc<Meter>) -> Counting {
        Counting::new(Arc::clone(&self.desk), Arc::clone(&self.clock), counted, meter)
    }

    fn list(&self, run: &Run) -> Slot {
        self.running.begin(running::Query {
            id: run.planned.id.clone(),
            principal: run.principal.name.clone(),
            runbook: run.planned.runbook.id.clone(),
            streams: run.plan.streams.clone(),
            started_at: self.clock.now(),
            estimate: Some(run.plan.estimate),
            meter: Arc::clone(&run.meter),
            ended: Arc::default(),
        })
    }

    fn id(&self) -> String {
        let mut id = [0; 16];
        self.entropy.fill(&mut id);
        format!("{:032x}", u128::from_be_bytes(id))
    }

    /// The questions under way that somebody may see: its own, and others' if the policies let it end them.
    pub fn queries(&self, who: &SpiffeId) -> Vec<running::Query> {
        let rules = self.rules();
        let Some(principal) = rules.principal(who) else { return Vec::new() };
        let may = |query: &running::Query| may_cancel(&rules, &principal, query);
        self.running.list().into_iter().filter(may).collect()
    }

    /// Ends a question. That it was ended, and by whom, is on the record.
    pub async fn cancel(&self, who: &SpiffeId, id: &str) -> Result<(), AskError> {
        let query = self.queries(who).into_iter().find(|query| query.id == id).ok_or(AskError::NotFound)?;
        let by = self.rules().principal(who).map_or(By::Service, |principal| by(principal.kind));
        query.end();
        let entry = Entry {
            action: "query.cancelled",
            who: who.as_str().to_owned(),
            by,
            result: Outcome::Success,
            code: String::new(),
            request: query.id.clone(),
            about: ("query", query.id.clone()),
            labels: Vec::new(),
            body: json!({ "query": query.id, "runbook": query.runbook, "asked_by": query.principal }),
        };
        Ok(self.audit.put_on_record(entry).await?)
    }
}

enum Decided {
    Refused(Box<Refusal>),
    NeedsApproval(Box<approval::Pending>),
    Planned(Box<Plan>),
    Runs(Box<(Plan, Counting, View)>),
}

fn planned(id: String, plan: &Plan) -> Option<Planned> {
    let runbook = Arc::clone(plan.runbook.as_ref()?);
    Some(Planned {
        id,
        estimate: plan.estimate,
        columns: show::columns(&runbook.columns, plan.reduce.as_ref()),
        masked: plan
            .mask
            .masked()
            .into_iter()
            .filter(|column| runbook.columns.contains(column))
            .map(|column| column.as_str().to_owned())
            .collect(),
        runbook,
    })
}

/// Whoever is in no table of the configuration.
fn stranger() -> Refusal {
    Refusal::new(
        Code::Forbidden,
        "you are no reader of this service",
        "Ask whoever configures it for a table [[reader]].",
    )
}

fn no_runbook() -> Refusal {
    Refusal::new(Code::UnknownRunbook, "no runbook was asked for", "`epigraph runbook list` lists them.")
}

fn may_cancel(rules: &Rules, who: &Principal, query: &running::Query) -> bool {
    let object = Object::Query { own: query.principal == who.name };
    on_all(rules, who, Action::CancelQuery, &query.streams, object)
}

fn on_all(rules: &Rules, who: &Principal, action: Action, streams: &[Stream], object: Object) -> bool {
    streams.iter().all(|stream| rules.guard.policies.judge(who, action, stream, object, &nothing()).allowed)
}

fn by(kind: Kind) -> By {
    match kind {
        Kind::Human => By::User,
        Kind::Service => By::Service,
        Kind::Agent => By::Agent,
    }
}

/// Runs what waits for the disk where it holds up nobody else.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AskError> + Send + 'static,
) -> Result<T, AskError> {
    crate::audit::blocking(work).await?
}
