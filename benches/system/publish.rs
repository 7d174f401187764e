//! From an append to its published receipt, with a signer and four witnesses in processes of their own and a policy of three of
//! them, against the round trips and syncs that lie on this path, one after the other and nothing else.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epigraph_core::checkpoint::encode_text;
use epigraph_core::{KeyName, SigningKey, TreeHead, note};
use epigraph_rpc::v1;
use epigraph_rpc::v1::Wait;
use tokio::task::JoinSet;
use tonic::Status;
use zeroize::Zeroizing;

use crate::echo::cosign::{self, Cosigner};
use crate::echo::{PingCall, Shape, as_echo};
use crate::load::{Call, Load, drive_at, drive_resting};
use crate::log::{Log, PublishCall, pki, serve, set_up};
use crate::process::Served;
use crate::report::{Delays, Part};
use crate::{ENTRY_BYTES, Plan, clock, echo, process};

const WITNESSES: usize = 4;
/// As quickstart's policy says.
const QUORUM: usize = 3;

const RATES: [u32; 2] = [100, 1_000];

/// The path is gone along with a rest before each time, so that both sides find the machine as a log finds it that is not busy, and
/// never waits for itself, however slow the disk is.
const REST: Duration = Duration::from_millis(10);

/// Callers that share the rate.
const CONNECTIONS: usize = 8;

/// How long an append waits for its receipt at most.
const PATIENCE_MS: u32 = 30_000;

/// How often a log that starts is asked, and at most how many times.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE_LOOKS: u32 = 1_500;

/// Where the client's own writes go, round and round; written with zeros before, as segments are.
const SYNC_FILE_BYTES: u64 = 16 << 20;
const BLOCK: u64 = 4096;

/// What cannot be left out between an append and its receipt. Each part is timed.
#[derive(Clone)]
struct PathCall {
    append: PingCall,
    signer: Cosigner,
    witnesses: Vec<Cosigner>,
    request: v1::AddCheckpointRequest,
    file: Arc<File>,
    at: Arc<AtomicU64>,
    parts: Arc<Mutex<[Vec<Duration>; PARTS.len()]>>,
}

const PARTS: [&str; 5] = [
    "the append's round trip",
    "the journal's sync",
    "the signer's round trip and sync",
    "those of the third of four witnesses",
    "two syncs of the published checkpoint",
];

impl PathCall {
    fn sync(&self) -> Result<(), Status> {
        let at = self.at.fetch_add(BLOCK, Ordering::Relaxed) % SYNC_FILE_BYTES;
        self.file.write_all_at(&[0x5a; BLOCK as usize], at)?;
        Ok(self.file.sync_data()?)
    }

    async fn quorum(&self) -> Result<(), Status> {
        let mut asked = JoinSet::new();
        for witness in &self.witnesses {
            let (witness, request) = (witness.clone(), self.request.clone());
            asked.spawn(async move { witness.cosign(request).await });
        }
        for _ in 0..QUORUM {
            let answer = asked.join_next().await.ok_or_else(|| Status::internal("too few witnesses"))?;
            answer.map_err(|error| Status::internal(error.to_string()))??;
        }
        // The fourth goes on, as in the subject.
        asked.detach_all();
        Ok(())
    }
}

impl Call for PathCall {
    async fn call(&mut self) -> Result<(), Status> {
        let mut start = clock::now();
        let mut times = [Duration::ZERO; PARTS.len()];
        for (part, time) in times.iter_mut().enumerate() {
            match part {
                0 => self.append.call().await?,
                1 => self.sync()?,
                2 => drop(self.signer.cosign(self.request.clone()).await?),
                3 => self.quorum().await?,
                _ => {
                    self.sync()?;
                    self.sync()?;
                }
            }
            let now = clock::now();
            *time = now - start;
            start = now;
        }
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
        Ok(())
    }
}

/// Starts the witnesses and the signer of a log that is set up.
pub(crate) fn others(dir: &Path) -> anyhow::Result<Vec<Served>> {
    let witnesses = (1..=WITNESSES).map(|number| ("witness", format!("witness-{number}")));
    let all = witnesses.chain([("signer", "signer".to_owned())]);
    all.map(|(role, name)| Ok(serve(dir, role, &name)?.0)).collect()
}

/// Waits until the log is through its gate and publishes: until then it refuses.
pub(crate) async fn ready(log: &Log) -> anyhow::Result<()> {
    let append = v1::AppendRequest {
        wait: Wait::Published.into(),
        wait_ms: PATIENCE_MS,
        ..log.request(1, ENTRY_BYTES)
    };
    let mut call = PublishCall::connect(log, append)?;
    let mut patience = PATIENCE_LOOKS;
    while let Err(refused) = call.call().await {
        anyhow::ensure!(patience > 0, refused);
        patience -= 1;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

pub(crate) fn publish(plan: &Plan, dir: &Path) -> anyhow::Result<Delays> {
    set_up(dir, &[])?;
    let others = others(dir)?;
    let log = Log::start_again(dir)?;

    let key = SigningKey::from_seed(KeyName::new("log.example")?, &Zeroizing::new([9; 32]));
    let text = encode_text(&key.vkey().name().to_origin(), &TreeHead::EMPTY);
    let request = v1::AddCheckpointRequest {
        origin: key.vkey().name().as_str().to_owned(),
        checkpoint: note::encode(&text, [&key.sign_assertion(&text)]).into(),
        ..v1::AddCheckpointRequest::default()
    };
    let append_echo = echo::start(&pki(dir), Shape::default())?;
    let mut echoes = Vec::new();
    for number in 0..=WITNESSES {
        echoes.push(cosign::start(&pki(dir), key.vkey(), &dir.join(format!("blocks-{number}")), 1)?);
    }
    let file = OpenOptions::new().write(true).create_new(true).open(dir.join("bare-sync"))?;
    file.write_all_at(&vec![0; SYNC_FILE_BYTES as usize], 0)?;
    file.sync_all()?;

    let runtime = process::runtime()?;
    let (parts, rates) = runtime.block_on(async {
        let append = v1::AppendRequest {
            wait: Wait::Published.into(),
            wait_ms: PATIENCE_MS,
            ..log.request(1, ENTRY_BYTES)
        };
        let ping = as_echo(&log.request(1, ENTRY_BYTES))?;
        let mut cosigners = Vec::new();
        for echo in &echoes {
            cosigners.push(Cosigner::connect(&echo.said, &pki(dir))?);
        }
        let signer = cosigners.remove(0);
        let path = PathCall {
            append: PingCall::connect(&append_echo.said, &pki(dir), ping)?,
            signer,
            witnesses: cosigners,
            request,
            file: Arc::new(file),
            at: Arc::default(),
            parts: Arc::default(),
        };
        let appends = (0..CONNECTIONS)
            .map(|_| PublishCall::connect(&log, append.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        ready(&log).await?;
        let mut rates: Vec<(u32, Vec<[Load; 2]>)> = Vec::new();
        for rate in RATES {
            drive_resting(&append_echo, &path, REST, plan.warm_up).await?;
            drive_at(&log.process, &appends, rate, plan.warm_up).await?;
            let mut rounds = Vec::with_capacity(plan.rounds);
            for _ in 0..plan.rounds {
                rounds.push([
                    drive_resting(&append_echo, &path, REST, plan.half_round).await?,
                    drive_at(&log.process, &appends, rate, plan.half_round).await?,
                ]);
            }
            rates.push((rate, rounds));
        }
        let parts = std::mem::take(&mut *path.parts.lock().unwrap_or_else(PoisonError::into_inner));
        anyhow::Ok((parts, rates))
    })?;
    drop(runtime);
    // The log first: who still asks others goes before them.
    log.process.stop()?;
    for served in others.into_iter().chain(echoes).chain([append_echo]) {
        served.stop()?;
    }
    Ok(Delays {
        title: format!(
            "publish: from an append of {ENTRY_BYTES} B to its published receipt, {QUORUM} of {WITNESSES} witnesses and the signer in \
             processes of their own, open loop, against the round trips and syncs on its path one after the other"
        ),
        names: ["path", "publish"],
        mark: 3.0,
        parts: PARTS.into_iter().zip(parts).map(|(name, times)| Part { name, times }).collect(),
        rates,
    })
}
