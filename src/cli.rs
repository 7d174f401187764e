//! The command line: what can be said, and which module carries it out.

pub mod append;
pub mod checkpoint;
pub mod prove;
pub mod verify;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::terminal::Color;

/// An audit log that can prove it was never rewritten.
///
/// Exit codes: 0 yes; 1 verified, and the answer is no; 2 usage or configuration; 3 refused by the server; 4 server
/// unreachable or too slow; 5 local state refused (rollback, damage, lock).
#[derive(Parser)]
#[command(name = "epigraph", version, max_term_width = 100)]
pub struct Cli {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,

    /// When to use colour; NO_COLOR is obeyed
    #[arg(long, global = true, value_enum, default_value_t)]
    pub color: Color,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Try everything on this machine: a throw-away CA, a log, entries, receipts, verification
    Quickstart(Quickstart),
    /// Create the state of a role, once; `serve` never does
    #[command(subcommand)]
    Init(Init),
    /// Run a role
    #[command(subcommand)]
    Serve(Serve),
    /// Append entries to the log
    Append(Append),
    /// Fetch and check the receipt of an entry
    Prove(Prove),
    /// Fetch the newest published checkpoint and check that it extends what was seen before
    Checkpoint(Checkpoint),
    /// Check a receipt offline, with public keys alone
    Verify(Verify),
    /// Try to open a stored tree; `serve` runs this in a child process
    #[command(hide = true)]
    TreePreflight(TreePreflight),
}

#[derive(Args)]
pub struct TreePreflight {
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

#[derive(Args)]
pub struct Quickstart {
    /// Where everything is kept; a second run continues there
    #[arg(long, value_name = "DIR", default_value = "epigraph-quickstart")]
    pub dir: PathBuf,

    /// Append the lines of this file, `-` for standard input, instead of the built-in audit events
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,

    /// Stop when everything is shown, instead of serving until Ctrl-C
    #[arg(long)]
    pub once: bool,
}

#[derive(Subcommand)]
pub enum Init {
    /// Create a log and its embedded signer as the configuration says; the signing key is made if it is not there
    Log(ConfigFile),
}

#[derive(Subcommand)]
pub enum Serve {
    /// Run the log that the configuration describes, until Ctrl-C or SIGTERM
    Log(ServeLog),
}

#[derive(Args)]
pub struct ConfigFile {
    /// The configuration of the process
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args)]
pub struct ServeLog {
    #[command(flatten)]
    pub config: ConfigFile,

    /// Stop when standard input is closed, too: a parent that ends takes the log with it
    #[arg(long)]
    pub until_stdin_closes: bool,
}

#[derive(Args)]
pub struct Profile {
    /// A client directory as `quickstart` writes it: client.toml, policy, state
    #[arg(long, value_name = "DIR", env = "EPIGRAPH_PROFILE")]
    pub profile: PathBuf,
}

#[derive(Args)]
pub struct Append {
    #[command(flatten)]
    pub profile: Profile,

    /// A file with one entry a line, `-` for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,

    /// Return when the entries are on the log's disk, without receipts
    #[arg(long, conflicts_with = "receipts")]
    pub durable: bool,

    /// Keep each entry and its receipt in this directory
    #[arg(long, value_name = "DIR")]
    pub receipts: Option<PathBuf>,
}

#[derive(Args)]
pub struct Prove {
    #[command(flatten)]
    pub profile: Profile,

    /// The index of the entry, from 0
    #[arg(value_name = "INDEX")]
    pub index: u64,

    #[command(flatten)]
    pub leaf: Leaf,

    /// Where to write the receipt
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Which entry a receipt is checked against.
#[derive(Args)]
#[group(multiple = false)]
pub struct Leaf {
    /// The file that holds the bytes of the entry
    #[arg(long, value_name = "FILE")]
    pub entry: Option<PathBuf>,

    /// The entry's leaf hash, SHA-256(0x00 || entry), in hexadecimal
    #[arg(long, value_name = "HEX")]
    pub leaf_hash: Option<String>,
}

#[derive(Args)]
pub struct Checkpoint {
    #[command(flatten)]
    pub profile: Profile,
}

#[derive(Args)]
pub struct Verify {
    /// The receipt; its entry is taken from the file of the same name that ends in .entry, unless said otherwise
    #[arg(value_name = "RECEIPT")]
    pub receipt: PathBuf,

    #[command(flatten)]
    pub leaf: Leaf,

    #[command(flatten)]
    pub trust: Trust,
}

/// Whom to trust.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Trust {
    /// Trust what this policy file says
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Trust the log with this verifier key
    #[arg(long, value_name = "VKEY")]
    pub vkey: Option<String>,

    /// Trust what the policy of this client directory says
    #[arg(long, value_name = "DIR", env = "EPIGRAPH_PROFILE")]
    pub profile: Option<PathBuf>,
}
