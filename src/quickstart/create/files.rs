//! What stands in the files of a new directory: configurations with comments for a newcomer.

use super::audit::SOURCES;
use super::{MONITOR_POLICY, Plan, STALE_AFTER_MS, WEBHOOK_SECRET};
use crate::quickstart::demo::webhook;
use crate::quickstart::directory::TRUST_DOMAIN;
use crate::quickstart::role::{
    ASKERS, FAULTY, READERS, Role, client_spiffe, collector_spiffe, reader_spiffe,
};

impl Plan<'_> {
    /// The beginning of every configuration of a process that serves.
    fn serving(&self, role: Role) -> anyhow::Result<String> {
        let (address, metrics) = self.addresses_of(role)?;
        Ok(format!(
            "[listen]\naddress = \"{address}\"\n# Plain HTTP: /healthz, /readyz, /metrics.\n[metrics]\naddress = \"{metrics}\"\n"
        ))
    }

    pub(super) fn log_alone(&self) -> anyhow::Result<String> {
        let signer = "signer = { directory = \"signer\", key = \"signer/keys/log.key\" }\n";
        self.log(&tls(Role::Log, false), signer, "")
    }

    pub(super) fn log_with_others(&self) -> anyhow::Result<String> {
        let signer = format!(
            "\
# The signer is a process of its own: it has the log's private key, and signs only what extends the last thing it signed.
signer = {{ address = \"{}\", server = \"{}\", vkey_file = \"signer/keys/log.vkey\" }}
",
            self.address(Role::Signer)?,
            Role::Signer.spiffe()
        );
        let grants = grant(
            "The signer asks what is published, after each of its starts.",
            &Role::Signer.spiffe(),
            "signer",
            &self.origin,
        );
        self.witnessed_log(&signer, grants)
    }

    /// What an honest log in its place would be told. It has no signer, and reads none.
    pub(super) fn log_of_a_liar(&self) -> anyhow::Result<String> {
        self.witnessed_log(
            "signer = { directory = \"signer\", key = \"signer/keys/log.key\" }\n",
            String::new(),
        )
    }

    fn witnessed_log(&self, signer: &str, mut grants: String) -> anyhow::Result<String> {
        let mut others = format!(
            "\
{signer}# Nothing is published before so many witnesses have cosigned as this file says.
policy = \"policy\"
# So many of the witnesses may lie: after a start the log asks enough of them to find out if its own disk was put back.
faulty = {FAULTY}
"
        );
        others += &self.asked_witnesses()?;
        for role in Role::witnesses() {
            grants += &grant(
                "This witness asks what is published, after each of its starts.",
                &role.spiffe(),
                "witness",
                &self.origin,
            );
        }
        if self.address(Role::Audit).is_ok() {
            grants += &granted(
                "The audit service puts a leaf for each event into the log.",
                &Role::Audit.spiffe(),
                &["appender", "reader"],
                &self.origin,
            );
        }
        grants += &self
            .readers("Anybody who reads, the monitor among them: the log cannot tell it from the others.");
        self.log(&tls(Role::Log, true), &others, &grants)
    }

    /// A table for each witness.
    fn asked_witnesses(&self) -> anyhow::Result<String> {
        let table = |role: Role| {
            let (name, address, server) = (self.witness_name(role), self.address(role)?, role.spiffe());
            Ok(format!(
                "\n[[log.witness]]\nname = \"{name}\"\naddress = \"{address}\"\nserver = \"{server}\"\n"
            ))
        };
        Role::witnesses().map(table).collect()
    }

    fn log(&self, tls: &str, others: &str, grants: &str) -> anyhow::Result<String> {
        let origin = &self.origin;
        let (listen, client) = (self.serving(Role::Log)?, client_spiffe());
        Ok(format!(
            r#"# The log of this quickstart: what `epigraph serve log --config log.toml` reads. Paths are relative to this file.
directory = "log"

{listen}
{tls}
[[log]]
origin = "{origin}"
# A grown tree is signed at once while somebody waits for it, else after this long.
checkpoint_interval_ms = 1000
# The journal's segment files are written with zeros before they are used; 64 in production.
segment_mib = 16
{others}
# Who may do what. Nobody may do anything that no table allows.
[[authorize]]
spiffe = "{client}"
roles = ["appender", "reader"]
logs = ["{origin}"]
{grants}"#
        ))
    }

    pub(super) fn signer(&self) -> anyhow::Result<String> {
        let (listen, tls, origin) = (self.serving(Role::Signer)?, tls(Role::Signer, true), &self.origin);
        let (address, server) = (self.address(Role::Log)?, Role::Log.spiffe());
        let grant = grant("Nobody but the log has anything signed.", &server, "log", origin);
        let witnesses = self.asked_witnesses()?;
        Ok(format!(
            r#"# The signer of this quickstart: what `epigraph serve signer --config signer.toml` reads. Paths are relative to this file.
# In earnest it runs on another machine than the log, so that whoever takes over the log's machine has no key.
directory = "signer"

{listen}
{tls}
[[log]]
origin = "{origin}"
key = "signer/keys/log.key"
# The log, which is asked after each start what it has published: a signer whose directory was put back finds out.
address = "{address}"
server = "{server}"
# And so are the witnesses of this policy, of which so many may lie: then nobody can put back the signer and the log together.
policy = "policy"
faulty = {FAULTY}
{witnesses}{grant}"#
        ))
    }

    pub(super) fn witness(&self, role: Role) -> anyhow::Result<String> {
        let (listen, tls, name) = (self.serving(role)?, tls(role, true), self.witness_name(role));
        let grants = [
            grant("The log has its checkpoints cosigned.", &Role::Log.spiffe(), "log", &self.origin),
            grant(
                "The signer asks what was cosigned, after each of its starts.",
                &Role::Signer.spiffe(),
                "signer",
                &self.origin,
            ),
            grant("The client may ask what was cosigned.", &client_spiffe(), "reader", &self.origin),
            self.readers("So may anybody who reads the log, the monitor among them."),
        ];
        Ok(format!(
            r#"# A witness of this quickstart: what `epigraph serve witness --config {role}.toml` reads. Paths are relative to this file.
# In earnest each witness is run by somebody else. Its logs are listed in {role}/logs.toml.
name = "{name}"
directory = "{role}"

{listen}
{tls}{}"#,
            grants.concat()
        ))
    }

    pub(super) fn monitor(&self) -> anyhow::Result<String> {
        let (listen, origin) = (self.serving(Role::Monitor)?, &self.origin);
        let (address, server) = (self.address(Role::Log)?, Role::Log.spiffe());
        let mut vantages = String::new();
        for name in READERS {
            vantages += &format!(
                "\n[[log.reader]]\nname = \"{name}\"\naddress = \"{address}\"\nserver = \"{server}\"\n\
                 client = {{ certificate = \"pki/monitor/{name}.pem\", key = \"pki/monitor/{name}.key\" }}\n"
            );
        }
        for role in Role::witnesses() {
            vantages += &format!(
                "\n[[log.witness]]\nname = \"{}\"\naddress = \"{}\"\nserver = \"{}\"\n",
                self.witness_name(role),
                self.address(role)?,
                role.spiffe()
            );
        }
        if let Ok(address) = self.address(Role::Audit) {
            vantages += &format!(
                "\n# The audit service: where each source stands, and now and then an event to compare with its leaf. Each such read is on the record.\n\
                 [log.audit]\naddress = \"{address}\"\nserver = \"{}\"\n",
                Role::Audit.spiffe()
            );
        }
        let (first, own) = (READERS[0], tls(Role::Monitor, false));
        let (pace, webhook) = match self.webhook {
            None => (String::new(), String::new()),
            Some(receiver) => (
                // The defaults are an hour and a week: nobody waits so long for a demo.
                format!(
                    "# Every two seconds, for a demo: the default is 168.\nfull_audit_hours = 0.0005\n\n\
                     # So is this: the default is an hour.\n[log.after]\nstale_ms = {STALE_AFTER_MS}\n"
                ),
                format!(
                    r#"
# Who is told. Addresses that are not public take a permission of their own.
[[webhook]]
name = "demo"
url = "http://{receiver}{path}"
secret = "{WEBHOOK_SECRET}"
allow_networks = ["127.0.0.1/32"]
"#,
                    path = webhook::PATH
                ),
            ),
        };
        let limit = if self.webhook.is_some() { 2_000 } else { 60_000 };
        let roles = "[\"operator\", \"auditor\", \"appender\"]";
        Ok(format!(
            r#"# The monitor of this quickstart: what `epigraph serve monitor --config monitor.toml` reads. Paths are relative to this file.
# In earnest it is run by somebody who neither runs the log nor a witness, and looks from other networks.
name = "{origin}/monitor"
directory = "monitor"
# How often each vantage point is asked, beside what it tells by itself.
poll_ms = 1000
# How long the log has to publish what it acknowledged.
published_within_ms = {limit}

{listen}
{own}
# Witnesses and the audit service are asked under the name of a reader.
[tls.client]
certificate = "pki/monitor/{first}.pem"
key = "pki/monitor/{first}.key"

[[log]]
origin = "{origin}"
# The monitor's own policy.
policy = "{MONITOR_POLICY}"
# Below is from where it is looked at: by readers under several names, so that the log cannot tell the monitor from others, and at each
# witness.
{pace}{vantages}{webhook}
# Who may look, acknowledge, and hand in what the log promised.
[[authorize]]
spiffe = "{client}"
roles = {roles}
logs = ["{origin}"]
"#,
            client = client_spiffe()
        ))
    }

    pub(super) fn audit(&self) -> anyhow::Result<String> {
        let (listen, tls, origin) = (self.serving(Role::Audit)?, tls(Role::Audit, true), &self.origin);
        let (address, server) = (self.address(Role::Log)?, Role::Log.spiffe());
        let collector =
            grant("Collectors hand in what they signed.", &collector_spiffe(), "collector", origin);
        let client = granted(
            "The client reads events, each time on the record, and sees where each source stands.",
            &client_spiffe(),
            &["reader", "auditor"],
            origin,
        );
        let askers = granted(
            "Two others ask as well, and see less; and the monitor reads.",
            &reader_spiffe("*"),
            &["reader"],
            origin,
        );
        let monitor = grant(
            "The monitor asks where each source stands, and compares events with their leaves.",
            &reader_spiffe(READERS[0]),
            "monitor",
            origin,
        );
        let mut readers =
            String::from("\n# What each of them may see: docs/runbooks.md says what the roles are.\n");
        for (spiffe, kind, role) in [
            (client_spiffe(), "human", "auditor"),
            (reader_spiffe(ASKERS[0]), "human", "developer"),
            (reader_spiffe(ASKERS[1]), "human", "responder"),
        ] {
            readers += &format!(
                "[[reader]]\nspiffe = \"{spiffe}\"\nkind = \"{kind}\"\nroles = [\"{role}\"]\ntenants = [\"*\"]\n"
            );
        }
        Ok(format!(
            r#"# The audit service of this quickstart: what `epigraph serve audit --config audit.toml` reads. Paths are relative to this file.
# In earnest it runs on another machine than the log, and the key that wraps all others is on another disk.
name = "{origin}/audit"
directory = "audit"

{listen}
{tls}
# Where a leaf for each event goes.
[log]
origin = "{origin}"
address = "{address}"
server = "{server}"
policy = "policy"
{collector}{client}{monitor}{askers}{readers}"#
        ))
    }

    pub(super) fn collector(&self) -> anyhow::Result<String> {
        let (address, server) = (self.address(Role::Audit)?, Role::Audit.spiffe());
        Ok(format!(
            r#"# The collector of this quickstart: what `epigraph collect --config collector.toml` reads. Paths are relative to this file.
# `epigraph collect --once --profile` uses the same directory. In earnest a collector runs where its events happen.
name = "{origin}/collector"
directory = "collector"
origin = "{origin}"
policy = "policy"

[audit]
address = "{address}"
server = "{server}"

[tls]
certificate = "pki/collector/client.pem"
key = "pki/collector/client.key"
trust_bundle = "pki/ca.pem"
trust_domain = "{TRUST_DOMAIN}"

# Files to follow:
# [[input]]
# file = "/var/log/kubernetes/audit.log"
# format = "k8s-audit"
"#,
            origin = self.origin
        ))
    }

    fn readers(&self, why: &str) -> String {
        grant(why, &reader_spiffe("*"), "reader", &self.origin)
    }

    /// A client's directory: the main one, or with `up` one inside it. `who` has the certificate.
    pub(super) fn client(&self, up: &str, who: &str) -> anyhow::Result<String> {
        let (origin, address, server) = (&self.origin, self.address(Role::Log)?, Role::Log.spiffe());
        let mut witnesses = String::new();
        for role in Role::witnesses().filter(|role| self.address(*role).is_ok()) {
            witnesses += &format!(
                "\n[[witness]]\nname = \"{}\"\naddress = \"{}\"\nserver = \"{}\"\n",
                self.witness_name(role),
                self.address(role)?,
                role.spiffe()
            );
        }
        if !witnesses.is_empty() {
            witnesses.insert_str(0, "\n# Where `witness status` asks what the witnesses hold.");
        }
        let monitor = match self.address(Role::Monitor) {
            Err(_) => String::new(),
            Ok(address) => format!(
                "\n# Where `monitor status` asks what was seen and found.\n[monitor]\naddress = \"{address}\"\nserver = \"{}\"\n",
                Role::Monitor.spiffe()
            ),
        };
        // A person in a demo has no collector.
        let audit = match self.address(Role::Audit) {
            Ok(address) if !up.is_empty() => format!(
                "\n# Where questions about events are asked.\n[audit]\naddress = \"{address}\"\nserver = \"{}\"\n",
                Role::Audit.spiffe()
            ),
            Ok(address) => format!(
                r#"
# Where `events get`, `audit status` and `runbook run` ask.
[audit]
address = "{address}"
server = "{}"

# With what `collect` signs, and who it proves to be.
[collector]
directory = "collector"
certificate = "pki/collector/client.pem"
key = "pki/collector/client.key"
"#,
                Role::Audit.spiffe()
            ),
            Err(_) => String::new(),
        };
        let sources = match audit.is_empty() {
            true => String::new(),
            false => format!("# Whose audit events are believed.\nsources = \"{up}{SOURCES}\"\n"),
        };
        Ok(format!(
            r#"# A client of the log of this quickstart: what every command with `--profile` reads. Paths are relative to this file.
origin = "{origin}"
address = "{address}"
server = "{server}"
policy = "{up}policy"
state = "state"
{sources}
[tls]
certificate = "{up}pki/{who}/client.pem"
key = "{up}pki/{who}/client.key"
trust_bundle = "{up}pki/ca.pem"
trust_domain = "{TRUST_DOMAIN}"
{witnesses}{monitor}{audit}"#
        ))
    }
}

/// The `[tls]` table of a process, and what it opens connections with.
fn tls(role: Role, calls: bool) -> String {
    let table = format!(
        r#"[tls]
certificate = "pki/{role}/server.pem"
key = "pki/{role}/server.key"
trust_bundle = "pki/ca.pem"
trust_domain = "{TRUST_DOMAIN}"
"#
    );
    if !calls {
        return table;
    }
    format!(
        r#"{table}
# For the connections that it opens itself.
[tls.client]
certificate = "pki/{role}/client.pem"
key = "pki/{role}/client.key"
"#
    )
}

fn grant(why: &str, spiffe: &str, role: &str, origin: &str) -> String {
    granted(why, spiffe, &[role], origin)
}

fn granted(why: &str, spiffe: &str, roles: &[&str], origin: &str) -> String {
    format!("\n# {why}\n[[authorize]]\nspiffe = \"{spiffe}\"\nroles = {roles:?}\nlogs = [\"{origin}\"]\n")
}
