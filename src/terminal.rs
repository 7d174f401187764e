//! What people see: styles where a terminal can show them, plain text everywhere else. The one place that prints.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this module is the program's output")]

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use clap::ValueEnum;

use crate::failure::Kind;

/// When to use colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Also into files and pipes.
    Always,
    /// Never.
    Never,
}

/// The program's output, as the global options want it.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    color: bool,
    moving: bool,
    json: bool,
}

/// Whoever closes the other end, as `head` does, has read enough; that is no reason to fail.
fn say(text: impl Display) {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("epigraph: cannot write to standard output: {error}");
        }
        _ => {}
    }
}

impl Terminal {
    pub fn new(color: Color, json: bool) -> Terminal {
        let terminal = io::stdout().is_terminal();
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !no_color,
        };
        Terminal { color: color && !json, moving: terminal && !json, json }
    }

    /// A line of text; nothing with `--json`.
    pub fn line(self, text: impl Display) {
        if !self.json {
            self.clear();
            say(text);
        }
    }

    /// Whether standard output is for the one JSON object.
    pub fn prints_objects(self) -> bool {
        self.json
    }

    /// The bytes of an entry as they are, and a line feed.
    pub fn entry(self, entry: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(entry)?;
        out.write_all(b"\n")
    }

    /// The one JSON object; nothing without `--json`.
    pub fn object(self, object: &serde_json::Value) {
        if self.json {
            say(object);
        }
    }

    /// A line that the next one replaces; only where a terminal can replace it.
    pub fn progress(self, text: impl Display) {
        if self.moving {
            print!("\r\x1b[2K  {text}");
            // Progress that cannot be shown is not worth failing for.
            let _ = io::stdout().flush();
        }
    }

    /// Lines in the place of those before, where a terminal can do that; elsewhere below them, with an empty line between.
    pub fn screen(self, lines: &[String]) {
        if self.json {
            return;
        }
        if self.moving {
            print!("\x1b[H\x1b[2J");
        }
        lines.iter().for_each(say);
        if !self.moving {
            say("");
        }
    }

    /// As [`Terminal::progress`], with a bar for how much of `total` is done.
    pub fn bar(self, done: u64, total: u64, what: impl Display) {
        const WIDTH: u64 = 24;
        // Twice the width in a u128: no product overflows, and an empty whole is all done.
        let full = u128::from(done.min(total)) * u128::from(WIDTH) / u128::from(total.max(1));
        let full = if total == 0 { WIDTH as usize } else { full as usize };
        let rest = WIDTH as usize - full;
        self.progress(format_args!("[{}{}] {done} of {total} {what}", "#".repeat(full), "-".repeat(rest)));
    }

    fn clear(self) {
        if self.moving {
            print!("\r\x1b[2K");
        }
    }

    /// What went wrong, on standard error; with `--json` as an object.
    pub fn failure(self, kind: Kind, message: impl Display) {
        if self.json {
            eprintln!(
                "{}",
                serde_json::json!({ "error": { "exit_code": kind as u8, "message": message.to_string() } })
            );
        } else {
            self.clear();
            eprintln!("epigraph: {message}");
        }
    }

    /// Something that people should know but that stops nothing, on standard error.
    pub fn note(self, message: impl Display) {
        self.clear();
        eprintln!("epigraph: {message}");
    }

    pub fn good(self, text: impl Display) -> String {
        self.styled("32", text)
    }

    pub fn bad(self, text: impl Display) -> String {
        self.styled("31", text)
    }

    pub fn bold(self, text: impl Display) -> String {
        self.styled("1", text)
    }

    pub fn dim(self, text: impl Display) -> String {
        self.styled("2", text)
    }

    fn styled(self, code: &str, text: impl Display) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

/// A path as one word of a shell command.
pub fn shell(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

/// What others wrote, as one line that leaves the terminal alone.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
