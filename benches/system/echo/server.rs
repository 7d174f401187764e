//! The echo's server.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{ASK, Answer, Ask, Chunk, EXCHANGE, Inner, Ping, Pong, RECEIVE, Shape, identity};
use crate::process::runtime;

/// Takes three bytes on the wire, like the indexes of most entries of a run.
const NUMBER: u64 = 1_000_000;

const HASH_BYTES: usize = 32;

/// Made once: answers share their bytes.
#[derive(Clone)]
struct Echo(Arc<(Answer, Chunk)>);

impl Echo {
    fn new(shape: Shape) -> Echo {
        let bytes = |length| Bytes::from(vec![0x5a; length]);
        let hashes = vec![bytes(HASH_BYTES); shape.items];
        let answer = Answer { number: NUMBER, hashes, checkpoint: bytes(shape.bytes) };
        let inner = Inner { first: NUMBER, entries: vec![bytes(shape.bytes); shape.items] };
        Echo(Arc::new((answer, Chunk { inner: Some(inner) })))
    }
}

/// The entries are counted, so that decoding them is not for nothing.
fn pong(ping: &Ping) -> Pong {
    let count = u32::try_from(ping.entries.len()).unwrap_or(u32::MAX);
    Pong { number: NUMBER, count, reached: 1 }
}

impl UnaryService<Ping> for Echo {
    type Response = Pong;
    type Future = Ready<Result<Response<Pong>, Status>>;

    fn call(&mut self, request: Request<Ping>) -> Self::Future {
        ready(Ok(Response::new(pong(request.get_ref()))))
    }
}

impl UnaryService<Ask> for Echo {
    type Response = Answer;
    type Future = Ready<Result<Response<Answer>, Status>>;

    fn call(&mut self, _: Request<Ask>) -> Self::Future {
        ready(Ok(Response::new(self.0.0.clone())))
    }
}

impl StreamingService<Ping> for Echo {
    type Response = Pong;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Pong, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Ping>>) -> Self::Future {
        let pongs = request.into_inner().map(|ping| Ok(pong(&ping?)));
        ready(Ok(Response::new(Box::pin(pongs))))
    }
}

impl ServerStreamingService<Ask> for Echo {
    type Response = Chunk;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<Ask>) -> Self::Future {
        let chunks = std::iter::repeat_n(self.0.clone(), usize::MAX).map(|own| Ok(own.1.clone()));
        ready(Ok(Response::new(Box::pin(tokio_stream::iter(chunks)))))
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "epigraph.bench.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                ASK => {
                    tonic::server::Grpc::new(ProstCodec::<Answer, Ask>::default()).unary(echo, request).await
                }
                RECEIVE => {
                    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Chunk, Ask>::default());
                    grpc.server_streaming(echo, request).await
                }
                EXCHANGE => {
                    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Pong, Ping>::default());
                    grpc.streaming(echo, request).await
                }
                _ => tonic::server::Grpc::new(ProstCodec::<Pong, Ping>::default()).unary(echo, request).await,
            })
        })
    }
}

/// The hidden second role of the bench's program: serves until standard input ends. Says its address in one line.
pub(crate) fn serve(pki: &Path, shape: Shape) -> anyhow::Result<()> {
    serve_routes(pki, Echo::new(shape))
}

/// Serves one service over mutual TLS until standard input ends. Says its address in one line.
#[expect(clippy::print_stdout, reason = "the address is the output")]
pub(super) fn serve_routes<S>(pki: &Path, service: S) -> anyhow::Result<()>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let (ca, identity) = identity(pki, "log/server")?;
    let tls = ServerTlsConfig::new().identity(identity).client_ca_root(ca);
    runtime()?.block_on(async {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
        println!("{}", incoming.local_addr()?);
        let closed = async {
            let mut byte = [0];
            while tokio::io::stdin().read(&mut byte).await.is_ok_and(|read| read > 0) {}
        };
        let server = Server::builder().tls_config(tls)?.add_service(service);
        Ok(server.serve_with_incoming_shutdown(incoming, closed).await?)
    })
}
