//! Follows a log and prints its entries, each verified before it is printed, until Ctrl-C:
//!
//! ```text
//! cargo run --example follow -- epigraph-quickstart 0
//! ```
//!
//! The first argument is a client's directory as `quickstart` writes it, the second the index to begin with: store what is
//! printed last and go on from there.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program of its own, with its own clock"
)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use epigraph_client::Client;
use epigraph_client::pin::Pin;
use epigraph_core::{Clock, Entropy, LeafIndex, Origin, UnixMillis};
use epigraph_rpc::{ClientTls, Credentials, TrustBundle, Usage, peer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Profile {
    origin: String,
    address: String,
    server: String,
    policy: PathBuf,
    state: PathBuf,
    tls: Tls,
}

#[derive(Deserialize)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    trust_bundle: PathBuf,
    trust_domain: String,
}

struct System;

impl Clock for System {
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(since.as_millis() as u64)
    }
}

impl Entropy for System {
    /// Only spreads the moments of trying again, so the clock is random enough.
    fn fill(&self, bytes: &mut [u8]) {
        let now = self.now().0.to_le_bytes();
        bytes.iter_mut().zip(now.iter().cycle()).for_each(|(byte, drawn)| *byte = *drawn);
    }
}

/// The verifying client of the directory. What it has seen is pinned in there, so that a log that goes back is noticed.
fn client(dir: &Path) -> Result<Client, Box<dyn Error>> {
    let profile: Profile = toml::from_str(&fs::read_to_string(dir.join("client.toml"))?)?;
    let Profile { origin, address, server, policy, state, tls } = profile;
    let (certificate, key) = (dir.join(tls.certificate), dir.join(tls.key));
    let own = Credentials::from_files(&certificate, &key, Usage::Client, System.now())?;
    let trust = TrustBundle::from_file(&tls.trust_domain, &dir.join(tls.trust_bundle))?;
    let tls = ClientTls::new(own, trust, Arc::new(System))?;
    let log = peer::Log::new(&address, &tls, &server.parse()?)?;
    let origin = Origin::new(origin)?;
    let pin = Pin::new(&dir.join(state), &origin)?;
    Ok(Client::new(log, origin, fs::read_to_string(dir.join(policy))?.parse()?, pin))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let dir = PathBuf::from(args.next().unwrap_or_else(|| "epigraph-quickstart".into()));
    let first = args.next().map_or(Ok(0), |first| first.parse())?;
    let first = LeafIndex::new(first).ok_or("no log has an entry with this index")?;
    let client = client(&dir)?;
    let mut follower = client.follow(first, Arc::new(System)).await?;
    loop {
        // Connects anew by itself. An error is one that waiting does not help, such as a log that lies.
        let batch = follower.next().await?;
        for (index, entry) in (batch.first_index.get()..).zip(&batch.entries) {
            println!("{index}\t{}", String::from_utf8_lossy(entry));
        }
    }
}
