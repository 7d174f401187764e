//! What describes the program itself: completions and manual pages, made from the command line's own definition.

use std::fs;

use clap::CommandFactory;

use crate::cli::{Cli, Completions, Man};
use crate::failure::{Failure, Outcome};
use crate::terminal::Terminal;

pub fn completions(args: &Completions, terminal: Terminal) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "epigraph", &mut script);
    terminal.line(String::from_utf8_lossy(&script));
    Ok(())
}

pub fn pages(args: &Man, terminal: Terminal) -> Outcome {
    let cannot = |error| Failure::usage(format!("cannot write to {}: {error}", args.out.display()));
    fs::create_dir_all(&args.out).map_err(cannot)?;
    clap_mangen::generate_to(Cli::command(), &args.out).map_err(cannot)?;
    terminal.line(format_args!("the manual pages are in {}: man {0}/epigraph.1", args.out.display()));
    terminal.object(&serde_json::json!({ "pages": args.out }));
    Ok(())
}
