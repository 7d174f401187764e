//! The thread that fills the lookup by leaf hash behind the tree. It holds up nobody, and stops nothing if it fails: then
//! leaf hashes are not found, and the answer says that this proves nothing.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use epigraph_core::{Origin, TreeSize};
use epigraph_store::lookup::Lookup;

use crate::run::OpenLookup;

/// A lookup that is in use; empty until it is open.
pub(crate) type Shared = Arc<OnceLock<Lookup>>;

/// After an error it is tried again, and while nothing grows it is looked whether a reader found damage.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Opens the lookup and follows the tree until `built` is closed. Starts when the tree has caught up with the journal, so that
/// the two do not compete for the disk.
pub(crate) fn fill(origin: &Origin, open: OpenLookup, shared: &Shared, built: &Receiver<TreeSize>) {
    let Ok(mut newest) = built.recv() else { return };
    let lookup = match open() {
        Ok(lookup) => shared.get_or_init(|| lookup),
        Err(error) => {
            tracing::error!(log = %origin, %error, "the log runs without its lookup: leaf hashes are not found");
            return;
        }
    };
    let mut stopped = false;
    while !stopped {
        let to = newest;
        let mut progress = |_| match built.try_recv() {
            Ok(size) => {
                newest = size;
                ControlFlow::Continue(())
            }
            Err(TryRecvError::Empty) => ControlFlow::Continue(()),
            Err(TryRecvError::Disconnected) => {
                stopped = true;
                ControlFlow::Break(())
            }
        };
        let behind = match lookup.catch_up(to, &mut progress) {
            Ok(size) => size < newest,
            Err(error) => {
                tracing::warn!(log = %origin, %error, "the lookup is behind; it is tried again");
                false
            }
        };
        if behind || stopped {
            continue;
        }
        match built.recv_timeout(TRY_AGAIN) {
            Ok(size) => newest = built.try_iter().last().unwrap_or(size),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => stopped = true,
        }
    }
}
