//! `epigraph keygen` and `epigraph pki`: keys for logs, certificates for processes.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use epigraph_core::{KeyName, SigningKey};
use epigraph_rpc::SpiffeId;
use epigraph_signer::keys;
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};
use crate::pki::{Authority, Names, Purpose, Subject, with_extension};
use crate::runtime;
use crate::terminal::Terminal;

#[derive(Args)]
pub struct Keygen {
    /// The log's name, which is the name of its key: 1 to 255 bytes without white space and `+`
    #[arg(value_name = "NAME")]
    pub name: KeyName,

    /// Where to write: FILE.key, readable by its owner alone, and FILE.vkey
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Subcommand)]
pub enum Pki {
    /// Make a CA
    Ca(PkiCa),
    /// Issue a certificate
    Issue(PkiIssue),
    /// Issue a certificate again, with the same names and a new key, in its place
    Renew(PkiRenew),
}

#[derive(Args)]
pub struct PkiCa {
    /// Where to write ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// What people see as its name
    #[arg(long, default_value = "Epigraph CA")]
    pub name: String,

    /// How long it is valid
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("purpose").required(true)))]
pub struct PkiIssue {
    /// The directory of the CA
    #[arg(long, value_name = "DIR")]
    pub ca: PathBuf,

    /// The name, of the form spiffe://audit.example/epigraph/ROLE/NAME
    #[arg(long, value_name = "URI")]
    pub spiffe: SpiffeId,

    /// For a process that accepts connections
    #[arg(long, group = "purpose")]
    pub server: bool,

    /// For a process that opens connections
    #[arg(long, group = "purpose")]
    pub client: bool,

    /// A DNS name of the server, for stock clients; may be repeated
    #[arg(long, value_name = "NAME", requires = "server")]
    pub dns: Vec<String>,

    /// An IP address of the server, for stock clients; may be repeated
    #[arg(long, value_name = "ADDRESS", requires = "server")]
    pub ip: Vec<IpAddr>,

    /// Where to write: FILE.pem and FILE.key
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// How long it is valid
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

#[derive(Args)]
pub struct PkiRenew {
    /// The directory of the CA
    #[arg(long, value_name = "DIR")]
    pub ca: PathBuf,

    /// The certificate, a file that ends in .pem; its .key beside it is replaced, too
    #[arg(value_name = "CERTIFICATE")]
    pub certificate: PathBuf,

    /// How long the new one is valid
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

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
