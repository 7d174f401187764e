//! `epigraph witness`: asks running witnesses what they hold, and adds a log to a witness's list.

mod held;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use epigraph_core::Origin;
use epigraph_rpc::peer::{self, WitnessedLog};
use epigraph_rpc::{ClientTls, SpiffeId};
use epigraph_witness::list::{Listed, MAX_LOGS};
use serde_json::json;

use super::{WitnessAddLog, WitnessStatus};
use crate::config::witness::{Address, WitnessConfig};
use crate::failure::{Failure, Outcome};
use crate::profile::{self, Profile};
use crate::runtime;
use crate::state;
use crate::terminal::Terminal;

/// Whom to ask, and who asks.
struct Asked {
    address: String,
    server: SpiffeId,
    tls: ClientTls,
}

pub fn status(args: &WitnessStatus, terminal: Terminal) -> Outcome {
    if let (None, Some(directory), None, None) = (&args.config, &args.profile, &args.address, &args.server) {
        let profile = Profile::load(directory)?;
        if !profile.witnesses.is_empty() {
            return held::status(profile, terminal);
        }
    }
    let asked = asked(args)?;
    let runtime = runtime::runtime().map_err(Failure::state)?;
    let mut logs = runtime.block_on(list(&asked))?;
    let now = runtime::clock().now().0 / 1_000;
    for (origin, log) in &logs {
        let cosigned = match log.cosigned_at {
            0 => "never cosigned".to_owned(),
            at => format!("cosigned {} ago", age(now.saturating_sub(at))),
        };
        terminal.line(format_args!("{:>16}  {cosigned:<20}  {}", log.size.get(), terminal.bold(origin)));
    }
    let count = logs.len();
    let never = logs.iter().filter(|(_, log)| log.cosigned_at == 0).count();
    terminal.line(format_args!(
        "{count} logs that this certificate may see at {}, {never} of them never cosigned",
        asked.address
    ));
    let logs = logs.drain(..).map(|(origin, log)| {
        json!({
            "origin": origin.as_str(),
            "vkey": log.vkey.to_string(),
            "size": log.size.get(),
            "cosigned_at_ms": (log.cosigned_at > 0).then(|| log.cosigned_at.saturating_mul(1_000)),
        })
    });
    terminal.object(&json!({
        "address": asked.address,
        "server": asked.server.as_str(),
        "logs": logs.collect::<Vec<_>>(),
    }));
    Ok(())
}

fn asked(args: &WitnessStatus) -> Outcome<Asked> {
    if let Some(path) = &args.config {
        let config = WitnessConfig::load(path)?;
        let clock = runtime::clock();
        let tls = &config.tls;
        let server = match &args.server {
            Some(server) => server.clone(),
            None => tls.server_name(&*clock)?,
        };
        let address = match &args.address {
            Some(address) => address.clone(),
            None => reachable(config.listen, "witness")?.to_string(),
        };
        let calling = tls.calling(clock)?.ok_or_else(|| {
            Failure::usage(format!(
                "{}: [tls.client] is missing, the certificate to ask with. Ask with --profile",
                path.display()
            ))
        })?;
        return Ok(Asked { address, server, tls: calling });
    }
    let Some(directory) = &args.profile else {
        return Err(Failure::usage(
            "say with which certificate to ask: --profile DIR with --address and --server, or --config FILE, the witness's own",
        ));
    };
    let (Some(address), Some(server)) = (&args.address, &args.server) else {
        return Err(Failure::usage(
            "client.toml does not say where the witnesses are (a table [[witness]] with name, address and server for each): say \
             where one is with --address, and who it must prove to be with --server",
        ));
    };
    let tls = Profile::load(directory)?.tls()?;
    Ok(Asked { address: address.clone(), server: server.clone(), tls })
}

/// Where this machine reaches what listens there.
pub(super) fn reachable(listen: SocketAddr, whose: &str) -> Outcome<SocketAddr> {
    if listen.port() == 0 {
        return Err(Failure::usage(format!(
            "the system chooses the {whose}'s port: say which with --address"
        )));
    }
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, listen.port()))
}

/// All pages, each of which must go on behind the one before: a witness cannot keep us for ever.
async fn list(asked: &Asked) -> Outcome<Vec<(Origin, WitnessedLog)>> {
    let witness = peer::Witness::new(&asked.address, &asked.tls, &asked.server).map_err(Failure::usage)?;
    let mut all: Vec<(Origin, WitnessedLog)> = Vec::new();
    let mut token = String::new();
    loop {
        let (logs, next) =
            witness.logs(&token).await.map_err(|error| profile::of_call_to(&error, "witness"))?;
        for log in logs {
            let garbled = |why: &str| Failure::no(format!("the witness's list is no list: {why}"));
            let origin = Origin::new(log.origin.as_str()).map_err(|error| garbled(&error.to_string()))?;
            if all.last().is_some_and(|(last, _)| *last >= origin) || all.len() >= MAX_LOGS {
                return Err(garbled("it does not go on, or does not end"));
            }
            all.push((origin, log));
        }
        match (next, all.last()) {
            (Some(next), Some((last, _))) if next == last.as_str() && next != token => token = next,
            (None, _) => return Ok(all),
            (Some(_), _) => return Err(Failure::no("the witness's list does not go on where it ended")),
        }
    }
}

/// In the largest unit of which there are two.
pub(super) fn age(seconds: u64) -> String {
    let units = [(86_400, "days"), (3_600, "h"), (60, "min")];
    let unit = units.iter().find(|(unit, _)| seconds >= 2 * unit);
    unit.map_or_else(|| format!("{seconds} s"), |(unit, name)| format!("{} {name}", seconds / unit))
}

pub fn add_log(args: &WitnessAddLog, terminal: Terminal) -> Outcome {
    let config = WitnessConfig::load(&args.config.config)?;
    let origin = args.origin.clone().unwrap_or_else(|| args.vkey.name().to_origin());
    let address = match (&args.address, &args.server) {
        (Some(address), Some(server)) => {
            Some(Address { address: address.clone(), server: server.clone(), dial: args.dial })
        }
        // The command line takes them together only.
        _ => None,
    };
    if let Some(Address { address, server, .. }) = &address {
        let tls = config.tls.calling(runtime::clock())?.ok_or_else(|| {
            Failure::usage(
                "an address is of use only with [tls.client] in the configuration; nothing was changed",
            )
        })?;
        let runtime = runtime::runtime().map_err(Failure::state)?;
        // One address that is none would have the whole list refused.
        runtime
            .block_on(async { peer::Log::new(address, &tls, server) })
            .map_err(|error| Failure::usage(format!("--address: {error}; nothing was changed")))?;
    }
    let listed = Listed { origin, vkey: args.vkey.clone(), can_ask: address.is_some() };
    let count = state::witness::add_log(&config, &listed, address.as_ref())?;
    let list = config.list();
    terminal.line(format_args!("added {} to {}, which lists {count} logs", listed.origin, list.display()));
    terminal.line("a running witness takes it in by itself, within seconds; its messages say so");
    if address.is_none() {
        terminal.note(
            "without --address the log cannot be asked what it has published: if this witness's state is put back to an older \
             copy, nobody notices",
        );
    }
    terminal.object(&json!({
        "added": listed.origin.as_str(),
        "vkey": listed.vkey.to_string(),
        "list": list.display().to_string(),
        "logs": count,
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_in_a_unit_of_which_there_are_two() {
        let check = |seconds, expected: &str| assert_eq!(age(seconds), expected);
        check(0, "0 s");
        check(119, "119 s");
        check(120, "2 min");
        check(7_199, "119 min");
        check(7_200, "2 h");
        check(172_799, "47 h");
        check(172_800, "2 days");
    }

    #[test]
    fn a_witness_that_listens_everywhere_is_asked_here() {
        let check = |listen: &str, expected: Option<&str>| {
            let found = reachable(listen.parse().unwrap(), "witness").ok().map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{listen}");
        };
        check("0.0.0.0:7440", Some("127.0.0.1:7440"));
        check("[::]:7440", Some("[::1]:7440"));
        check("192.0.2.7:7440", Some("192.0.2.7:7440"));
        check("0.0.0.0:0", None);
    }
}
