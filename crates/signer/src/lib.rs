//! The signer role and the publisher.
//!
//! [`signer`] holds the log's private key and one head per log: it decides, persists, then signs, after its [`gate`]. [`publish`]
//! has no key: it runs beside the tree, asks the signer for one head at a time, and publishes. They meet over
//! [`publish::AskSigner`], so a signer on a thread of the log process ([`handle`]) and one in a process of its own ([`service`],
//! [`remote`]) are one to the publisher. [`status`] is what a signer tells of itself. Nothing here knows the journal.

pub mod backoff;
pub mod gate;
pub mod handle;
pub mod keys;
pub mod publish;
pub mod remote;
pub mod service;
pub mod signer;
pub mod status;
