//! `fairlead egress`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use gateway::egress::learn::{Learner, MAX_HOSTS, MAX_LINE, MAX_PORTS, Omitted};
use gateway::egress::suggestion::Namespace;

use super::complain;

#[derive(Debug, Subcommand)]
pub(super) enum EgressCommand {
    /// Print ServiceEntries for what logs say was refused, for you to look through and to apply
    ///
    /// Reads access logs in Istio's default text and JSON formats and the gateway's own log, mixed if need be. A request
    /// counts if no route and no ServiceEntry knew its host. Each entry has comments that say how often it was refused,
    /// for whom, and what is doubtful about it.
    ///
    /// Exit codes: 0 done, 1 a file can't be read, 2 wrong use.
    Learn(LearnArgs),
}

#[derive(Debug, Args)]
pub(super) struct LearnArgs {
    /// Logs; `-` is standard input [default: standard input]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Namespace of the entries [default: none is written]
    #[arg(long, value_name = "NAME")]
    namespace: Option<Namespace>,
    /// Leave out hosts that were refused less often
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    min_count: u64,
}

impl EgressCommand {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Self::Learn(arguments) => learn(arguments),
        }
    }
}

fn learn(arguments: LearnArgs) -> ExitCode {
    let LearnArgs { mut files, namespace, min_count } = arguments;
    if files.is_empty() {
        files.push("-".into());
    }
    let mut learner = Learner::default();
    for file in &files {
        if let Err(error) = read(&mut learner, file) {
            return complain(&format!("{}: {error}", file.display()), 1);
        }
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = learner.write(min_count, namespace.as_ref(), &mut out).and_then(|()| out.flush());
    explain(&learner, min_count);
    match written {
        // A reader that has gone away, as `head` does, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => complain(&format!("can't write: {error}"), 1),
        _ => ExitCode::SUCCESS,
    }
}

fn read(learner: &mut Learner, file: &Path) -> io::Result<()> {
    if file == Path::new("-") {
        learner.read(io::stdin().lock())
    } else {
        learner.read(BufReader::new(File::open(file)?))
    }
}

/// Says what was read and isn't in the entries.
fn explain(learner: &Learner, min_count: u64) {
    let Omitted { unreadable, long, nameless, beyond } = learner.omitted;
    let below = learner.below(min_count) as u64;
    for (meaning, count) in [
        ("lines not read, as their format isn't known".to_owned(), unreadable),
        (format!("lines not read, as they are longer than {MAX_LINE} bytes"), long),
        ("refusals left out, as they name no host that a ServiceEntry can have".to_owned(), nameless),
        (format!("refusals left out, as they are beyond {MAX_HOSTS} hosts or {MAX_PORTS} ports of a host"), beyond),
        (format!("hosts left out, as they were refused less than {min_count} times"), below),
    ] {
        if count > 0 {
            eprintln!("fairlead: {meaning}: {count}");
        }
    }
}
