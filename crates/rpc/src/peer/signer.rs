//! A signer, seen by the log process that it signs for.

use bytes::Bytes;
use epigraph_core::progress::Proposal;
use epigraph_core::{Origin, TreeHead};

use super::{call, present};
use crate::channel::{Channel, channel};
use crate::convert::{ConvertError, proof_to_wire, tree_head, tree_head_to_wire};
use crate::identity::SpiffeId;
use crate::limits::{CALL_DEADLINE, MAX_MESSAGE_CHARS, MAX_SIGNER_MESSAGE_BYTES};
use crate::status::CallError;
use crate::tls::{ClientTls, TlsError};
use crate::v1::signer_service_client::SignerServiceClient;
use crate::v1::{self, open_term_response, sign_checkpoint_response};

/// What a signer is bound to for one log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignerHead {
    /// The newest head.
    pub head: TreeHead,
    /// The newest term that was opened.
    pub term: u64,
}

impl SignerHead {
    /// From the wire, where it must be there.
    pub fn of_wire(field: &'static str, wire: Option<&v1::SignerHead>) -> Result<SignerHead, ConvertError> {
        let wire = wire.ok_or(ConvertError::Missing(field))?;
        Ok(SignerHead { head: tree_head("head", wire.head.as_ref())?, term: wire.term })
    }

    /// As it stands on the wire.
    pub fn to_wire(&self) -> v1::SignerHead {
        v1::SignerHead { head: Some(tree_head_to_wire(&self.head)), term: self.term }
    }
}

/// What a signer says to the wish for a term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenTermAnswer {
    /// This term is open now.
    Opened(u64),
    /// It holds something else than was expected: this. No term was opened.
    Changed(SignerHead),
}

/// What a signer says to a proposed head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SignAnswer {
    /// The signed note.
    Signed(Bytes),
    /// It holds this head, of another size than was thought.
    Stale(TreeHead),
    /// The proposed head does not extend this one, which it holds.
    Conflict(TreeHead),
    /// The proposal is not in order; why.
    Rejected(String),
}

/// A signer. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Signer {
    client: SignerServiceClient<Channel>,
}

impl Signer {
    /// Prepares the connection to the signer at `address` (`host:port`), which must prove to be `server`; the first call
    /// makes it. Must be called within a tokio runtime.
    pub fn new(address: &str, tls: &ClientTls, server: &SpiffeId) -> Result<Signer, TlsError> {
        let client = SignerServiceClient::new(channel(address, tls, server)?)
            .max_decoding_message_size(MAX_SIGNER_MESSAGE_BYTES);
        Ok(Signer { client })
    }

    /// Asks what it is bound to.
    pub async fn head(&self, origin: &Origin) -> Result<SignerHead, CallError> {
        let request = v1::GetHeadRequest { origin: origin.as_str().into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_head(request)).await?;
        Ok(SignerHead::of_wire("held", answer.held.as_ref())?)
    }

    /// Asks for a term, if it is still bound to `expected`.
    pub async fn open_term(
        &self,
        origin: &Origin,
        expected: &SignerHead,
    ) -> Result<OpenTermAnswer, CallError> {
        let request =
            v1::OpenTermRequest { origin: origin.as_str().into(), expected: Some(expected.to_wire()) };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.open_term(request)).await?;
        Ok(match answer.outcome.ok_or(ConvertError::Missing("outcome"))? {
            open_term_response::Outcome::Opened(term) => OpenTermAnswer::Opened(term),
            open_term_response::Outcome::Changed(held) => {
                OpenTermAnswer::Changed(SignerHead::of_wire("changed", Some(&held))?)
            }
        })
    }

    /// Proposes a head in a term.
    pub async fn sign_checkpoint(
        &self,
        origin: &Origin,
        term: u64,
        proposal: &Proposal,
    ) -> Result<SignAnswer, CallError> {
        let request = v1::SignCheckpointRequest {
            origin: origin.as_str().into(),
            term,
            old_size: proposal.old_size.get(),
            head: Some(tree_head_to_wire(&proposal.head)),
            proof: proof_to_wire(&proposal.proof),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.sign_checkpoint(request)).await?;
        Ok(match answer.outcome.ok_or(ConvertError::Missing("outcome"))? {
            sign_checkpoint_response::Outcome::Checkpoint(note) => {
                SignAnswer::Signed(present("checkpoint", note)?)
            }
            sign_checkpoint_response::Outcome::Stale(held) => {
                SignAnswer::Stale(tree_head("stale", Some(&held))?)
            }
            sign_checkpoint_response::Outcome::Conflict(held) => {
                SignAnswer::Conflict(tree_head("conflict", Some(&held))?)
            }
            sign_checkpoint_response::Outcome::Rejected(why) => {
                let printable = why.chars().take(MAX_MESSAGE_CHARS);
                SignAnswer::Rejected(printable.map(|c| if c.is_control() { ' ' } else { c }).collect())
            }
        })
    }
}
