//! What is put on the record of a question: events of the service's own source. The question stands in the parts of an event that can be
//! erased, because it may name people; what became of it does not.

use epigraph_core::UnixMillis;
use epigraph_event::Event;
use epigraph_event::v1::{
    Actor, ActorType, BodySegment, Category, CoreSegment, Decision, Format, IdentitySegment, Label,
    Operation, ResourceKind, ResourceName, Result as Outcome, Source, TimeFrom,
};
use serde_json::Value;

/// Who did something, by nature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// A person.
    User,
    /// A program.
    Service,
    /// A program that decides by itself.
    Agent,
}

/// Something that a reader did.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// What: `runbook.run`, `runbook.finished`, `runbook.refused`, `approval.granted`.
    pub action: &'static str,
    /// Who, by the name of the certificate.
    pub who: String,
    /// By nature.
    pub by: By,
    /// How it ended.
    pub result: Outcome,
    /// The code of a refusal; empty if there was none.
    pub code: String,
    /// By which id the records of one question are found: its query id, or its approval's.
    pub request: String,
    /// What kind of thing was asked, and which: `runbook` and its id.
    pub about: (&'static str, String),
    /// Facts that name nobody: hashes, numbers. Sorted by key.
    pub labels: Vec<(&'static str, String)>,
    /// Everything, for whoever may read it.
    pub body: Value,
}

impl Entry {
    /// As an event of `source`.
    pub fn event(self, source: &str, now: UnixMillis) -> Event {
        let at = i64::try_from(now.0).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        let record = self.body.to_string().into_bytes();
        let (kind, name) = self.about;
        let denied = self.result == Outcome::Denied;
        let actor_type = match self.by {
            By::User => ActorType::User,
            By::Service => ActorType::Service,
            By::Agent => ActorType::Agent,
        };
        Event {
            core: CoreSegment {
                schema_version: 1,
                source: Some(Source { id: source.into(), kind: "epigraph".into(), ..Source::default() }),
                occurred_at_ns: at,
                occurred_from: TimeFrom::Source.into(),
                observed_at_ns: at,
                category: Category::Audit.into(),
                action: self.action.into(),
                operation: Operation::Read.into(),
                result: self.result.into(),
                result_code: self.code,
                actor_type: actor_type.into(),
                resources: vec![ResourceKind { r#type: kind.into(), parent: String::new() }],
                request_id: self.request,
                decision: if denied { Decision::Deny } else { Decision::Allow }.into(),
                labels: self
                    .labels
                    .into_iter()
                    .map(|(key, value)| Label { key: key.into(), value })
                    .collect(),
                ..CoreSegment::default()
            },
            identity: IdentitySegment {
                actor: Some(Actor { r#type: actor_type.into(), id: self.who, ..Actor::default() }),
                resources: vec![ResourceName { id: name, ..ResourceName::default() }],
                ..IdentitySegment::default()
            },
            body: BodySegment {
                format: Format::Json.into(),
                original_size: record.len() as u64,
                record,
                ..BodySegment::default()
            },
        }
    }
}
