//! `[[door]]` of a collector: where senders push events to, and who may.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use epigraph_event::decode::mapped::Mapping;
use epigraph_rpc::SpiffePattern;
use epigraph_rpc::tls::{GuestFiles, MAX_GUEST_PATTERNS};
use serde::Deserialize;

/// The most doors of one collector: each kind for a few tenants. Each may have some hundred connections.
pub const MAX_DOORS: usize = 16;

/// The longest name of a door; it stands in metrics and messages.
const MAX_NAME_BYTES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPushDoor {
    name: String,
    kind: DoorKind,
    address: SocketAddr,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    allow_plain_text: bool,
    tls: Option<RawDoorTls>,
    mapping: Option<Mapping>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDoorTls {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    clients: Vec<String>,
}

/// What is spoken at a door.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DoorKind {
    /// OpenTelemetry logs over gRPC.
    Otlp,
    /// The webhook of a Kubernetes API server's audit log.
    K8sWebhook,
    /// CloudEvents over HTTP.
    Cloudevents,
    /// Syslog over TLS.
    Syslog,
    /// Epigraph's own `CollectorService`.
    Native,
}

impl DoorKind {
    /// What the protocol is called in TLS (RFC 7301). Senders of syslog name none.
    fn protocol(self) -> Option<&'static [u8]> {
        match self {
            DoorKind::Otlp | DoorKind::Native => Some(b"h2"),
            DoorKind::K8sWebhook | DoorKind::Cloudevents => Some(b"http/1.1"),
            DoorKind::Syslog => None,
        }
    }
}

/// A checked `[[door]]`.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// What it is called here.
    pub name: String,
    /// What is spoken.
    pub kind: DoorKind,
    /// Where.
    pub address: SocketAddr,
    /// Whose events come in, where they do not say so themselves.
    pub tenant: String,
    /// Who may send; everybody, without.
    pub tls: Option<GuestFiles>,
    /// Where the fields of an event are, at a door that is `native`.
    pub mapping: Mapping,
    /// Of which its senders are there.
    pub trust_domain: String,
}

/// Checks them all. Senders of our own protocol are of this trust domain.
pub fn check(doors: Vec<RawPushDoor>, trust_domain: &str, base: &Path) -> Result<Vec<DoorConfig>, String> {
    if doors.len() > MAX_DOORS {
        return Err(format!("there are {} doors, and {MAX_DOORS} at most", doors.len()));
    }
    let mut names = BTreeSet::new();
    let checked: Vec<DoorConfig> =
        doors.into_iter().map(|door| door.check(trust_domain, base)).collect::<Result<_, _>>()?;
    match checked.iter().find(|door| !names.insert(&door.name)) {
        Some(twice) => Err(format!("[[door]] {} is there twice", twice.name)),
        None => Ok(checked),
    }
}

impl RawPushDoor {
    fn check(self, trust_domain: &str, base: &Path) -> Result<DoorConfig, String> {
        let RawPushDoor { name, kind, address, tenant, allow_plain_text, tls, mapping } = self;
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !name.bytes().all(is_word) {
            return Err(format!(
                "[[door]] name is 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 - _ .; this one is {name:?}"
            ));
        }
        let tls = match tls {
            Some(tls) => Some(tls.check(kind, base).map_err(|what| format!("[[door]] {name}: {what}"))?),
            None if address.ip().is_loopback() || allow_plain_text => None,
            None => {
                return Err(format!(
                    "[[door]] {name}: on {address} anybody could send and listen in. Give it [door.tls], or a loopback address; \
                     if something in front of it does both, say allow_plain_text = true"
                ));
            }
        };
        match (kind, &tls) {
            (DoorKind::Native, None) => {
                return Err(format!(
                    "[[door]] {name}: our own protocol is spoken over mutual TLS: give it [door.tls]"
                ));
            }
            (DoorKind::Native, Some(_)) => {}
            _ if mapping.is_some() => {
                return Err(format!(
                    "[[door]] {name}: only events of a native door are mapped; others have fields of their own"
                ));
            }
            _ => {}
        }
        let (mapping, trust_domain) = (mapping.unwrap_or_default(), trust_domain.to_owned());
        Ok(DoorConfig { name, kind, address, tenant, tls, mapping, trust_domain })
    }
}

impl RawDoorTls {
    fn check(self, kind: DoorKind, base: &Path) -> Result<GuestFiles, String> {
        if !(1..=MAX_GUEST_PATTERNS).contains(&self.clients.len())
            || self.clients.iter().any(String::is_empty)
        {
            return Err(format!(
                "clients are 1 to {MAX_GUEST_PATTERNS} names of those who may send, as they stand in their certificates; \
                 \"*\" is everybody whom client_ca vouches for"
            ));
        }
        if kind == DoorKind::Native {
            let names = self.clients.iter().map(|client| client.parse::<SpiffePattern>());
            names.collect::<Result<Vec<_>, _>>().map_err(|error| format!("clients: {error}"))?;
        }
        let pattern = |client: &String| match client.parse() {
            Ok(pattern) => pattern,
            Err(never) => match never {},
        };
        Ok(GuestFiles {
            certificate: base.join(self.certificate),
            key: base.join(self.key),
            client_ca: base.join(self.client_ca),
            clients: self.clients.iter().map(pattern).collect(),
            protocol: kind.protocol(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a door, or that it is one.
    fn said_of(door: &str) -> Result<DoorConfig, String> {
        let raw: RawPushDoor = toml::from_str(door).map_err(|error| error.to_string())?;
        check(vec![raw], "td", Path::new("/")).map(|mut doors| doors.remove(0))
    }

    #[test]
    fn plain_text_is_for_loopback_or_for_whoever_says_so() {
        let check = |address: &str, more: &str, expected: bool| {
            let door = format!("name = \"otel\"\nkind = \"otlp\"\naddress = \"{address}\"\n{more}");
            assert_eq!(said_of(&door).is_ok(), expected, "{door}");
        };
        let tls = |clients: &str| {
            format!("[tls]\ncertificate = \"a\"\nkey = \"b\"\nclient_ca = \"c\"\nclients = [{clients}]")
        };
        check("127.0.0.1:4317", "", true);
        check("[::1]:4317", "", true);
        check("0.0.0.0:4317", "", false);
        check("192.0.2.1:4317", "", false);
        check("192.0.2.1:4317", "allow_plain_text = true", true);
        check("192.0.2.1:4317", &tls("\"otel.example\""), true);
        // Nobody is let in by leaving something out.
        check("192.0.2.1:4317", &tls(""), false);
        check("192.0.2.1:4317", &tls("\"\""), false);
    }

    #[test]
    fn our_own_protocol_wants_names_of_ours() {
        let check = |clients: Option<&str>, expected: bool| {
            let tls = clients.map_or(String::new(), |clients| {
                format!(
                    "[tls]\ncertificate = \"a\"\nkey = \"b\"\nclient_ca = \"c\"\nclients = [\"{clients}\"]"
                )
            });
            let door = format!("name = \"apps\"\nkind = \"native\"\naddress = \"127.0.0.1:0\"\n{tls}");
            assert_eq!(said_of(&door).is_ok(), expected, "{door}");
        };
        check(None, false);
        check(Some("spiffe://td/epigraph/sender/*"), true);
        check(Some("shop.example"), false);
        check(Some("*"), false);
    }

    #[test]
    fn a_name_is_one_word_and_stands_once() {
        let door = |name: &str| format!("name = \"{name}\"\nkind = \"syslog\"\naddress = \"127.0.0.1:0\"");
        assert!(said_of(&door("hosts")).is_ok());
        assert!(said_of(&door("two words")).is_err());
        assert!(said_of(&door("")).is_err());
        let raw = || toml::from_str::<RawPushDoor>(&door("hosts")).unwrap();
        assert!(check(vec![raw(), raw()], "td", Path::new("/")).is_err());
        assert!(said_of(&door("hosts").replace("syslog", "smtp")).is_err());
    }
}
