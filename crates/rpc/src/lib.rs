//! The gRPC edge of Epigraph.
//!
//! It owns the generated wire types ([`v1`]) and their conversion to the types of the core ([`convert`]), the entries of streams ([`entries`]), the one
//! status mapping ([`status`]), mutual TLS and its two ends ([`tls`], [`accept`], [`channel`]), names ([`identity`]),
//! who may do what ([`authorize`]), the limits of the wire ([`limits`]), the server ([`server`]), who is let in without speaking our protocol ([`guests`]), how fast may be asked ([`rate`]), what may be watched of it
//! ([`observe`]) and by which id a call is found again ([`request_id`]), and outgoing calls ([`peer`]). It does not know what a call does, what a checkpoint says, or where anything is stored.

pub mod accept;
pub mod authorize;
pub mod channel;
pub mod connection;
pub mod convert;
pub mod entries;
mod gate;
pub mod guests;
pub mod identity;
pub mod limits;
pub mod observe;
pub mod peer;
mod quota;
pub mod rate;
pub mod request_id;
mod sending;
pub mod server;
pub mod status;
pub mod tls;

pub use accept::{ConnectionRefused, OnRefused, PeerIdentity, log_refused};
pub use authorize::{Authorized, Authorizer, Caller, Grant, GrantError, Logs, Role, SpiffePattern};
pub use convert::{ConvertError, Producer, Wait};
pub use gate::{MAX_RECEIVING_BYTES, MAX_RECEIVING_BYTES_PER_IDENTITY};
pub use identity::{SpiffeError, SpiffeId, Usage};
pub use observe::{Hooks, OnAcceptPaused, OnAnswer, OnCall, OnConnections, OnTrace};
pub use quota::{Exceeded, Quota, Share};
pub use request_id::{RequestId, RequestIds, TraceParent};
pub use sending::{MAX_SENDING_BYTES, MAX_SENDING_BYTES_PER_IDENTITY};
pub use server::{
    ReflectionError, audit_service, collector_service, log_service, monitor_service, serve, signer_service,
    with_reflection, witness_service,
};
pub use status::{CallError, Reason, Refusal};
pub use tls::{
    ClientTls, ClientTrust, Credentials, DenyList, DomainFiles, Reload, Reloader, RevocationLists, ServerTls,
    TlsError, TlsFiles, TrustBundle,
};
pub use tonic::service::Routes;

/// The generated messages and services of `proto/epigraph/v1/`.
#[expect(missing_docs, reason = "generated: the documentation is in the .proto files")]
pub mod v1 {
    tonic::include_proto!("epigraph.v1");
    pub use crate::entries::FollowEntries;
}

/// The encoded `google.protobuf.FileDescriptorSet` of `proto/epigraph/v1/`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/epigraph.v1.descriptors"));
