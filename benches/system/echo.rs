//! The yardstick: gRPC calls over mutual TLS that do nothing, served and called with stock tonic and rustls. Nothing
//! of Epigraph's own edge is in it.
//!
//! Its messages have the fields of those it is compared with, as far as they are used, so both move the same bytes
//! and decode the same shapes.

mod call;
pub(crate) mod cosign;
mod server;

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use bytes::Bytes;
use tonic::transport::{Certificate, Identity};

pub(crate) use call::{AskCall, PingCall, exchange, receive};
pub(crate) use server::serve;

use crate::process::Served;

/// The hidden argument with which this program starts itself as the echo's server.
pub(crate) const SERVE_ECHO: &str = "--serve-echo";

const PING: &str = "/epigraph.bench.Echo/Ping";
const ASK: &str = "/epigraph.bench.Echo/Ask";
const EXCHANGE: &str = "/epigraph.bench.Echo/Exchange";
const RECEIVE: &str = "/epigraph.bench.Echo/Receive";

/// As a request to append.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ping {
    #[prost(string, tag = "1")]
    origin: String,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    entries: Vec<Bytes>,
    #[prost(int32, tag = "3")]
    wait: i32,
}

/// As the answer to a durable append.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Pong {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(uint32, tag = "2")]
    pub(crate) count: u32,
    #[prost(int32, tag = "3")]
    reached: i32,
}

/// As a request for a proof, or for a stream of entries.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ask {
    #[prost(string, tag = "1")]
    origin: String,
    #[prost(uint64, tag = "2")]
    pub(crate) number: u64,
}

/// As a proof.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Answer {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    hashes: Vec<Bytes>,
    #[prost(bytes = "bytes", tag = "3")]
    checkpoint: Bytes,
}

/// As an event of a stream of entries.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Chunk {
    #[prost(message, optional, tag = "2")]
    pub(crate) inner: Option<Inner>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Inner {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(crate) entries: Vec<Bytes>,
}

/// What the echo answers with, where the size of the answer counts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shape {
    /// Hashes in an [`Answer`], or entries in a [`Chunk`].
    pub(crate) items: usize,
    /// Bytes of its checkpoint, or of an entry.
    pub(crate) bytes: usize,
}

/// Starts the echo as a process of its own.
pub(crate) fn start(pki: &Path, shape: Shape) -> anyhow::Result<Served> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(SERVE_ECHO).arg(pki).args([shape.items.to_string(), shape.bytes.to_string()]);
    Served::start(&mut command)
}

/// Takes a request that another program would send for one of the echo's; of the same size on the wire.
pub(crate) fn as_echo<M: prost::Message + Default>(request: &impl prost::Message) -> anyhow::Result<M> {
    let message = M::decode(request.encode_to_vec().as_slice())?;
    anyhow::ensure!(
        message.encoded_len() == request.encoded_len(),
        "the echo does not know all of its fields"
    );
    Ok(message)
}

fn identity(pki: &Path, stem: &str) -> anyhow::Result<(Certificate, Identity)> {
    let read = |name: &str| {
        let path = pki.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let identity = Identity::from_pem(read(&format!("{stem}.pem"))?, read(&format!("{stem}.key"))?);
    Ok((Certificate::from_pem(read("ca.pem")?), identity))
}
