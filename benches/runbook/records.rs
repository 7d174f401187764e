//! Records as CloudTrail and Kubernetes write them, made up from a seed: any number of them, each from its own number alone, so that
//! nobody has to keep them. Few actors and things are met often and many seldom; some calls fail. Among them are planted what the
//! runbooks look for, at places that are known.

use std::fmt::Write as _;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// When the first record was made: 2026-03-02T00:00:00Z, a Monday.
pub(crate) const START_NS: i64 = 1_772_409_600 * SECOND_NS;

/// How long the records take, whatever their number: a month that a responder may ask about.
pub(crate) const SPAN_NS: i64 = 30 * 86_400 * SECOND_NS;

const SECOND_NS: i64 = 1_000_000_000;

/// Whose records they are.
pub(crate) const ACCOUNT: &str = "111122223333";

/// Every so many records one is of the planted actor: 2 in 1,000.
const PLANTED_EVERY: u64 = 500;
const PLANTED_AT: u64 = 7;

/// Failures of the planted burst, and seconds between them.
pub(crate) const BURST: u64 = 12;
const BURST_STEP_NS: i64 = 4 * SECOND_NS;

/// Attempts to log in that fail before one succeeds.
pub(crate) const LOGINS: u64 = 6;

/// What is done to the planted thing, in order.
pub(crate) const LIFE: [&str; 5] =
    ["CreateBucket", "PutBucketPolicy", "PutBucketPolicy", "PutBucketAcl", "DeleteBucket"];

/// Who does what was planted.
pub(crate) const PLANTED_ACTOR: &str = "arn:aws:iam::111122223333:user/planted-person";
pub(crate) const BURST_ACTOR: &str = "arn:aws:iam::111122223333:user/planted-burst";
pub(crate) const LOGIN_ACTOR: &str = "arn:aws:iam::111122223333:user/planted-login";
pub(crate) const PLANTED_BUCKET: &str = "planted-bucket";

/// What services are asked to do: service, call, whether it reads, and by which parameter it names its thing.
const CALLS: [(&str, &str, bool, &str); 16] = [
    ("s3", "GetObject", true, "bucketName"),
    ("sts", "AssumeRole", true, "roleArn"),
    ("ec2", "DescribeInstances", true, "instanceId"),
    ("s3", "ListObjects", true, "bucketName"),
    ("kms", "Decrypt", true, "keyId"),
    ("s3", "PutObject", false, "bucketName"),
    ("secretsmanager", "GetSecretValue", true, "secretId"),
    ("iam", "GetUser", true, "userName"),
    ("lambda", "Invoke", false, "functionName"),
    ("ec2", "RunInstances", false, "instanceId"),
    ("iam", "ListRoles", true, "roleName"),
    ("s3", "DeleteObject", false, "bucketName"),
    ("ec2", "TerminateInstances", false, "instanceId"),
    ("iam", "AttachUserPolicy", false, "userName"),
    ("iam", "CreateAccessKey", false, "userName"),
    ("iam", "DeleteUser", false, "userName"),
];

const VERBS: [(&str, u64); 8] = [
    ("get", 200),
    ("list", 200),
    ("watch", 200),
    ("update", 200),
    ("patch", 200),
    ("create", 201),
    ("delete", 200),
    ("deletecollection", 200),
];

const KINDS: [&str; 8] =
    ["pods", "configmaps", "leases", "secrets", "endpoints", "deployments", "roles", "rolebindings"];

/// Who wrote a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    CloudTrail,
    Kubernetes,
}

/// Records of one seed.
#[derive(Clone, Copy)]
pub(crate) struct Records {
    pub(crate) seed: u64,
    pub(crate) count: u64,
}

/// Numbers that look random (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    fn below(&mut self, sides: u64) -> u64 {
        self.roll() % sides
    }

    /// A rank below `ranks`, the k-th about 1/k times as often as the first: Zipf's law with exponent 1, by its continuous form.
    fn rank(&mut self, ranks: u64) -> u64 {
        let part = (self.roll() >> 11) as f64 / (1_u64 << 53) as f64;
        ((ranks as f64).powf(part) as u64).saturating_sub(1).min(ranks - 1)
    }

    fn uuid(&mut self) -> String {
        let (high, low) = (self.roll(), self.roll());
        let [a, b, c] = [high >> 32, high >> 16 & 0xffff, high & 0xfff];
        format!(
            "{a:08x}-{b:04x}-4{c:03x}-{:04x}-{:012x}",
            0x8000 | low >> 48 & 0x3fff,
            low & 0xffff_ffff_ffff
        )
    }
}

/// A call that CloudTrail records.
struct Call<'a> {
    actor: &'a str,
    service: &'a str,
    name: &'a str,
    reads: bool,
    parameter: (&'a str, &'a str),
    error: &'a str,
    login: Option<bool>,
    at_ns: i64,
}

impl Records {
    /// The record of a number below `count`.
    pub(crate) fn record(&self, number: u64) -> (Kind, String) {
        let mut dice = Dice(self.seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let at_ns = START_NS + (SPAN_NS as i128 * i128::from(number) / i128::from(self.count)) as i64;
        // What was done a little earlier may come a little later.
        let at_ns = at_ns + (dice.below(30) as i64) * SECOND_NS;
        if let Some(call) = self.planted(number) {
            return (Kind::CloudTrail, call.json(&mut dice));
        }
        let is_planted = number % PLANTED_EVERY == PLANTED_AT;
        if dice.below(10) < 4 && !is_planted {
            return (Kind::Kubernetes, kubernetes(&mut dice, at_ns));
        }
        let (service, name, reads, parameter) = CALLS[dice.rank(CALLS.len() as u64) as usize];
        let who = dice.rank(20_000);
        let person = format!("arn:aws:iam::{ACCOUNT}:user/person-{who}");
        let actor = if is_planted { PLANTED_ACTOR } else { person.as_str() };
        let thing = format!("{parameter}-{}", dice.rank(200_000));
        let error = match dice.below(100) {
            0..4 => "AccessDenied",
            4..6 => "ThrottlingException",
            _ => "",
        };
        let parameter = (parameter, thing.as_str());
        (
            Kind::CloudTrail,
            Call { actor, service, name, reads, parameter, error, login: None, at_ns }.json(&mut dice),
        )
    }

    /// The first record of each planted run: the burst of failures, the log-ins, the life of the bucket.
    fn runs(&self) -> [u64; 3] {
        [self.count / 4, self.count / 2, self.count / 4 * 3]
    }

    /// How many records there are of the planted actor.
    pub(crate) fn of_planted_actor(&self) -> u64 {
        let of_life = LIFE.len() as u64;
        let others = (PLANTED_AT..self.count).step_by(PLANTED_EVERY as usize);
        of_life + others.filter(|number| self.planted(*number).is_none()).count() as u64
    }

    fn planted(&self, number: u64) -> Option<Call<'static>> {
        let [burst, logins, life] = self.runs();
        let within = |first: u64, length: u64| number.checked_sub(first).filter(|step| *step < length);
        let at =
            |first: u64| START_NS + (SPAN_NS as i128 * i128::from(first) / i128::from(self.count)) as i64;
        let call = |actor, service, name, thing| Call {
            actor,
            service,
            name,
            reads: false,
            parameter: thing,
            error: "",
            login: None,
            at_ns: 0,
        };
        if let Some(step) = within(burst, BURST) {
            let at_ns = at(burst) + step as i64 * BURST_STEP_NS;
            let call = call(BURST_ACTOR, "secretsmanager", "GetSecretValue", ("secretId", "planted-secret"));
            return Some(Call { error: "AccessDenied", at_ns, reads: true, ..call });
        }
        if let Some(step) = within(logins, LOGINS + 1) {
            let at_ns = at(logins) + step as i64 * 20 * SECOND_NS;
            let call = call(LOGIN_ACTOR, "signin", "ConsoleLogin", ("", ""));
            return Some(Call { login: Some(step == LOGINS), at_ns, ..call });
        }
        let step = within(life, LIFE.len() as u64)?;
        let call = call(PLANTED_ACTOR, "s3", LIFE[step as usize], ("bucketName", PLANTED_BUCKET));
        Some(Call { at_ns: at(life) + step as i64 * 3_600 * SECOND_NS, ..call })
    }
}

impl Call<'_> {
    fn json(&self, dice: &mut Dice) -> String {
        let Call { actor, service, name, reads, parameter: (parameter, thing), error, login, at_ns } = self;
        let user = actor.rsplit('/').next().unwrap_or(actor);
        let principal = dice_of(actor);
        let mut json = String::with_capacity(1_400);
        json.push_str(r#"{"awsRegion":"eu-central-1","eventCategory":"Management","#);
        let _ = write!(
            json,
            r#""eventID":"{}","eventName":"{name}","eventSource":"{service}.amazonaws.com","#,
            dice.uuid()
        );
        let _ = write!(
            json,
            r#""eventTime":"{}","eventType":"AwsApiCall","eventVersion":"1.09","#,
            rfc3339(*at_ns, true)
        );
        let _ =
            write!(json, r#""managementEvent":true,"readOnly":{reads},"recipientAccountId":"{ACCOUNT}","#);
        let _ = write!(json, r#""requestID":"{}","requestParameters":{{"#, dice.uuid());
        if !parameter.is_empty() {
            let _ = write!(
                json,
                r#""{parameter}":"{thing}","encodingType":"url","maxItems":{}"#,
                dice.below(1_000)
            );
        }
        json.push_str("},");
        if !error.is_empty() {
            let _ = write!(
                json,
                r#""errorCode":"{error}","errorMessage":"User: {actor} is not authorized to perform: {service}:{name} on resource: {thing}","#
            );
        }
        match login {
            Some(true) => json.push_str(r#""responseElements":{"ConsoleLogin":"Success"},"#),
            Some(false) => json.push_str(r#""responseElements":{"ConsoleLogin":"Failure"},"#),
            None => json.push_str(r#""responseElements":null,"#),
        }
        let _ = write!(json, r#""sourceIPAddress":"198.51.{}.{}","#, principal % 7, principal % 251);
        let _ = write!(
            json,
            r#""tlsDetails":{{"cipherSuite":"TLS_AES_128_GCM_SHA256","clientProvidedHostHeader":"{service}.eu-central-1.amazonaws.com","tlsVersion":"TLSv1.3"}},"#
        );
        json.push_str(r#""userAgent":"aws-cli/2.15.30 md/awscrt#0.19.19 ua/2.0 os/linux#6.1 md/arch#x86_64 lang/python#3.11.8","#);
        let _ = write!(
            json,
            r#""userIdentity":{{"accessKeyId":"AKIA{:016X}","accountId":"{ACCOUNT}","arn":"{actor}","principalId":"AIDA{:016X}","#,
            principal, !principal
        );
        if principal.is_multiple_of(3) {
            let _ = write!(
                json,
                r#""sessionContext":{{"sessionIssuer":{{"type":"Role","arn":"arn:aws:iam::{ACCOUNT}:role/role-{}"}}}},"#,
                principal % 40
            );
        }
        let _ = write!(json, r#""type":"IAMUser","userName":"{user}"}}}}"#);
        json
    }
}

/// A number that goes with a name.
fn dice_of(name: &str) -> u64 {
    Dice(name.bytes().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)))).roll()
}

fn kubernetes(dice: &mut Dice, at_ns: i64) -> String {
    let (verb, code) = VERBS[dice.rank(VERBS.len() as u64) as usize];
    let kind = KINDS[dice.rank(KINDS.len() as u64) as usize];
    let (namespace, name) = (dice.rank(40), dice.rank(200_000));
    let denied = dice.below(100) < 3;
    let (code, decision) = if denied { (403, "forbid") } else { (code, "allow") };
    let who = dice.rank(2_000);
    let user = match dice.below(3) {
        0 => format!("system:serviceaccount:team-{namespace}:controller-{who}"),
        1 => format!("system:node:node-{}", who % 300),
        _ => format!("person-{who}@corp.example"),
    };
    let mut json = String::with_capacity(1_200);
    let _ = write!(
        json,
        r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"{}","stage":"ResponseComplete","#,
        dice.uuid()
    );
    let _ = write!(
        json,
        r#""requestURI":"/api/v1/namespaces/team-{namespace}/{kind}/{kind}-{name}?timeout=32s","verb":"{verb}","#
    );
    let _ = write!(
        json,
        r#""user":{{"username":"{user}","uid":"{:016x}","groups":["system:authenticated","team-{namespace}"]}},"#,
        dice_of(&user)
    );
    let _ = write!(
        json,
        r#""sourceIPs":["10.{}.{}.{}"],"userAgent":"kube-controller-manager/v1.31.2 (linux/amd64) kubernetes/5864a46/leader-election","#,
        who % 7,
        who % 251,
        namespace
    );
    let _ = write!(
        json,
        r#""objectRef":{{"resource":"{kind}","namespace":"team-{namespace}","name":"{kind}-{name}","uid":"{}","apiVersion":"v1","resourceVersion":"{}"}},"#,
        uid(name),
        dice.below(1 << 30)
    );
    let _ = write!(
        json,
        r#""responseStatus":{{"metadata":{{}},"code":{code}}},"requestReceivedTimestamp":"{}","stageTimestamp":"{}","#,
        rfc3339(at_ns, false),
        rfc3339(at_ns + 5_000_000, false)
    );
    let _ = write!(
        json,
        r#""annotations":{{"authorization.k8s.io/decision":"{decision}","authorization.k8s.io/reason":"RBAC: allowed by ClusterRoleBinding \"team-{namespace}-admin\" of ClusterRole \"admin\" to Group \"team-{namespace}\""}}}}"#
    );
    json
}

/// The uid that goes with a thing.
fn uid(name: u64) -> String {
    Dice(name).uuid()
}

fn rfc3339(at_ns: i64, whole_seconds: bool) -> String {
    let at_ns = if whole_seconds { at_ns / SECOND_NS * SECOND_NS } else { at_ns };
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ns));
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}
