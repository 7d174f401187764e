//! The yardstick of a witness: gRPC over mutual TLS that verifies one signature, makes one block durable and signs once, for
//! everybody. All that waits shares one `fdatasync`, on a thread of its own, as in a witness. It compares nothing and
//! remembers nothing.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::thread;

use epigraph_core::cosignature::CosignedAt;
use epigraph_core::note::Parsed;
use epigraph_core::{CosigningKey, KeyName, UnixMillis, VKey};
use epigraph_rpc::v1;
use epigraph_rpc::v1::add_checkpoint_response::Outcome;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

use super::call::{connect, ready};
use super::server::serve_routes;
use crate::clock;
use crate::process::Served;

/// The hidden argument with which this program starts itself as this server.
pub(crate) const SERVE_COSIGNING: &str = "--serve-cosigning-echo";

const COSIGN: &str = "/epigraph.bench.Cosigner/Cosign";

/// What is overwritten for each request: a slot of a head, as small as most disks move anything.
const BLOCK: usize = 4096;

/// Requests that share one sync, as many as in a witness.
const MOST_TOGETHER: usize = 512;

/// Starts it as a process of its own. `file` is written in it: one block for each log.
pub(crate) fn start(pki: &Path, log: &VKey, file: &Path, logs: usize) -> anyhow::Result<Served> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(SERVE_COSIGNING).arg(pki).arg(log.to_string()).arg(file).arg(logs.to_string());
    Served::start(&mut command)
}

/// Has a checkpoint cosigned.
#[derive(Clone)]
pub(crate) struct Cosigner(Channel);

impl Cosigner {
    pub(crate) fn connect(address: &str, pki: &Path) -> anyhow::Result<Cosigner> {
        Ok(Cosigner(connect(address, pki)?))
    }

    pub(crate) async fn cosign(
        &self,
        request: v1::AddCheckpointRequest,
    ) -> Result<v1::AddCheckpointResponse, Status> {
        let path = PathAndQuery::from_static(COSIGN);
        Ok(ready(&self.0)
            .await?
            .unary(Request::new(request), path, ProstCodec::default())
            .await?
            .into_inner())
    }
}

/// A verified text, and who waits for its cosignature.
struct Waiting {
    text: String,
    answer: oneshot::Sender<Vec<u8>>,
}

#[derive(Clone)]
struct Cosigning {
    log: Arc<VKey>,
    waiting: mpsc::Sender<Waiting>,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

impl UnaryService<v1::AddCheckpointRequest> for Cosigning {
    type Response = v1::AddCheckpointResponse;
    type Future = Answer<v1::AddCheckpointResponse>;

    fn call(&mut self, request: Request<v1::AddCheckpointRequest>) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        let parsed = Parsed::parse(&request.get_ref().checkpoint).ok();
        let log = &*self.log;
        let signed = |note: &Parsed<'_>| note.verify(|_, _| Some(log)).is_ok_and(|signed| signed.len() == 1);
        let sound = parsed.filter(signed);
        let sent = sound.map(|note| self.waiting.send(Waiting { text: note.text().to_owned(), answer }));
        Box::pin(async move {
            match sent {
                Some(Ok(())) => {
                    let signatures = answered.await.map_err(|_| Status::internal("the disk failed"))?;
                    let outcome = Outcome::Cosigned(v1::Cosigned { signatures: signatures.into() });
                    Ok(Response::new(v1::AddCheckpointResponse { outcome: Some(outcome) }))
                }
                _ => Err(Status::invalid_argument("not signed")),
            }
        })
    }
}

/// Makes a block durable for everybody who waits, then cosigns for each.
fn keep(file: &File, logs: u64, key: &CosigningKey, inbox: &mpsc::Receiver<Waiting>) -> anyhow::Result<()> {
    let clock = clock::clock();
    let mut next = 0;
    while let Ok(first) = inbox.recv() {
        let mut together = vec![first];
        together.extend(inbox.try_iter().take(MOST_TOGETHER - 1));
        for _ in &together {
            file.write_all_at(&[0x5a; BLOCK], next % logs * BLOCK as u64)?;
            next += 1;
        }
        file.sync_data()?;
        let time = CosignedAt::of(clock.now()).or(CosignedAt::of(UnixMillis(1_000)));
        for Waiting { text, answer } in together {
            if let Some(time) = time {
                // Whoever asked may have gone.
                let _ = answer.send(format!("{}\n", key.cosign_assertion(&text, time)).into());
            }
        }
    }
    Ok(())
}

impl NamedService for Cosigning {
    const NAME: &'static str = "epigraph.bench.Cosigner";
}

impl Service<http::Request<Body>> for Cosigning {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let cosigning = self.clone();
        let codec = ProstCodec::<v1::AddCheckpointResponse, v1::AddCheckpointRequest>::default();
        Box::pin(async move { Ok(tonic::server::Grpc::new(codec).unary(cosigning, request).await) })
    }
}

/// Serves until standard input ends. Says its address in one line.
pub(crate) fn serve(pki: &Path, log: &str, file: &Path, logs: u64) -> anyhow::Result<()> {
    let block = OpenOptions::new().write(true).create_new(true).open(file)?;
    for at in 0..logs {
        block.write_all_at(&[0; BLOCK], at * BLOCK as u64)?;
    }
    block.sync_all()?;
    let (waiting, inbox) = mpsc::channel();
    let key = CosigningKey::from_seed(KeyName::new("witness.example/echo")?, &Zeroizing::new([7; 32]));
    // Ends with the process, or with the disk; then nobody is answered any more.
    thread::spawn(move || keep(&block, logs.max(1), &key, &inbox));
    serve_routes(pki, Cosigning { log: Arc::new(log.parse()?), waiting })
}
