//! The questions that are being answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use epigraph_core::UnixMillis;
use tokio::sync::Notify;

use crate::guard::Stream;
use crate::query::{Estimate, Meter};

/// What a tail is called where others are called by their runbook: no runbook's name has such letters.
pub const TAIL: &str = "(tail)";

/// A question under way.
#[derive(Clone, Debug)]
pub struct Query {
    /// Its id.
    pub id: String,
    /// Who asked.
    pub principal: String,
    /// What: a runbook's name, or [`TAIL`].
    pub runbook: String,
    /// Of what.
    pub streams: Vec<Stream>,
    /// Since when.
    pub started_at: UnixMillis,
    /// What it costs at most; none of a tail, which goes on for as long as somebody looks.
    pub estimate: Option<Estimate>,
    /// What it has cost so far.
    pub meter: Arc<Meter>,
    /// Told when it is to end, for those who wait for something else.
    pub ended: Arc<Notify>,
}

impl Query {
    /// Ends it, wherever it is.
    pub fn end(&self) {
        self.meter.cancel();
        self.ended.notify_one();
    }
}

/// All of them. Cheap to clone; clones are one list.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<BTreeMap<String, Query>>>);

/// A place in the list. Dropping it takes the question out.
pub struct Slot {
    running: Running,
    id: String,
}

impl Running {
    /// Puts a question in the list.
    pub fn begin(&self, query: Query) -> Slot {
        let slot = Slot { running: self.clone(), id: query.id.clone() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(query.id.clone(), query);
        slot
    }

    /// The list, in the order of ids.
    pub fn list(&self) -> Vec<Query> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
