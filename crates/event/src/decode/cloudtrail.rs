//! AWS CloudTrail: a record, or a file with `Records`. Fields as in the record's contents, versions 1.05 to 1.11.

use super::json::{self, Value};
use super::{Context, Decoded, Reason, overwrite, when};
use crate::collected::Event;
use crate::v1::{
    Actor, ActorType, Category, Format, Operation, ResourceKind, ResourceName, Result as Outcome,
};

/// Request parameters that name the thing that was acted on, where the record has no `resources`.
const PARAMETERS: &[(&str, &str)] = &[
    ("bucketName", "AWS::S3::Bucket"),
    ("userName", "AWS::IAM::User"),
    ("roleName", "AWS::IAM::Role"),
    ("roleArn", "AWS::IAM::Role"),
    ("groupName", "AWS::IAM::Group"),
    ("policyArn", "AWS::IAM::Policy"),
    ("secretId", "AWS::SecretsManager::Secret"),
    ("keyId", "AWS::KMS::Key"),
    ("functionName", "AWS::Lambda::Function"),
    ("instanceId", "AWS::EC2::Instance"),
    ("snapshotId", "AWS::EC2::Snapshot"),
    ("imageId", "AWS::EC2::Image"),
    ("groupId", "AWS::EC2::SecurityGroup"),
    ("dBInstanceIdentifier", "AWS::RDS::DBInstance"),
    ("name", ""),
];

/// Where an answer says which key was issued: it was acted on as well, and what is done with it later is found by it.
const ISSUED: [[&str; 3]; 2] =
    [["responseElements", "accessKey", "accessKeyId"], ["responseElements", "credentials", "accessKeyId"]];

/// What the first word of an event's name does. Longer words come before their beginnings.
const VERBS: &[(&str, Operation)] = &[
    ("Get", Operation::Read),
    ("List", Operation::Read),
    ("Describe", Operation::Read),
    ("BatchGet", Operation::Read),
    ("Lookup", Operation::Read),
    ("Head", Operation::Read),
    ("Create", Operation::Create),
    ("Run", Operation::Create),
    ("Delete", Operation::Delete),
    ("Terminate", Operation::Delete),
    ("Put", Operation::Update),
    ("Update", Operation::Update),
    ("Modify", Operation::Update),
    ("Set", Operation::Update),
    ("Attach", Operation::Grant),
    ("Authorize", Operation::Grant),
    ("Detach", Operation::Revoke),
    ("Revoke", Operation::Revoke),
    ("ConsoleLogin", Operation::Login),
    ("AssumeRole", Operation::Login),
    ("Logout", Operation::Logout),
    ("Invoke", Operation::Execute),
    ("SendCommand", Operation::Execute),
    ("StartSession", Operation::Execute),
];

/// Decodes a record, or a file of them.
pub fn decode(bytes: &[u8], context: &Context) -> Vec<Decoded> {
    json::document(bytes, "Records", Format::Cloudtrail, |record, object| event(record, object, context))
}

fn event(record: &str, object: Value<'_>, context: &Context) -> Result<Event, Reason> {
    let string = |name| object.get(name).and_then(Value::string);
    let (Some(name), Some(service)) = (string("eventName"), string("eventSource")) else {
        return Err(Reason::NotAnEvent);
    };
    let mut event = Event::of(context, Format::Cloudtrail, "cloudtrail", record.as_bytes());
    event.set_source(|source| {
        service.clone_into(&mut source.id);
        source.region = object.text(&["awsRegion"]);
    });
    event.set_time(when::of_text(&object.text(&["eventTime"])));
    for label in ["eventType", "eventVersion", "eventCategory", "sharedEventID"] {
        event.label(label, object.text(&[label]));
    }
    let core = &mut event.core;
    core.event_id = object.text(&["eventID"]);
    overwrite(&mut core.tenant, &object.text(&["recipientAccountId"]));
    core.action = format!("{service}:{name}");
    core.request_id = object.text(&["requestID"]);
    let is_read = object.at(&["readOnly"]).and_then(Value::truth).unwrap_or(false);
    let operation = operation(name, is_read);
    core.operation = operation.into();
    core.category = category(service, operation, object.text(&["eventCategory"]) == "Data").into();
    core.result_code = object.text(&["errorCode"]);
    core.result = result(object, &core.result_code).into();

    let identity = &mut event.identity;
    identity.result_message = object.text(&["errorMessage"]);
    identity.user_agent = object.text(&["userAgent"]);
    identity.addresses.extend(Some(object.text(&["sourceIPAddress"])).filter(|text| !text.is_empty()));
    if let Some(user) = object.at(&["userIdentity"]).and_then(Value::object) {
        let actor = actor(user);
        core.actor_type = actor.r#type;
        identity.actor = Some(actor);
        identity.on_behalf_of = behind(user);
    }
    resources(object, &mut event);
    Ok(event)
}

fn operation(name: &str, is_read: bool) -> Operation {
    let known = VERBS.iter().find(|(verb, _)| name.starts_with(verb)).map(|(_, operation)| *operation);
    match known {
        // What AWS itself calls a reading call is one, whatever its name.
        Some(Operation::Login | Operation::Logout) => known.unwrap_or(Operation::Other),
        _ if is_read => Operation::Read,
        Some(operation) => operation,
        None => Operation::Other,
    }
}

fn category(service: &str, operation: Operation, is_data: bool) -> Category {
    match (service, operation) {
        ("signin.amazonaws.com" | "sts.amazonaws.com", _) | (_, Operation::Login | Operation::Logout) => {
            Category::Auth
        }
        (_, Operation::Read) => Category::Access,
        ("iam.amazonaws.com", _) | (_, Operation::Grant | Operation::Revoke) => Category::Policy,
        _ if is_data => Category::Data,
        _ => Category::Admin,
    }
}

fn result(object: Value<'_>, code: &str) -> Outcome {
    let login = object.at(&["responseElements", "ConsoleLogin"]).and_then(Value::string);
    let denied = ["AccessDenied", "Unauthorized", "Forbidden"].iter().any(|word| code.contains(word));
    match code {
        "" if login == Some("Failure") => Outcome::Failure,
        "" => Outcome::Success,
        _ if denied => Outcome::Denied,
        _ => Outcome::Failure,
    }
}

fn actor(user: Value<'_>) -> Actor {
    let ids = ["arn", "principalId", "invokedBy", "accountId"].map(|name| user.text(&[name]));
    let mfa = user.text(&["sessionContext", "attributes", "mfaAuthenticated"]) == "true";
    Actor {
        r#type: actor_type(&user.text(&["type"])).into(),
        id: ids.into_iter().find(|id| !id.is_empty()).unwrap_or_default(),
        name: user.text(&["userName"]),
        session: user.text(&["accessKeyId"]),
        auth_method: if mfa { "mfa".to_owned() } else { String::new() },
        ..Actor::default()
    }
}

fn actor_type(kind: &str) -> ActorType {
    match kind {
        "Root" | "IAMUser" | "FederatedUser" | "IdentityCenterUser" | "WebIdentityUser" | "SAMLUser"
        | "Directory" => ActorType::User,
        "AssumedRole" | "Role" => ActorType::Role,
        "AWSService" => ActorType::Service,
        "Unknown" => ActorType::Anonymous,
        _ => ActorType::Unspecified,
    }
}

/// Who stands behind a session: the role or user that issued it, the service that asked, the person of a federation.
fn behind(user: Value<'_>) -> Vec<Actor> {
    let issuer = user.at(&["sessionContext", "sessionIssuer"]).and_then(Value::object).map(actor);
    let of = |kind: ActorType, id: String| {
        (!id.is_empty()).then(|| Actor { r#type: kind.into(), id, ..Actor::default() })
    };
    let person = of(ActorType::User, user.text(&["onBehalfOf", "userId"]));
    let service = of(ActorType::Service, user.text(&["invokedBy"]));
    issuer.into_iter().chain(person).chain(service).collect()
}

fn resources(object: Value<'_>, event: &mut Event) {
    let listed = object.get("resources").into_iter().flat_map(Value::items);
    for resource in listed.filter_map(Value::object) {
        let kind = ResourceKind { r#type: resource.text(&["type"]), parent: resource.text(&["accountId"]) };
        event.resource(kind, ResourceName { id: resource.text(&["ARN"]), ..ResourceName::default() });
    }
    if event.core.resources.is_empty() {
        named_in_parameters(object, event);
    }
    for path in ISSUED {
        let id = object.text(&path);
        if !id.is_empty() {
            let kind = ResourceKind { r#type: "AWS::IAM::AccessKey".to_owned(), ..ResourceKind::default() };
            event.resource(kind, ResourceName { id, ..ResourceName::default() });
        }
    }
}

fn named_in_parameters(object: Value<'_>, event: &mut Event) {
    let Some(parameters) = object.at(&["requestParameters"]).and_then(Value::object) else { return };
    for (parameter, kind) in PARAMETERS {
        let name = parameters.text(&[parameter]);
        if !name.is_empty() {
            let kind = ResourceKind { r#type: (*kind).to_owned(), ..ResourceKind::default() };
            event.resource(kind, ResourceName { name, ..ResourceName::default() });
        }
    }
}
