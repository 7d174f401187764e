//! The server: what a service may receive and send, and the one function that serves.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::Entropy;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::service::Routes;
use tower::Layer;

use crate::accept::accept;
use crate::authorize::Authorizer;
use crate::connection::attend;
use crate::gate::GateLayer;
use crate::limits::{
    MAX_COLLECT_BYTES, MAX_EVENT_BATCH_BYTES, MAX_PROPOSAL_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES,
    MAX_SIGNER_MESSAGE_BYTES,
};
use crate::observe::Hooks;
use crate::tls::ServerTls;
use crate::v1::audit_service_server::{AuditService, AuditServiceServer};
use crate::v1::collector_service_server::{CollectorService, CollectorServiceServer};
use crate::v1::log_service_server::{LogService, LogServiceServer};
use crate::v1::monitor_service_server::{MonitorService, MonitorServiceServer};
use crate::v1::signer_service_server::{SignerService, SignerServiceServer};
use crate::v1::witness_service_server::{WitnessService, WitnessServiceServer};

/// How long calls in flight may take to finish after the shutdown signal.
pub const DRAIN: Duration = Duration::from_secs(30);

/// Connections whose handshake is over and that the server has not yet taken.
const ACCEPTED_QUEUE: usize = 16;

/// The largest question of reflection: a symbol or the name of a file, and a host.
const MAX_REFLECTION_BYTES: usize = 4 * 1024;

/// Reflection cannot read the descriptors that it serves.
#[derive(Debug, Error)]
#[error("reflection cannot be served: {0}; this is a fault of the program, leave [listen] reflection out")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

/// A log service with the limits of the wire.
pub fn log_service<T: LogService>(service: T) -> LogServiceServer<T> {
    LogServiceServer::new(service)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES)
}

/// A signer service with the limits of the wire.
pub fn signer_service<T: SignerService>(service: T) -> SignerServiceServer<T> {
    SignerServiceServer::new(service)
        .max_decoding_message_size(MAX_SIGNER_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_SIGNER_MESSAGE_BYTES)
}

/// A witness service with the limits of the wire.
pub fn witness_service<T: WitnessService>(service: T) -> WitnessServiceServer<T> {
    WitnessServiceServer::new(service)
        .max_decoding_message_size(MAX_PROPOSAL_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES)
}

/// A monitor service with the limits of the wire.
pub fn monitor_service<T: MonitorService>(service: T) -> MonitorServiceServer<T> {
    MonitorServiceServer::new(service)
        .max_decoding_message_size(MAX_PROPOSAL_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES)
}

/// An audit service with the limits of the wire.
pub fn audit_service<T: AuditService>(service: T) -> AuditServiceServer<T> {
    AuditServiceServer::new(service)
        .max_decoding_message_size(MAX_EVENT_BATCH_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES)
}

/// A collector service with the limits of the wire: beside its events, a message has a few bytes for each.
pub fn collector_service<T: CollectorService>(service: T) -> CollectorServiceServer<T> {
    CollectorServiceServer::new(service)
        .max_decoding_message_size(MAX_COLLECT_BYTES + 64 * 1024)
        .max_encoding_message_size(MAX_SIGNER_MESSAGE_BYTES)
}

/// Adds reflection, by which stock clients learn the calls of this protocol. Whoever has any role here may ask.
pub fn with_reflection(routes: Routes) -> Result<Routes, ReflectionError> {
    let service = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::DESCRIPTORS)
        .build_v1()?
        .max_decoding_message_size(MAX_REFLECTION_BYTES);
    Ok(routes.add_service(service))
}

/// Serves `routes` on `listener` until `shutdown` is over and the calls in flight have ended, at most [`DRAIN`] later.
/// Nothing that it started outlives it. `entropy` spreads the ages of the connections.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    authorizer: Authorizer,
    routes: Routes,
    hooks: impl Into<Hooks>,
    entropy: Arc<dyn Entropy>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let hooks = hooks.into();
    let gate = GateLayer::new(authorizer, hooks.clone()).layer(routes.prepare());
    let (accepted, mut incoming) = mpsc::channel(ACCEPTED_QUEUE);
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    {
        // In a block of its own: the socket is closed when the server stops, not when it has stopped.
        let mut accepting = pin!(accept(listener, tls, entropy, hooks.clone(), accepted));
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(connection) = incoming.recv() => {
                    connections.spawn(attend(connection, gate.clone(), stopping.clone(), Arc::clone(&hooks.on_refused)));
                    (hooks.on_connections)(connections.len());
                }
                Some(_) = connections.join_next() => (hooks.on_connections)(connections.len()),
                () = &mut accepting => break,
            }
        }
    }
    stop.send_replace(true);
    let drained = async {
        while connections.join_next().await.is_some() {
            (hooks.on_connections)(connections.len());
        }
    };
    if timeout(DRAIN, drained).await.is_err() {
        tracing::warn!(
            seconds = DRAIN.as_secs(),
            "calls were still in flight when the time to drain was over"
        );
    }
}
