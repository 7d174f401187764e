//! An authority of the test's own, and servers and clients under it.

use std::sync::Arc;

use epigraph_core::{Clock, Entropy, UnixMillis};
use epigraph_rpc::peer::{Log, Monitor};
use epigraph_rpc::{
    Authorizer, ClientTls, Credentials, Grant, Logs, OnRefused, Role, Routes, ServerTls, TrustBundle, Usage,
    serve,
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::net::TcpListener;
use tokio::time::Instant;

const SERVER: &str = "spiffe://test.example/epigraph/log/main";

/// 2030-01-01T00:00:00Z, always.
pub struct Fixed;

pub const NOW: UnixMillis = UnixMillis(1_893_456_000_000);

impl Clock for Fixed {
    fn now(&self) -> UnixMillis {
        NOW
    }
}

/// A clock that began at this time and goes.
pub struct Going(pub u64, pub Instant);

impl Going {
    pub fn from(began: u64) -> Arc<dyn Clock> {
        Arc::new(Going(began, Instant::now()))
    }
}

impl Clock for Going {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0 + self.1.elapsed().as_millis() as u64)
    }
}

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

/// An authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A server that listens.
pub struct Serving {
    ca: Ca,
    address: String,
}

impl Serving {
    /// Serves to readers, until the test ends.
    pub async fn start(routes: Routes) -> Serving {
        let ca = Ca::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let own = ca.issue(SERVER, ExtendedKeyUsagePurpose::ServerAuth, Usage::Server);
        let tls = Arc::new(ServerTls::new(&own, &ca.trust(), Arc::new(Fixed)).unwrap());
        let grant = |name: &str, role| {
            let spiffe = format!("spiffe://test.example/epigraph/{name}/*").parse().unwrap();
            Grant { spiffe, roles: [role].into(), logs: Logs::All }
        };
        let grants = vec![grant("reader", Role::Reader), grant("monitor", Role::Monitor)];
        let authorizer = Authorizer::new(grants).unwrap();
        let refused: OnRefused = Arc::new(|_, _| ());
        tokio::spawn(async move {
            serve(listener, tls, authorizer, routes, refused, Arc::new(Fixed), std::future::pending()).await;
        });
        Serving { ca, address }
    }

    /// The log as the reader of this name sees it, over a connection of its own.
    pub fn reader(&self, name: &str) -> Log {
        Log::new(&self.address, &self.client("reader", name), &SERVER.parse().unwrap()).unwrap()
    }

    /// The monitor that is served, as another monitor sees it.
    pub fn monitor(&self, name: &str) -> Monitor {
        Monitor::new(&self.address, &self.client("monitor", name), &SERVER.parse().unwrap()).unwrap()
    }

    fn client(&self, role: &str, name: &str) -> ClientTls {
        let name = format!("spiffe://test.example/epigraph/{role}/{name}");
        let own = self.ca.issue(&name, ExtendedKeyUsagePurpose::ClientAuth, Usage::Client);
        ClientTls::new(own, self.ca.trust(), Arc::new(Fixed)).unwrap()
    }
}

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, name: &str, purpose: ExtendedKeyUsagePurpose, usage: Usage) -> Credentials {
        let mut params = CertificateParams::new(vec!["localhost".to_string()]).unwrap();
        params.subject_alt_names.push(SanType::URI(name.try_into().unwrap()));
        params.extended_key_usages = vec![purpose];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let key = key.serialize_pem();
        Credentials::from_pem(chain.as_bytes(), key.as_bytes(), usage, Fixed.now()).unwrap()
    }

    fn trust(&self) -> TrustBundle {
        TrustBundle::from_pem("test.example", self.pem.as_bytes()).unwrap()
    }
}
