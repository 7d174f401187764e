//! What can be said to `epigraph monitor`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use epigraph_core::Origin;
use epigraph_rpc::SpiffeId;

#[derive(Subcommand)]
pub enum MonitorCommand {
    /// Show how a monitor stands with its logs: what it sees from where, how far it has read, what it found
    Status(MonitorStatus),
    /// List what a monitor found, with what it means and what to do next
    Findings(MonitorFindings),
    /// Take note of a finding: nobody is reminded of it any more
    Ack(MonitorAck),
    /// Fetch the file that goes with a finding; `verify` judges it, offline
    Evidence(MonitorEvidence),
    /// Rehearse an alarm: plant a fork, and see who is told. People are paged
    Drill(MonitorDrill),
}

/// Which monitor is asked, and with whose certificate.
#[derive(Args)]
pub struct AskedMonitor {
    /// A client directory, whose certificate is used; the table `[monitor]` of its client.toml says where the monitor is. It must grant
    /// this client the role auditor or operator
    #[arg(long, value_name = "DIR", env = "EPIGRAPH_PROFILE")]
    pub profile: PathBuf,

    /// Where another monitor listens
    #[arg(long, value_name = "HOST:PORT", requires = "server")]
    pub address: Option<String>,

    /// Who it must prove to be there: spiffe://audit.example/epigraph/monitor/NAME
    #[arg(long, value_name = "URI", requires = "address")]
    pub server: Option<SpiffeId>,

    /// Only this log, instead of all that the certificate may see
    #[arg(long, value_name = "ORIGIN")]
    pub log: Option<Origin>,
}

/// Exit code 0 if nothing is found, or somebody has taken note of all that is; 1 if not. Nothing of what a monitor says here is proven: that
/// is what `monitor evidence` is for.
#[derive(Args)]
pub struct MonitorStatus {
    #[command(flatten)]
    pub asked: AskedMonitor,

    /// Look again every second, until Ctrl-C; with --json, one object a line for each look
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args)]
pub struct MonitorFindings {
    #[command(flatten)]
    pub asked: AskedMonitor,

    /// Also what is resolved
    #[arg(long, conflicts_with = "watch")]
    pub all: bool,

    /// Show what is open, and then every change, until Ctrl-C; with --json, one object a line for each
    #[arg(long)]
    pub watch: bool,
}

/// The finding stays, under your name and with your words. It comes again if it is resolved and happens anew. Takes the role operator.
#[derive(Args)]
pub struct MonitorAck {
    #[command(flatten)]
    pub asked: AskedMonitor,

    /// The finding's id, or as many of its first characters as no other finding has
    #[arg(value_name = "FINDING")]
    pub finding: String,

    /// What to tell those who look at it later: one line of 1 to 1,024 bytes
    #[arg(long, value_name = "TEXT")]
    pub why: String,
}

#[derive(Args)]
pub struct MonitorEvidence {
    #[command(flatten)]
    pub asked: AskedMonitor,

    /// The finding's id, or as many of its first characters as no other finding has
    #[arg(value_name = "FINDING")]
    pub finding: String,

    /// Where to write the file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// The monitor makes a key, signs two histories of a log `epigraph.drill` that never was, and puts them into a directory that it looks at as
/// at one that people put files into. What comes of it takes the way of a real finding, through evidence and book to every webhook and Alertmanager of its configuration, and is taken back when all
/// have it, or after 20 seconds. Exit code 0 if the fork was found, its evidence verifies here, and every alarm arrived; 1 if not, and then
/// the monitor has a finding self-test-failed. Takes the role operator.
#[derive(Args)]
pub struct MonitorDrill {
    #[command(flatten)]
    pub asked: AskedMonitor,
}
