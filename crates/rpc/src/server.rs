//! The server: its limits, and the one function that serves.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::accept::accept;
use crate::authorize::Authorizer;
use crate::gate::GateLayer;
use crate::limits::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES};
use crate::observe::Hooks;
use crate::tls::ServerTls;
use crate::v1::log_service_server::{LogService, LogServiceServer};

/// Calls in flight on one connection; what is above waits on the client's side. The library's default is no limit.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 64;

/// A connection that was silent this long is asked whether anyone is there.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// A connection that does not answer within this time is gone.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The header of a request: a name, a path, a deadline. More is an attack on memory.
pub const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// Streams that a client opened and reset before they were looked at (rapid reset, CVE-2023-44487), then the connection
/// is closed.
pub const MAX_PENDING_RESETS: usize = 20;

/// Streams that this side reset for errors of the client's, then the connection is closed (CVE-2025-8671 turns
/// rapid reset round).
pub const MAX_ERROR_RESETS: usize = 128;

/// After this time a client is asked to connect anew: a certificate that was revoked or has expired lives no longer on
/// an open connection than this and [`CONNECTION_GRACE`].
pub const CONNECTION_AGE: Duration = Duration::from_secs(15 * 60);

/// What a client then gets to finish its calls: more than the longest of them may take.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(90);

/// How long calls in flight may take to finish after the shutdown signal.
pub const DRAIN: Duration = Duration::from_secs(30);

/// Connections whose handshake is over and that the server has not yet taken.
const ACCEPTED_QUEUE: usize = 16;

/// Why serving ended other than by the shutdown signal.
#[derive(Debug, Error)]
#[error("the gRPC server failed: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// A log service with the limits of the wire.
pub fn log_service<T: LogService>(service: T) -> LogServiceServer<T> {
    LogServiceServer::new(service)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES)
}

/// Serves `routes` on `listener` until `shutdown` is over and the calls in flight have ended, at most [`DRAIN`] later.
/// Nothing that it started outlives it but connections whose time to drain was over.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    authorizer: Authorizer,
    routes: Routes,
    hooks: impl Into<Hooks>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let hooks = hooks.into();
    let on_refused = hooks.on_refused.clone();
    let (accepted, incoming) = mpsc::channel(ACCEPTED_QUEUE);
    let (stopping, stopped) = oneshot::channel();
    let served = Server::builder()
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .max_connection_age(CONNECTION_AGE)
        .layer(GateLayer::new(authorizer, hooks))
        .serve_with_incoming_shutdown(routes.prepare(), ReceiverStream::new(incoming), async move {
            shutdown.await;
            let _ = stopping.send(());
        });
    let accepting = async {
        accept(listener, tls, on_refused, accepted).await;
        std::future::pending::<()>().await;
    };
    let drained = async {
        if stopped.await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        served = served => Ok(served?),
        () = accepting => Ok(()),
        () = drained => {
            tracing::warn!(seconds = DRAIN.as_secs(), "calls were still in flight when the time to drain was over");
            Ok(())
        }
    }
}
