//! A witness, seen by those who call it.

use bytes::Bytes;
use epigraph_core::note::{SignatureLine, parse_signatures};
use epigraph_core::progress::Proposal;
use epigraph_core::{TreeHead, TreeSize, VKey};
use tonic::Streaming;

use super::{at_most, call, present};
use crate::channel::{Channel, channel};
use crate::convert::{ConvertError, hash, proof_to_wire, tree_size};
use crate::identity::SpiffeId;
use crate::limits::{CALL_DEADLINE, MAX_LOGS_PAGE, MAX_RESPONSE_BYTES};
use crate::status::CallError;
use crate::tls::{ClientTls, TlsError};
use crate::v1;
use crate::v1::add_checkpoint_response::Outcome;
use crate::v1::witness_service_client::WitnessServiceClient;

/// A witness, seen by those who call it. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Witness {
    client: WitnessServiceClient<Channel>,
}

/// What a witness says to a proposal. Nothing of it is verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proposed {
    /// It says that it cosigned: signature lines for the proposed note, one at least.
    Cosigned(Vec<SignatureLine>),
    /// It holds another size than the proposer thought.
    Stale {
        /// What it says it holds.
        held: TreeHead,
        /// The log-signed note of it; `None` if it has cosigned nothing.
        note: Option<Bytes>,
    },
    /// It says that the proposed checkpoint and the one that it holds are of two histories.
    Conflict {
        /// The log-signed note that it holds.
        held: Bytes,
        /// The log-signed note that was proposed.
        proposed: Bytes,
    },
}

/// A log as a witness lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WitnessedLog {
    /// The log.
    pub origin: String,
    /// The key that the witness expects its signature from.
    pub vkey: VKey,
    /// The size that it holds; 0 if it has cosigned nothing.
    pub size: TreeSize,
    /// When it last cosigned, in POSIX seconds; 0 if never.
    pub cosigned_at: u64,
}

/// Cosigned checkpoints, as a witness pushes them.
#[derive(Debug)]
pub struct Watched(Streaming<v1::WatchCosignedCheckpointsResponse>);

impl Watched {
    /// The next note; `None` when the witness wants to be asked anew.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        match self.0.message().await? {
            Some(answer) => Ok(Some(present("checkpoint", answer.checkpoint)?)),
            None => Ok(None),
        }
    }
}

impl Witness {
    /// Prepares the connection to the witness at `address` (`host:port`), which must prove to be `server`; the first call
    /// makes it. Must be called within a tokio runtime.
    pub fn new(address: &str, tls: &ClientTls, server: &SpiffeId) -> Result<Witness, TlsError> {
        let client = WitnessServiceClient::new(channel(address, tls, server)?)
            .max_decoding_message_size(MAX_RESPONSE_BYTES);
        Ok(Witness { client })
    }

    /// Proposes a checkpoint: [`Proposal::note`] is what travels, its head is in there.
    pub async fn add_checkpoint(&self, origin: &str, proposal: Proposal) -> Result<Proposed, CallError> {
        let request = v1::AddCheckpointRequest {
            origin: origin.into(),
            old_size: proposal.old_size.get(),
            checkpoint: proposal.note.into(),
            proof: proof_to_wire(&proposal.proof),
        };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.add_checkpoint(request)).await?;
        match answer.outcome {
            None => Err(ConvertError::Missing("outcome").into()),
            Some(Outcome::Cosigned(v1::Cosigned { signatures })) => {
                let lines = parse_signatures(&signatures).map_err(|_| ConvertError::Missing("signatures"))?;
                Ok(Proposed::Cosigned(lines))
            }
            Some(Outcome::Stale(v1::Stale { size, root, checkpoint })) => {
                let held = TreeHead { size: tree_size("size", size)?, root: hash("root", &root)? };
                Ok(Proposed::Stale { held, note: Some(checkpoint).filter(|note| !note.is_empty()) })
            }
            Some(Outcome::Conflict(v1::Conflict { held, proposed })) => Ok(Proposed::Conflict {
                held: present("held", held)?,
                proposed: present("proposed", proposed)?,
            }),
        }
    }

    /// Asks for the newest checkpoint that it cosigned.
    pub async fn checkpoint(&self, origin: &str) -> Result<Bytes, CallError> {
        let request = v1::GetCosignedCheckpointRequest { origin: origin.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.get_checkpoint(request)).await?;
        Ok(present("checkpoint", answer.checkpoint)?)
    }

    /// Asks to be told of what it cosigns, the newest first.
    pub async fn watch(&self, origin: &str) -> Result<Watched, CallError> {
        let request = v1::WatchCosignedCheckpointsRequest { origin: origin.into() };
        let mut client = self.client.clone();
        // The deadline of `call` would end the stream with it.
        let watching = tokio::time::timeout(CALL_DEADLINE, client.watch_checkpoints(request));
        Ok(Watched(watching.await.map_err(|_| CallError::TimedOut)??.into_inner()))
    }

    /// Asks for one page of its logs, and for the token of the next page; `None` after the last one.
    pub async fn logs(&self, page_token: &str) -> Result<(Vec<WitnessedLog>, Option<String>), CallError> {
        let request = v1::ListLogsRequest { page_size: MAX_LOGS_PAGE, page_token: page_token.into() };
        let mut client = self.client.clone();
        let answer = call(request, CALL_DEADLINE, |request| client.list_logs(request)).await?;
        at_most("logs", MAX_LOGS_PAGE.into(), answer.logs.len() as u64)?;
        let logs = answer.logs.into_iter().map(|log| {
            Ok(WitnessedLog {
                vkey: log.vkey.parse().map_err(|_| ConvertError::Missing("vkey"))?,
                size: tree_size("size", log.size)?,
                origin: log.origin,
                cosigned_at: log.cosigned_at,
            })
        });
        let logs = logs.collect::<Result<_, ConvertError>>()?;
        Ok((logs, Some(answer.next_page_token).filter(|token| !token.is_empty())))
    }
}
