//! Who watches a demo: two readers with nothing in common but the policy. Each believes what is properly signed; only here, where
//! it is known what was appended and what the other one sees, can the difference be said.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use epigraph_core::checkpoint::decode_text;
use epigraph_core::note::Parsed;
use epigraph_core::{TreeHead, TreeSize};
use epigraph_rpc::peer;

use super::{Play, script};
use crate::cli::Demo;
use crate::failure::{Failure, Outcome};
use crate::profile::{Profile, of_call};
use crate::quickstart::directory::run_file;
use crate::quickstart::role::Role;

/// Their names. A lying log that divides its readers by their names has one of them on each side.
pub const PEOPLE: [&str; 2] = ["alice", "bob"];

/// Differences that are shown of one reader; a lie is one.
const SHOWN: usize = 3;

/// Entries that a reader asks for at once.
const READ: u32 = 1_024;

pub struct Audience {
    people: Vec<Person>,
}

struct Person {
    name: &'static str,
    client: epigraph_client::Client,
    /// The log without any verification: what is handed out.
    log: peer::Log,
    witnesses: Vec<(Role, peer::Witness)>,
}

impl Audience {
    pub fn seated(dir: &Path) -> Outcome<Audience> {
        let people = PEOPLE.into_iter().map(|name| {
            let profile = Profile::load(&dir.join(name))?;
            let (log, tls) = (profile.log()?, profile.tls()?);
            let witness = |role: Role| {
                let path = run_file(dir, role, "addr");
                let address = fs::read_to_string(&path)
                    .map_err(|error| Failure::state(format!("cannot read {}: {error}", path.display())))?;
                let server = role.spiffe().parse().map_err(Failure::state)?;
                let peer = peer::Witness::new(address.trim(), &tls, &server).map_err(Failure::usage)?;
                Ok((role, peer))
            };
            let witnesses = Role::witnesses().map(witness).collect::<Outcome<_>>()?;
            Ok(Person { name, client: profile.client()?, log, witnesses })
        });
        Ok(Audience { people: people.collect::<Outcome<_>>()? })
    }

    /// Says what each reader is shown, and where that is not what was appended.
    pub async fn look(&self, play: &Play<'_>, appended: &[Bytes]) -> Outcome {
        let terminal = play.terminal;
        for Person { name, client, log, witnesses } in &self.people {
            let head = client.checkpoint().await?.head();
            terminal.line(format_args!(
                "  {name} sees {} events, root {}, properly signed",
                head.size,
                short(&head)
            ));
            let Some(first) = TreeSize::ZERO.next_index() else { continue };
            let served = log.entries(play.origin, first, READ).await.map_err(|error| of_call(&error))?;
            let differ =
                served.iter().zip(appended).enumerate().filter(|(_, (served, appended))| served != appended);
            for (index, (served, appended)) in differ.take(SHOWN) {
                terminal.line(format_args!(
                    "  {} {name} is handed entry {index} as {}; it was appended as {}",
                    terminal.bad("!"),
                    script::brief(served),
                    script::brief(appended)
                ));
            }
            if head.size.get() < appended.len() as u64 {
                terminal.line(format_args!(
                    "  {} {name} is not shown the other {}",
                    terminal.bad("!"),
                    appended.len() as u64 - head.size.get()
                ));
            }
            // In the other demos a reader who asks witnesses would notice as well, and few do.
            let asked = witnesses.iter().filter(|_| play.demo == Demo::WitnessLiar);
            for (role, witness) in asked {
                let Ok(note) = witness.checkpoint(play.origin).await else { continue };
                let Some(shown) = head_of(&note) else { continue };
                if shown.size == head.size && shown.root != head.root {
                    terminal.line(format_args!(
                        "  {} {role} shows {name} another history of {} events, root {}",
                        terminal.bad("!"),
                        shown.size,
                        short(&shown)
                    ));
                }
            }
        }
        Ok(())
    }
}

fn head_of(note: &[u8]) -> Option<TreeHead> {
    Some(decode_text(Parsed::parse(note).ok()?.text()).ok()?.1)
}

/// As much of a root as a person compares.
fn short(head: &TreeHead) -> String {
    let root = head.root.to_string();
    format!("{}…", &root[..root.len().min(12)])
}
