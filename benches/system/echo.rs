//! The yardstick: a unary gRPC call over mutual TLS that does nothing, served and called with stock tonic and
//! rustls. Nothing of Epigraph's own edge is in it.
//!
//! Its messages have the encoded sizes of those it is compared with, so both move the same bytes.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::load::Call;
use crate::process::runtime;

/// What is sent: as many bytes as wanted.
#[derive(Clone, PartialEq, prost::Message)]
struct Ping {
    #[prost(bytes = "bytes", tag = "1")]
    payload: Bytes,
}

/// Bytes that a [`Ping`] takes around its payload: a tag, and a length of two bytes from 128 to 16,383.
const AROUND_PAYLOAD: usize = 3;

/// What comes back: the three small numbers of the answer to a durable append.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Pong {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(uint32, tag = "2")]
    count: u32,
    #[prost(int32, tag = "3")]
    reached: i32,
}

/// Takes three bytes on the wire, like the indexes of most entries of a run.
const NUMBER: u64 = 1_000_000;

const PATH: &str = "/epigraph.bench.Echo/Echo";

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "epigraph.bench.Echo";
}

impl UnaryService<Ping> for Echo {
    type Response = Pong;
    type Future = Ready<Result<Response<Pong>, Status>>;

    fn call(&mut self, request: Request<Ping>) -> Self::Future {
        // A fixed number, and one that depends on the request, so that decoding it is not for nothing.
        let count = u32::from(!request.get_ref().payload.is_empty());
        ready(Ok(Response::new(Pong { number: NUMBER, count, reached: 1 })))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(grpc.unary(Echo, request).await)
        })
    }
}

/// The hidden second role of the bench's program: serves until standard input ends. Says its address in one line.
#[expect(clippy::print_stdout, reason = "the address is the output")]
pub(crate) fn serve(pki: &Path) -> anyhow::Result<()> {
    let (ca, identity) = identity(pki, "log/server")?;
    let tls = ServerTlsConfig::new().identity(identity).client_ca_root(ca);
    runtime()?.block_on(async {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
        println!("{}", incoming.local_addr()?);
        let closed = async {
            let mut byte = [0];
            while tokio::io::stdin().read(&mut byte).await.is_ok_and(|read| read > 0) {}
        };
        let server = Server::builder().tls_config(tls)?.add_service(Echo);
        Ok(server.serve_with_incoming_shutdown(incoming, closed).await?)
    })
}

/// One connection to the echo.
#[derive(Clone)]
pub(crate) struct EchoCall {
    channel: Channel,
    ping: Ping,
}

impl EchoCall {
    /// Prepares a connection whose requests take `request_bytes` encoded.
    pub(crate) fn connect(address: &str, pki: &Path, request_bytes: usize) -> anyhow::Result<EchoCall> {
        let (ca, identity) = identity(pki, "client/client")?;
        let tls = ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name("localhost");
        let channel = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect_lazy();
        let ping = Ping { payload: vec![0x5a; request_bytes - AROUND_PAYLOAD].into() };
        anyhow::ensure!(prost::Message::encoded_len(&ping) == request_bytes, "no ping has this size");
        Ok(EchoCall { channel, ping })
    }
}

impl Call for EchoCall {
    async fn call(&mut self) -> Result<(), Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = http::uri::PathAndQuery::from_static(PATH);
        let pong: Response<Pong> =
            grpc.unary(Request::new(self.ping.clone()), path, ProstCodec::default()).await?;
        if pong.get_ref().count == 1 { Ok(()) } else { Err(Status::internal("a wrong answer")) }
    }
}

fn identity(pki: &Path, stem: &str) -> anyhow::Result<(Certificate, Identity)> {
    let read = |name: &str| {
        let path = pki.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let identity = Identity::from_pem(read(&format!("{stem}.pem"))?, read(&format!("{stem}.key"))?);
    Ok((Certificate::from_pem(read("ca.pem")?), identity))
}
