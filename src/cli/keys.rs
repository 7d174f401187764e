//! `epigraph keygen` and `epigraph pki`: keys for logs, certificates for processes.

use epigraph_core::SigningKey;
use epigraph_signer::keys;
use zeroize::Zeroizing;

use crate::cli::{Keygen, Pki, PkiCa, PkiIssue, PkiRenew};
use crate::failure::{Failure, Outcome};
use crate::pki::{Authority, Names, Purpose, Subject, with_extension};
use crate::runtime;
use crate::terminal::Terminal;

pub fn keygen(args: &Keygen, terminal: Terminal) -> Outcome {
    let mut seed = Zeroizing::new([0; 32]);
    runtime::entropy().fill(&mut *seed);
    let key = SigningKey::from_seed(args.name.clone(), &seed);
    let path = with_extension(&args.out, "key");
    keys::create(&path, &key).map_err(Failure::usage)?;
    terminal.line(key.vkey());
    terminal.object(&serde_json::json!({ "key": path, "vkey": key.vkey().to_string() }));
    Ok(())
}

pub fn pki(args: &Pki, terminal: Terminal) -> Outcome {
    let done = match args {
        Pki::Ca(args) => ca(args),
        Pki::Issue(args) => issue(args),
        Pki::Renew(args) => renew(args),
    };
    let done = done.map_err(|error| Failure::usage(format!("{error:#}")))?;
    terminal.line(&done);
    terminal.object(&serde_json::json!({ "done": done }));
    Ok(())
}

fn ca(args: &PkiCa) -> anyhow::Result<String> {
    Authority::create(&args.dir, &args.name, args.days, runtime::clock().now())?;
    Ok(format!("{0}/ca.pem is to be trusted, {0}/ca.key to be kept", args.dir.display()))
}

fn issue(args: &PkiIssue) -> anyhow::Result<String> {
    let purpose = if args.server { Purpose::Server } else { Purpose::Client };
    let subject = Subject { spiffe: &args.spiffe, purpose, dns: &args.dns, ip: &args.ip, days: args.days };
    Authority::load(&args.ca, runtime::clock().now())?.issue(&args.out, &subject, false)?;
    Ok(format!("{} is for {}", with_extension(&args.out, "pem").display(), args.spiffe))
}

fn renew(args: &PkiRenew) -> anyhow::Result<String> {
    let authority = Authority::load(&args.ca, runtime::clock().now())?;
    let names = Names::of(&args.certificate)?;
    authority.issue(&args.certificate.with_extension(""), &names.subject(args.days), true)?;
    Ok(format!("{} is renewed for {}, with a new key", args.certificate.display(), names.spiffe))
}
