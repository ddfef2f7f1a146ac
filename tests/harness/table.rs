//! A table of the reference as one test: every row runs, what differs is told at the end, all at once.

use std::fmt::{Debug, Write};

/// The rows so far.
pub struct Table {
    title: &'static str,
    rows: usize,
    current: String,
    failures: Vec<String>,
}

impl Table {
    /// `title` names the section, such as `networking.md §3.7`.
    pub fn new(title: &'static str) -> Self {
        Self { title, rows: 0, current: String::new(), failures: Vec::new() }
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

    /// Prints the count and fails the test if a row failed.
    pub fn finish(self) {
        let Self { title, rows, failures, .. } = self;
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
