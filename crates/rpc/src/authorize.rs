//! Who may do what: roles, the table of calls, grants, and the proof that authorization has happened.
//!
//! Deny by default: a call that is not in the table, and a name that no grant covers, is refused. It knows names, paths
//! and origins, and nothing of TLS or of what the calls do.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::Origin;
use thiserror::Error;
use tokio::time::Instant;

use crate::accept::PeerIdentity;
use crate::identity::{SpiffeError, SpiffeId};
use crate::limits::{CALL_DEADLINE, DRILL_DEADLINE, MAX_WAIT};
use crate::status::{Reason, Refusal};

/// Grants in one configuration: every call walks through them.
pub const MAX_GRANTS: usize = 1_024;

/// What a peer is allowed to be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Appends entries, and fetches their proofs.
    Appender,
    /// Reads what is published.
    Reader,
    /// The log process, calling its signer and its witnesses.
    Log,
    /// The signer process, comparing heads before it opens a term.
    Signer,
    /// A witness, linking a head that it holds to the next.
    Witness,
    /// A monitor, re-reading everything.
    Monitor,
    /// An auditor, verifying what is published.
    Auditor,
    /// An operator, looking at the state of things. No call resets, pins or rewinds: those are local commands.
    Operator,
    /// A collector, sending signed batches of events.
    Collector,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 9] = [
        Role::Appender,
        Role::Reader,
        Role::Log,
        Role::Signer,
        Role::Witness,
        Role::Monitor,
        Role::Auditor,
        Role::Operator,
        Role::Collector,
    ];

    /// The role as it stands in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Appender => "appender",
            Role::Reader => "reader",
            Role::Log => "log",
            Role::Signer => "signer",
            Role::Witness => "witness",
            Role::Monitor => "monitor",
            Role::Auditor => "auditor",
            Role::Operator => "operator",
            Role::Collector => "collector",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Role, GrantError> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| GrantError::Role(text.into()))
    }
}

fn listed(roles: &[Role]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
}

/// One call: who may make it, and how long it may take.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The path of the HTTP/2 request.
    pub(crate) path: &'static str,
    /// Any of these will do.
    pub(crate) roles: &'static [Role],
    /// From the header of the request to the header of the answer, reading the request included.
    pub(crate) deadline: Duration,
}

/// Whoever has to link heads; of these only those that look at single entries may ask for their proofs.
const HEAD_READERS: &[Role] =
    &[Role::Appender, Role::Reader, Role::Signer, Role::Witness, Role::Monitor, Role::Auditor];

/// Whoever looks at single entries.
const ENTRY_READERS: &[Role] = &[Role::Appender, Role::Reader, Role::Witness, Role::Monitor, Role::Auditor];

/// Whoever compares what a witness holds with what a log shows.
const COSIGNED_READERS: &[Role] =
    &[Role::Reader, Role::Log, Role::Signer, Role::Witness, Role::Monitor, Role::Auditor, Role::Operator];

/// Whoever looks at what a monitor found.
const FINDING_READERS: &[Role] = &[Role::Auditor, Role::Operator];

/// Whoever may ask about events; what each may ask is decided by the policies of the audit service.
const ASKERS: &[Role] = &[Role::Reader, Role::Auditor, Role::Operator];

/// Every call that this crate serves. A call without a rule is refused, and a test fails.
pub(crate) const RULES: &[Rule] = &[
    Rule {
        path: "/epigraph.v1.LogService/Append",
        roles: &[Role::Appender],
        deadline: CALL_DEADLINE.saturating_add(MAX_WAIT),
    },
    Rule { path: "/epigraph.v1.LogService/AppendStream", roles: &[Role::Appender], deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.LogService/GetProducer", roles: &[Role::Appender], deadline: CALL_DEADLINE },
    Rule {
        path: "/epigraph.v1.LogService/GetProof",
        roles: &[Role::Appender, Role::Reader, Role::Monitor, Role::Auditor],
        deadline: CALL_DEADLINE,
    },
    Rule { path: "/epigraph.v1.LogService/GetEntries", roles: ENTRY_READERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.LogService/Follow", roles: ENTRY_READERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.LogService/GetTile", roles: ENTRY_READERS, deadline: CALL_DEADLINE },
    Rule {
        path: "/epigraph.v1.LogService/GetConsistencyProof",
        roles: HEAD_READERS,
        deadline: CALL_DEADLINE,
    },
    Rule { path: "/epigraph.v1.LogService/GetCheckpoint", roles: HEAD_READERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.LogService/ListCheckpoints", roles: HEAD_READERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.LogService/WatchCheckpoints", roles: HEAD_READERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.LogService/AddCosignature", roles: &[Role::Witness], deadline: CALL_DEADLINE },
    Rule {
        path: "/epigraph.v1.SignerService/GetHead",
        roles: &[Role::Log, Role::Witness, Role::Monitor, Role::Auditor],
        deadline: CALL_DEADLINE,
    },
    Rule { path: "/epigraph.v1.SignerService/OpenTerm", roles: &[Role::Log], deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.SignerService/SignCheckpoint", roles: &[Role::Log], deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.WitnessService/AddCheckpoint", roles: &[Role::Log], deadline: CALL_DEADLINE },
    Rule {
        path: "/epigraph.v1.WitnessService/GetCheckpoint",
        roles: COSIGNED_READERS,
        deadline: CALL_DEADLINE,
    },
    Rule {
        path: "/epigraph.v1.WitnessService/WatchCheckpoints",
        roles: COSIGNED_READERS,
        deadline: CALL_DEADLINE,
    },
    Rule { path: "/epigraph.v1.WitnessService/ListLogs", roles: COSIGNED_READERS, deadline: CALL_DEADLINE },
    Rule {
        path: "/epigraph.v1.MonitorService/ReportCheckpoint",
        roles: &[Role::Monitor],
        deadline: CALL_DEADLINE,
    },
    Rule {
        path: "/epigraph.v1.MonitorService/ListCheckpoints",
        roles: &[Role::Monitor, Role::Auditor, Role::Operator],
        deadline: CALL_DEADLINE,
    },
    Rule {
        path: "/epigraph.v1.MonitorService/SubmitReceipt",
        roles: &[Role::Appender],
        deadline: CALL_DEADLINE,
    },
    Rule { path: "/epigraph.v1.MonitorService/GetStatus", roles: FINDING_READERS, deadline: CALL_DEADLINE },
    Rule {
        path: "/epigraph.v1.MonitorService/ListFindings",
        roles: FINDING_READERS,
        deadline: CALL_DEADLINE,
    },
    Rule {
        path: "/epigraph.v1.MonitorService/WatchFindings",
        roles: FINDING_READERS,
        deadline: CALL_DEADLINE,
    },
    Rule { path: "/epigraph.v1.MonitorService/GetEvidence", roles: FINDING_READERS, deadline: CALL_DEADLINE },
    Rule {
        path: "/epigraph.v1.MonitorService/AcknowledgeFinding",
        roles: &[Role::Operator],
        deadline: CALL_DEADLINE,
    },
    Rule {
        path: "/epigraph.v1.AuditService/SubmitBatches",
        roles: &[Role::Collector],
        deadline: CALL_DEADLINE,
    },
    Rule {
        path: "/epigraph.v1.AuditService/GetSource",
        roles: &[Role::Collector, Role::Auditor, Role::Operator],
        deadline: CALL_DEADLINE,
    },
    Rule {
        path: "/epigraph.v1.AuditService/GetEvent",
        roles: &[Role::Reader, Role::Auditor],
        deadline: CALL_DEADLINE,
    },
    Rule {
        path: "/epigraph.v1.AuditService/ListSources",
        roles: &[Role::Monitor, Role::Auditor, Role::Operator],
        deadline: CALL_DEADLINE,
    },
    Rule { path: "/epigraph.v1.QueryService/ListRunbooks", roles: ASKERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.QueryService/RunRunbook", roles: ASKERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.QueryService/AuditWindow", roles: ASKERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.QueryService/TailEvents", roles: ASKERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.QueryService/ListQueries", roles: ASKERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.QueryService/CancelQuery", roles: ASKERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.QueryService/ListApprovals", roles: ASKERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.QueryService/DecideApproval", roles: ASKERS, deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.CollectorService/Collect", roles: &[Role::Appender], deadline: CALL_DEADLINE },
    Rule { path: "/epigraph.v1.MonitorService/RunDrill", roles: &[Role::Operator], deadline: DRILL_DEADLINE },
    // Says what everybody can read in the .proto files, to those who may do something here, and only where it is configured.
    Rule { path: REFLECTION, roles: &Role::ALL, deadline: CALL_DEADLINE },
];

/// The one call that is not of our protocol.
pub(crate) const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// One line of `[[authorize]]`: whoever matches has these roles for these logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Which names.
    pub spiffe: SpiffePattern,
    /// What they may be.
    pub roles: BTreeSet<Role>,
    /// For which logs.
    pub logs: Logs,
}

/// Which logs a grant is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Logs {
    /// Every log of this server, also those that are added later.
    All,
    /// The logs of these origins.
    Only(BTreeSet<String>),
}

impl Logs {
    fn contains(&self, origin: &str) -> bool {
        match self {
            Logs::All => true,
            Logs::Only(origins) => origins.contains(origin),
        }
    }
}

/// One name, or with a last segment `*` every name below a path. Matching is by whole segments: what is granted to
/// `…/epigraph/log/*` is not granted to `…/epigraph/logger/x`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SpiffePattern {
    /// This name.
    Exact(SpiffeId),
    /// The names with this one, a slash, and anything.
    Below(SpiffeId),
}

impl SpiffePattern {
    /// Whether the name is meant.
    pub fn matches(&self, name: &SpiffeId) -> bool {
        match self {
            SpiffePattern::Exact(exact) => exact == name,
            SpiffePattern::Below(base) => {
                name.as_str().strip_prefix(base.as_str()).is_some_and(|rest| rest.starts_with('/'))
            }
        }
    }
}

impl FromStr for SpiffePattern {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<SpiffePattern, GrantError> {
        let pattern = match text.strip_suffix("/*") {
            Some(base) => base.parse().map(SpiffePattern::Below),
            None => text.parse().map(SpiffePattern::Exact),
        };
        pattern.map_err(GrantError::Spiffe)
    }
}

/// Why a grant is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum GrantError {
    /// Neither a name nor a name and `/*`.
    #[error("{0}; a grant is for one SPIFFE name, or for all below a path if its last segment is *")]
    Spiffe(SpiffeError),
    /// No such role.
    #[error("there is no role {0:?}; the roles are {list}", list = listed(&Role::ALL))]
    Role(String),
    /// Above [`MAX_GRANTS`].
    #[error(
        "a configuration has at most {MAX_GRANTS} grants, this one has {0}; grant to paths that end in /*"
    )]
    TooMany(usize),
}

/// Decides by the grants of a configuration. Without grants it refuses everything.
#[derive(Clone, Default, Debug)]
pub struct Authorizer {
    grants: Arc<[Arc<Grant>]>,
}

impl Authorizer {
    /// At most [`MAX_GRANTS`].
    pub fn new(grants: Vec<Grant>) -> Result<Authorizer, GrantError> {
        if grants.len() > MAX_GRANTS {
            return Err(GrantError::TooMany(grants.len()));
        }
        Ok(Authorizer { grants: grants.into_iter().map(Arc::new).collect() })
    }

    /// Whether the peer may make the call at all. For which logs is decided when it is known which log is meant:
    /// [`Caller::authorize`].
    pub(crate) fn check(&self, peer: Arc<PeerIdentity>, rule: &'static Rule) -> Result<Caller, Refusal> {
        let allows = |grant: &&Arc<Grant>| {
            grant.spiffe.matches(&peer.spiffe) && rule.roles.iter().any(|role| grant.roles.contains(role))
        };
        let grants: Vec<_> = self.grants.iter().filter(allows).cloned().collect();
        let caller = Caller { peer, rule, grants };
        if caller.grants.is_empty() { Err(caller.denied("")) } else { Ok(caller) }
    }
}

/// Who makes a call, and by which grants. In the extensions of every request that reaches a handler.
#[derive(Clone, Debug)]
pub struct Caller {
    peer: Arc<PeerIdentity>,
    rule: &'static Rule,
    /// Those that match the peer and allow the call: a role for one log is no role for another.
    grants: Vec<Arc<Grant>>,
}

/// Something that the caller may make this call for: [`Authorized<Origin>`](Origin) is a log. Only [`Caller::authorize`] makes
/// it, so a handler that asks for one cannot forget to ask.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Authorized<T>(T);

impl<T> Authorized<T> {
    /// What the caller may use.
    pub fn get(&self) -> &T {
        &self.0
    }
}

impl Caller {
    /// The caller of a request that has passed the gate.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Caller, Refusal> {
        // Not a panic, and not a default: a handler that is served without the gate serves nobody.
        request.extensions().get().ok_or_else(unauthenticated)
    }

    /// The caller's name.
    pub fn identity(&self) -> &SpiffeId {
        &self.peer.spiffe
    }

    /// When the client of this connection is asked to leave. A stream that is still open then must end by itself, with
    /// what its reader needs to go on elsewhere; whoever stays on is cut off
    /// [`CONNECTION_GRACE`](crate::connection::CONNECTION_GRACE) later.
    pub fn leave_by(&self) -> Instant {
        self.peer.leave_by
    }

    /// Asks for one log, by its origin in full. Whoever may use no log learns nothing about which ones there could be.
    pub fn authorize(&self, origin: &str) -> Result<Authorized<Origin>, Refusal> {
        if !self.grants.iter().any(|grant| grant.logs.contains(origin)) {
            return Err(self.denied(&format!(" on the log {origin:?}")));
        }
        let malformed = |error| Refusal::new(Reason::UnknownOrigin, format!("{error}")).at("origin");
        Origin::new(origin).map(Authorized).map_err(malformed)
    }

    /// Whether the caller has the role for this log, by a grant that also allows this call.
    pub fn has_role(&self, role: Role, log: &Authorized<Origin>) -> bool {
        let origin = log.get().as_str();
        self.grants.iter().any(|grant| grant.roles.contains(&role) && grant.logs.contains(origin))
    }

    fn denied(&self, where_: &str) -> Refusal {
        let (name, call, roles) = (&self.peer.spiffe, self.rule.path, listed(self.rule.roles));
        Refusal::new(
            Reason::PermissionDenied,
            format!(
                "{name} may not call {call}{where_}: it takes one of the roles {roles}; see [[authorize]]"
            ),
        )
    }
}

pub(crate) fn unauthenticated() -> Refusal {
    Refusal::new(Reason::Unauthenticated, "the connection carries no identity; connect over mutual TLS")
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn peer(name: &str) -> Arc<PeerIdentity> {
        PeerIdentity::of_test(&format!("spiffe://td/epigraph/{name}"))
    }

    fn grant(pattern: &str, roles: &[Role], logs: Logs) -> Grant {
        let spiffe = format!("spiffe://td/epigraph/{pattern}").parse().unwrap();
        Grant { spiffe, roles: roles.iter().copied().collect(), logs }
    }

    fn only(origin: &str) -> Logs {
        Logs::Only([origin.to_string()].into())
    }

    fn rule(call: &str) -> &'static Rule {
        RULES.iter().find(|rule| rule.path.ends_with(call)).unwrap()
    }

    #[test]
    fn patterns_match_whole_segments() {
        let check = |pattern: &str, name: &str, expected: bool| {
            let pattern: SpiffePattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(&name.parse().unwrap()), expected, "{pattern:?} {name}");
        };
        check("spiffe://td/epigraph/log/*", "spiffe://td/epigraph/log/main", true);
        check("spiffe://td/epigraph/log/*", "spiffe://td/epigraph/logger/main", false);
        check("spiffe://td/epigraph/log/*", "spiffe://td/epigraph/log", false);
        check("spiffe://td/epigraph/*", "spiffe://td/epigraph/log/main", true);
        check("spiffe://td/epigraph/log", "spiffe://td/epigraph/logger", false);
        check("spiffe://td/epigraph/log", "spiffe://td/epigraph/log/main", false);
        check("spiffe://td/epigraph/log/main", "spiffe://td/epigraph/log/main", true);
        check("spiffe://td/epigraph/log/main", "spiffe://td/epigraph/log/Main", false);
        check("spiffe://td/epigraph/log/*", "spiffe://td.evil/epigraph/log/main", false);
        check("spiffe://td/epigraph/log/*", "spiffe://other/epigraph/log/main", false);
    }

    #[test]
    fn a_pattern_is_a_name_or_a_name_and_a_star() {
        for bad in
            ["*", "spiffe://*", "spiffe://td/*", "spiffe://td/a*", "spiffe://td/*/a", "spiffe://td/a/**", ""]
        {
            assert!(bad.parse::<SpiffePattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_call_of_the_protocol_has_a_rule_and_every_rule_a_call() {
        let sets = [crate::DESCRIPTORS, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET]
            .map(|set| prost_types::FileDescriptorSet::decode(set).unwrap());
        let mut calls = BTreeSet::new();
        for file in sets.iter().flat_map(|set| &set.file) {
            for service in &file.service {
                for method in &service.method {
                    calls.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        assert!(!calls.is_empty());
        let rules: BTreeSet<String> = RULES.iter().map(|rule| rule.path.to_string()).collect();
        assert_eq!(calls, rules);
        assert_eq!(rules.len(), RULES.len(), "a rule stands twice");
    }

    #[test]
    fn the_matrix_of_calls_and_roles() {
        use Role::{Appender, Auditor, Collector, Log, Monitor, Operator, Reader, Signer, Witness};
        let cosigned: &[Role] = &[Reader, Log, Signer, Witness, Monitor, Auditor, Operator];
        let askers: &[Role] = &[Reader, Auditor, Operator];
        let expected: [(&str, &[Role]); 42] = [
            ("/AddCosignature", &[Witness]),
            ("/Append", &[Appender]),
            ("/AppendStream", &[Appender]),
            ("/GetProducer", &[Appender]),
            ("/Follow", &[Appender, Reader, Witness, Monitor, Auditor]),
            ("/GetTile", &[Appender, Reader, Witness, Monitor, Auditor]),
            ("LogService/ListCheckpoints", &[Appender, Reader, Signer, Witness, Monitor, Auditor]),
            ("LogService/WatchCheckpoints", &[Appender, Reader, Signer, Witness, Monitor, Auditor]),
            ("/GetProof", &[Appender, Reader, Monitor, Auditor]),
            ("/GetEntries", &[Appender, Reader, Witness, Monitor, Auditor]),
            ("/GetConsistencyProof", &[Appender, Reader, Signer, Witness, Monitor, Auditor]),
            ("LogService/GetCheckpoint", &[Appender, Reader, Signer, Witness, Monitor, Auditor]),
            ("/GetHead", &[Log, Witness, Monitor, Auditor]),
            ("/OpenTerm", &[Log]),
            ("/SignCheckpoint", &[Log]),
            ("WitnessService/AddCheckpoint", &[Log]),
            ("WitnessService/GetCheckpoint", cosigned),
            ("WitnessService/WatchCheckpoints", cosigned),
            ("WitnessService/ListLogs", cosigned),
            ("/ReportCheckpoint", &[Monitor]),
            ("MonitorService/ListCheckpoints", &[Monitor, Auditor, Operator]),
            ("/SubmitReceipt", &[Appender]),
            ("/GetStatus", &[Auditor, Operator]),
            ("/ListFindings", &[Auditor, Operator]),
            ("/WatchFindings", &[Auditor, Operator]),
            ("/GetEvidence", &[Auditor, Operator]),
            ("/AcknowledgeFinding", &[Operator]),
            ("/SubmitBatches", &[Collector]),
            ("/GetSource", &[Collector, Auditor, Operator]),
            ("/GetEvent", &[Reader, Auditor]),
            ("/ListSources", &[Monitor, Auditor, Operator]),
            ("/Collect", &[Appender]),
            ("/ListRunbooks", askers),
            ("/RunRunbook", askers),
            ("/AuditWindow", askers),
            ("/TailEvents", askers),
            ("/ListQueries", askers),
            ("/CancelQuery", askers),
            ("/ListApprovals", askers),
            ("/DecideApproval", askers),
            ("/RunDrill", &[Operator]),
            ("/ServerReflectionInfo", &Role::ALL),
        ];
        assert_eq!(expected.len(), RULES.len());
        for (call, allowed) in expected {
            for role in Role::ALL {
                let authorizer = Authorizer::new(vec![grant("x/*", &[role], Logs::All)]).unwrap();
                let answer = authorizer.check(peer("x/1"), rule(call));
                assert_eq!(answer.is_ok(), allowed.contains(&role), "{call} {role}");
            }
        }
    }

    #[test]
    fn without_a_grant_everything_is_refused() {
        let refusal = Authorizer::default().check(peer("x/1"), rule("/GetCheckpoint")).unwrap_err();
        assert_eq!(refusal.reason(), Reason::PermissionDenied);
        for part in ["spiffe://td/epigraph/x/1", "/epigraph.v1.LogService/GetCheckpoint", "appender, reader"]
        {
            assert!(refusal.message().contains(part), "{refusal}");
        }
    }

    #[test]
    fn a_role_for_one_log_is_no_role_for_another() {
        let grants = vec![
            grant("x/*", &[Role::Appender], only("a.example/log")),
            grant("x/1", &[Role::Monitor], only("b.example/log")),
        ];
        let authorizer = Authorizer::new(grants).unwrap();
        let append = authorizer.check(peer("x/1"), rule("/Append")).unwrap();
        assert_eq!(append.authorize("a.example/log").unwrap().get().as_str(), "a.example/log");
        assert_eq!(append.authorize("b.example/log").unwrap_err().reason(), Reason::PermissionDenied);
        assert!(append.authorize("").is_err() && append.authorize("a.example/log/2").is_err());

        let read = authorizer.check(peer("x/1"), rule("/GetCheckpoint")).unwrap();
        let [a, b] = ["a.example/log", "b.example/log"].map(|origin| read.authorize(origin).unwrap());
        assert_eq!((read.has_role(Role::Monitor, &a), read.has_role(Role::Monitor, &b)), (false, true));
    }

    #[test]
    fn a_request_that_did_not_pass_the_gate_has_no_caller() {
        let refusal = Caller::of(&tonic::Request::new(())).unwrap_err();
        assert_eq!(refusal.reason(), Reason::Unauthenticated);
    }

    #[test]
    fn roles_are_written_in_one_way() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        let error = "Reader".parse::<Role>().unwrap_err();
        assert!(error.to_string().ends_with(
            "the roles are appender, reader, log, signer, witness, monitor, auditor, operator, collector"
        ));
    }

    #[test]
    fn there_are_at_most_1024_grants() {
        let grants = |count| vec![grant("x/1", &[], Logs::All); count];
        assert!(Authorizer::new(grants(1_024)).is_ok());
        assert_eq!(Authorizer::new(grants(1_025)).unwrap_err(), GrantError::TooMany(1_025));
    }
}
