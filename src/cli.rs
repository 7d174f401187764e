//! The command line: what can be said, and which module carries it out.

pub mod append;
pub mod audit;
pub mod checkpoint;
pub mod collect;
pub mod drill;
pub mod entries;
pub mod explain;
pub mod keys;
pub mod manual;
pub mod monitor;
pub mod policy;
pub mod prove;
pub mod repin;
pub mod verify;
pub mod witness;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use epigraph_core::{KeyName, Origin, SourceVKey, VKey};
use epigraph_rpc::{SpiffeId, Wait};

use crate::terminal::Color;
use monitor::args::MonitorCommand;

/// The client directory where none is named: what `quickstart` makes in the same place.
pub const DEFAULT_PROFILE: &str = "epigraph-quickstart";

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
    /// Try everything on this machine: a log, its signer, four witnesses, a monitor and an audit service
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
    /// Read entries back, each verified before it is shown
    Entries(Entries),
    /// Fetch the newest published checkpoint and check that it extends what was seen before
    Checkpoint(Checkpoint),
    /// Check a receipt, a checkpoint, a piece of evidence or a monitor's observation offline, with public keys alone
    Verify(Verify),
    /// Look at policies: which logs and witnesses are trusted, and what that withstands
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Load a log with made-up entries, which stay in it for ever, and measure it
    Hammer(Hammer),
    /// Ask a running witness what it holds, or have it cosign for another log
    #[command(subcommand)]
    Witness(WitnessCommand),
    /// Read audit events from files, sign them, and deliver them to an audit service
    Collect(collect::Collect),
    /// Ask a running monitor what it sees and found, and take note of it
    #[command(subcommand)]
    Monitor(MonitorCommand),
    /// Enrol sources of audit events, and see where each stands
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Fetch audit events, each with everything that proves it
    #[command(subcommand)]
    Events(audit::EventsCommand),
    /// Check every byte that a log, signer, witness, monitor, audit service or collector keeps while it is not running, and change nothing
    Fsck(RoleConfig),
    /// Rehearse what goes wrong, on copies
    #[command(subcommand)]
    Drill(drill::DrillCommand),
    /// Try to open a stored tree; `serve` and `fsck` run this in a child process
    #[command(hide = true)]
    TreePreflight(TreePreflight),
    /// A party that lies, with a key that it makes for itself; `quickstart --demo` runs it to see it caught
    #[command(subcommand, hide = true)]
    Adversary(Adversary),
    /// Make a log's signing key and its vkey
    Keygen(keys::Keygen),
    /// A small CA for trying out: certificates with SPIFFE names
    #[command(subcommand)]
    Pki(keys::Pki),
    /// Work with configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell
    Completions(Completions),
    /// Write the manual pages
    Man(Man),
}

#[derive(Args)]
pub struct TreePreflight {
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,

    /// Compare its tiles with this journal
    #[arg(long, value_name = "DIR", requires_all = ["origin", "entries"])]
    pub journal: Option<PathBuf>,

    /// The journal's log
    #[arg(long)]
    pub origin: Option<String>,

    /// So many entries of the journal are sound
    #[arg(long)]
    pub entries: Option<u64>,
}

#[derive(Subcommand)]
pub enum Adversary {
    /// A log that lies
    Log(AdversaryLog),
    /// A witness that cosigns everything
    Witness(AdversaryWitness),
}

#[derive(Args)]
pub struct AdversaryLog {
    /// The log's name
    #[arg(long)]
    pub origin: KeyName,

    /// What it lies about
    #[arg(long, value_enum)]
    pub lie: Lie,

    /// Where it writes its vkey; it goes on after a line on standard input
    #[arg(long, value_name = "FILE")]
    pub vkey_file: PathBuf,

    /// The configuration of a log, read after that line
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

impl Lie {
    /// As it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Lie::SplitView => "split-view",
            Lie::Rewrite => "rewrite",
            Lie::Freeze => "freeze",
            Lie::Drop => "drop",
        }
    }
}

/// What a lying log lies about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Lie {
    /// Two histories for two halves of the clients
    SplitView,
    /// An old entry is changed behind valid proofs
    Rewrite,
    /// An old head for ever
    Freeze,
    /// What is acknowledged is not put into the log
    Drop,
}

#[derive(Args)]
pub struct AdversaryWitness {
    /// The witness's name
    #[arg(long)]
    pub name: KeyName,

    /// Show everybody but the log another head than was cosigned
    #[arg(long)]
    pub forges: bool,

    /// Where it writes its vkey; it goes on after a line on standard input
    #[arg(long, value_name = "FILE")]
    pub vkey_file: PathBuf,

    /// The configuration of a witness, read after that line
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args)]
pub struct Quickstart {
    /// Where everything is kept; a second run continues there. A demo takes a new directory [default: epigraph-quickstart,
    /// epigraph-demo-NAME]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Append the lines of this file, `-` for standard input, instead of the built-in audit events
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,

    /// Stop when everything is shown, instead of serving until Ctrl-C
    #[arg(long)]
    pub once: bool,

    /// One process, for small machines: a log with its signer inside, and no witnesses
    #[arg(long)]
    pub alone: bool,

    /// Watch somebody cheat and be caught, in a new directory; with --once the exit code says whether it went as it must
    #[arg(long, value_enum, conflicts_with_all = ["alone", "input"])]
    pub demo: Option<Demo>,

    /// How many seconds a demo waits for the monitor
    #[arg(long, value_name = "SECONDS", requires = "demo", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub patience: u64,

    /// Give the monitor of a demo another key than the log's: it sees nothing, and the demo must fail
    #[arg(long, hide = true, requires = "demo")]
    pub blind: bool,
}

/// Who cheats, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Demo {
    /// The log shows two histories to two halves of its clients, with two witnesses on its side
    SplitView,
    /// The log changes an old entry behind proofs that stay valid
    Rewrite,
    /// The log shows its readers one old head for ever
    Freeze,
    /// The log acknowledges an entry and never publishes it
    Drop,
    /// A witness cosigns two histories
    WitnessLiar,
    /// Nobody: the same length, and no alarm
    Honest,
}

#[derive(Subcommand)]
pub enum Init {
    /// Create a log and its embedded signer as the configuration says; the signing key is made if it is not there
    Log(ConfigFile),
    /// Create a witness and its key as the configuration says
    Witness(ConfigFile),
    /// Create a monitor and its key as the configuration says; once it is there, what it lacks for logs and webhooks that were added
    Monitor(ConfigFile),
    /// Create an audit service, its key, and the key that wraps all others
    Audit(ConfigFile),
    /// Create a collector and its keys
    Collector(ConfigFile),
    /// Create what a signer process keeps of its logs; a signing key is made if it is not there
    Signer(InitSigner),
}

/// A new log starts from the empty tree. For a log that exists, whose signer was lost or is replaced, give its newest published
/// checkpoint.
#[derive(Args)]
pub struct InitSigner {
    #[command(flatten)]
    pub config: ConfigFile,

    /// Only this log of the configuration
    #[arg(long, value_name = "ORIGIN")]
    pub log: Option<KeyName>,

    /// The newest published checkpoint of a log that exists: the signer will sign nothing that does not extend it
    #[arg(long, value_name = "FILE", requires = "trust")]
    pub checkpoint: Option<PathBuf>,

    #[command(flatten)]
    pub trust: CheckpointTrust,
}

/// Why a checkpoint is known to be the newest.
#[derive(Args)]
#[group(id = "trust", multiple = false, requires = "checkpoint")]
pub struct CheckpointTrust {
    /// The policy whose quorum of witnesses cosigned it
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Nobody but the log has signed it, and I know that nothing newer was ever published
    #[arg(long)]
    pub nothing_newer_was_published: bool,
}

#[derive(Subcommand)]
pub enum Serve {
    /// Run the log that the configuration describes, until Ctrl-C or SIGTERM
    Log(ServeRole),
    /// Run the signer that the configuration describes, until Ctrl-C or SIGTERM
    Signer(ServeRole),
    /// Run the witness that the configuration describes, until Ctrl-C or SIGTERM
    Witness(ServeRole),
    /// Run the monitor that the configuration describes, until Ctrl-C or SIGTERM
    Monitor(ServeRole),
    /// Run the audit service that the configuration describes, until Ctrl-C or SIGTERM
    Audit(ServeRole),
}

#[derive(Args)]
pub struct ConfigFile {
    /// The configuration of the process
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args)]
pub struct RoleConfig {
    #[command(flatten)]
    pub config: ConfigFile,

    /// What the process is
    #[arg(long, value_enum, default_value_t)]
    pub role: KeptRole,
}

#[derive(Subcommand)]
pub enum WitnessCommand {
    /// Fetch and verify what the witnesses of a client directory hold of its log; or list the logs of one witness
    Status(WitnessStatus),
    /// Add a log to the list of a witness, which may be running
    AddLog(Box<WitnessAddLog>),
}

/// With --profile alone, each witness that has a table `[[witness]]` in client.toml is asked for the checkpoint that it holds of the
/// directory's log. What it shows is verified under the policy: the log's signature, the witness's own, and that it is of one
/// history with what the log has published. Exit code 1 if that fails for one, 4 if one does not answer. Nothing is pinned.
///
/// With --address or --config, one witness is asked for its list: the logs for which the certificate has one of the roles reader,
/// log, signer, witness, monitor, auditor or operator there, as the witness says, unverified.
#[derive(Args)]
pub struct WitnessStatus {
    /// A client directory, whose certificate is used
    #[arg(long, value_name = "DIR", env = "EPIGRAPH_PROFILE")]
    pub profile: Option<PathBuf>,

    /// The witness's own configuration, on its own machine: the address, and the certificate of [tls.client], which its
    /// `[[authorize]]` tables must let in
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where the witness listens
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,

    /// Who it must prove to be: spiffe://audit.example/epigraph/witness/NAME
    #[arg(long, value_name = "URI")]
    pub server: Option<SpiffeId>,
}

/// Nothing that is listed is changed: neither a log's key nor its address, nor comments.
#[derive(Args)]
pub struct WitnessAddLog {
    #[command(flatten)]
    pub config: ConfigFile,

    /// The log's verifier key
    #[arg(long, value_name = "VKEY")]
    pub vkey: VKey,

    /// The first line of its checkpoints, if that is not the name of its key
    #[arg(long)]
    pub origin: Option<Origin>,

    /// Where the log is asked what it has published
    #[arg(long, value_name = "HOST:PORT", requires = "server")]
    pub address: Option<String>,

    /// Who it must prove to be there: spiffe://audit.example/epigraph/log/NAME
    #[arg(long, value_name = "URI", requires = "address")]
    pub server: Option<SpiffeId>,

    /// The log cannot call this witness: the witness follows it, and hands in its cosignatures
    #[arg(long, requires = "address")]
    pub dial: bool,
}

#[derive(Args)]
pub struct ServeRole {
    #[command(flatten)]
    pub config: ConfigFile,

    /// Stop when standard input is closed, too: a parent that ends takes its child with it
    #[arg(long)]
    pub until_stdin_closes: bool,
}

#[derive(Args)]
pub struct Profile {
    /// A client directory as `quickstart` writes it: client.toml, policy, state
    #[arg(long, value_name = "DIR", env = "EPIGRAPH_PROFILE", default_value = DEFAULT_PROFILE)]
    pub profile: PathBuf,
}

#[derive(Args)]
pub struct Append {
    #[command(flatten)]
    pub profile: Profile,

    /// A file with one entry a line, `-` for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,

    /// The whole file is one entry, line feeds included
    #[arg(long)]
    pub whole: bool,

    /// For what to wait; only what is published has a receipt
    #[arg(long, value_enum, default_value = "published")]
    pub wait: WaitFor,

    /// Keep each entry and its receipt in this directory
    #[arg(long, value_name = "DIR")]
    pub receipts: Option<PathBuf>,
}

/// How to load a log. What is appended is real: entries stay for ever, so use a log that is for trying out.
#[derive(Args)]
pub struct Hammer {
    #[command(flatten)]
    pub profile: Profile,

    /// How many calls are under way at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,

    /// Over how many connections; each has a call under way at least
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub connections: u16,

    /// Entries in one call
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub batch: u16,

    /// Bytes of one entry
    #[arg(long, default_value_t = 256)]
    pub size: u16,

    /// For what each call waits
    #[arg(long, value_enum, default_value = "durable")]
    pub wait: WaitFor,

    /// How long; 10 if no count is given either
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub duration: Option<u64>,

    /// How many entries
    #[arg(long, conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WaitFor {
    /// The entries are on the log's disk
    Durable,
    /// A published checkpoint covers them
    Published,
}

impl From<WaitFor> for Wait {
    fn from(wait: WaitFor) -> Wait {
        match wait {
            WaitFor::Durable => Wait::Durable,
            WaitFor::Published => Wait::Published,
        }
    }
}

#[derive(Args)]
pub struct Prove {
    #[command(flatten)]
    pub profile: Profile,

    /// The index of the entry, from 0; without it, the log looks for the first entry with the leaf hash of --entry or --leaf-hash
    #[arg(value_name = "INDEX", required_unless_present_any = ["entry", "leaf_hash"])]
    pub index: Option<u64>,

    #[command(flatten)]
    pub leaf: Leaf,

    /// Prove it under the published checkpoint of this size, if the log has kept it, instead of the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub size: Option<u64>,

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
pub struct Entries {
    #[command(flatten)]
    pub profile: Profile,

    /// The index of the first entry, from 0
    #[arg(value_name = "FIRST")]
    pub first: u64,

    /// The index of the last entry; without it, up to the newest published checkpoint
    #[arg(value_name = "LAST", conflicts_with = "count")]
    pub last: Option<u64>,

    /// How many entries, instead of LAST
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Go on with entries as they are published, until Ctrl-C; with --json, one object a line for each
    #[arg(long, conflicts_with_all = ["last", "count"])]
    pub follow: bool,

    /// Write each entry to a file NUMBER.entry in this directory, instead of a line to standard output
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Args)]
pub struct Checkpoint {
    #[command(flatten)]
    pub profile: Profile,

    /// Say who signed it, when, and how that meets the policy
    #[arg(long, conflicts_with_all = ["watch", "list"])]
    pub explain: bool,

    /// Go on with each checkpoint as it is published, until Ctrl-C; with --json, one object a line for each
    #[arg(long)]
    pub watch: bool,

    /// List the published checkpoints that the log has kept; with --json, one object a line for each
    #[arg(long, conflicts_with = "watch")]
    pub list: bool,

    /// List only those of at least this size
    #[arg(long, value_name = "N", requires = "list")]
    pub min_size: Option<u64>,
}

#[derive(Args)]
pub struct Verify {
    /// A receipt, a checkpoint (a signed note), an event with its proof, an evidence file or a monitor's observation; or a directory
    /// with events. The entry of a receipt is taken from the file of the same name that ends in .entry, unless said otherwise
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    #[command(flatten)]
    pub leaf: Leaf,

    #[command(flatten)]
    pub trust: Trust,

    /// Believe events that this source signed; may be repeated
    #[arg(long, value_name = "VKEY")]
    pub source: Vec<SourceVKey>,

    /// Count only cosignatures that are at most this old by this machine's clock, and at most as far ahead of it
    #[arg(long, value_name = "SECONDS")]
    pub max_age: Option<u64>,
}

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Say how many witnesses of a policy may lie or be down, or whether it may be replaced by another
    Check(PolicyCheck),
    /// Say in words what a policy asks for, or what it makes of a checkpoint
    Explain(PolicyExplain),
    /// After the policy of a client directory was changed: go on from what was accepted under the old one
    Repin(PolicyRepin),
}

/// Put the new policy into the client directory, keep the old one, and run this once. The newest checkpoint of the log must satisfy
/// the new policy and be proven to extend the one that was accepted under the old policy; then it is the one that every later
/// command starts from. And every quorum of the old policy must meet every quorum of the new one in more witnesses than may lie
/// (`policy check OLD NEW`), or it is refused. Exit code 1 if not; nothing is changed then. No other command does this.
#[derive(Args)]
pub struct PolicyRepin {
    /// The policy under which the client has accepted checkpoints so far
    #[arg(value_name = "OLD")]
    pub old: PathBuf,

    #[command(flatten)]
    pub profile: Profile,

    /// How many witnesses may lie
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub faulty: usize,

    /// Go on although a quorum of the old policy and one of the new policy need not have enough witnesses in common: nobody then
    /// vouches that whoever still has the old policy sees the same log as this client from now on
    #[arg(long)]
    pub give_up_overlap: bool,
}

/// With one file: how many of its witnesses may lie before two people can be shown two histories, and how many may be
/// down before nothing is published. With two: whether the second may replace the first. Exit code 0 if that withstands
/// as many lying witnesses as asked, 1 if not, 2 if a file is no policy.
#[derive(Args)]
pub struct PolicyCheck {
    /// The policy, or the old one of two
    #[arg(value_name = "FILE")]
    pub policy: PathBuf,

    /// The policy that is to replace it: every quorum of the one must meet every quorum of the other in more witnesses
    /// than may lie
    #[arg(value_name = "NEW")]
    pub new: Option<PathBuf>,

    /// How many witnesses may lie
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub faulty: usize,
}

#[derive(Args)]
pub struct PolicyExplain {
    /// The policy
    #[arg(value_name = "FILE")]
    pub policy: PathBuf,

    /// A checkpoint or a receipt: say who signed it, when, and whether that is enough. Exit code 1 if it is not
    #[arg(long, value_name = "FILE")]
    pub on: Option<PathBuf>,

    /// Count only cosignatures that are at most this old by this machine's clock, and at most as far ahead of it
    #[arg(long, value_name = "SECONDS", requires = "on")]
    pub max_age: Option<u64>,
}

/// Whom to trust.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Trust {
    /// Trust what this policy file says
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Trust the log with this verifier key, and ask for no witness. For evidence: the key of the log or witness that it
    /// accuses; for an observation: the key of the monitor that signed it
    #[arg(long, value_name = "VKEY")]
    pub vkey: Option<String>,

    /// Trust what the policy of this client directory says
    #[arg(long, value_name = "DIR", env = "EPIGRAPH_PROFILE")]
    pub profile: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Read a configuration as `serve` would, with the files it names, and say what is wrong with it
    Check(ConfigCheck),
}

#[derive(Args)]
pub struct ConfigCheck {
    /// The configuration of the process
    #[arg(value_name = "FILE")]
    pub config: PathBuf,

    /// What the process is
    #[arg(long, value_enum, default_value_t)]
    pub role: ServedRole,
}

/// Roles whose files can be checked while they do not run.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum KeptRole {
    #[default]
    Log,
    Signer,
    Witness,
    Monitor,
    Audit,
    Collector,
}

/// Roles that are served.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum ServedRole {
    #[default]
    Log,
    Signer,
    Witness,
    Monitor,
    Audit,
    Collector,
}

#[derive(Args)]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

#[derive(Args)]
pub struct Man {
    /// Where to write epigraph.1 and a page for each command
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}
