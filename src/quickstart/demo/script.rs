//! What each demo is about, in words for somebody who sees it for the first time, and what must come of it.

use bytes::Bytes;

use crate::cli::Demo;
use crate::quickstart::SAMPLE;

/// What an appender sends and a log had rather not have.
pub const INCRIMINATING: &[u8] = br#"{"time":"2026-01-05T23:59:59Z","actor":"user:root","address":"10.66.0.6","action":"audit.disable","resource":"log/all","outcome":"granted","request":"r-6666"}"#;

/// One demo.
pub struct Script {
    /// What happens, before it does.
    pub plot: &'static str,
    /// What the one that cheats does.
    pub act: &'static str,
    /// The finding that must come; `None`: none at all.
    pub code: Option<&'static str>,
    /// What else is true of those who cheat, and may be found with it.
    pub follows: Option<&'static str>,
}

impl Script {
    pub fn of(demo: Demo) -> Script {
        match demo {
            Demo::SplitView => Script {
                plot: "The log's operator has the log's key, two of its four witnesses, and a second history. Each half of its readers\n\
                       is to see one of the two, with signatures of three witnesses under it.",
                act: "The log shows two histories",
                code: Some("split-view"),
                // To have three of four under both histories, two must cosign both.
                follows: Some("witness-equivocation"),
            },
            Demo::Rewrite => Script {
                plot: "The log's operator changes one old entry where it is stored. Signatures, roots and proofs stay as they were, and\n\
                       whoever compares only those sees nothing.",
                act: "The log hands out an old entry with other bytes",
                code: Some("rewritten-entry"),
                follows: None,
            },
            Demo::Freeze => Script {
                plot: "The log goes on taking entries, and its witnesses cosign; but who reads is shown one old head for ever.",
                act: "The log shows its readers nothing new",
                code: Some("stale-head"),
                follows: None,
            },
            Demo::Drop => Script {
                plot: "The log acknowledges an entry that it does not like, and never puts it in. An acknowledgement is not signed, so\n\
                       nobody can prove it; but somebody else can look.",
                act: "The log breaks a promise",
                code: Some("missing-entry"),
                follows: None,
            },
            Demo::WitnessLiar => Script {
                plot: "The log is honest. One of its four witnesses cosigns its heads, and shows others a head of another history under\n\
                       its own signature.",
                act: "A witness cosigns two histories",
                code: Some("witness-equivocation"),
                follows: None,
            },
            Demo::Honest => Script {
                plot: "Nobody cheats, and the monitor must have nothing to say.",
                act: "Nobody cheats here either",
                code: None,
                follows: None,
            },
        }
    }
}

/// As it is called on the command line.
pub fn name(demo: Demo) -> &'static str {
    match demo {
        Demo::SplitView => "split-view",
        Demo::Rewrite => "rewrite",
        Demo::Freeze => "freeze",
        Demo::Drop => "drop",
        Demo::WitnessLiar => "witness-liar",
        Demo::Honest => "honest",
    }
}

/// What is appended.
pub fn events() -> Vec<Bytes> {
    SAMPLE.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(Bytes::from_static).collect()
}

/// An event on one line that a person takes in: who did what, and with what outcome.
pub fn brief(event: &[u8]) -> String {
    let Ok(event) = serde_json::from_slice::<serde_json::Value>(event) else {
        return String::from_utf8_lossy(event).into_owned();
    };
    let field = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
    format!("\"{} {} {}: {}\"", field("actor"), field("action"), field("resource"), field("outcome"))
}
