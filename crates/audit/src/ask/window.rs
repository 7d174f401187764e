//! Every event of a question's window, for a reader who wants to see by itself that none was left out.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use epigraph_core::Hash;
use epigraph_rpc::SpiffeId;
use tokio::sync::mpsc;

use super::run::{Finished, Run, give};
use super::{AskError, Asked, Asker, blocking};
use crate::guard::mask::Sight;
use crate::guard::plan::Request;
use crate::guard::refusal::{Code, Refusal};
use crate::index::Span;
use crate::query::Stopped;
use crate::query::digest::AnswerDigest;
use crate::store::EventName;

/// Events of one audit: each is opened, proven and sent, so this is minutes of work.
pub const MAX_EVENTS: u64 = 100_000;

/// A part of an audit.
pub enum Part {
    /// An encoded bundle.
    Bundle(Bytes),
    /// The end.
    Finished(Box<Finished>),
}

impl Asker {
    /// Decides whether somebody may audit the window of a question: it may ask the question, and sees names and records.
    pub async fn ask_audit(self: &Arc<Self>, who: &SpiffeId, request: Request) -> Result<Asked, AskError> {
        let asked = self.ask(who, request, false).await?;
        let Asked::Runs(mut run) = asked else { return Ok(asked) };
        let refusal = if run.plan.mask.identity != Sight::Clear {
            Some(Refusal::new(
                Code::Forbidden,
                "an audit shows every event of the window with its names, and you see tokens",
                "Ask an auditor.",
            ))
        } else {
            let events: u64 = self.spans(&mut run).await?.iter().map(|span| span.events).sum();
            (events > MAX_EVENTS).then(|| {
                Refusal::new(
                    Code::OverBudget,
                    format!("the days of the window have {events} events, and an audit goes through at most {MAX_EVENTS}"),
                    "Audit a shorter window at a time.",
                )
            })
        };
        match refusal {
            None => Ok(Asked::Runs(run)),
            Some(refusal) => {
                self.refuse(who.as_str(), super::by(run.principal.kind), &run.request, &refusal).await?;
                // What was begun on the record is ended there; why is in the refusal.
                let _ = self.end(*run, Err(AskError::NotFound)).await;
                Ok(Asked::Refused(refusal))
            }
        }
    }

    async fn spans(&self, run: &mut Run) -> Result<Vec<Span>, AskError> {
        let kept = run.view.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(view) = kept.take() else { return Ok(Vec::new()) };
        let window = run.plan.window;
        let (view, spans) = blocking(move || {
            let spans = view.sources(&window)?;
            Ok((view, spans))
        })
        .await?;
        *kept = Some(view);
        Ok(spans)
    }

    /// Sends every event between the first and the last number that each source has in the days of the window.
    pub async fn audit_window(self: &Arc<Self>, mut run: Run, parts: mpsc::Sender<Result<Part, AskError>>) {
        let sent = self.send_window(&mut run, &parts).await;
        let ended = self.end(run, sent).await;
        give(&parts, ended.map(|finished| Part::Finished(Box::new(finished)))).await;
    }

    async fn send_window(
        self: &Arc<Self>,
        run: &mut Run,
        parts: &mpsc::Sender<Result<Part, AskError>>,
    ) -> Result<Finished, AskError> {
        let begun = self.clock.now();
        let spans = self.spans(run).await?;
        let checkpoint = run.checkpoint.clone().ok_or(AskError::NotFound)?;
        let mut digest = AnswerDigest::new(&run.planned.runbook.hash, &[]);
        let mut stopped = None;
        'all: for Span { source, epoch, first, last, .. } in spans {
            for sequence in first..=last {
                if run.meter.is_cancelled() || parts.is_closed() {
                    stopped = Some(Stopped::Cancelled);
                    break 'all;
                }
                let Some(slot) = self.slot_of(source, epoch, sequence).await? else { continue };
                let bundle = match self.audit().bundle_under(slot, &checkpoint).await {
                    Ok(bundle) => bundle,
                    // What is not published yet is in no answer.
                    Err(crate::audit::ReadError::NotYetPublished) => continue,
                    Err(error) => return Err(error.into()),
                };
                digest.row(&[bundle.receipt.index.get()], &[]);
                if !give(parts, Ok(Part::Bundle(bundle.encode().into()))).await {
                    run.meter.cancel();
                }
            }
        }
        Ok(Finished {
            cost: run.meter.cost(),
            millis: self.clock.now().0.saturating_sub(begun.0),
            stopped,
            digest: digest.finish(),
            checkpoint: Some(checkpoint),
            sources: Vec::new(),
            next: None,
        })
    }

    async fn slot_of(&self, source: Hash, epoch: u64, sequence: u64) -> Result<Option<u64>, AskError> {
        let store = self.store().clone();
        let name = EventName { source, epoch, sequence };
        blocking(move || Ok(store.event(&name)?.map(|(sealed, _)| sealed.slot))).await
    }
}
