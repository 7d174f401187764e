//! The directory of a witness: created once by `init`, opened and checked by `serve`; its list of logs, to which one is added.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use epigraph_core::cosignature::CosigningKey;
use epigraph_core::{Entropy, VKey};
use epigraph_signer::keys;
use epigraph_store::file::Dir;
use epigraph_store::head::HeadStore;
use epigraph_store::lock::{FormatFile, Kind};
use epigraph_witness::keeper::Keeper;
use epigraph_witness::list::{self, Listed, Rekeyed};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{create_dir, keep, lock_directory, open_dir, write_durably};
use crate::config::witness::{Address, WitnessConfig, load_list};
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

/// One table of the list.
#[derive(Serialize)]
struct ListedTable<'a> {
    origin: &'a str,
    vkey: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dial: Option<bool>,
}

#[derive(Serialize)]
struct ListTables<'a> {
    log: [ListedTable<'a>; 1],
}

/// Adds a log to the list, which a running witness may be reading: behind all that is there, so that comments stay, and by
/// rename, so that nobody reads half of it. Returns how many logs are listed then.
pub fn add_log(config: &WitnessConfig, log: &Listed, address: Option<&Address>) -> Outcome<usize> {
    FormatFile::of(Kind::Witness).check(&config.directory).map_err(Failure::state)?;
    let path = config.list();
    let can_call = config.tls.client.is_some();
    let listed = load_list(&path, can_call)?;
    if let Some((known, _)) = listed.iter().find(|(known, _)| known.origin == log.origin) {
        if known.vkey != log.vkey {
            let (known, new) = (known.vkey.to_string(), log.vkey.to_string());
            return Err(Failure::state(Rekeyed { origin: log.origin.clone(), known, listed: new }));
        }
        return Err(Failure::usage(format!(
            "{} lists {} already, with this key; nothing was changed",
            path.display(),
            log.origin
        )));
    }
    let cannot = |error: io::Error| {
        Failure::state(format!("cannot change {}: {error}; it is as it was", path.display()))
    };
    let before = fs::read_to_string(&path).map_err(cannot)?;
    let table = ListedTable {
        origin: log.origin.as_str(),
        vkey: log.vkey.to_string(),
        address: address.map(|address| address.address.as_str()),
        server: address.map(|address| address.server.as_str()),
        dial: address.and_then(|address| address.dial.then_some(true)),
    };
    let added = toml::to_string(&ListTables { log: [table] }).map_err(Failure::state)?;
    let gap = match before.as_str() {
        "" => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    // It also keeps out a second one that would add a log at the same time.
    let new = path.with_extension("toml.new");
    let file = OpenOptions::new().write(true).create_new(true).open(&new).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::state(format!(
            "{} is there: another `add-log` is under way, or one was cut off; if none is, delete it. Nothing was changed",
            new.display()
        )),
        _ => cannot(error),
    })?;
    let replaced = replace(file, &path, &new, &before, &format!("{before}{gap}{added}"), can_call, log);
    if replaced.is_err() {
        // What stays would keep the next one out, which says how to go on.
        let _ = fs::remove_file(&new);
    }
    replaced.map(|()| listed.len() + 1)
}

/// Writes the new list beside the old one, reads it as the witness will, and puts it in the old one's place.
fn replace(
    mut file: File,
    path: &Path,
    new: &Path,
    before: &str,
    after: &str,
    can_call: bool,
    log: &Listed,
) -> Outcome {
    let cannot = |error: io::Error| {
        Failure::state(format!("cannot change {}: {error}; it is as it was", path.display()))
    };
    file.write_all(after.as_bytes()).map_err(cannot)?;
    file.set_permissions(fs::metadata(path).map_err(cannot)?.permissions()).map_err(cannot)?;
    file.sync_all().map_err(cannot)?;
    let listed: Vec<Listed> = load_list(new, can_call)?.into_iter().map(|(listed, _)| listed).collect();
    list::check(&listed)
        .map_err(|error| Failure::usage(format!("{error}; {} is as it was", path.display())))?;
    if !listed.contains(log) {
        return Err(Failure::state(format!("{} cannot be added to; it is as it was", path.display())));
    }
    if fs::read_to_string(path).map_err(cannot)? != before {
        return Err(Failure::state(format!(
            "{} was changed by somebody else meanwhile, and is left as it is now: try again",
            path.display()
        )));
    }
    fs::rename(new, path).map_err(cannot)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| {
        Failure::state(format!(
            "{} was replaced, but may be the old one after a power cut: {error}",
            path.display()
        ))
    })
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

/// Where a witness keeps evidence against logs: beside its heads.
pub fn evidence(config: &WitnessConfig) -> Outcome<Arc<dyn Dir>> {
    open_dir(&config.directory)
}
