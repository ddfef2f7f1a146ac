//! Processes: `fairlead`'s other commands, and programs that run beside it.

use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::gateway::{Lines, signal, undisturbed};

/// `fairlead` with these arguments, to be run.
pub fn fairlead(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead"));
    command.args(arguments).stdin(Stdio::null());
    undisturbed(&mut command);
    command
}

/// Runs a program to its end, beside the tasks of the test.
pub async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap_or_else(|error| panic!("{command:?}: {error}")))
        .await
        .unwrap()
}

/// What a program wrote to standard output; panics if it failed.
pub async fn stdout(command: Command) -> String {
    let text = format!("{command:?}");
    let output = run(command).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// A program in the background. It is killed when this is dropped.
pub struct Process {
    child: Child,
    output: Arc<Lines>,
    errors: Arc<Lines>,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = Lines::collect(child.stdout.take().unwrap());
        let errors = Lines::collect(child.stderr.take().unwrap());
        Self { child, output, errors }
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// All lines on standard output so far.
    pub fn output(&self) -> Vec<String> {
        self.output.all()
    }

    /// Waits for a line on standard output with this text.
    pub async fn prints(&self, text: &str) -> String {
        let (output, wanted) = (self.output.clone(), text.to_owned());
        let search = move || output.find(0, PATIENCE, |line| line.contains(&wanted).then(|| line.to_owned()));
        let found = tokio::task::spawn_blocking(search).await.unwrap();
        found.unwrap_or_else(|| panic!("no {text:?} in {:#?}\n{:#?}", self.output.all(), self.errors.all()))
    }

    /// Waits for the process to end by itself.
    pub async fn exit(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "it doesn't end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
