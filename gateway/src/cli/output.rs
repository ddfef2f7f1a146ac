//! What `validate` and `routes` print.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use config::compile::Options;
use config::diagnostic::{self, Diagnostic, Severity, Style};
use config::load::{self, Loaded};
use config::snapshot::render;
use config::source::Rescan;
use gateway::reload::merged;
use gateway::tls::credentials::{Credentials, Places};

use super::{WRONG_USE, complain};

/// How findings are printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum FindingsFormat {
    /// As rustc does, with the lines in question
    Text,
    /// One JSON array
    Json,
    /// SARIF 2.1.0
    Sarif,
}

/// How routes are printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum RoutesFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// `fairlead validate`.
pub(super) fn validate(
    roots: &[PathBuf],
    options: Options,
    places: Places,
    strict: bool,
    format: FindingsFormat,
) -> ExitCode {
    let Loaded { diagnostics, snapshot, credentials: uses, .. } = match load(roots, options) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let mut credentials = Credentials::new(places);
    credentials.refresh(&snapshot, &uses, Rescan::All);
    let diagnostics = merged(&diagnostics, credentials.findings(&uses));
    let printed = match format {
        FindingsFormat::Text => print(&text(&diagnostics, style(&io::stdout()))),
        FindingsFormat::Json => print_json(&&*diagnostics),
        FindingsFormat::Sarif => print_json(&diagnostic::sarif(&*diagnostics)),
    };
    let worst = if strict { Severity::Warning } else { Severity::Error };
    if printed == ExitCode::SUCCESS && diagnostics.iter().any(|diagnostic| diagnostic.severity <= worst) {
        return ExitCode::from(1);
    }
    printed
}

/// `fairlead routes`. What is rejected is missing in it, which is then said, and the exit code is 1.
pub(super) fn routes(roots: &[PathBuf], options: Options, format: RoutesFormat) -> ExitCode {
    let loaded = match load(roots, options) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let printed = match format {
        RoutesFormat::Table => print(&render::text(&loaded.snapshot)),
        RoutesFormat::Json => print_json(&render::json(&loaded.snapshot)),
    };
    if loaded.has_errors() {
        explain(&loaded.diagnostics);
        return ExitCode::from(1);
    }
    printed
}

/// Prints everything that is wrong to standard error.
pub(super) fn explain(diagnostics: &[Diagnostic]) {
    // Without standard error there is nobody to tell.
    let _ = io::stderr().write_all(text(diagnostics, style(&io::stderr())).as_bytes());
}

/// Prints to standard output. A reader that has gone away, as `head` does, is no failure.
pub(super) fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => complain(&format!("can't write: {error}"), 1),
        _ => ExitCode::SUCCESS,
    }
}

fn print_json(value: &impl serde::Serialize) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => complain(&error.to_string(), 1),
    }
}

/// Loads once, as `run` does at its start.
fn load(roots: &[PathBuf], options: Options) -> Result<Loaded, ExitCode> {
    if let Some(missing) = roots.iter().find(|root| !root.exists()) {
        return Err(complain(&format!("{} doesn't exist", missing.display()), WRONG_USE));
    }
    Ok(load::load(roots.to_vec(), options))
}

fn style(stream: &impl IsTerminal) -> Style {
    if stream.is_terminal() && std::env::var_os("NO_COLOR").is_none() { Style::Coloured } else { Style::Plain }
}

/// Every finding with its excerpt, errors and warnings, and a line that sums up.
fn text(diagnostics: &[Diagnostic], style: Style) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        text.push_str(&diagnostic::render(diagnostic, style));
        text.push('\n');
    }
    let count = |severity| diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    text.push_str(&format!("{}, {}\n", plural(errors, "error"), plural(warnings, "warning")));
    text
}
