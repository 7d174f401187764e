//! The server's side of TLS: what is in force now, and whether a connection that is up still stands under it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use epigraph_core::{Clock, UnixMillis};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use tokio::sync::watch;

use super::trust::{ClientTrust, VerifyClient};
use super::{ALPN, Credentials, TlsClock, TlsError, provider, unix_time};
use crate::identity::{IdentityError, Leaf, Usage, inspect};

/// The server's side of TLS. Handshakes take what is in force at their moment. It can be replaced while the server runs;
/// connections that are up live on if their certificates would be taken again, and are cut if not.
pub struct ServerTls {
    current: watch::Sender<Arc<InForce>>,
    clock: Arc<dyn Clock>,
}

/// What was loaded together and is in force together.
struct InForce {
    /// Counts the replacements.
    generation: u64,
    config: Arc<ServerConfig>,
    clients: Arc<VerifyClient>,
    not_after: UnixMillis,
    lists_expire: Option<UnixMillis>,
}

impl ServerTls {
    /// Our own name must be of one of the trust domains.
    pub fn new(
        own: &Credentials,
        trust: impl Into<ClientTrust>,
        clock: Arc<dyn Clock>,
    ) -> Result<ServerTls, TlsError> {
        let current = watch::Sender::new(Arc::new(in_force(own, &trust.into(), &clock, 0)?));
        Ok(ServerTls { current, clock })
    }

    /// Takes a renewed certificate and renewed rules, all at once, for handshakes and calls from now on. After an error
    /// everything is as it was.
    pub fn replace(&self, own: &Credentials, trust: impl Into<ClientTrust>) -> Result<(), TlsError> {
        let mut next = in_force(own, &trust.into(), &self.clock, 0)?;
        self.current.send_modify(|current| {
            next.generation = current.generation + 1;
            *current = Arc::new(next);
        });
        Ok(())
    }

    /// When our own certificate ends.
    pub fn not_after(&self) -> UnixMillis {
        self.current.borrow().not_after
    }

    /// When the first of the revocation lists expires, if there are any. From then on the clients of its CA are refused.
    pub fn revocation_lists_expire(&self) -> Option<UnixMillis> {
        self.current.borrow().lists_expire
    }

    pub(crate) fn handshake(&self) -> Handshake<'_> {
        Handshake { tls: self, in_force: Arc::clone(&self.current.borrow()) }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("not_after", &self.not_after()).finish_non_exhaustive()
    }
}

fn in_force(
    own: &Credentials,
    trust: &ClientTrust,
    clock: &Arc<dyn Clock>,
    generation: u64,
) -> Result<InForce, TlsError> {
    if !trust.has_domain(own.spiffe().trust_domain()) {
        let (name, want) = (own.spiffe().clone(), trust.domains());
        return Err(IdentityError::TrustDomain { name, want }.into());
    }
    let clients = Arc::new(VerifyClient::new(trust)?);
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(TlsClock(Arc::clone(clock))))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(&clients) as _)
        .with_cert_resolver(own.for_usage(Usage::Server)?);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let (not_after, lists_expire) = (own.not_after(), trust.lists_expire());
    Ok(InForce { generation, config: Arc::new(config), clients, not_after, lists_expire })
}

/// One handshake, by the rules of the moment in which it began.
pub(crate) struct Handshake<'a> {
    tls: &'a ServerTls,
    in_force: Arc<InForce>,
}

impl Handshake<'_> {
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.in_force.config)
    }

    /// Who showed this chain in the handshake, which has succeeded.
    pub(crate) fn client(
        &self,
        chain: Option<&[CertificateDer<'static>]>,
    ) -> Result<(Leaf, Standing), IdentityError> {
        let chain = chain.unwrap_or_default().to_vec();
        let leaf = inspect(chain.first().ok_or(IdentityError::NoCertificate)?, Usage::Client)?;
        let standing = Standing {
            chain,
            current: self.tls.current.subscribe(),
            clock: Arc::clone(&self.tls.clock),
            good_under: AtomicU64::new(self.in_force.generation),
        };
        Ok((leaf, standing))
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.tls.clock.now()
    }
}

/// Whether the certificate that a connection was made with would still be taken.
pub(crate) struct Standing {
    chain: Vec<CertificateDer<'static>>,
    current: watch::Receiver<Arc<InForce>>,
    clock: Arc<dyn Clock>,
    /// The generation under which the chain was last found good: verifying signatures for each call would cost more than
    /// most calls.
    good_under: AtomicU64,
}

impl Standing {
    /// Asks what is in force now. The error says why the certificate is refused.
    pub(crate) fn check(&self) -> Result<(), rustls::Error> {
        let in_force = Arc::clone(&self.current.borrow());
        if in_force.generation == self.good_under.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some((end_entity, intermediates)) = self.chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        in_force.clients.verify(end_entity, intermediates, unix_time(self.clock.now()))?;
        self.good_under.store(in_force.generation, Ordering::Relaxed);
        Ok(())
    }

    /// Is over when the certificate is refused.
    pub(crate) async fn lost(&self) -> rustls::Error {
        let mut current = self.current.clone();
        loop {
            if let Err(error) = self.check() {
                return error;
            }
            if current.changed().await.is_err() {
                // The server's TLS is gone, and nobody is left who could replace what was in force.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Of somebody whom nothing that happens will be held against.
    #[cfg(test)]
    pub(crate) fn of_test() -> Standing {
        struct Never;
        impl Clock for Never {
            fn now(&self) -> UnixMillis {
                UnixMillis(0)
            }
        }
        let clients = Arc::new(VerifyClient::new(&ClientTrust::default()).unwrap());
        let config =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).unwrap();
        let resolver = rustls::server::ResolvesServerCertUsingSni::new();
        let config = Arc::new(config.with_no_client_auth().with_cert_resolver(Arc::new(resolver)));
        let in_force =
            InForce { generation: 0, config, clients, not_after: UnixMillis(0), lists_expire: None };
        let current = watch::channel(Arc::new(in_force)).1;
        Standing { chain: vec![], current, clock: Arc::new(Never), good_under: AtomicU64::new(0) }
    }

    /// From now on nothing speaks for it.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.good_under.store(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").field("good_under", &self.good_under).finish_non_exhaustive()
    }
}
