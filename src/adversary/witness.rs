//! The process of a witness that lies: it cosigns whatever a log has signed, and if it is told to, shows everybody but the log a
//! head of its own making.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use epigraph_core::checkpoint::{LogSigned, encode_text};
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::hash::sha256;
use epigraph_core::note::SignatureLine;
use epigraph_core::{CosigningKey, Origin, TreeHead, VKey, note};
use epigraph_rpc::{Routes, SpiffeId, witness_service};
use tokio::sync::watch;

use super::{HONEST_ENTRIES, introduce, seed};
use crate::cli::AdversaryWitness;
use crate::config::witness::{WitnessConfig, load_list};
use crate::failure::{Failure, Outcome};
use crate::runtime;
use crate::serve::door::{Door, listen};
use crate::serve::told_to_stop;
use crate::terminal::Terminal;
use service::Service;

mod service;

/// The lying witness, of one log.
pub struct LyingWitness {
    key: CosigningKey,
    pub origin: Origin,
    log: VKey,
    /// Shows another head than the one it cosigned for the log.
    forges: bool,
    cosigned: Mutex<Cosigned>,
    changes: watch::Sender<()>,
}

/// What it has put its name to.
#[derive(Default)]
struct Cosigned {
    newest: Option<(TreeHead, Bytes)>,
    forged: Option<Bytes>,
}

impl LyingWitness {
    /// Cosigns a head of the log, of whatever history.
    pub fn cosign(&self, proposed: &[u8]) -> Option<SignatureLine> {
        let signed = LogSigned::open(proposed, &self.origin, std::slice::from_ref(&self.log)).ok()?;
        let parsed = note::Parsed::parse(signed.note().as_bytes()).ok()?;
        let line = self.sign(parsed.text())?;
        let mut cosigned = self.cosigned();
        let head = signed.head();
        if cosigned.newest.as_ref().is_none_or(|(held, _)| held.size < head.size) {
            let lines = parsed.signatures().iter().chain([&line]);
            cosigned.newest = Some((head, note::encode(parsed.text(), lines).into()));
            cosigned.forged =
                (self.forges && head.size.get() > HONEST_ENTRIES).then(|| self.forge(head)).flatten();
        }
        drop(cosigned);
        self.changes.send_replace(());
        Some(line)
    }

    /// A head of the same size with another root. The log has not signed it; this witness has.
    fn forge(&self, head: TreeHead) -> Option<Bytes> {
        let other = TreeHead { size: head.size, root: sha256(head.root.as_bytes()) };
        let text = encode_text(&self.origin, &other);
        Some(note::encode(&text, [&self.sign(&text)?]).into())
    }

    fn sign(&self, text: &str) -> Option<SignatureLine> {
        Some(self.key.cosign_assertion(text, CosignedAt::of(runtime::clock().now())?))
    }

    /// What it shows. To the log it is an honest witness.
    fn shown(&self, caller: &SpiffeId) -> Option<Bytes> {
        let cosigned = self.cosigned();
        let forged = cosigned.forged.clone().filter(|_| !caller.as_str().contains("/log/"));
        forged.or_else(|| cosigned.newest.as_ref().map(|(_, note)| note.clone()))
    }

    fn head(&self) -> Option<TreeHead> {
        self.cosigned().newest.as_ref().map(|(head, _)| *head)
    }

    fn cosigned(&self) -> MutexGuard<'_, Cosigned> {
        self.cosigned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub async fn run(args: &AdversaryWitness, terminal: Terminal) -> Outcome {
    let stop = runtime::stop_signal().map_err(Failure::state)?;
    let key = CosigningKey::from_seed(args.name.clone(), &seed());
    introduce(key.vkey(), &args.vkey_file, terminal)?;

    let config = WitnessConfig::load(&args.config)?;
    let listed = load_list(&config.list(), true)?;
    let (log, _) = listed.into_iter().next().ok_or_else(|| Failure::usage("its list has no log"))?;
    let witness = Arc::new(LyingWitness {
        key,
        origin: log.origin,
        log: log.vkey,
        forges: args.forges,
        cosigned: Mutex::default(),
        changes: watch::Sender::new(()),
    });
    let door = Door::new(&config.tls, config.grants.clone(), config.reflection)?;
    let listener = listen(config.listen, "listen").await?;
    let address = listener.local_addr().map_err(Failure::state)?;
    terminal.line(format_args!("witnessing as {} on {address} for 1 logs", args.name));
    terminal.object(&serde_json::json!({ "address": address.to_string() }));
    door.serve(listener, Routes::new(witness_service(Service(witness))), told_to_stop(stop, true)).await
}
