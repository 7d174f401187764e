//! The signer role and the publisher.
//!
//! [`signer`] holds the log's private key and one head per log: it decides, persists, then signs. [`publish`] has no
//! key: it runs beside the tree, asks the signer for one head at a time, and publishes. They meet over
//! [`publish::AskSigner`], so an embedded signer ([`embedded`]) and a remote one are one to the publisher. Nothing
//! here knows the journal.

pub mod embedded;
pub mod keys;
pub mod publish;
pub mod signer;
