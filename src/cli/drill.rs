//! What can be said to `epigraph drill`.

use clap::{Args, Subcommand, ValueEnum};

use super::Profile;

#[derive(Subcommand)]
pub enum DrillCommand {
    /// Change one byte in a copy of what a stopped log, audit service or collector keeps, and see who finds it
    Tamper(Tamper),
}

/// The copy goes to the system's directory for temporary files, and away at the end; the original is locked while it is copied, and not
/// changed. A process that runs on it is named and left alone: stop it first.
///
/// Exit code 0 if the next read, the check of everything (`fsck`) and a verification each name what was changed; 1 if one does not.
#[derive(Args)]
pub struct Tamper {
    /// What is changed
    #[arg(long = "where", value_enum)]
    pub place: Place,

    /// A directory with log.toml, audit.toml and collector.toml, as far as they are needed: that of a quickstart, or /etc/epigraph
    #[command(flatten)]
    pub profile: Profile,
}

/// Where a byte is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Place {
    /// An entry in the journal of a log
    Journal,
    /// A tile of a log's stored tree; it is stored from 256 entries on
    Tile,
    /// An audit event, in the store of the audit service; its log is needed too
    Payload,
    /// A row of the index of an audit service, by which questions find events; where there is no audit service, the same as lookup
    Index,
    /// The lookup by leaf hash of a log; it is on disk from 65,536 entries on
    Lookup,
    /// A signed batch in the spool of a collector
    Spool,
}

impl Place {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Place::Journal => "journal",
            Place::Tile => "tile",
            Place::Payload => "payload",
            Place::Index => "index",
            Place::Lookup => "lookup",
            Place::Spool => "spool",
        }
    }
}
