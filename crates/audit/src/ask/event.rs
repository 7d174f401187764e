//! Single events, asked for by id, leaf or number, each with what proves it: under the same policies, limits and record as every other
//! read. What the reader may not see is left out of a bundle, which proves the rest all the same.

use std::sync::Arc;

use epigraph_core::LeafIndex;
use epigraph_event::v1::{IdentitySegment, Result as Outcome};
use epigraph_event::{Bundle, Segment};
use epigraph_rpc::SpiffeId;
use serde_json::json;

use super::find::is_meant;
use super::record::{By, Entry};
use super::{AskError, Asker, Rules, blocking, by, stranger};
use crate::audit::{ReadError, Which};
use crate::guard::plan::{OTHER_STREAMS, STREAMS};
use crate::guard::policy::{Action, Facts, Group, Object, Verdict};
use crate::guard::refusal::{Code, Refusal};
use crate::guard::{Principal, Stream, Tenants, approval};
use crate::index::IndexError;
use crate::query::Meter;
use crate::store::{EventName, Placed};

/// Events in one page: bundles of events at their limits fit into one answer.
pub const PAGE: usize = 8;

/// What a page counts for before it is known what is in it.
const LEAST_BYTES: u64 = 4_096;

/// Events, and the slot with which the next page begins.
pub type Page = (Vec<Bundle>, Option<u64>);

impl Asker {
    /// Gives events back. That they were asked for, by whom and why, is durable before anything is looked at; a refusal is on the record
    /// as well.
    pub async fn events(
        self: &Arc<Self>,
        who: &SpiffeId,
        which: &Which,
        purpose: &str,
        from_slot: u64,
    ) -> Result<Result<Page, Refusal>, AskError> {
        let rules = self.rules();
        let asked = |who: &str, by: By, refusal: Option<&Refusal>| {
            read_entry(which, (who, by), purpose, &rules, refusal)
        };
        let Some(principal) = rules.principal(who) else {
            let refusal = stranger();
            self.count_refusal(&refusal);
            self.audit().put_on_record(asked(who.as_str(), By::Service, Some(&refusal))).await?;
            return Ok(Err(refusal));
        };
        let now = self.clock.now();
        let (taken, _) = self.audit().slots();
        let facts = Facts { purpose: purpose.to_owned(), hour: approval::hour(now), ..Facts::default() };
        let may = may_ask(&rules, &principal, &facts).and_then(|()| {
            let limits = rules.guard.limits.of(&principal);
            self.desk().ledger.count(&principal.name, LEAST_BYTES, &limits, now)
        });
        let counted = match may {
            Ok(counted) => self.counting(counted, Arc::new(Meter::new(u64::MAX, u64::MAX))),
            Err(refusal) => {
                self.count_refusal(&refusal);
                let entry = asked(&principal.name, by(principal.kind), Some(&refusal));
                self.audit().put_on_record(entry).await?;
                return Ok(Err(refusal));
            }
        };
        self.audit().put_on_record(asked(&principal.name, by(principal.kind), None)).await?;
        let page = self.page(&rules, &principal, &facts, which, (from_slot, taken)).await;
        if let Ok(Ok((bundles, _))) = &page {
            for bundle in bundles {
                // Its limits are none: it counts only.
                let _ = counted.meter().examine(bundle.encode().len());
            }
        }
        drop(counted);
        self.keep_standing(&principal.name).await?;
        let page = page?;
        if let Err(refusal) = &page {
            self.count_refusal(refusal);
            let entry = asked(&principal.name, by(principal.kind), Some(refusal));
            self.audit().put_on_record(entry).await?;
        }
        Ok(page)
    }

    async fn page(
        self: &Arc<Self>,
        rules: &Rules,
        who: &Principal,
        facts: &Facts,
        which: &Which,
        (from_slot, taken): (u64, u64),
    ) -> Result<Result<Page, Refusal>, AskError> {
        let (checkpoint, _) = self.caught_up().await?;
        let checkpoint = checkpoint.ok_or(ReadError::NotYetPublished)?;
        let slots = self.find(which, from_slot, taken).await?;
        let next = slots.get(PAGE).copied();
        let (mut bundles, mut refused) = (Vec::new(), None);
        for slot in slots.into_iter().take(PAGE) {
            let store = self.store().clone();
            let Some(placed) = blocking(move || Ok(store.follow()?.event(slot)?)).await? else {
                return Err(ReadError::NotYetPublished.into());
            };
            match is_meant(which, &placed) {
                Some(true) => {}
                Some(false) => {
                    return Err(IndexError::Damaged(format!("the list of ids, slot {slot},")).into());
                }
                // As if the index had been made since.
                None => continue,
            }
            let of = stream(&placed);
            let may = |action, object| rules.guard.policies.judge(who, action, &of, object, facts);
            // What does not exist for a reader is not there, whatever it is called.
            if !may(Action::See, Object::Stream).allowed {
                continue;
            }
            let given = may(Action::ReadEvent, Object::Stream);
            if !given.allowed {
                refused = Some(refusal(&given));
                continue;
            }
            let identity = Object::Columns(Group::Identity);
            let names = may(Action::ReadIdentity, identity).allowed
                || (is_own(who, placed.identity.as_ref()) && may(Action::ReadOwnIdentity, identity).allowed);
            let record = may(Action::ReadRecord, Object::Columns(Group::Body)).allowed;
            let mut bundle = self.audit().bundle_under(slot, &checkpoint).await?;
            withhold(&mut bundle, names, record);
            bundles.push(bundle);
        }
        match refused {
            _ if !bundles.is_empty() => Ok(Ok((bundles, next))),
            Some(refusal) => Ok(Err(refusal)),
            // The page after may have some.
            None if next.is_some() => Ok(Ok((bundles, next))),
            None => Err(ReadError::NotFound.into()),
        }
    }
}

/// Takes out of a bundle what its reader may not see.
pub(super) fn withhold(bundle: &mut Bundle, names: bool, record: bool) {
    if !names {
        bundle.segments[Segment::Identity.place()] = None;
    }
    if !record {
        bundle.segments[Segment::Body.place()] = None;
        bundle.record = None;
    }
}

/// Whether somebody may be given any event at all: who may not is refused before one is looked for.
fn may_ask(rules: &Rules, who: &Principal, facts: &Facts) -> Result<(), Refusal> {
    let tenant = match &who.tenants {
        Tenants::Every => "",
        Tenants::Only(names) => names.first().map_or("", String::as_str),
    };
    let mut refused = None;
    for stream in rules.guard.streams_of(who, tenant) {
        let verdict = rules.guard.policies.judge(who, Action::ReadEvent, &stream, Object::Stream, facts);
        if verdict.allowed {
            return Ok(());
        }
        refused.get_or_insert(verdict);
    }
    Err(refused.as_ref().map_or_else(stranger, refusal))
}

fn refusal(verdict: &Verdict) -> Refusal {
    let message = match verdict.code {
        Code::PurposeRequired => "it has to be said why the event is read",
        _ => "you may not be given single events",
    };
    let suggestion = verdict.suggestion.clone();
    let suggestion = suggestion.unwrap_or_else(|| "`epigraph runbook list` shows what you may ask.".into());
    Refusal { policies: verdict.policies.clone(), ..Refusal::new(verdict.code, message, suggestion) }
}

/// Of what an event is. Where that was erased, it may be anybody's.
fn stream(placed: &Placed) -> Stream {
    let kind = placed.core.as_ref().and_then(|core| core.source.as_ref()).map(|source| source.kind.as_str());
    let kind = kind.filter(|kind| STREAMS.contains(kind)).unwrap_or(OTHER_STREAMS);
    let tenant = placed.core.as_ref().map(|core| core.tenant.clone()).unwrap_or_default();
    Stream { kind: kind.to_owned(), tenant }
}

fn is_own(who: &Principal, identity: Option<&IdentitySegment>) -> bool {
    let (Some(subject), Some(identity)) = (&who.subject, identity) else { return false };
    identity.on_behalf_of.is_empty() && identity.actor.as_ref().is_some_and(|actor| actor.id == *subject)
}

/// What is recorded: who, what, and why, with the question but not the answer.
fn read_entry(
    which: &Which,
    (who, by): (&str, By),
    purpose: &str,
    rules: &Rules,
    refusal: Option<&Refusal>,
) -> Entry {
    let (kind, name) = match which {
        Which::Id(id) => ("event-id", id.clone()),
        Which::Leaf(index) => ("leaf", LeafIndex::get(*index).to_string()),
        Which::Sequence(EventName { source, epoch, sequence }) => {
            ("sequence", format!("{source}/{epoch}/{sequence}"))
        }
    };
    let code = refusal.map_or_else(String::new, |refusal| refusal.code.as_str().to_owned());
    Entry {
        action: if refusal.is_some() { "events.refused" } else { "events.get" },
        who: who.to_owned(),
        by,
        result: if refusal.is_some() { Outcome::Denied } else { Outcome::Success },
        code: code.clone(),
        request: String::new(),
        labels: vec![("policies", rules.guard.policies.hash().to_string())],
        body: json!({
            "by": kind,
            "which": name,
            "reader": who,
            "purpose": purpose,
            "code": code,
            "message": refusal.map(|refusal| refusal.message.clone()),
            "policies": refusal.map(|refusal| refusal.policies.clone()),
        }),
        about: (kind, name),
    }
}
