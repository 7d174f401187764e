//! Readers, rules, and a world that is only what a test says.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};

use epigraph_audit::guard::approval::{Approval, ApprovalId};
use epigraph_audit::guard::limits::LimitTable;
use epigraph_audit::guard::page::PageKey;
use epigraph_audit::guard::plan::{Decision, Guard, Known, Plan, Question, Request, Unavailable};
use epigraph_audit::guard::policy::Policies;
use epigraph_audit::guard::quota::Standing;
use epigraph_audit::guard::{Kind, Principal, Role, Tenants};
use epigraph_audit::query::{Access, Column, Estimate, Pseudonym, Scan, Window};
use epigraph_audit::runbook::shelf::Shelf;
use epigraph_core::UnixMillis;
use zeroize::Zeroizing;

/// 2024-09-01T12:00:00Z.
pub(crate) const NOW: UnixMillis = UnixMillis(1_725_192_000_000);

/// 2024-08-01T00:00:00Z.
pub(crate) const AUGUST_NS: i64 = 1_722_470_400_000_000_000;

pub(crate) const DAY_NS: i64 = 86_400_000_000_000;

/// A reader of every tenant, but a viewer, who is `ann` of `acme`.
pub(crate) fn reader(role: Role) -> Principal {
    let name = format!("spiffe://test/epigraph/reader/{role}");
    let kind = if role == Role::AiAgent { Kind::Agent } else { Kind::Human };
    let (tenants, subject) = match role {
        Role::Viewer => (Tenants::Only(["acme".to_owned()].into()), Some("ann".to_owned())),
        _ => (Tenants::Every, None),
    };
    Principal { name, kind, roles: [role].into(), tenants, subject }
}

pub(crate) fn guard() -> Guard {
    let (policies, runbooks) = (Policies::shipped().unwrap(), Shelf::shipped().unwrap());
    Guard { policies, runbooks, limits: LimitTable::default() }
}

pub(crate) fn pages() -> PageKey {
    PageKey::from_bytes(Zeroizing::new([7; 32]))
}

/// A run of a runbook over one day, in order in every respect.
pub(crate) fn run(id: &str, given: &[(&str, &str)]) -> Request {
    let given = given.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Request {
        question: Question::Runbook { id: id.into(), parameters: given.collect() },
        stream: None,
        tenant: None,
        from_ns: Some(AUGUST_NS),
        to_ns: Some(AUGUST_NS + DAY_NS),
        rows: None,
        purpose: "case 7".into(),
        ticket: String::new(),
        unmask: false,
        body: false,
        approval: None,
        page: None,
        audit: false,
    }
}

/// What is known before a read. It has no rows that could be read.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) estimate: Estimate,
    pub(crate) approvals: BTreeMap<ApprovalId, Approval>,
    pub(crate) is_down: bool,
    /// Of which kinds of scans it is too much what they ask for.
    pub(crate) too_much: Vec<Discriminant<Access>>,
    /// The events that an audit would go through.
    pub(crate) numbered: u64,
    /// How often a name was looked up.
    pub(crate) lookups: Cell<u32>,
}

impl Known for World {
    fn estimate(&self, scan: &Scan) -> Result<Option<Estimate>, Unavailable> {
        if self.is_down {
            return Err(Unavailable("the index is being made".into()));
        }
        let is_too_much = self.too_much.contains(&discriminant(&scan.access));
        Ok((!is_too_much).then_some(self.estimate))
    }

    fn pseudonyms(
        &self,
        _: Option<&str>,
        _: &Window,
        column: Column,
        id: &str,
    ) -> Result<Vec<Pseudonym>, Unavailable> {
        self.lookups.set(self.lookups.get() + 1);
        Ok(vec![token(column, id)])
    }

    fn numbered(&self, _: &Window) -> Result<u64, Unavailable> {
        Ok(self.numbered)
    }

    fn approval(&self, id: &ApprovalId) -> Result<Option<Approval>, Unavailable> {
        Ok(self.approvals.get(id).cloned())
    }
}

/// A token that is another one for each id.
pub(crate) fn token(column: Column, id: &str) -> Pseudonym {
    let mut bytes = [0_u8; Pseudonym::LEN];
    let text = format!("{id}/{column}");
    text.bytes().enumerate().for_each(|(at, byte)| bytes[at % 16] = bytes[at % 16].rotate_left(3) ^ byte);
    Pseudonym::from_bytes(bytes)
}

pub(crate) fn plan(who: &Principal, request: &Request, world: &World) -> Decision {
    guard().plan(who, request, world, &Standing::default(), &pages(), NOW)
}

pub(crate) fn planned(who: &Principal, request: &Request, world: &World) -> Plan {
    match plan(who, request, world) {
        Decision::Run(plan) => *plan,
        other => panic!("{other:?}"),
    }
}
