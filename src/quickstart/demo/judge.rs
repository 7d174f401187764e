//! Whether a demo went as it must: exactly its own finding came, by the webhook and in the monitor's own list, and its evidence
//! verified. Everything else is a failure that says what is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use epigraph_core::{Policy, VKey};
use epigraph_rpc::peer::monitor::{Finding, FindingClass};
use tokio::time::timeout;

use super::script::Script;
use super::webhook::{Delivery, PATH, Webhook};
use crate::cli::Demo;
use crate::failure::{Failure, Outcome};
use crate::profile::Profile;
use crate::quickstart::directory::Directory;
use crate::quickstart::monitor::{From, Watched, in_words};
use crate::quickstart::role::Role;

/// How long to wait, after the alarm, for the monitor to look everywhere again: what else there is to be found comes by then.
const SETTLE: Duration = Duration::from_secs(5);

/// A finding as the webhook told it.
pub struct Alarm {
    pub code: String,
    pub subject: String,
    pub detail: String,
    pub meaning: String,
    pub next_step: String,
    pub is_proof: bool,
    pub evidence_id: Option<String>,
    pub at_ms: u64,
    /// Where the call went, and how it was signed.
    pub target: String,
    pub signature: String,
}

pub struct Judge<'a> {
    demo: Demo,
    script: &'a Script,
    directory: &'a Directory,
    pub monitor: Watched<'a>,
    policy: Policy,
    patience: Duration,
    verified: bool,
}

impl<'a> Judge<'a> {
    pub fn new(
        demo: Demo,
        script: &'a Script,
        directory: &'a Directory,
        patience: Duration,
    ) -> Outcome<Judge<'a>> {
        let policy = Profile::load(&directory.path)?.policy;
        let monitor = Watched::new(directory)?;
        Ok(Judge { demo, script, directory, monitor, policy, patience, verified: false })
    }

    /// Waits until the monitor has seen and read this much, and found nothing.
    pub async fn calm(&self, size: u64) -> Outcome<usize> {
        Ok(self.monitor.calm(size, From::Everywhere, self.patience).await?.0)
    }

    /// Waits for the webhook's call about this demo's finding. A call about anything else is a failure.
    pub async fn alarm(&self, webhook: &mut Webhook) -> Outcome<Alarm> {
        let address = webhook.address;
        let waiting = async {
            while let Some(Delivery { signature, message }) = webhook.next().await {
                let (finding, change) = (&message["finding"], message["change"].as_str());
                if message["kind"] != "finding" || change != Some("opened") {
                    continue;
                }
                let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
                let (code, subject) = (text("code"), text("subject"));
                if Some(code.as_str()) == self.script.code {
                    return Ok(Alarm {
                        code,
                        subject,
                        detail: text("detail"),
                        meaning: text("meaning"),
                        next_step: text("next_step"),
                        is_proof: finding["class"] == "proof",
                        evidence_id: finding["evidence_id"].as_str().map(ToOwned::to_owned),
                        at_ms: message["at_ms"].as_u64().unwrap_or_default(),
                        target: format!("http://{address}{PATH}"),
                        signature: format!("Epigraph-Signature: {signature}"),
                    });
                }
                if Some(code.as_str()) != self.script.follows {
                    let message = format!("the monitor found something else: {code} about {subject}");
                    return Err(Failure::no(message));
                }
            }
            Err(Failure::state("the webhook's listener has ended"))
        };
        let code = self.script.code.unwrap_or("nothing");
        match timeout(self.patience, waiting).await {
            Ok(alarm) => alarm,
            Err(_) => {
                let seconds = self.patience.as_secs();
                Err(Failure::no(format!("the monitor found no {code} within {seconds} s, and it was there")))
            }
        }
    }

    /// The file that goes with an alarm, where the monitor has written it.
    pub async fn evidence(&self, alarm: &Alarm) -> Outcome<PathBuf> {
        let missing = || Failure::no(format!("the alarm {} came without evidence", alarm.code));
        let id = alarm.evidence_id.as_deref().ok_or_else(missing)?;
        let path = self.directory.path.join(Role::Monitor.to_string()).join("evidence").join(id);
        let served = self.monitor.evidence(id).await?;
        match fs::read(&path) {
            Ok(written) if written == served => Ok(path),
            Ok(_) => Err(Failure::no(format!("{} is not what the monitor hands out", path.display()))),
            Err(error) => Err(Failure::no(format!("there is no {}: {error}", path.display()))),
        }
    }

    /// The public key that judges the evidence: of whoever is accused, or of the monitor whose word it is.
    pub async fn key_for(&self, alarm: &Alarm) -> Outcome<String> {
        if !alarm.is_proof {
            return self.monitor.vkey().await;
        }
        if alarm.code != "witness-equivocation" {
            return Ok(self.directory.vkey.clone());
        }
        let liar = self.liars().find(|liar| liar.name().as_str() == alarm.subject);
        let honest = || Failure::no(format!("{} is accused, and did not lie", alarm.subject));
        liar.map(ToString::to_string).ok_or_else(honest)
    }

    /// The evidence convinced a process that knows one public key.
    pub fn verified(&mut self) {
        self.verified = true;
    }

    /// Waits until the monitor has looked everywhere once more, and compares all that it found with what is true.
    pub async fn verdict(&self, alarm: Option<&Alarm>) -> Outcome<serde_json::Value> {
        self.monitor.looks_again(alarm.map_or(0, |alarm| alarm.at_ms), SETTLE).await?;
        let found = self.monitor.findings().await?;
        let is_own = |finding: &&Finding| Some(finding.code.as_str()) == self.script.code;
        let liars: Vec<String> = self.liars().map(|liar| liar.name().to_string()).collect();
        let follows = |finding: &&Finding| {
            Some(finding.code.as_str()) == self.script.follows && liars.contains(&finding.subject)
        };
        let other: Vec<_> =
            found.iter().filter(|finding| !is_own(finding) && !follows(finding)).map(in_words).collect();
        if !other.is_empty() {
            return Err(Failure::no(format!("the monitor also found: {}", other.join("; "))));
        }
        let own = found.iter().find(is_own);
        let says = match (self.script.code, own, self.verified) {
            (None, _, _) => {
                "The monitor looked at everything and found nothing: there was nothing.".to_owned()
            }
            (Some(code), Some(own), true) => match own.class {
                FindingClass::Proof => {
                    format!("Caught: {code}. The file convinces whoever has the public key.")
                }
                FindingClass::Observation => format!(
                    "Caught: {code}. No signature of the log can prove this; the file is the monitor's word, under its own key."
                ),
            },
            (Some(code), ..) => {
                return Err(Failure::no(format!("{code} is not among the monitor's findings")));
            }
        };
        let also: Vec<_> = found.iter().filter(follows).map(|own| own.subject.as_str()).collect();
        let says = match (self.script.follows, also.is_empty()) {
            (Some(code), false) => format!("{says} And {code}: {}.", also.join(", ")),
            _ => says,
        };
        let codes: BTreeSet<_> = found.iter().map(|finding| finding.code.clone()).collect();
        Ok(serde_json::json!({ "says": says, "findings": codes, "evidence_verified": self.verified }))
    }

    /// The keys of the witnesses that lie in this demo.
    fn liars(&self) -> impl Iterator<Item = &VKey> {
        let numbers = self.demo.lying_witnesses().iter();
        let witness = |number: &u8| self.policy.witnesses().get(usize::from(*number).checked_sub(1)?);
        numbers.filter_map(witness).map(|witness| &witness.vkey)
    }
}
