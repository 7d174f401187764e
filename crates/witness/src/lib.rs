//! The witness role: it cosigns a log's checkpoint only if that extends the one it cosigned before.
//!
//! [`keeper`] owns the heads and the key: it decides, persists, then cosigns, many logs under one sync. [`gate`] tells
//! from what others show whether the heads are older than what was signed. [`list`] is the list of logs,
//! [`witness`] what the rest of the process calls, [`dial`] follows logs that cannot
//! call, and [`status`] is what it tells of itself. Nothing here knows how a log makes its tree, who asks, or where a configuration stands.

pub mod dial;
mod evidence;
pub mod gate;
pub mod keeper;
pub mod list;
pub mod service;
pub mod status;
mod thread;
pub mod witness;
