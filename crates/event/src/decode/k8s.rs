//! Kubernetes audit: an `Event` of `audit.k8s.io` v1 or v1beta1, or an `EventList`. Records of older writers carry no
//! `apiVersion`: they are known by their shape.

use serde_json::Number;

use super::json::{self, Value};
use super::{Context, Decoded, Reason, overwrite, when};
use crate::collected::Event;
use crate::v1::{
    Actor, ActorType, Category, Decision, Format, Operation, ResourceKind, ResourceName, Result as Outcome,
};

/// The stages of a request (`audit.k8s.io/v1`, `Stage`).
const STAGES: [&str; 4] = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"];

/// The ids of the events of one request: each stage is an event of its own, and `auditID/stage` is its id.
pub fn ids_of_request(audit_id: &str) -> impl Iterator<Item = String> {
    STAGES.into_iter().map(move |stage| format!("{audit_id}/{stage}"))
}

/// Decodes an event, or a list of them.
pub fn decode(bytes: &[u8], context: &Context) -> Vec<Decoded> {
    json::document(bytes, "items", Format::K8sAudit, |record, object| event(record, object, context))
}

fn event(record: &str, object: Value<'_>, context: &Context) -> Result<Event, Reason> {
    let string = |name| object.get(name).and_then(Value::string);
    let kind_fits = object.get("kind").is_none_or(|kind| kind.string() == Some("Event"));
    let version_fits = object
        .get("apiVersion")
        .is_none_or(|version| version.string().is_some_and(|version| version.starts_with("audit.k8s.io/")));
    let (Some(audit_id), Some(verb)) = (string("auditID"), string("verb")) else {
        return Err(Reason::NotAnEvent);
    };
    if !kind_fits || !version_fits || audit_id.is_empty() {
        return Err(Reason::NotAnEvent);
    }
    let mut event = Event::of(context, Format::K8sAudit, "k8s", record.as_bytes());
    event.set_source(|source| {
        if source.id.is_empty() {
            "kube-apiserver".clone_into(&mut source.id);
        }
    });
    let times = ["stageTimestamp", "requestReceivedTimestamp", "timestamp"].map(|name| object.text(&[name]));
    let at = times.iter().find(|time| !time.is_empty()).map_or("", String::as_str);
    event.set_time(when::of_text(at));
    let stage = object.text(&["stage"]);
    for label in ["level", "stage", "apiVersion"] {
        event.label(label, object.text(&[label]));
    }

    let reference = object.at(&["objectRef"]).and_then(Value::object);
    let part = |name| reference.map(|reference| reference.text(&[name])).unwrap_or_default();
    let (resource, subresource) = (part("resource"), part("subresource"));
    let mut touched = resource.clone();
    if !subresource.is_empty() {
        touched = format!("{touched}/{subresource}");
    }
    let core = &mut event.core;
    // See `ids_of_request`.
    core.event_id = if stage.is_empty() { audit_id.to_owned() } else { format!("{audit_id}/{stage}") };
    audit_id.clone_into(&mut core.request_id);
    core.action = if touched.is_empty() { verb.to_owned() } else { format!("{verb}/{touched}") };
    let operation = operation(verb, &subresource);
    core.operation = operation.into();
    core.category = category(operation, &resource, &subresource).into();
    core.result_code = object.text(&["responseStatus", "code"]);
    core.result = result(object.at(&["responseStatus", "code"])).into();
    let annotation = |name| object.text(&["annotations", name]);
    core.decision = match annotation("authorization.k8s.io/decision").as_str() {
        "allow" => Decision::Allow,
        "forbid" => Decision::Deny,
        _ => Decision::Unspecified,
    }
    .into();

    let identity = &mut event.identity;
    identity.decision_reason = annotation("authorization.k8s.io/reason");
    identity.result_message = object.text(&["responseStatus", "reason"]);
    overwrite(&mut identity.result_message, &object.text(&["responseStatus", "message"]));
    identity.addresses = object.get("sourceIPs").map(Value::texts).unwrap_or_default();
    identity.user_agent = object.text(&["userAgent"]);
    let user = |name: &str| object.at(&[name]).and_then(Value::object).map(actor);
    identity.actor = user("user");
    core.actor_type = identity.actor.as_ref().map(|actor| actor.r#type).unwrap_or_default();
    identity.on_behalf_of.extend(user("impersonatedUser"));
    if !resource.is_empty() {
        let kind = ResourceKind { r#type: touched, parent: part("namespace") };
        let (id, name, version) = (part("uid"), part("name"), part("resourceVersion"));
        event.resource(kind, ResourceName { id, name, version });
    }
    Ok(event)
}

fn actor(user: Value<'_>) -> Actor {
    let name = user.text(&["username"]);
    let kind = match name.as_str() {
        "system:anonymous" => ActorType::Anonymous,
        name if name.starts_with("system:serviceaccount:") => ActorType::Service,
        name if name.starts_with("system:") => ActorType::System,
        "" => ActorType::Unspecified,
        _ => ActorType::User,
    };
    let session = user.at(&["extra", "authentication.kubernetes.io/credential-id"]).map(Value::texts);
    Actor {
        r#type: kind.into(),
        id: user.text(&["uid"]),
        name,
        groups: user.get("groups").map(Value::texts).unwrap_or_default(),
        session: session.into_iter().flatten().next().unwrap_or_default(),
        ..Actor::default()
    }
}

fn operation(verb: &str, subresource: &str) -> Operation {
    match (verb, subresource) {
        (_, "exec" | "attach" | "portforward" | "proxy") => Operation::Execute,
        ("get" | "list" | "watch", _) => Operation::Read,
        ("create", _) => Operation::Create,
        ("update" | "patch", _) => Operation::Update,
        ("delete" | "deletecollection", _) => Operation::Delete,
        ("bind" | "escalate" | "approve" | "impersonate", _) => Operation::Grant,
        _ => Operation::Other,
    }
}

fn category(operation: Operation, resource: &str, subresource: &str) -> Category {
    match (resource, subresource) {
        ("tokenreviews" | "certificatesigningrequests", _) | ("serviceaccounts", "token") => Category::Auth,
        _ if operation == Operation::Read => Category::Access,
        ("roles" | "rolebindings" | "clusterroles" | "clusterrolebindings", _) => Category::Policy,
        _ if operation == Operation::Grant => Category::Policy,
        ("secrets" | "configmaps", _) => Category::Data,
        _ => Category::Admin,
    }
}

fn result(code: Option<Value<'_>>) -> Outcome {
    match code.and_then(Value::number).and_then(Number::as_u64) {
        Some(401 | 403) => Outcome::Denied,
        Some(100..=399) => Outcome::Success,
        Some(400..) => Outcome::Failure,
        _ => Outcome::Unspecified,
    }
}
