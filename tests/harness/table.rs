//! A table of the reference as one test: every row runs, what differs is told at the end, all at once.

use std::fmt::{Debug, Write};
use std::net::SocketAddr;

use super::gateway::Gateway;

/// The rows so far.
pub struct Table {
    title: &'static str,
    rows: usize,
    current: String,
    failures: Vec<String>,
    logs: Vec<ExpectedLog>,
}

/// An access log line that a row must have left.
struct ExpectedLog {
    row: String,
    client: Option<SocketAddr>,
    code: String,
    flags: String,
    details: String,
}

impl Table {
    /// `title` names the section, such as `networking.md §3.7`.
    pub fn new(title: &'static str) -> Self {
        Self { title, rows: 0, current: String::new(), failures: Vec::new(), logs: Vec::new() }
    }

    /// Begins a row; what is checked until the next one belongs to it.
    pub fn row(&mut self, name: impl Into<String>) {
        self.rows += 1;
        self.current = name.into();
    }

    /// Notes a difference between `expected` and `got` in `what`. Returns whether they are equal.
    pub fn check<E: Debug + PartialEq<G> + ?Sized, G: Debug + ?Sized>(
        &mut self,
        what: &str,
        expected: &E,
        got: &G,
    ) -> bool {
        let equal = expected == got;
        if !equal {
            self.failures
                .push(format!("{}: {what}\n      expected {expected:?}\n      got      {got:?}", self.current));
        }
        equal
    }

    /// Notes a failure in words.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(format!("{}: {}", self.current, what.into()));
    }

    /// Notes the access log line that the request from `client` must leave. It is looked for by [`Table::check_logs`],
    /// since the log is written with a delay that should be waited for once. Details `*` stand for any.
    pub fn expect_log(&mut self, client: Option<SocketAddr>, code: u16, flags: &str, details: &str) {
        let (code, flags, details) = (code.to_string(), flags.to_owned(), details.to_owned());
        self.logs.push(ExpectedLog { row: self.current.clone(), client, code, flags, details });
    }

    /// Looks for the lines that `gateway` must have logged so far.
    pub async fn check_logs(&mut self, gateway: &Gateway) {
        for ExpectedLog { row, client, code, flags, details } in std::mem::take(&mut self.logs) {
            self.current = row;
            let line = match client {
                Some(client) => gateway.log_line_of(client).await,
                None => None,
            };
            match line {
                None => self.fail(format!("no access log line, expected {code} {flags} {details}")),
                Some(line) => {
                    let wanted = if details == "*" { line.details() } else { &*details };
                    let got = (line.code(), line.flags(), line.details());
                    self.check("access log", &(&*code, &*flags, wanted), &got);
                }
            }
        }
    }

    /// Prints the count and fails the test if a row failed.
    pub fn finish(self) {
        let Self { title, rows, failures, logs, .. } = self;
        assert!(logs.is_empty(), "access log lines were expected and not looked for");
        eprintln!("{title}: {rows} rows");
        if failures.is_empty() {
            return;
        }
        let mut text = String::new();
        for failure in &failures {
            let _ = write!(text, "\n  - {failure}");
        }
        panic!("{title}: {} differences in {rows} rows{text}", failures.len());
    }
}
