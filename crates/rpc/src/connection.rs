//! The life of one connection: its calls go through the gate, the client is asked to leave when the connection is old,
//! and is cut off when it stays.
//!
//! The gRPC library would serve all connections by itself, but asks all of them to leave at the same age, so that
//! clients which came together come back together for ever.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use epigraph_core::Entropy;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::server::TlsStream;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use crate::accept::{ConnectionRefused, OnRefused, PeerIdentity};
use crate::identity::SpiffeId;
use crate::quota::Share;
use crate::tls::why;

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

/// After this time, give or take [`CONNECTION_AGE_SPREAD`], a client is asked to connect anew, so that load finds its
/// way to other servers and no connection outlives what was known when it was made.
pub const CONNECTION_AGE: Duration = Duration::from_secs(15 * 60);

/// A fifth of the age, either way: clients that came at the same moment, after a restart, do not come back at one.
pub const CONNECTION_AGE_SPREAD: Duration = Duration::from_secs(3 * 60);

/// What a client then gets to finish its calls: more than the longest of them may take.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(90);

/// A connection with a known peer, and its place among the connections of that peer.
#[derive(Debug)]
pub(crate) struct Connection<S = TlsStream<TcpStream>> {
    pub(crate) stream: S,
    pub(crate) peer: Arc<PeerIdentity>,
    pub(crate) share: Share<SpiffeId>,
}

/// The moment at which a timer of so long would go off, within a tokio runtime. The time of timers decides how long something
/// is waited for and nothing else.
pub(crate) fn in_time(wait: Duration) -> Instant {
    sleep(wait).deadline()
}

/// When a client that connects now with a certificate that is valid for so long is asked to leave.
pub(crate) fn leave_by(entropy: &dyn Entropy, valid_for: Duration) -> Instant {
    let mut random = [0; 4];
    entropy.fill(&mut random);
    // From 0 to twice the spread, in milliseconds; the bias of the division is of no concern here.
    let spread = CONNECTION_AGE_SPREAD.saturating_mul(2).as_millis() as u64;
    let drawn = Duration::from_millis(u64::from(u32::from_le_bytes(random)) % (spread + 1));
    in_time(valid_for.min(CONNECTION_AGE.saturating_sub(CONNECTION_AGE_SPREAD) + drawn))
}

/// Serves the calls of one connection until the client is gone. The client is asked to leave at its
/// [`PeerIdentity::leave_by`] or once `stopping` says so; [`CONNECTION_GRACE`] after its time, or at
/// once if its certificate is no longer accepted, it is cut off, whatever is under way.
pub(crate) async fn attend<S, T>(
    connection: Connection<S>,
    gate: T,
    mut stopping: watch::Receiver<bool>,
    on_refused: OnRefused,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    T::Future: Send,
{
    let Connection { stream, peer, share: _share } = connection;
    let PeerIdentity { leave_by, address, .. } = *peer;
    let known = Arc::clone(&peer);
    let service = gate.map_request(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&known));
        request
    });
    let serving = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut serving = pin!(serving);
    let asked_to_leave = async {
        tokio::select! {
            () = sleep_until(leave_by) => {}
            () = stopped(&mut stopping) => {}
        }
    };
    let mut cut = pin!(async {
        tokio::select! {
            () = sleep_until(leave_by + CONNECTION_GRACE) => {}
            error = peer.standing.lost() => on_refused(address, &ConnectionRefused::Revoked(why(&error))),
        }
    });
    tokio::select! {
        served = &mut serving => return log_end(served),
        () = &mut cut => return,
        () = asked_to_leave => serving.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        served = &mut serving => log_end(served),
        () = &mut cut => {}
    }
}

/// Whoever would say that the server stops and is gone has stopped, too.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|stopping| *stopping).await);
}

fn log_end(served: Result<(), hyper::Error>) {
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended badly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;
    use bytes::Bytes;
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;
    use tower::util::service_fn;

    struct Drawn(u32);

    impl Entropy for Drawn {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0.to_le_bytes()[..bytes.len()]);
        }
    }

    /// Connections must not come back all at once, and none may stay for ever. Broken to see it fail: no spread.
    #[tokio::test(start_paused = true)]
    async fn ages_are_spread_by_a_fifth_either_way() {
        let age = |drawn| (leave_by(&Drawn(drawn), Duration::MAX) - Instant::now()).as_secs_f64() / 60.0;
        assert_eq!((age(0), age(3 * 60_000), age(6 * 60_000)), (12.0, 15.0, 18.0));
        for drawn in [1, 6 * 60_000 + 1, 0x1234_5678, u32::MAX - 1, u32::MAX] {
            assert!((12.0..=18.0).contains(&age(drawn)), "{drawn}");
        }
        // Nobody stays longer than the certificate is valid.
        for valid_for in [Duration::ZERO, Duration::from_secs(700)] {
            assert_eq!(leave_by(&Drawn(0), valid_for) - Instant::now(), valid_for);
        }
    }

    type Serving = JoinHandle<()>;

    /// A connection whose calls are never answered, and a client on it. Acknowledging pings is up to the client library.
    async fn connected(stopping: watch::Receiver<bool>) -> (h2::client::SendRequest<Bytes>, Serving) {
        let (client, server): (DuplexStream, DuplexStream) = tokio::io::duplex(64 * 1024);
        let peer = PeerIdentity::of_test("spiffe://td/epigraph/x/1");
        let share = Quota::new(1, 1).take(peer.spiffe.clone(), 1).unwrap();
        let connection = Connection { stream: server, peer, share };
        let never = service_fn(|request: Request<Body>| {
            assert!(request.extensions().get::<Arc<PeerIdentity>>().is_some());
            std::future::pending()
        });
        let serving = tokio::spawn(attend(connection, never, stopping, Arc::new(|_, _| ())));
        let (sender, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(async { drop(connection.await) });
        (sender.ready().await.unwrap(), serving)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_asked_to_leave_an_old_connection_and_goes() {
        let (_stop, stopping) = watch::channel(false);
        let start = Instant::now();
        let (_sender, serving) = connected(stopping).await;
        serving.await.unwrap();
        assert_eq!(start.elapsed(), CONNECTION_AGE);
    }

    /// A call that never ends does not keep the connection. Broken to see it fail: no cut.
    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_its_time_is_over_whoever_holds_on_to_it() {
        let (_stop, stopping) = watch::channel(false);
        let start = Instant::now();
        let (mut sender, serving) = connected(stopping).await;
        let call = Request::post("https://localhost/a/b").body(()).unwrap();
        let (answer, _body) = sender.send_request(call, true).unwrap();
        assert!(answer.await.is_err());
        assert_eq!(start.elapsed(), CONNECTION_AGE + CONNECTION_GRACE);
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stops_asks_its_clients_to_leave() {
        let (stop, stopping) = watch::channel(false);
        let start = Instant::now();
        let (_sender, serving) = connected(stopping).await;
        stop.send_replace(true);
        serving.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
