//! Letting in senders that do not speak our protocol: from a listening socket to streams whose other side is known by the name in
//! its certificate. What is said on a stream is the door's business.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::accept::{HANDSHAKE_TIMEOUT, network, patiently};
use crate::quota::{Exceeded, Quota, Share};
use crate::tls::{GuestTls, identity_error};

/// Connections at one door, those in their handshake too: shippers of a few hundred machines. The file descriptors of four doors
/// stay below the customary limit of 1,024.
pub const MAX_GUESTS: usize = 192;

/// Connections from one address (of IPv6: one /64), so that one sender cannot take them all.
pub const MAX_GUESTS_PER_ADDRESS: usize = 96;

/// How long guests may take to finish what they have begun once the door is closed.
pub const GUEST_DRAIN: Duration = Duration::from_secs(10);

/// What bytes come from and go to.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Somebody who was let in.
pub struct Guest {
    /// The connection.
    pub stream: Box<dyn Duplex>,
    /// The name in the certificate; none on a door without TLS.
    pub name: Option<Arc<str>>,
    /// From where.
    pub address: SocketAddr,
    /// Turns true when the door is being closed.
    pub stopping: watch::Receiver<bool>,
    _place: Share<IpAddr>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("name", &self.name)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Why somebody was not let in.
#[derive(Debug, Error)]
pub enum GuestRefused {
    /// The handshake was not over in [`HANDSHAKE_TIMEOUT`].
    #[error("the TLS handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TooSlow,
    /// Too many connections.
    #[error("too many connections: {0}")]
    TooMany(Exceeded),
    /// The certificate is good, and not on the door's list, or says nobody's name.
    #[error("the client certificate is refused: {0}")]
    Identity(String),
    /// No TLS 1.3 handshake came about; the library says why.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
}

impl GuestRefused {
    /// Every [`kind`](GuestRefused::kind) that there is.
    pub const KINDS: [&str; 4] = ["too_slow", "too_many_connections", "identity", "handshake"];

    /// Its kind in one word, to count by.
    pub fn kind(&self) -> &'static str {
        let place = match self {
            GuestRefused::TooSlow => 0,
            GuestRefused::TooMany(_) => 1,
            GuestRefused::Identity(_) => 2,
            GuestRefused::Handshake(_) => 3,
        };
        GuestRefused::KINDS[place]
    }
}

/// Lets guests in until `shutdown` is over, and waits for those who are there, [`GUEST_DRAIN`] at most. Without `tls` everybody is
/// let in.
pub async fn let_in<F>(
    listener: TcpListener,
    tls: Option<Arc<GuestTls>>,
    on_refused: impl Fn(SocketAddr, &GuestRefused) + Send + Sync + 'static,
    attend: impl Fn(Guest) -> F + Send + Sync + 'static,
    shutdown: impl Future<Output = ()>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Quota::new(MAX_GUESTS, MAX_GUESTS_PER_ADDRESS);
    let on_paused: crate::observe::OnAcceptPaused = Arc::new(|_| {});
    let (stop, stopping) = watch::channel(false);
    let shared = Arc::new((tls, on_refused, attend));
    let mut guests = JoinSet::new();
    {
        // In a block of its own: the socket is closed when the door is, not when the last guest has left.
        let listener = listener;
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            while guests.try_join_next().is_some() {}
            let (stream, address) = tokio::select! {
                () = &mut shutdown => break,
                accepted = patiently(&on_paused, |cx| listener.poll_accept(cx)) => accepted,
            };
            match places.take(network(address.ip()), 1) {
                Ok(place) => {
                    let (shared, stopping) = (Arc::clone(&shared), stopping.clone());
                    guests.spawn(async move {
                        let (tls, on_refused, attend) = &*shared;
                        match introduce(stream, tls.as_deref()).await {
                            Ok((stream, name)) => {
                                attend(Guest { stream, name, address, stopping, _place: place }).await;
                            }
                            Err(why) => on_refused(address, &why),
                        }
                    });
                }
                Err(exceeded) => (shared.1)(address, &GuestRefused::TooMany(exceeded)),
            }
        }
    }
    stop.send_replace(true);
    let drained = async { while guests.join_next().await.is_some() {} };
    if timeout(GUEST_DRAIN, drained).await.is_err() {
        tracing::warn!(
            seconds = GUEST_DRAIN.as_secs(),
            "senders were cut off when the time to finish was over"
        );
    }
}

async fn introduce(
    stream: TcpStream,
    tls: Option<&GuestTls>,
) -> Result<(Box<dyn Duplex>, Option<Arc<str>>), GuestRefused> {
    // Without it small answers wait for the acknowledgement of the ones before.
    stream.set_nodelay(true).map_err(GuestRefused::Handshake)?;
    let Some(tls) = tls else { return Ok((Box::new(stream), None)) };
    let handshake = TlsAcceptor::from(tls.config()).accept(stream);
    let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| GuestRefused::TooSlow)?;
    let stream = stream.map_err(refusal_of)?;
    let name = tls.name(stream.get_ref().1.peer_certificates());
    let name = name.map_err(|error| GuestRefused::Identity(error.to_string()))?;
    Ok((Box::new(stream), Some(name.into())))
}

fn refusal_of(error: io::Error) -> GuestRefused {
    let tls = error.get_ref().and_then(|error| error.downcast_ref());
    match tls.and_then(identity_error) {
        Some(identity) => GuestRefused::Identity(identity.to_string()),
        None => GuestRefused::Handshake(error),
    }
}
