//! From a listening socket to connections whose other side is known.
//!
//! tonic could accept by itself, but without a limit on handshakes in flight, without a deadline for them, and with
//! errors that nobody sees. Here every connection is counted, and carries the name of its peer, parsed once.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use epigraph_core::Entropy;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::connection::{Connection, in_time, leave_by};
use crate::identity::{IdentityError, Leaf, SpiffeId};
use crate::observe::{Hooks, OnAcceptPaused};
use crate::quota::{Exceeded, Quota};
use crate::tls::{ServerTls, Standing, identity_error, is_revoked};

/// Connections in all. Half of the customary limit of 1,024 file descriptors; the rest is for the files of the log.
pub const MAX_CONNECTIONS: usize = 512;

/// Connections of one identity, so that one client cannot take them all.
pub const MAX_CONNECTIONS_PER_IDENTITY: usize = 32;

/// Handshakes in flight. Strangers can start them, so what they can occupy is bounded; above it the kernel's queue
/// holds the others back.
pub const MAX_HANDSHAKES: usize = 128;

/// Handshakes in flight from one address (of IPv6: one /64), so that one silent stranger cannot take them all.
pub const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;

/// A handshake takes two round trips; who needs longer than this is not trying.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// After a refusal the rest of what the client sends is read, so that the alert which says why is not lost in a reset
/// connection; this much and this long at most.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 * 1024;

/// The pause after a failed accept, doubled up to the second value. Nothing but time gives file descriptors back.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Who is on the other side of a connection; in the extensions of every request on it, as an `Arc`.
#[derive(Debug)]
pub struct PeerIdentity {
    /// The name in the certificate, vouched for by the CA of its trust domain.
    pub spiffe: SpiffeId,
    /// Where it connects from.
    pub address: SocketAddr,
    /// When the client is asked to leave. A stream that goes on beyond is cut off at an arbitrary place soon after.
    pub leave_by: Instant,
    /// Whether the certificate is still good.
    pub(crate) standing: Standing,
}

#[cfg(test)]
impl PeerIdentity {
    /// Somebody who is there for a quarter of an hour.
    pub(crate) fn of_test(name: &str) -> Arc<PeerIdentity> {
        let leave_by = Instant::now() + crate::connection::CONNECTION_AGE;
        Arc::new(PeerIdentity {
            spiffe: name.parse().unwrap(),
            address: ([127, 0, 0, 1], 1).into(),
            leave_by,
            standing: Standing::of_test(),
        })
    }
}

/// Why a connection was not taken.
#[derive(Debug, Error)]
pub enum ConnectionRefused {
    /// The handshake was not over in [`HANDSHAKE_TIMEOUT`].
    #[error("the TLS handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TooSlow,
    /// Too many handshakes in flight from this address.
    #[error("too many handshakes from this address: {0}")]
    TooManyHandshakes(Exceeded),
    /// Too many connections, in all or of this identity.
    #[error("too many connections for {name}: {exceeded}")]
    TooManyConnections {
        /// Who wanted one more.
        name: SpiffeId,
        /// Which limit is reached.
        exceeded: Exceeded,
    },
    /// The certificate is from the right CA, but does not name a client.
    #[error("the client certificate is refused: {0}")]
    Identity(IdentityError),
    /// The certificate is revoked, or its name, serial number or key is on the deny list. Also of a connection that was
    /// taken before and is cut now.
    #[error("the client certificate is revoked: {0}")]
    Revoked(String),
    /// No TLS 1.3 handshake came about; the library says why.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
}

impl ConnectionRefused {
    /// Every [`kind`](ConnectionRefused::kind) that there is.
    pub const KINDS: [&str; 6] =
        ["too_slow", "too_many_handshakes", "too_many_connections", "identity", "handshake", "revoked"];

    /// Its kind in one word, to count by.
    pub fn kind(&self) -> &'static str {
        let place = match self {
            ConnectionRefused::TooSlow => 0,
            ConnectionRefused::TooManyHandshakes(_) => 1,
            ConnectionRefused::TooManyConnections { .. } => 2,
            ConnectionRefused::Identity(_) => 3,
            ConnectionRefused::Handshake(_) => 4,
            ConnectionRefused::Revoked(_) => 5,
        };
        ConnectionRefused::KINDS[place]
    }
}

/// Told of every refused connection.
pub type OnRefused = Arc<dyn Fn(SocketAddr, &ConnectionRefused) + Send + Sync>;

/// Warnings of refused connections in a second. Strangers cause them, and must not be able to fill a disk with them.
const REFUSED_WARNINGS_PER_SECOND: u32 = 5;

/// Writes a warning with the address and the reason, at most five a second. The next one tells how many were not
/// written. To be called within a tokio runtime.
pub fn log_refused() -> OnRefused {
    let budget = Mutex::new(Budget { since: None, used: 0, suppressed: 0 });
    Arc::new(move |address, reason| {
        let granted = budget.lock().unwrap_or_else(PoisonError::into_inner).take(in_time(Duration::ZERO));
        if let Some(suppressed) = granted {
            tracing::warn!(%address, %reason, suppressed, "connection refused");
        }
    })
}

/// What may be written in the second that began at `since`.
struct Budget {
    since: Option<Instant>,
    used: u32,
    suppressed: u64,
}

impl Budget {
    /// Whether to write, and then how many were not written since the last.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.used) = (Some(now), 0);
        }
        if self.used == REFUSED_WARNINGS_PER_SECOND {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// What the handshakes of one listener share.
struct Acceptor {
    tls: Arc<ServerTls>,
    entropy: Arc<dyn Entropy>,
    on_refused: OnRefused,
    connections: Arc<Quota<SpiffeId>>,
    accepted: mpsc::Sender<Connection>,
}

/// Accepts until the receiver of `accepted` is gone. Handshakes in flight end with the future.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    entropy: Arc<dyn Entropy>,
    hooks: Hooks,
    accepted: mpsc::Sender<Connection>,
) {
    let Hooks { on_refused, on_accept_paused, .. } = hooks;
    let connections = Quota::new(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_IDENTITY);
    let acceptor = Arc::new(Acceptor { tls, entropy, on_refused, connections, accepted });
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let per_address = Quota::new(MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS);
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, patiently(&on_accept_paused, |cx| listener.poll_accept(cx)).await))
        };
        let (slot, (stream, address)) = tokio::select! {
            () = acceptor.accepted.closed() => return,
            next = next => match next {
                Some(next) => next,
                None => return,
            },
        };
        match per_address.take(network(address.ip()), 1) {
            Ok(share) => {
                let acceptor = Arc::clone(&acceptor);
                handshakes.spawn(async move {
                    let connection = acceptor.handshake(stream, address).await;
                    drop((slot, share));
                    if let Some(connection) = connection {
                        // Nobody is there to take it once the server shuts down.
                        let _ = acceptor.accepted.send(connection).await;
                    }
                });
            }
            Err(exceeded) => (acceptor.on_refused)(address, &ConnectionRefused::TooManyHandshakes(exceeded)),
        }
    }
}

impl Acceptor {
    async fn handshake(&self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        let result = timeout(HANDSHAKE_TIMEOUT, self.establish(stream, address)).await;
        result
            .unwrap_or(Err(ConnectionRefused::TooSlow))
            .inspect_err(|reason| (self.on_refused)(address, reason))
            .ok()
    }

    async fn establish(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<Connection, ConnectionRefused> {
        // Without it small answers wait for the acknowledgement of the ones before: 11 calls a second.
        stream.set_nodelay(true).map_err(ConnectionRefused::Handshake)?;
        let tls = self.tls.handshake();
        let handshake = TlsAcceptor::from(tls.config()).accept(stream).into_fallible();
        let stream = match handshake.await {
            Ok(stream) => stream,
            Err((error, mut stream)) => {
                let _ = timeout(LINGER, async {
                    stream.shutdown().await?;
                    tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await
                })
                .await;
                return Err(refusal_of(error));
            }
        };
        let client = tls.client(stream.get_ref().1.peer_certificates());
        let (Leaf { spiffe, not_after, .. }, standing) = client.map_err(ConnectionRefused::Identity)?;
        let share = self
            .connections
            .take(spiffe.clone(), 1)
            .map_err(|exceeded| ConnectionRefused::TooManyConnections { name: spiffe.clone(), exceeded })?;
        // A connection ends with the certificate that it was made with.
        let valid_for = Duration::from_millis(not_after.0.saturating_sub(tls.now().0));
        let leave_by = leave_by(&*self.entropy, valid_for);
        let peer = Arc::new(PeerIdentity { spiffe, address, leave_by, standing });
        Ok(Connection { stream, peer, share })
    }
}

fn refusal_of(error: io::Error) -> ConnectionRefused {
    let tls = error.get_ref().and_then(|error| error.downcast_ref());
    match tls.and_then(identity_error) {
        Some(denied @ IdentityError::Denied { .. }) => ConnectionRefused::Revoked(denied.to_string()),
        Some(identity) => ConnectionRefused::Identity(identity.clone()),
        None if tls.is_some_and(is_revoked) => {
            ConnectionRefused::Revoked("the CA's revocation list says so".into())
        }
        None => ConnectionRefused::Handshake(error),
    }
}

/// What one party can be expected to have many addresses of: in IPv6 a /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// Accepts until it works. An error (no file descriptors are left, say) is reported and waited out: giving up would
/// end the service, and trying again at once would burn the processor until the cause is gone.
pub(crate) async fn patiently<T>(
    on_paused: &OnAcceptPaused,
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> T {
    let mut pause = ACCEPT_PAUSE.0;
    loop {
        match poll_fn(&mut accept).await {
            Ok(accepted) => return accepted,
            // The other side gave up while it waited in the kernel's queue: that is its affair alone.
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                on_paused(&error);
                tracing::error!(%error, ?pause, "no connection can be accepted; trying again after a pause");
                sleep(pause).await;
                pause = ACCEPT_PAUSE.1.min(pause * 2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F6. Broken to see it fail: nobody told.
    #[tokio::test(start_paused = true)]
    async fn failing_accepts_are_told_and_waited_out_with_growing_pauses() {
        const EMFILE: i32 = 24;
        let start = Instant::now();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let on_paused: OnAcceptPaused =
            Arc::new(move |error| tell.lock().unwrap().push(error.raw_os_error()));
        let mut pauses = Vec::new();
        let accepted = patiently(&on_paused, |_| {
            pauses.push(start.elapsed().as_millis());
            Poll::Ready(if pauses.len() == 8 { Ok(()) } else { Err(io::Error::from_raw_os_error(EMFILE)) })
        });
        accepted.await;
        assert_eq!(pauses, [0, 50, 150, 350, 750, 1_550, 2_550, 3_550]);
        assert_eq!(*told.lock().unwrap(), [Some(EMFILE); 7]);
        // Whoever gave up in the queue is no reason to pause.
        let mut errors = vec![ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
        patiently(&on_paused, |_| Poll::Ready(errors.pop().map_or(Ok(()), |kind| Err(kind.into())))).await;
        assert_eq!(told.lock().unwrap().len(), 7);
    }

    /// Broken to see it fail: no end to the budget of a second.
    #[tokio::test(start_paused = true)]
    async fn strangers_cannot_fill_the_log() {
        let mut budget = Budget { since: None, used: 0, suppressed: 0 };
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let written = (0..1_000).filter_map(|_| budget.take(start)).collect::<Vec<_>>();
        assert_eq!(written, [0; 5]);
        assert_eq!(budget.take(start + second - Duration::from_nanos(1)), None);
        assert_eq!((budget.take(start + second), budget.take(start + second)), (Some(996), Some(0)));
    }

    #[test]
    fn addresses_of_one_party_count_as_one() {
        let check = |a: &str, b: &str, same: bool| {
            let [a, b] = [a, b].map(|text| network(text.parse().unwrap()));
            assert_eq!(a == b, same, "{a} {b}");
        };
        check("2001:db8::1", "2001:db8::ffff:1", true);
        check("2001:db8::1", "2001:db8:0:1::1", false);
        check("192.0.2.1", "192.0.2.2", false);
        check("192.0.2.1", "::ffff:192.0.2.1", true);
    }
}
