//! What an index holds of one event: enough for most answers without opening the event, and no text that says who somebody is.

use std::fmt;
use std::sync::Arc;

use epigraph_core::LeafIndex;
use epigraph_event::v1::{
    ActorType, Category, CoreSegment, DataClass, IdentitySegment, Operation, Result as Outcome, Severity,
};

/// Stands for a person, an account, a credential, a thing or an address: the same for the same one, and told by nobody without a key of
/// the vault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pseudonym([u8; Pseudonym::LEN]);

impl Pseudonym {
    /// Its length in bytes: two of a million million subjects are alike with a chance below 2^-48.
    pub const LEN: usize = 16;

    /// Takes the bytes.
    pub const fn from_bytes(bytes: [u8; Pseudonym::LEN]) -> Pseudonym {
        Pseudonym(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; Pseudonym::LEN] {
        &self.0
    }
}

impl fmt::Display for Pseudonym {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of a trace, which services hand on from one to the next: 16 bytes, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; TraceId::LEN]);

impl TraceId {
    /// Its length in bytes.
    pub const LEN: usize = 16;

    /// Takes the bytes, if they are an id: of another length, or all zero, they are none.
    pub fn of(bytes: &[u8]) -> Option<TraceId> {
        let bytes: [u8; TraceId::LEN] = bytes.try_into().ok()?;
        (bytes != [0; TraceId::LEN]).then_some(TraceId(bytes))
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; TraceId::LEN] {
        &self.0
    }
}

impl fmt::Display for TraceId {
    /// 32 lower-case hexadecimal digits, as in a `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A thing that was acted on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Touched {
    /// Its kind, in the source's words.
    pub kind: Arc<str>,
    /// Which one, by its id; none if the source did not say, or if who did it was erased.
    pub id: Option<Pseudonym>,
    /// Which one, by its name.
    pub name: Option<Pseudonym>,
}

/// An event, as an index covers it. Texts are those of its core segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Where its leaf is in the log.
    pub leaf: LeafIndex,
    /// Its place among all events of the service.
    pub slot: u64,
    /// When it happened, in nanoseconds since 1970-01-01T00:00:00Z, by its source's word.
    pub occurred_at_ns: i64,
    /// When the service took it, in seconds since 1970-01-01T00:00:00Z.
    pub ingested_s: u64,
    /// Whose event it is.
    pub tenant: Arc<str>,
    /// Which source wrote it, as it calls itself.
    pub source: Arc<str>,
    /// Of which kind the source is: this is the event's *stream*.
    pub source_kind: Arc<str>,
    /// What it belongs to.
    pub category: Category,
    /// What was done, in one word.
    pub operation: Operation,
    /// What was done, in the source's words.
    pub action: Arc<str>,
    /// How it ended.
    pub result: Outcome,
    /// How it ended, in the source's code.
    pub result_code: Arc<str>,
    /// How grave it is.
    pub severity: Severity,
    /// What kind of actor it was.
    pub actor_type: ActorType,
    /// Who did it; none if nobody is named, or if who it was is erased.
    pub actor: Option<Pseudonym>,
    /// Who did it, by the name that people call them; none if that is the id.
    pub actor_name: Option<Pseudonym>,
    /// With which session or credential.
    pub session: Option<Pseudonym>,
    /// For whom, the nearest first.
    pub on_behalf_of: Vec<Pseudonym>,
    /// Where the request came from, as the source itself saw it: the nearest hop.
    pub address: Option<Pseudonym>,
    /// What was acted on.
    pub resources: Vec<Touched>,
    /// By which id other records of the same request are found; empty if there is none.
    pub request_id: Arc<str>,
    /// To which trace (W3C trace context) it belongs: a request may be part of one that goes through many services; none if it says none.
    pub trace_id: Option<TraceId>,
    /// What its record was found to hold: a bit for each [`DataClass`], `1 << (number - 1)`.
    pub data_classes: u32,
}

/// A column of a [`Row`], by the name under which filters, masks and tables know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Column {
    /// [`Row::leaf`].
    Leaf,
    /// [`Row::occurred_at_ns`].
    OccurredAt,
    /// [`Row::ingested_s`].
    Ingested,
    /// [`Row::tenant`].
    Tenant,
    /// [`Row::source`].
    Source,
    /// [`Row::source_kind`].
    Stream,
    /// [`Row::category`].
    Category,
    /// [`Row::operation`].
    Operation,
    /// [`Row::action`].
    Action,
    /// [`Row::result`].
    Result,
    /// [`Row::result_code`].
    ResultCode,
    /// [`Row::severity`].
    Severity,
    /// [`Row::actor_type`].
    ActorType,
    /// [`Row::actor`].
    Actor,
    /// [`Row::actor_name`].
    ActorName,
    /// [`Row::session`].
    Session,
    /// [`Row::on_behalf_of`].
    OnBehalfOf,
    /// [`Row::address`].
    Address,
    /// The kinds of [`Row::resources`].
    ResourceKind,
    /// Which things [`Row::resources`] are.
    Resource,
    /// [`Row::request_id`].
    RequestId,
    /// [`Row::data_classes`].
    DataClass,
}

impl Column {
    /// Every column, in the order of a table.
    pub const ALL: [Column; 22] = [
        Column::Leaf,
        Column::OccurredAt,
        Column::Ingested,
        Column::Tenant,
        Column::Source,
        Column::Stream,
        Column::Category,
        Column::Operation,
        Column::Action,
        Column::Result,
        Column::ResultCode,
        Column::Severity,
        Column::ActorType,
        Column::Actor,
        Column::ActorName,
        Column::Session,
        Column::OnBehalfOf,
        Column::Address,
        Column::ResourceKind,
        Column::Resource,
        Column::RequestId,
        Column::DataClass,
    ];

    /// The word for it, which does not change.
    pub const fn as_str(self) -> &'static str {
        match self {
            Column::Leaf => "leaf",
            Column::OccurredAt => "occurred-at",
            Column::Ingested => "ingested",
            Column::Tenant => "tenant",
            Column::Source => "source",
            Column::Stream => "stream",
            Column::Category => "category",
            Column::Operation => "operation",
            Column::Action => "action",
            Column::Result => "result",
            Column::ResultCode => "result-code",
            Column::Severity => "severity",
            Column::ActorType => "actor-type",
            Column::Actor => "actor",
            Column::ActorName => "actor-name",
            Column::Session => "session",
            Column::OnBehalfOf => "on-behalf-of",
            Column::Address => "address",
            Column::ResourceKind => "resource-kind",
            Column::Resource => "resource",
            Column::RequestId => "request-id",
            Column::DataClass => "data-class",
        }
    }

    /// The column of this name.
    pub fn named(name: &str) -> Option<Column> {
        Column::ALL.into_iter().find(|column| column.as_str() == name)
    }

    /// Whether its values are pseudonyms: what a filter compares there is a [`Value::Pseudonym`].
    pub const fn is_pseudonym(self) -> bool {
        matches!(
            self,
            Column::Actor
                | Column::ActorName
                | Column::Session
                | Column::OnBehalfOf
                | Column::Address
                | Column::Resource
        )
    }

    /// The words that it can have, if they are a fixed list.
    pub fn words(self) -> Option<Vec<String>> {
        let words = |word: fn(i32) -> Option<String>| Some((0..=MAX_CODE).filter_map(word).collect());
        match self {
            Column::Category => words(|code| Category::try_from(code).ok().map(word)),
            Column::Operation => words(|code| Operation::try_from(code).ok().map(word)),
            Column::Result => words(|code| Outcome::try_from(code).ok().map(word)),
            Column::Severity => words(|code| Severity::try_from(code).ok().map(word)),
            Column::ActorType => words(|code| ActorType::try_from(code).ok().map(word)),
            Column::DataClass => words(|code| DataClass::try_from(code).ok().map(word)),
            _ => None,
        }
    }
}

/// No code of an enumeration of the events is higher.
const MAX_CODE: i32 = 32;

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a filter compares a column with.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Value {
    /// A text, or the word of an enumeration: `denied`.
    Text(String),
    /// Somebody or something.
    Pseudonym(Pseudonym),
}

/// An enumeration of the events whose values have words.
pub trait Word: Copy {
    /// The name in the `.proto` file, and what all of its names begin with.
    fn name(self) -> (&'static str, &'static str);
}

/// The word for a value of an enumeration: `RESULT_DENIED` is `denied`.
pub fn word(value: impl Word) -> String {
    let (name, prefix) = value.name();
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase().replace('_', "-")
}

macro_rules! words {
    ($($kind:ty => $prefix:literal),* $(,)?) => {
        $(impl Word for $kind {
            fn name(self) -> (&'static str, &'static str) {
                (self.as_str_name(), $prefix)
            }
        })*
    };
}

words! {
    Category => "CATEGORY_",
    Operation => "OPERATION_",
    Outcome => "RESULT_",
    Severity => "SEVERITY_",
    ActorType => "ACTOR_TYPE_",
    DataClass => "DATA_CLASS_",
}

/// Who gives out pseudonyms: the vault, or a test.
pub trait Pseudonyms {
    /// Why it cannot.
    type Error;

    /// Of a person or account of a tenant, by its exact id; none if there is no key for it, or none any more.
    fn subject(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, Self::Error>;

    /// Of a thing of a tenant, by its exact id or name.
    fn thing(&mut self, tenant: &str, id: &str) -> Result<Option<Pseudonym>, Self::Error>;

    /// Of an address, in every tenant.
    fn address(&mut self, address: &str) -> Result<Option<Pseudonym>, Self::Error>;

    /// Of whoever is called exactly so in one of these tenants: people and accounts by id and by name, and credentials. What
    /// [`Access::Actor`](super::Access::Actor) looks for.
    fn actors(&mut self, tenants: &[Arc<str>], id: &str) -> Result<Vec<Pseudonym>, Self::Error> {
        let mut all = Vec::new();
        for tenant in tenants {
            all.extend(self.subject(tenant, id)?);
            all.extend(self.thing(tenant, id)?);
        }
        Ok(all)
    }

    /// Of whatever is called exactly so in one of these tenants. What [`Access::Resource`](super::Access::Resource) looks for.
    fn things(&mut self, tenants: &[Arc<str>], id: &str) -> Result<Vec<Pseudonym>, Self::Error> {
        let things = tenants.iter().map(|tenant| self.thing(tenant, id));
        Ok(things.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }
}

impl Row {
    /// What an index holds of an event. `identity` is none where it was erased. `intern` gives a text that many rows share.
    pub fn of<P: Pseudonyms>(
        (leaf, slot, ingested_s): (LeafIndex, u64, u64),
        core: &CoreSegment,
        identity: Option<&IdentitySegment>,
        pseudonyms: &mut P,
        mut intern: impl FnMut(&str) -> Arc<str>,
    ) -> Result<Row, P::Error> {
        let tenant = core.tenant.as_str();
        let source = core.source.clone().unwrap_or_default();
        let empty = IdentitySegment::default();
        let identity = identity.unwrap_or(&empty);
        let mut actor = None;
        let (mut actor_name, mut session) = (None, None);
        if let Some(who) = &identity.actor {
            actor = some(subject_of(who), |id| pseudonyms.subject(tenant, id))?;
            if who.name != subject_of(who) {
                actor_name = some(&who.name, |name| pseudonyms.subject(tenant, name))?;
            }
            session = some(&who.session, |id| pseudonyms.thing(tenant, id))?;
        }
        let mut on_behalf_of = Vec::new();
        for who in &identity.on_behalf_of {
            if let Some(who) = some(subject_of(who), |id| pseudonyms.subject(tenant, id))?
                && Some(who) != actor
                && !on_behalf_of.contains(&who)
            {
                on_behalf_of.push(who);
            }
        }
        let mut resources = Vec::new();
        for (at, kind) in core.resources.iter().enumerate() {
            let (mut id, mut name) = (None, None);
            if let Some(thing) = identity.resources.get(at) {
                id = some(&thing.id, |id| pseudonyms.thing(tenant, id))?;
                name = some(&thing.name, |name| pseudonyms.thing(tenant, name))?;
            }
            resources.push(Touched { kind: intern(&kind.r#type), id, name });
        }
        let address = identity.addresses.last().map_or("", String::as_str);
        Ok(Row {
            leaf,
            slot,
            occurred_at_ns: core.occurred_at_ns,
            ingested_s,
            tenant: intern(tenant),
            source: intern(&source.id),
            source_kind: intern(&source.kind),
            category: core.category(),
            operation: core.operation(),
            action: intern(&core.action),
            result: core.result(),
            result_code: intern(&core.result_code),
            severity: core.severity(),
            actor_type: core.actor_type(),
            actor,
            actor_name,
            session,
            on_behalf_of,
            address: some(address, |address| pseudonyms.address(address))?,
            resources,
            request_id: core.request_id.as_str().into(),
            trace_id: TraceId::of(&core.trace_id),
            data_classes: core.data_classes,
        })
    }

    /// By which ids it is found as part of a request: the request's own and its trace's, each once.
    pub fn requests(&self) -> Vec<Arc<str>> {
        let trace = self.trace_id.map(|trace| Arc::from(trace.to_string()));
        let own = Some(&self.request_id).filter(|id| !id.is_empty()).cloned();
        let mut ids: Vec<Arc<str>> = own.into_iter().chain(trace).collect();
        ids.dedup();
        ids
    }

    /// Where it stands in the order of time: no two rows are at one place.
    pub fn place(&self) -> (i64, LeafIndex) {
        (self.occurred_at_ns, self.leaf)
    }

    /// Everybody who stands in it as an actor, each once: who did it, by id and by name, for whom, and the credential.
    pub fn actors(&self) -> Vec<Pseudonym> {
        let named = self.on_behalf_of.iter().copied().map(Some);
        once([self.actor, self.actor_name].into_iter().chain(named).chain([self.session]))
    }

    /// Everything that was acted on, by id and by name, each once.
    pub fn things(&self) -> Vec<Pseudonym> {
        once(self.resources.iter().flat_map(|touched| [touched.id, touched.name]))
    }

    /// Whether a column has this value; of several values, whether one of them is it.
    pub fn has(&self, column: Column, value: &Value) -> bool {
        match value {
            Value::Pseudonym(wanted) => match column {
                Column::Actor => self.actor == Some(*wanted),
                Column::ActorName => self.actor_name == Some(*wanted),
                Column::Session => self.session == Some(*wanted),
                Column::OnBehalfOf => self.on_behalf_of.contains(wanted),
                Column::Address => self.address == Some(*wanted),
                Column::Resource => {
                    self.resources.iter().any(|one| [one.id, one.name].contains(&Some(*wanted)))
                }
                _ => false,
            },
            Value::Text(wanted) => match column {
                Column::Tenant => *self.tenant == **wanted,
                Column::Source => *self.source == **wanted,
                Column::Stream => *self.source_kind == **wanted,
                Column::Action => *self.action == **wanted,
                Column::ResultCode => *self.result_code == **wanted,
                Column::RequestId => *self.request_id == **wanted,
                Column::ResourceKind => self.resources.iter().any(|one| *one.kind == **wanted),
                Column::Category => word(self.category) == *wanted,
                Column::Operation => word(self.operation) == *wanted,
                Column::Result => word(self.result) == *wanted,
                Column::Severity => word(self.severity) == *wanted,
                Column::ActorType => word(self.actor_type) == *wanted,
                Column::DataClass => self.classes().any(|class| word(class) == *wanted),
                _ => false,
            },
        }
    }

    /// What its record was found to hold.
    pub fn classes(&self) -> impl Iterator<Item = DataClass> {
        let has = |code: &i32| self.data_classes >> (code - 1) & 1 == 1;
        (1..=MAX_CODE).filter(has).filter_map(|code| DataClass::try_from(code).ok())
    }
}

/// By which text an actor is known: the id, or the name where there is none. It is also whose key seals what says who it is.
pub fn subject_of(actor: &epigraph_event::v1::Actor) -> &str {
    if actor.id.is_empty() { &actor.name } else { &actor.id }
}

/// Those that there are, each once, in order.
fn once(some: impl Iterator<Item = Option<Pseudonym>>) -> Vec<Pseudonym> {
    let mut all = Vec::new();
    for pseudonym in some.flatten() {
        if !all.contains(&pseudonym) {
            all.push(pseudonym);
        }
    }
    all
}

/// The pseudonym of a text that is there.
fn some<E>(
    text: &str,
    of: impl FnOnce(&str) -> Result<Option<Pseudonym>, E>,
) -> Result<Option<Pseudonym>, E> {
    if text.is_empty() { Ok(None) } else { of(text) }
}
