//! The directory of a witness: created once by `init`, opened and checked by `serve`.

use std::fs;

use epigraph_core::cosignature::CosigningKey;
use epigraph_core::{Entropy, VKey};
use epigraph_signer::keys;
use epigraph_store::head::HeadStore;
use epigraph_store::lock::{FormatFile, Kind};
use epigraph_witness::keeper::Keeper;
use zeroize::Zeroizing;

use super::{create_dir, keep, lock_directory, open_dir, write_durably};
use crate::config::witness::WitnessConfig;
use crate::failure::{Failure, Outcome};

/// Room for so many logs is made at once.
const FIRST_LOGS: u32 = 16;

const NO_LOGS: &str = "\
# The logs that this witness cosigns for. Read again when it changes: logs are added while the witness runs. A log that is
# taken out is refused from then on, and one whose key changes is refused, too: neither is ever forgotten.
#
# [[log]]
# origin = \"audit.example/production\"
# vkey = \"audit.example/production+01234567+AQ...\"
# Where the log is asked, after each start, what it has published, so that this witness notices if its own state was
# put back to an older copy. Takes [tls.client] in the configuration.
# address = \"log.audit.example:7430\"
# server = \"spiffe://audit.example/epigraph/log/production\"
";

/// Creates the state of a witness, and its key.
pub fn init(config: &WitnessConfig, entropy: &dyn Entropy) -> Outcome<VKey> {
    let directory = &config.directory;
    let there = |path: &std::path::Path| {
        fs::exists(path)
            .map_err(|error| Failure::state(format!("cannot look for {}: {error}", path.display())))
    };
    if there(&directory.join("format"))? {
        let message = format!("{} is initialised already; nothing was changed", directory.display());
        return Err(Failure::state(message));
    }
    if there(&config.key)? {
        return Err(Failure::state(format!(
            "the key {} is there, but no state that goes with it in {}. A key whose state is lost must not cosign again: nobody \
             knows what it has cosigned, and it could vouch for a second history. Put the newest copy of the state back; or \
             retire the key: take the witness out of every policy, and choose a new name and a new key file. Only if an \
             earlier `init` was cut off and nothing was ever served, delete the key. Nothing was changed",
            config.key.display(),
            directory.display()
        )));
    }
    create_dir(directory)?;
    let _lock = lock_directory(directory)?;
    HeadStore::create(open_dir(directory)?, FIRST_LOGS, entropy).map_err(Failure::state)?;
    let list = config.list();
    if !there(&list)? {
        write_durably(&list, NO_LOGS)
            .map_err(|error| Failure::state(format!("cannot write {}: {error}", list.display())))?;
    }
    let mut seed = Zeroizing::new([0; 32]);
    entropy.fill(&mut *seed);
    let key = CosigningKey::from_seed(config.name.clone(), &seed);
    if let Some(dir) = config.key.parent() {
        create_dir(dir)?;
    }
    keys::create_cosigning(&config.key, &key).map_err(Failure::state)?;
    // Last: a directory without it was not initialised to the end.
    FormatFile::of(Kind::Witness).create(directory).map_err(Failure::state)?;
    Ok(key.vkey().clone())
}

/// Opens what `init` created. A missing piece is a refusal, never a fresh start.
pub fn open(config: &WitnessConfig) -> Outcome<Keeper> {
    let directory = &config.directory;
    FormatFile::of(Kind::Witness).check(directory).map_err(Failure::state)?;
    keep(lock_directory(directory)?);
    let key = keys::load_cosigning(&config.key).map_err(Failure::state)?;
    if *key.vkey().name() != config.name {
        return Err(Failure::state(format!(
            "the key in {} is named {}, but the witness is {}: a witness's key carries the witness's name",
            config.key.display(),
            key.vkey().name(),
            config.name
        )));
    }
    let (heads, warnings) = HeadStore::open(open_dir(directory)?)
        .map_err(|error| Failure::state(format!("{}: {error}", directory.display())))?;
    for warning in warnings {
        tracing::warn!(directory = %directory.display(), %warning, "the witness's state");
    }
    Ok(Keeper::new(heads, key, config.max_idle_ms))
}
