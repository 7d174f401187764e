//! The part of a log's configuration that is about its witnesses: its policy, and where they are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use epigraph_core::Policy;
use epigraph_core::policy::WitnessSet;
use epigraph_rpc::SpiffeId;
use serde::Deserialize;

use crate::cli::verify::read_policy;

/// A `[[log.witness]]` table.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWitness {
    name: String,
    address: Option<String>,
    server: String,
}

/// What must cosign, and who is asked to.
pub struct WitnessingConfig {
    /// What a published checkpoint must satisfy.
    pub policy: Policy,
    /// How many of the witnesses may lie at a start without the log being misled.
    pub faulty: usize,
    /// Those with a table, each in another place of the policy.
    pub witnesses: Vec<WitnessAddress>,
}

impl WitnessingConfig {
    /// Whether somebody is called.
    pub fn calls(&self) -> bool {
        self.witnesses.iter().any(|witness| witness.address.is_some())
    }
}

/// Where a witness is, and who.
pub struct WitnessAddress {
    /// Its place in the policy.
    pub place: usize,
    /// What its vkey is called.
    pub name: String,
    /// Where it listens, `host:port`; `None`: it cannot be called, and calls by itself.
    pub address: Option<String>,
    /// Who it must prove to be, whoever calls whom.
    pub server: SpiffeId,
}

/// Checks what a `[[log]]` table says of its witnesses; `None` if it says nothing.
pub fn check(
    base: &Path,
    policy: Option<PathBuf>,
    faulty: Option<usize>,
    witnesses: Vec<RawWitness>,
) -> Result<Option<WitnessingConfig>, String> {
    let Some(policy) = policy else {
        return match (faulty, witnesses.is_empty()) {
            (None, true) => Ok(None),
            _ => Err("`faulty` and [[log.witness]] take a `policy`: the file that says how many witnesses must cosign".into()),
        };
    };
    let policy = read_policy(&base.join(policy)).map_err(|error| format!("policy: {error}"))?;
    let faulty = faulty.unwrap_or(0);
    let (mut places, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut checked = Vec::new();
    for RawWitness { name, address, server } in witnesses {
        let named = |witness: &epigraph_core::policy::Witness| witness.vkey.name().as_str() == name;
        let place = policy.witnesses().iter().position(named).ok_or_else(|| {
            format!("[[log.witness]] {name}: the policy has no witness whose vkey has this name")
        })?;
        if !places.insert(place) {
            return Err(format!("[[log.witness]] {name}: there are two tables for this witness"));
        }
        let server: SpiffeId =
            server.parse().map_err(|error| format!("[[log.witness]] {name}: server: {error}"))?;
        if !names.insert(server.clone()) {
            return Err(format!("[[log.witness]] {name}: another witness has the name {server} too"));
        }
        checked.push(WitnessAddress { place, name, address, server });
    }
    let known: WitnessSet = places.into_iter().collect();
    if !policy.enough_answers(known, faulty) {
        return Err(format!(
            "faulty = {faulty}: even if all {} witnesses with a table [[log.witness]] answer at a start, without {faulty} of them \
             the rest does not meet every quorum, and the start would never be over. Give more of them a table (without \
             `address` if they call by themselves), use more witnesses, or take a smaller number",
            known.len()
        ));
    }
    Ok(Some(WitnessingConfig { policy, faulty, witnesses: checked }))
}
