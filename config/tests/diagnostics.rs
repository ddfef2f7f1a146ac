//! Golden cases: what a directory of `testdata/` is told, as people see it. `expected.txt` is written by hand.

use std::fs;
use std::path::Path;

use config::accept;
use config::diagnostic::{Style, render};

fn check(case: &str) {
    // Cargo runs tests in the directory of the crate.
    let directory = Path::new("testdata").join(case);
    let expected = fs::read_to_string(directory.join("expected.txt")).expect("a case has an expected.txt");
    let generation = accept::load([directory], "istio-system");
    let texts: Vec<String> = generation.diagnostics.iter().map(|diagnostic| render(diagnostic, Style::Plain)).collect();
    let actual = texts.join("\n");
    assert!(actual == expected, "{case} says:\n{actual}");
}

#[test]
fn every_problem_is_found_in_one_run() {
    check("every-problem-at-once");
}

#[test]
fn broken_yaml_says_where() {
    check("broken-yaml");
}

#[test]
fn duplicates_name_both_places() {
    check("duplicates");
}

#[test]
fn policies_are_checked_without_mercy() {
    check("policies");
}

#[test]
fn a_dump_of_a_cluster_loads() {
    check("dump-of-a-cluster");
}
