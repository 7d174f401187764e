//! What of questions goes on the record, as [`Entry`].

use std::collections::BTreeMap;

use epigraph_event::v1::Result as Outcome;
use serde_json::json;

use super::record::{By, Entry};
use super::{AskError, Asker, by};
use crate::guard::Principal;
use crate::guard::plan::{Plan, Question, Request};
use crate::guard::refusal::Refusal;
use crate::query::Estimate;

impl Asker {
    pub(super) async fn refuse(
        &self,
        who: &str,
        by: By,
        request: &Request,
        refusal: &Refusal,
    ) -> Result<(), AskError> {
        self.count_refusal(refusal);
        self.tallies().refused(&request.question, &self.rules().guard.runbooks, refusal);
        let (action, about) = named(request);
        let entry = Entry {
            action: if action == "tail" { "tail.refused" } else { "runbook.refused" },
            who: who.to_owned(),
            by,
            result: Outcome::Denied,
            code: refusal.code.as_str().to_owned(),
            request: String::new(),
            about: (action, about),
            labels: Vec::new(),
            body: json!({
                "asked": asked(request),
                "code": refusal.code.as_str(),
                "message": refusal.message,
                "policies": refusal.policies,
                "estimate": refusal.estimate.as_ref().map(estimate),
            }),
        };
        Ok(self.audit.put_on_record(entry).await?)
    }

    pub(super) fn of_plan(
        &self,
        action: &'static str,
        who: &Principal,
        request: &Request,
        plan: &Plan,
        id: &str,
    ) -> Entry {
        let runbook = plan.runbook.as_ref();
        let mut labels = vec![
            ("estimate-bytes", plan.estimate.bytes.to_string()),
            ("estimate-rows", plan.estimate.rows.to_string()),
            ("policies", plan.policies.to_string()),
        ];
        if let Some(runbook) = runbook {
            labels.push(("runbook-hash", runbook.hash.to_string()));
            labels.push(("runbook-version", runbook.version.to_string()));
        }
        let (kind, about) = named(request);
        Entry {
            action,
            who: who.name.clone(),
            by: by(who.kind),
            result: Outcome::Success,
            code: String::new(),
            request: id.to_owned(),
            about: (kind, about),
            labels,
            body: json!({
                "asked": asked(request),
                "estimate": estimate(&plan.estimate),
                "decided_by": plan.decided_by,
                "approval": plan.approval.as_ref().map(|approval| approval.id.to_string()),
                "masked": plan.mask.masked().iter().map(|column| column.as_str()).collect::<Vec<_>>(),
            }),
        }
    }
}

/// What kind of thing is asked, and which.
pub(super) fn named(request: &Request) -> (&'static str, String) {
    match &request.question {
        Question::Runbook { id, .. } => ("runbook", id.chars().take(256).collect()),
        Question::Tail { .. } => ("tail", "events".to_owned()),
    }
}

/// The question, for the record. What is longer than any parameter that can be asked was refused, and is cut here.
fn asked(request: &Request) -> serde_json::Value {
    let cut = |text: &str| text.chars().take(2_048).collect::<String>();
    let given: BTreeMap<String, serde_json::Value> = match &request.question {
        Question::Runbook { parameters, .. } => {
            parameters.iter().take(64).map(|(name, value)| (cut(name), cut(value).into())).collect()
        }
        Question::Tail { filter } => {
            let one = |values: &Vec<String>| {
                values.iter().take(64).map(|value| cut(value)).collect::<Vec<_>>().into()
            };
            filter.iter().take(64).map(|(name, values)| (cut(name), one(values))).collect()
        }
    };
    let (kind, name) = named(request);
    json!({
        kind: name,
        "given": given,
        "from_ns": request.from_ns,
        "to_ns": request.to_ns,
        "tenant": request.tenant.as_deref().map(cut),
        "stream": request.stream.as_deref().map(cut),
        "purpose": cut(&request.purpose),
        "ticket": cut(&request.ticket),
        "unmask": request.unmask,
        "body": request.body,
        "audit": request.audit,
    })
}

pub(super) fn estimate(estimate: &Estimate) -> serde_json::Value {
    json!({ "rows": estimate.rows, "bytes": estimate.bytes, "days": estimate.days })
}
