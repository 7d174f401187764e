//! Cosignatures of one witness: checkpoints of 1, 100 and 10,000 logs, each grown by one entry, against a server that verifies
//! once, signs once and makes one block durable for the same requests.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use bytes::Bytes;
use epigraph_core::checkpoint::encode_text;
use epigraph_core::hash::leaf_hash;
use epigraph_core::proof::{prove_consistency, root_at};
use epigraph_core::{KeyName, Origin, SigningKey, TreeHead, TreeSize, note};
use epigraph_rpc::channel::{Channel, channel};
use epigraph_rpc::v1;
use epigraph_rpc::v1::add_checkpoint_response::Outcome;
use epigraph_rpc::v1::witness_service_client::WitnessServiceClient;
use epigraph_store::tree::MemoryTree;
use tonic::Status;
use zeroize::Zeroizing;

use crate::Plan;
use crate::echo::cosign::{self, Cosigner};
use crate::load::{Call, alternate, drive};
use crate::log::{client_tls, pki, serve, set_up};
use crate::process;
use crate::report::Comparison;

const CONNECTIONS: usize = 8;

/// A log has one checkpoint in flight at a witness.
const IN_FLIGHT_PER_CONNECTION: usize = 32;

/// More than any log grows by in a run.
const LEAVES: u64 = 1 << 18;

/// One witness of a quickstart, which everything but its list and its quotas is left as it is.
const WITNESS: &str = "witness-1";

const SERVER: &str = "spiffe://epigraph.quickstart/epigraph/witness/quickstart-1";

/// Logs with one tree and one key, and the sizes that they have at one server. A log is taken, grown by one entry, and given back.
struct Logs {
    tree: Arc<MemoryTree>,
    key: Arc<SigningKey>,
    free: Mutex<VecDeque<(usize, u64)>>,
}

fn origin(number: usize) -> String {
    format!("log.example/{number}")
}

fn status(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

impl Logs {
    fn new(count: usize, tree: &Arc<MemoryTree>, key: &Arc<SigningKey>) -> Logs {
        let free = Mutex::new((0..count).map(|number| (number, 0)).collect());
        Logs { tree: Arc::clone(tree), key: Arc::clone(key), free }
    }

    /// The checkpoint of the log that has waited longest.
    fn next(&self) -> Result<(usize, u64, v1::AddCheckpointRequest), Status> {
        let taken = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let (number, old) = taken.ok_or_else(|| status("more calls than logs"))?;
        let size = |size| TreeSize::new(size).ok_or_else(|| status(size));
        let head =
            TreeHead { size: size(old + 1)?, root: root_at(&*self.tree, size(old + 1)?).map_err(status)? };
        let proof = match old {
            0 => Vec::new(),
            old => {
                prove_consistency(&*self.tree, size(old)?, head.size).map_err(status)?.map_err(status)?.hashes
            }
        };
        let origin = Origin::new(origin(number)).map_err(status)?;
        let text = encode_text(&origin, &head);
        let request = v1::AddCheckpointRequest {
            origin: origin.to_string(),
            old_size: old,
            checkpoint: note::encode(&text, [&self.key.sign_assertion(&text)]).into(),
            proof: proof.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes())).collect(),
        };
        Ok((number, old + 1, request))
    }

    fn give_back(&self, number: usize, size: u64) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push_back((number, size));
    }
}

/// Who is asked.
#[derive(Clone)]
enum To {
    Witness(WitnessServiceClient<Channel>),
    Echo(Cosigner),
}

/// Has the next checkpoint cosigned.
#[derive(Clone)]
struct CosignCall {
    to: To,
    logs: Arc<Logs>,
}

impl Call for CosignCall {
    async fn call(&mut self) -> Result<(), Status> {
        let (number, size, request) = self.logs.next()?;
        let answer = match &mut self.to {
            To::Witness(witness) => witness.add_checkpoint(request).await?.into_inner(),
            To::Echo(echo) => echo.cosign(request).await?,
        };
        match answer.outcome {
            Some(Outcome::Cosigned(_)) => {
                self.logs.give_back(number, size);
                Ok(())
            }
            other => Err(status(format!("{other:?}"))),
        }
    }
}

pub(crate) fn cosign(plan: &Plan, dir: &Path) -> anyhow::Result<Vec<Comparison>> {
    fs::create_dir(dir)?;
    let tree = Arc::new(MemoryTree::new());
    tree.apply(tree.stage((0..LEAVES).map(|leaf| leaf_hash(&leaf.to_be_bytes())))?)?;
    [1, 100, 10_000]
        .into_iter()
        .map(|logs| with_logs(plan, &dir.join(logs.to_string()), &tree, logs))
        .collect()
}

fn with_logs(plan: &Plan, dir: &Path, tree: &Arc<MemoryTree>, count: usize) -> anyhow::Result<Comparison> {
    set_up(dir, &[])?;
    let key = Arc::new(SigningKey::from_seed(KeyName::new("log.example")?, &Zeroizing::new([9; 32])));
    let listed = |log| format!("[[log]]\norigin = \"{}\"\nvkey = \"{}\"\n", origin(log), key.vkey());
    fs::write(dir.join(WITNESS).join("logs.toml"), (0..count).map(listed).collect::<String>())?;
    let config = dir.join(format!("{WITNESS}.toml"));
    let text = fs::read_to_string(&config)?;
    let quotas = "[limits]\ncaller_per_second = 1000000\nlog_per_second = 1000000\n\n[[authorize]]";
    let any: String =
        text.lines()
            .map(|line| {
                if line.starts_with("logs = ") { "logs = [\"*\"]\n".to_owned() } else { format!("{line}\n") }
            })
            .collect();
    fs::write(&config, any.replacen("[[authorize]]", quotas, 1))?;
    let (witness, serving) = serve(dir, "witness", WITNESS)?;
    let address = serving["address"].as_str().context("no address")?;
    let echo = cosign::start(&pki(dir), key.vkey(), &dir.join("blocks"), count)?;
    let runtime = process::runtime()?;
    let (connections, in_flight) = match count {
        0..CONNECTIONS => (1, 1),
        _ => (CONNECTIONS, IN_FLIGHT_PER_CONNECTION.min(count / CONNECTIONS)),
    };
    let rounds = runtime.block_on(async {
        let tls = client_tls(dir, "log/client")?;
        let (own, others) = (Arc::new(Logs::new(count, tree, &key)), Arc::new(Logs::new(count, tree, &key)));
        let (mut subjects, mut yardsticks) = (Vec::new(), Vec::new());
        for _ in 0..connections {
            let client = WitnessServiceClient::new(channel(address, &tls, &SERVER.parse()?)?);
            subjects.push(CosignCall { to: To::Witness(client), logs: Arc::clone(&own) });
            let cosigner = Cosigner::connect(&echo.said, &pki(dir))?;
            yardsticks.push(CosignCall { to: To::Echo(cosigner), logs: Arc::clone(&others) });
        }
        // Every log once: from then on each has a head, and passes the gate no more.
        for side in [&subjects, &yardsticks] {
            for _ in 0..count {
                side[0].clone().call().await?;
            }
        }
        let yardstick = async |time| drive(&echo, &yardsticks, in_flight, time).await;
        alternate(plan, yardstick, async |time| drive(&witness, &subjects, in_flight, time).await).await
    })?;
    drop(runtime);
    echo.stop()?;
    witness.stop()?;
    Ok(Comparison {
        title: format!(
            "cosign: checkpoints of {count} logs, each grown by one entry, against an echo that verifies one signature, makes one \
             block durable and signs once, with shared syncs; {} in flight",
            connections * in_flight
        ),
        unit: "cosignatures",
        names: ["echo", "witness"],
        mark: Some(0.6),
        rounds,
    })
}
