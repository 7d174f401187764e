//! The subject: the real program, set up by `quickstart` and started by `serve log`, and its generated client over
//! Epigraph's own channel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use bytes::Bytes;
use epigraph_rpc::channel::{Channel, channel};
use epigraph_rpc::v1::log_service_client::LogServiceClient;
use epigraph_rpc::v1::{AppendRequest, Wait};
use epigraph_rpc::{ClientTls, Credentials, SpiffeId, TrustBundle, Usage};
use tonic::Status;

use crate::clock;
use crate::load::Call;
use crate::process::Served;

const PROGRAM: &str = env!("CARGO_BIN_EXE_epigraph");

/// A log that serves.
pub(crate) struct Log {
    pub(crate) process: Served,
    address: String,
    origin: String,
    server: SpiffeId,
    tls: ClientTls,
}

/// The certificates of a quickstart directory.
pub(crate) fn pki(dir: &Path) -> PathBuf {
    dir.join("pki")
}

impl Log {
    /// Sets up a new log in `dir` and starts it. Its messages go to `log.txt` beside.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Log> {
        let mut quickstart = Command::new(PROGRAM);
        quickstart.args(["quickstart", "--once", "--alone", "--dir"]).arg(dir).stdout(Stdio::null());
        anyhow::ensure!(quickstart.status()?.success(), "quickstart failed; what it said is above");
        let messages = fs::File::create(dir.with_file_name("log.txt"))?;
        let mut serve = Command::new(PROGRAM);
        serve.args(["serve", "log", "--json", "--until-stdin-closes", "--config"]).arg(dir.join("log.toml"));
        let process = Served::start(serve.stderr(messages))?;
        let serving: serde_json::Value = serde_json::from_str(&process.said)?;
        let address = serving["address"].as_str().context("no address")?.to_owned();
        let origin = serving["logs"][0]["origin"].as_str().context("no origin")?.to_owned();

        let profile: toml::Table = fs::read_to_string(dir.join("client.toml"))?.parse()?;
        let text = |value: &toml::Value| value.as_str().map(ToOwned::to_owned).context("not a text");
        let server = text(&profile["server"])?.parse()?;
        let domain = text(&profile["tls"]["trust_domain"])?;
        let clock = clock::clock();
        let (certificate, key) = (pki(dir).join("client/client.pem"), pki(dir).join("client/client.key"));
        let own = Credentials::from_files(&certificate, &key, Usage::Client, clock.now())?;
        let trust = TrustBundle::from_file(&domain, &pki(dir).join("ca.pem"))?;
        Ok(Log { process, address, origin, server, tls: ClientTls::new(own, trust, clock)? })
    }

    /// Prepares a connection that appends one entry of `entry_bytes` in each call and waits until it is durable.
    pub(crate) fn appender(&self, entry_bytes: usize) -> anyhow::Result<AppendCall> {
        let request = AppendRequest {
            origin: self.origin.clone(),
            entries: vec![Bytes::from(vec![0x5a; entry_bytes])],
            wait: Wait::Durable.into(),
            wait_ms: 0,
            producer: None,
        };
        let client = LogServiceClient::new(channel(&self.address, &self.tls, &self.server)?);
        Ok(AppendCall { client, request })
    }
}

/// One connection to the log.
#[derive(Clone)]
pub(crate) struct AppendCall {
    client: LogServiceClient<Channel>,
    request: AppendRequest,
}

impl AppendCall {
    /// What a request takes on the wire.
    pub(crate) fn request_bytes(&self) -> usize {
        prost::Message::encoded_len(&self.request)
    }
}

impl Call for AppendCall {
    async fn call(&mut self) -> Result<(), Status> {
        let answer = self.client.append(self.request.clone()).await?;
        if answer.get_ref().count == 1 { Ok(()) } else { Err(Status::internal("a wrong answer")) }
    }
}
