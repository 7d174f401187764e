//! Requests for another person's consent: asked, listed and answered.

use epigraph_event::v1::Result as Outcome;
use epigraph_rpc::SpiffeId;
use serde_json::json;

use super::entries::estimate;
use super::record::Entry;
use super::{AskError, Asked, Asker, Rules, by, desk, on_all};
use crate::guard::Principal;
use crate::guard::approval::{Approval, ApprovalId, Pending};
use crate::guard::plan::Request;
use crate::guard::policy::{Action, Object};
use crate::guard::refusal::{Code, Refusal};

impl Asker {
    /// Remembers a request, which is durable and on the record when this returns.
    pub(super) async fn request(
        &self,
        who: &Principal,
        request: &Request,
        pending: Pending,
        plan_only: bool,
    ) -> Result<Asked, AskError> {
        let reason = pending.reason.clone();
        let mut id = [0; ApprovalId::LEN];
        self.entropy.fill(&mut id);
        let now = self.clock.now();
        let approval = pending.ask(ApprovalId::from_bytes(id), now);
        if plan_only {
            return Ok(Asked::NeedsApproval { approval, reason });
        }
        // Taken before it is durable, so that two that are asked at once do not both find the last place.
        let taken = {
            let mut desk = self.desk();
            let room = desk.make_room(&who.name, now);
            if room.is_ok() {
                desk.approvals.insert(approval.id, approval.clone());
            }
            room
        };
        let forgotten = match taken {
            Ok(forgotten) => forgotten,
            Err(full) => {
                let refusal = Refusal::new(
                    Code::ApprovalPending,
                    full.to_string(),
                    "`epigraph approval list` lists them.",
                );
                self.refuse(&who.name, by(who.kind), request, &refusal).await?;
                return Ok(Asked::Refused(refusal));
            }
        };
        for id in forgotten {
            desk::forget(&self.keeper, &id).await?;
        }
        desk::keep(&self.keeper, &approval).await?;
        let entry = self.of_approval("approval.asked", who, &approval, "");
        if let Err(error) = self.audit.put_on_record(entry).await {
            // Nobody learns of it, so that nobody can answer it.
            self.desk().approvals.remove(&approval.id);
            desk::forget(&self.keeper, &approval.id).await?;
            return Err(error.into());
        }
        Ok(Asked::NeedsApproval { approval, reason })
    }

    /// The requests that somebody may see: its own, and those that the policies let it answer.
    pub fn approvals(&self, who: &SpiffeId) -> Vec<Approval> {
        let rules = self.rules();
        let Some(principal) = rules.principal(who) else { return Vec::new() };
        let all: Vec<Approval> = self.desk().approvals.values().cloned().collect();
        all.into_iter()
            .filter(|one| one.requester == principal.name || may_answer(&rules, &principal, one))
            .collect()
    }

    /// Answers a request of somebody else.
    pub async fn answer_request(
        &self,
        who: &SpiffeId,
        id: &ApprovalId,
        agrees: bool,
        reason: &str,
    ) -> Result<Result<Approval, Refusal>, AskError> {
        let rules = self.rules();
        let principal = rules.principal(who).ok_or(AskError::NotFound)?;
        let _turn = self.answering.lock().await;
        let approval = self.desk().approvals.get(id).cloned().ok_or(AskError::NotFound)?;
        if approval.requester != principal.name && !may_answer(&rules, &principal, &approval) {
            // Whose requests there are is nobody else's business.
            return Err(AskError::NotFound);
        }
        let answered = match approval.answer(&principal, agrees, &rules.guard.policies, self.clock.now()) {
            Ok(answered) => answered,
            Err(refusal) => {
                let mut entry = self.of_approval("approval.refused", &principal, &approval, reason);
                (entry.result, entry.code) = (Outcome::Denied, refusal.code.as_str().to_owned());
                self.audit.put_on_record(entry).await?;
                return Ok(Err(refusal));
            }
        };
        // On the record, then durable, and only then to be used.
        let action = if agrees { "approval.granted" } else { "approval.denied" };
        self.audit.put_on_record(self.of_approval(action, &principal, &answered, reason)).await?;
        desk::keep(&self.keeper, &answered).await?;
        self.desk().approvals.insert(*id, answered.clone());
        Ok(Ok(answered))
    }

    fn of_approval(&self, action: &'static str, who: &Principal, approval: &Approval, reason: &str) -> Entry {
        let id = approval.id.to_string();
        Entry {
            action,
            who: who.name.clone(),
            by: by(who.kind),
            result: Outcome::Success,
            code: String::new(),
            request: id.clone(),
            about: ("approval", id),
            labels: vec![("binding", approval.binding.to_string())],
            body: json!({
                "asked_by": approval.requester,
                "question": approval.question,
                "purpose": approval.purpose,
                "ceiling": estimate(&approval.ceiling),
                "reason": reason,
            }),
        }
    }
}

fn may_answer(rules: &Rules, who: &Principal, approval: &Approval) -> bool {
    on_all(rules, who, Action::Approve, &approval.streams, Object::Stream)
}
