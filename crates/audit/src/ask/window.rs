//! Every event of a question's window, for a reader who wants to see by itself that none was left out. It is planned, counted and put on
//! the record like any other question ([`Request::audit`](crate::guard::plan::Request::audit)).

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use epigraph_core::{Checkpoint, Verified};
use epigraph_event::Bundle;
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep};

use super::event::withhold;
use super::run::{Finished, Run, give, is_over};
use super::{AskError, Asker, blocking};
use crate::audit::ReadError;
use crate::index::Span;
use crate::query::Stopped;
use crate::query::digest::AnswerDigest;
use crate::store::EventName;

/// A part of an audit.
pub enum Part {
    /// An encoded bundle, without its record.
    Bundle(Bytes),
    /// The end.
    Finished(Box<Finished>),
}

impl Asker {
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
        let checkpoint = run.checkpoint.clone().ok_or(ReadError::NotYetPublished)?;
        let mut digest = AnswerDigest::new(&run.planned.runbook.hash, &[]);
        let spans = self.spans(run).await?;
        let stopped = {
            let mut deadline = std::pin::pin!(sleep(Duration::from_millis(run.plan.budget.timeout_ms)));
            let mut stopped = None;
            'all: for Span { source, epoch, first, last, .. } in spans {
                for sequence in first..=last {
                    if is_over(deadline.as_mut()).await {
                        run.meter.expire();
                    }
                    let name = EventName { source, epoch, sequence };
                    let Some(bundle) = self.audited(name, &checkpoint).await? else { continue };
                    let read = bundle.segments.iter().flatten().map(|(_, bytes)| bytes.len()).sum();
                    if let Err(why) = run.meter.examine(read) {
                        stopped = Some(why);
                        break 'all;
                    }
                    if !give(parts, Ok(Part::Bundle(bundle.encode().into()))).await {
                        run.meter.cancel();
                    }
                    run.meter.answer();
                    digest.row(&[bundle.receipt.index.get()], &[]);
                }
            }
            stopped
        };
        // Whoever ends it from here on is told that it is over; whoever did before is believed.
        drop(run.slot.take());
        Ok(Finished {
            cost: run.meter.cost(),
            millis: self.clock.now().0.saturating_sub(begun.0),
            stopped: if run.meter.is_cancelled() { Some(Stopped::Cancelled) } else { stopped },
            digest: digest.finish(),
            checkpoint: Some(checkpoint),
            sources: Vec::new(),
            next: None,
            unindexed: run.unindexed,
        })
    }

    async fn spans(&self, run: &mut Run) -> Result<Vec<Span>, AskError> {
        let Some(view) = run.view.get_mut().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(Vec::new());
        };
        let window = run.plan.window;
        blocking(move || Ok(view.sources(&window)?)).await
    }

    /// What proves an event; none if there is no such event, or none that is published yet: that is in no answer.
    async fn audited(
        &self,
        name: EventName,
        checkpoint: &Verified<Checkpoint>,
    ) -> Result<Option<Bundle>, AskError> {
        let store = self.store().clone();
        let slot = blocking(move || Ok(store.event(&name)?.map(|(sealed, _)| sealed.slot))).await?;
        let Some(slot) = slot else { return Ok(None) };
        let mut bundle = match self.audit().bundle_under(slot, checkpoint).await {
            Ok(bundle) => bundle,
            Err(ReadError::NotYetPublished) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // To apply a runbook takes what happened and who it was; records are given one at a time, to those who may see them.
        withhold(&mut bundle, true, false);
        Ok(Some(bundle))
    }
}
