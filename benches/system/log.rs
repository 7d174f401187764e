//! The subject: the real program, set up by `quickstart` and started by `serve log`, and its generated client over
//! Epigraph's own channel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use epigraph_rpc::channel::{Channel, channel};
use epigraph_rpc::peer;
use epigraph_rpc::v1::get_proof_request::Target;
use epigraph_rpc::v1::log_service_client::LogServiceClient;
use epigraph_rpc::v1::{AppendRequest, FollowRequest, GetCheckpointRequest, GetProofRequest, Wait};
use epigraph_rpc::{ClientTls, Credentials, SpiffeId, TrustBundle, Usage};
use tonic::Status;

use crate::clock;
use crate::load::Call;
use crate::process::Served;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_epigraph");

/// Entries of one call that fills a log.
const FILL_BATCH: usize = 2048;

/// The trust domain of a quickstart.
const TRUST_DOMAIN: &str = "epigraph.quickstart";

/// How often a filled log is asked whether it has published.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A log that serves.
pub(crate) struct Log {
    pub(crate) process: Served,
    address: String,
    pub(crate) origin: String,
    server: SpiffeId,
    tls: ClientTls,
}

/// The certificates of a quickstart directory.
pub(crate) fn pki(dir: &Path) -> PathBuf {
    dir.join("pki")
}

/// Makes a quickstart directory.
pub(crate) fn set_up(dir: &Path, more: &[&str]) -> anyhow::Result<()> {
    let mut quickstart = Command::new(PROGRAM);
    quickstart.args(["quickstart", "--once", "--dir"]).arg(dir).args(more).stdout(Stdio::null());
    anyhow::ensure!(quickstart.status()?.success(), "quickstart failed; what it said is above");
    Ok(())
}

/// Starts the process `name` of a quickstart directory, and returns what it says about itself. Its messages go to a file beside
/// the directory.
pub(crate) fn serve(dir: &Path, role: &str, name: &str) -> anyhow::Result<(Served, serde_json::Value)> {
    let mut messages = fs::OpenOptions::new();
    let messages = messages.create(true).append(true).open(dir.with_file_name(format!("{name}.txt")))?;
    let mut serve = Command::new(PROGRAM);
    serve.args(["serve", role, "--json", "--until-stdin-closes", "--config"]);
    serve.arg(dir.join(format!("{name}.toml")));
    let process = Served::start(serve.stderr(messages))?;
    let serving = serde_json::from_str(&process.said)?;
    Ok((process, serving))
}

/// What the client with this certificate, named without its extension, proves to be.
pub(crate) fn client_tls(dir: &Path, certificate: &str) -> anyhow::Result<ClientTls> {
    let clock = clock::clock();
    let file = |extension| pki(dir).join(format!("{certificate}.{extension}"));
    let own = Credentials::from_files(&file("pem"), &file("key"), Usage::Client, clock.now())?;
    let trust = TrustBundle::from_file(TRUST_DOMAIN, &pki(dir).join("ca.pem"))?;
    Ok(ClientTls::new(own, trust, clock)?)
}

impl Log {
    /// Sets up a new log in `dir` and starts it. Its messages go to `log.txt` beside.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Log> {
        set_up(dir, &["--alone"])?;
        Log::start_again(dir)
    }

    /// Starts a log that was set up before.
    pub(crate) fn start_again(dir: &Path) -> anyhow::Result<Log> {
        let (process, serving) = serve(dir, "log", "log")?;
        let address = serving["address"].as_str().context("no address")?.to_owned();
        let origin = serving["logs"][0]["origin"].as_str().context("no origin")?.to_owned();

        let profile: toml::Table = fs::read_to_string(dir.join("client.toml"))?.parse()?;
        let text = |value: &toml::Value| value.as_str().map(ToOwned::to_owned).context("not a text");
        let server = text(&profile["server"])?.parse()?;
        Ok(Log { process, address, origin, server, tls: client_tls(dir, "client/client")? })
    }

    /// A connection of its own.
    pub(crate) fn client(&self) -> anyhow::Result<LogServiceClient<Channel>> {
        Ok(LogServiceClient::new(channel(&self.address, &self.tls, &self.server)?))
    }

    /// The same connection as the crates' own clients have it.
    pub(crate) fn peer(&self) -> anyhow::Result<peer::Log> {
        Ok(peer::Log::new(&self.address, &self.tls, &self.server)?)
    }

    /// A request for `entries` entries of `entry_bytes` each, to be answered when they are durable.
    pub(crate) fn request(&self, entries: usize, entry_bytes: usize) -> AppendRequest {
        AppendRequest {
            origin: self.origin.clone(),
            entries: vec![Bytes::from(vec![0x5a; entry_bytes]); entries],
            wait: Wait::Durable.into(),
            wait_ms: 0,
            producer: None,
        }
    }

    /// Appends until the log has published exactly `size` entries.
    pub(crate) async fn fill(&self, size: u64, entry_bytes: usize) -> anyhow::Result<()> {
        let mut client = self.client()?;
        let mut next = self.published(&mut client).await?;
        while next < size {
            let count = (size - next).min(FILL_BATCH as u64);
            let answer = client.append(self.request(count as usize, entry_bytes)).await?.into_inner();
            next = answer.first_index + count;
        }
        while self.published(&mut client).await? < size {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The size of the newest published checkpoint.
    pub(crate) async fn published(&self, client: &mut LogServiceClient<Channel>) -> anyhow::Result<u64> {
        let answer = client.get_checkpoint(GetCheckpointRequest { origin: self.origin.clone() }).await?;
        let note = std::str::from_utf8(&answer.get_ref().checkpoint)?;
        Ok(note.lines().nth(1).context("a checkpoint without a size")?.parse()?)
    }

    /// Asks for the proof of one entry.
    pub(crate) fn proof_request(&self, index: u64) -> GetProofRequest {
        let target = Some(Target::LeafIndex(index));
        GetProofRequest { origin: self.origin.clone(), target, tree_size: 0, consistent_from: 0 }
    }

    /// Asks for all entries.
    pub(crate) fn follow_request(&self) -> FollowRequest {
        FollowRequest { origin: self.origin.clone(), first_index: 0 }
    }
}

/// Appends one request over and over.
#[derive(Clone)]
pub(crate) struct AppendCall {
    client: LogServiceClient<Channel>,
    request: AppendRequest,
}

impl AppendCall {
    pub(crate) fn connect(log: &Log, request: AppendRequest) -> anyhow::Result<AppendCall> {
        Ok(AppendCall { client: log.client()?, request })
    }

    /// The same for whoever is not within a runtime.
    pub(crate) fn connect_within(
        runtime: &tokio::runtime::Runtime,
        log: &Log,
        request: AppendRequest,
    ) -> anyhow::Result<AppendCall> {
        let _within = runtime.enter();
        AppendCall::connect(log, request)
    }
}

impl Call for AppendCall {
    async fn call(&mut self) -> Result<(), Status> {
        let answer = self.client.append(self.request.clone()).await?;
        let all = answer.get_ref().count as usize == self.request.entries.len();
        if all { Ok(()) } else { Err(Status::internal("a wrong answer")) }
    }
}

/// Appends one request over and over, and waits for its receipt each time.
#[derive(Clone)]
pub(crate) struct PublishCall(AppendCall);

impl PublishCall {
    pub(crate) fn connect(log: &Log, request: AppendRequest) -> anyhow::Result<PublishCall> {
        Ok(PublishCall(AppendCall::connect(log, request)?))
    }
}

impl Call for PublishCall {
    async fn call(&mut self) -> Result<(), Status> {
        let answer = self.0.client.append(self.0.request.clone()).await?.into_inner();
        let receipt =
            answer.reached() == Wait::Published && answer.proofs.len() == self.0.request.entries.len();
        if receipt { Ok(()) } else { Err(Status::internal("no receipt")) }
    }
}

/// Asks for proofs of entries all over a tree.
#[derive(Clone)]
pub(crate) struct ProofCall {
    client: LogServiceClient<Channel>,
    request: GetProofRequest,
    size: u64,
    hashes: usize,
    random: Arc<AtomicU64>,
}

impl ProofCall {
    /// For a tree of `size` entries, a power of two.
    pub(crate) fn connect(log: &Log, size: u64) -> anyhow::Result<ProofCall> {
        let random = Arc::new(AtomicU64::new(1));
        let hashes = size.ilog2() as usize;
        Ok(ProofCall { client: log.client()?, request: log.proof_request(0), size, hashes, random })
    }
}

impl Call for ProofCall {
    async fn call(&mut self) -> Result<(), Status> {
        // Knuth's multiplicative hash spreads the numbers of the calls evenly over the tree, in no order.
        let number = self.random.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let index = number >> (u64::BITS - self.size.ilog2());
        let request = GetProofRequest { target: Some(Target::LeafIndex(index)), ..self.request.clone() };
        let answer = self.client.get_proof(request).await?;
        let right = answer.get_ref().leaf_index == index && answer.get_ref().hashes.len() == self.hashes;
        if right { Ok(()) } else { Err(Status::internal("a wrong answer")) }
    }
}
