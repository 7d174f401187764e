//! A CA in memory, a server on a port that the system chose, and clients that keep to the rules or do not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::{Clock, Entropy, Hash, UnixMillis};
use epigraph_rpc::peer::Log;
use epigraph_rpc::v1::log_service_server::LogService;
use epigraph_rpc::{
    Authorizer, Caller, ClientTls, Credentials, Grant, Logs, OnRefused, Reason, Refusal, Role, Routes,
    ServerTls, SpiffeId, TrustBundle, Usage, Wait, convert, log_service, serve, v1,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::{Request, Response, Status};

pub(crate) const SERVER: &str = "spiffe://test.example/epigraph/log/main";
pub(crate) const APPENDER: &str = "spiffe://test.example/epigraph/appender/a";
pub(crate) const READER: &str = "spiffe://test.example/epigraph/reader/r";
pub(crate) const ORIGIN: &str = "test.example/log";
pub(crate) const CHECKPOINT: &[u8] = b"a signed note";

/// 2030-01-01T00:00:00Z, always.
pub(crate) struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> UnixMillis {
        UnixMillis(1_893_456_000_000)
    }
}

impl Entropy for Fixed {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(Fixed)
}

pub(crate) fn name(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, if another CA vouches for it.
    below: Option<String>,
    pub(crate) pem: String,
    pub(crate) der: CertificateDer<'static>,
}

/// A certificate and its key, both PEM.
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
}

pub(crate) fn leaf(uris: &[&str], usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_string()]).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

pub(crate) fn client_leaf(uri: &str) -> CertificateParams {
    leaf(&[uri], ExtendedKeyUsagePurpose::ClientAuth)
}

pub(crate) fn server_leaf(uri: &str) -> CertificateParams {
    leaf(&[uri], ExtendedKeyUsagePurpose::ServerAuth)
}

pub(crate) fn serial_leaf(uri: &str, serial: u64) -> CertificateParams {
    let mut params = client_leaf(uri);
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Ca {
    pub(crate) fn new() -> Ca {
        Ca::named("test CA")
    }

    pub(crate) fn named(name: &str) -> Ca {
        let (params, key) = (ca_params(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Ca { issuer: Issuer::new(params, key), below: None, pem, der }
    }

    pub(crate) fn issue(&self, params: CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let chain = chain + self.below.as_deref().unwrap_or_default();
        Issued { chain, key: key.serialize_pem() }
    }

    pub(crate) fn trust(&self) -> TrustBundle {
        TrustBundle::from_pem("test.example", self.pem.as_bytes()).unwrap()
    }

    /// A CA below this one, for leaves of its own: what it issues is shown together with its certificate.
    pub(crate) fn intermediate(&self, name: &str, serial: u64) -> Ca {
        let (mut params, key) = (ca_params(name), KeyPair::generate().unwrap());
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Ca { issuer: Issuer::new(params, key), below: Some(pem.clone()), pem, der }
    }

    /// A revocation list with these serial numbers, good for the month before and after [`Fixed`].
    pub(crate) fn crl(&self, serials: &[u64]) -> CertificateRevocationList {
        self.crl_until(serials, date_time_ymd(2030, 2, 1))
    }

    pub(crate) fn crl_until(
        &self,
        serials: &[u64],
        next_update: time::OffsetDateTime,
    ) -> CertificateRevocationList {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2029, 12, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2029, 12, 1),
            next_update,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap()
    }

    /// A client whose certificate has this serial number.
    pub(crate) fn client_with(&self, uri: &str, serial: u64) -> ClientTls {
        ClientTls::new(
            self.issue(serial_leaf(uri, serial)).load(Usage::Client).unwrap(),
            self.trust(),
            clock(),
        )
        .unwrap()
    }

    pub(crate) fn server(&self, uri: &str) -> Credentials {
        self.issue(server_leaf(uri)).load(Usage::Server).unwrap()
    }

    pub(crate) fn client(&self, uri: &str) -> ClientTls {
        let own = self.issue(client_leaf(uri)).load(Usage::Client).unwrap();
        ClientTls::new(own, self.trust(), clock()).unwrap()
    }

    /// A TLS client by the library's own rules, which does not check what it shows for itself.
    pub(crate) fn raw(
        &self,
        own: Option<&Issued>,
        version: &'static SupportedProtocolVersion,
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let config = config.with_root_certificates(roots);
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let chain =
                    CertificateDer::pem_slice_iter(own.chain.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

impl Issued {
    pub(crate) fn load(&self, usage: Usage) -> Result<Credentials, epigraph_rpc::TlsError> {
        Credentials::from_pem(self.chain.as_bytes(), self.key.as_bytes(), usage, Fixed.now())
    }
}

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) tls: Arc<ServerTls>,
    /// Lets `GetConsistencyProof` answer.
    pub(crate) release: Arc<Notify>,
    /// Told when `GetConsistencyProof` is waiting.
    pub(crate) waiting: Arc<Notify>,
    refused: mpsc::UnboundedReceiver<String>,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(ca: &Ca) -> Server {
        let tls = ServerTls::new(&ca.server(SERVER), &ca.trust(), clock()).unwrap();
        Server::start_with(Arc::new(tls)).await
    }

    pub(crate) async fn start_with(tls: Arc<ServerTls>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let grant = |pattern: &str, role| Grant {
            spiffe: pattern.parse().unwrap(),
            roles: [role].into(),
            logs: Logs::Only([ORIGIN.to_string()].into()),
        };
        let authorizer = Authorizer::new(vec![
            grant("spiffe://test.example/epigraph/appender/*", Role::Appender),
            grant(READER, Role::Reader),
        ])
        .unwrap();
        let (report, refused) = mpsc::unbounded_channel();
        let on_refused: OnRefused = Arc::new(move |_, reason| report.send(reason.to_string()).unwrap_or(()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (release, waiting) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let dummy = Dummy { release: Arc::clone(&release), waiting: Arc::clone(&waiting) };
        let routes = Routes::new(log_service(dummy));
        let serving = Arc::clone(&tls);
        let task = tokio::spawn(async move {
            let shutdown = async { stopped.await.unwrap_or(()) };
            serve(listener, serving, authorizer, routes, on_refused, Arc::new(Fixed), shutdown).await;
        });
        Server { address, tls, release, waiting, refused, stop: Some(stop), task }
    }

    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub(crate) fn log(&self, tls: &ClientTls) -> Log {
        Log::new(&self.address, tls, &name(SERVER)).unwrap()
    }

    /// Why the server refused the next connection that it refused.
    pub(crate) async fn refusal(&mut self) -> String {
        self.refused.recv().await.unwrap()
    }

    pub(crate) fn no_refusal(&mut self) -> bool {
        self.refused.try_recv().is_err()
    }

    pub(crate) async fn connect(&self, tls: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        tls.connect(ServerName::try_from("localhost").unwrap(), stream).await
    }
}

/// Answers with fixed values, after asking for permission as every handler must.
struct Dummy {
    release: Arc<Notify>,
    waiting: Arc<Notify>,
}

fn authorize<T>(request: &Request<T>, origin: &str) -> Result<(), Status> {
    Caller::of(request)?.authorize(origin)?;
    Ok(())
}

#[tonic::async_trait]
impl LogService for Dummy {
    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        authorize(&request, &request.get_ref().origin)?;
        let request = request.into_inner();
        let published = Wait::asked(request.wait).map_err(Refusal::from)? == Wait::Published;
        let proof = || v1::InclusionProof { hashes: convert::proof_to_wire(&[Hash::EMPTY_ROOT; 3]) };
        let mut answer = v1::AppendResponse {
            first_index: 7,
            count: request.entries.len() as u32,
            reached: if published { Wait::Published } else { Wait::Durable }.to_wire(),
            checkpoint: if published { Bytes::from_static(CHECKPOINT) } else { Bytes::new() },
            proofs: if published { request.entries.iter().map(|_| proof()).collect() } else { vec![] },
            unpublished_because: "x".repeat(epigraph_rpc::limits::MAX_REASON_CHARS + 1),
        };
        // The first entry may ask for a lie.
        match request.entries.first().map(Bytes::as_ref) {
            Some(b"lie: first_index") => answer.first_index = u64::MAX,
            Some(b"lie: count") => answer.count += 1,
            Some(b"lie: reached") => answer.reached = 0,
            Some(b"lie: checkpoint") => answer.checkpoint.clear(),
            Some(b"lie: proofs") => answer.proofs.clear(),
            Some(b"lie: hashes") => answer.proofs[0].hashes = vec![Bytes::from(vec![0; 31])],
            Some(b"lie: more hashes") => answer.proofs[0].hashes = vec![Bytes::from(vec![0; 32]); 64],
            _ => {}
        }
        Ok(Response::new(answer))
    }

    async fn get_proof(
        &self,
        request: Request<v1::GetProofRequest>,
    ) -> Result<Response<v1::GetProofResponse>, Status> {
        authorize(&request, &request.get_ref().origin)?;
        let refusal = Refusal::new(Reason::NotYetPublished, "a moment").at("leaf_index");
        Err(refusal.retry_after(Duration::from_millis(250)).into())
    }

    async fn get_entries(
        &self,
        request: Request<v1::GetEntriesRequest>,
    ) -> Result<Response<v1::GetEntriesResponse>, Status> {
        authorize(&request, &request.get_ref().origin)?;
        let v1::GetEntriesRequest { first_index, max_entries, .. } = request.into_inner();
        let mut answer =
            v1::GetEntriesResponse { first_index, entries: vec![Bytes::new(); max_entries as usize] };
        // The index may ask for a lie.
        match first_index {
            101 => answer.first_index += 1,
            102 => answer.entries.clear(),
            103 => answer.entries.push(Bytes::new()),
            104 => answer.entries[0] = Bytes::from(vec![0; 65_536]),
            105 => answer.entries = vec![Bytes::from(vec![0; 65_535]); 65],
            _ => {}
        }
        Ok(Response::new(answer))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::GetConsistencyProofResponse>, Status> {
        authorize(&request, &request.get_ref().origin)?;
        self.waiting.notify_one();
        self.release.notified().await;
        Ok(Response::new(v1::GetConsistencyProofResponse { hashes: vec![] }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        authorize(&request, &request.get_ref().origin)?;
        Ok(Response::new(v1::GetCheckpointResponse { checkpoint: Bytes::from_static(CHECKPOINT) }))
    }

    type AppendStreamStream = tokio_stream::Empty<Result<v1::AppendResponse, Status>>;

    async fn append_stream(
        &self,
        _: Request<tonic::Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn get_producer(
        &self,
        _: Request<v1::GetProducerRequest>,
    ) -> Result<Response<v1::GetProducerResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    type FollowStream = tokio_stream::Empty<Result<v1::FollowEvent, Status>>;

    async fn follow(&self, _: Request<v1::FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn get_tile(
        &self,
        _: Request<v1::GetTileRequest>,
    ) -> Result<Response<v1::GetTileResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    async fn add_cosignature(
        &self,
        _: Request<v1::AddCosignatureRequest>,
    ) -> Result<Response<v1::AddCosignatureResponse>, Status> {
        Err(Status::unimplemented("not of this test"))
    }

    type WatchCheckpointsStream = tokio_stream::Empty<Result<v1::WatchCheckpointsResponse, Status>>;

    async fn watch_checkpoints(
        &self,
        _: Request<v1::WatchCheckpointsRequest>,
    ) -> Result<Response<Self::WatchCheckpointsStream>, Status> {
        Err(Status::unimplemented("not of this test"))
    }
}
