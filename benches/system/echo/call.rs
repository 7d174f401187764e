//! What is called on the echo.

use std::path::Path;

use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{ASK, Answer, Ask, Chunk, EXCHANGE, PING, Ping, Pong, RECEIVE, identity};
use crate::load::Call;

/// One connection to the echo.
pub(super) fn connect(address: &str, pki: &Path) -> anyhow::Result<Channel> {
    let (ca, identity) = identity(pki, "client/client")?;
    let tls = ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name("localhost");
    Ok(Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect_lazy())
}

pub(super) async fn ready(channel: &Channel) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(grpc)
}

/// Sends a request as an append's, and gets an answer as an append's.
#[derive(Clone)]
pub(crate) struct PingCall {
    channel: Channel,
    ping: Ping,
}

impl PingCall {
    pub(crate) fn connect(address: &str, pki: &Path, ping: Ping) -> anyhow::Result<PingCall> {
        Ok(PingCall { channel: connect(address, pki)?, ping })
    }
}

impl Call for PingCall {
    async fn call(&mut self) -> Result<(), Status> {
        let request = Request::new(self.ping.clone());
        let path = PathAndQuery::from_static(PING);
        let pong: Response<Pong> =
            ready(&self.channel).await?.unary(request, path, ProstCodec::default()).await?;
        let all = pong.get_ref().count as usize == self.ping.entries.len();
        if all { Ok(()) } else { Err(Status::internal("a wrong answer")) }
    }
}

/// Asks for an answer as a proof.
#[derive(Clone)]
pub(crate) struct AskCall {
    channel: Channel,
    ask: Ask,
    hashes: usize,
}

impl AskCall {
    pub(crate) fn connect(address: &str, pki: &Path, ask: Ask, hashes: usize) -> anyhow::Result<AskCall> {
        Ok(AskCall { channel: connect(address, pki)?, ask, hashes })
    }
}

impl Call for AskCall {
    async fn call(&mut self) -> Result<(), Status> {
        let request = Request::new(self.ask.clone());
        let path = PathAndQuery::from_static(ASK);
        let answer: Response<Answer> =
            ready(&self.channel).await?.unary(request, path, ProstCodec::default()).await?;
        let all = answer.get_ref().hashes.len() == self.hashes;
        if all { Ok(()) } else { Err(Status::internal("a wrong answer")) }
    }
}

/// Opens a stream of answers to a stream of requests, on a connection of its own.
pub(crate) async fn exchange(
    address: &str,
    pki: &Path,
    pings: ReceiverStream<Ping>,
) -> anyhow::Result<Streaming<Pong>> {
    let path = PathAndQuery::from_static(EXCHANGE);
    let mut grpc = ready(&connect(address, pki)?).await?;
    Ok(grpc.streaming(Request::new(pings), path, ProstCodec::default()).await?.into_inner())
}

/// Opens a stream that does not end, on a connection of its own.
pub(crate) async fn receive(address: &str, pki: &Path, ask: Ask) -> anyhow::Result<Streaming<Chunk>> {
    let path = PathAndQuery::from_static(RECEIVE);
    let mut grpc = ready(&connect(address, pki)?).await?;
    Ok(grpc.server_streaming(Request::new(ask), path, ProstCodec::default()).await?.into_inner())
}
