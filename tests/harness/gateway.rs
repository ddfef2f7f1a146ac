//! The gateway: the real binary in a process of its own, on ports that the kernel chose.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::client::Http1;
use super::{PATIENCE, eventually};

/// How a gateway is started.
pub struct Builder {
    files: Vec<(String, String)>,
    ports: Vec<u16>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    workers: usize,
    access_log: Option<&'static str>,
}

/// A running gateway. It is killed when this is dropped.
pub struct Gateway {
    child: Child,
    directory: TempDir,
    ready: Ready,
    output: Arc<Lines>,
    errors: Arc<Lines>,
}

/// What the ready file says.
#[derive(Debug, Clone)]
struct Ready {
    admin: SocketAddr,
    status: SocketAddr,
    metrics: SocketAddr,
    listeners: HashMap<u16, SocketAddr>,
}

/// A gateway that didn't become ready.
#[derive(Debug)]
pub struct StartFailure {
    /// `None`: it was still running at the deadline.
    pub status: Option<ExitStatus>,
    pub stderr: String,
}

impl Builder {
    /// Writes `text` to `name` in the configuration directory.
    pub fn file(mut self, name: &str, text: impl Into<String>) -> Self {
        self.files.push((name.to_owned(), text.into()));
        self
    }

    /// Server ports (as Gateways say them) to be bound to a free port each.
    pub fn ports(mut self, ports: &[u16]) -> Self {
        self.ports = ports.to_vec();
        self
    }

    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// `off`, `text` or `json`, or `None` for what MeshConfig says; `text` unless a test says otherwise.
    pub fn access_log(mut self, format: impl Into<Option<&'static str>>) -> Self {
        self.access_log = format.into();
        self
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(self) -> Result<Gateway, StartFailure> {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        std::fs::create_dir(&config).unwrap();
        for (name, text) in &self.files {
            write_into(&config, name, text);
        }
        let ready_file = directory.path().join("ready.json");

        let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead"));
        command.arg("run").arg("--config").arg(&config).arg("--ready-file").arg(&ready_file);
        for option in ["--admin", "--status", "--metrics"] {
            command.args([option, "127.0.0.1:0"]);
        }
        command.args(["--bind", "127.0.0.1", "--workers", &self.workers.to_string()]);
        if let Some(format) = self.access_log {
            command.args(["--access-log", format]);
        }
        for port in &self.ports {
            command.args(["--port-map", &format!("{port}:0")]);
        }
        command.args(&self.arguments);
        undisturbed(&mut command);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fairlead starts");
        let output = Lines::collect(child.stdout.take().unwrap());
        let errors = Lines::collect(child.stderr.take().unwrap());

        let begin = Instant::now();
        loop {
            if let Some(ready) = Ready::read(&ready_file) {
                return Ok(Gateway { child, directory, ready, output, errors });
            }
            let status = child.try_wait().unwrap();
            if status.is_some() || begin.elapsed() > Duration::from_secs(30) {
                // Killing first lets the reader of its output come to an end.
                let _ = child.kill();
                let _ = child.wait();
                return Err(StartFailure { status, stderr: errors.wait_for_end().join("\n") });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Gateway {
    /// A gateway with one worker whose server port is 80.
    pub fn builder() -> Builder {
        Builder {
            files: Vec::new(),
            ports: vec![80],
            arguments: Vec::new(),
            environment: Vec::new(),
            workers: 1,
            access_log: Some("text"),
        }
    }

    /// Starts a gateway on `yaml`, or panics with what it had to say.
    pub async fn start(yaml: impl Into<String>) -> Self {
        Self::builder().file("config.yaml", yaml).start().await.unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// Address where server port `port` is bound.
    pub fn address(&self, port: u16) -> SocketAddr {
        let listeners = &self.ready.listeners;
        *listeners.get(&port).unwrap_or_else(|| panic!("no listener for port {port}, there are {listeners:?}"))
    }

    pub fn admin(&self) -> SocketAddr {
        self.ready.admin
    }

    pub fn status(&self) -> SocketAddr {
        self.ready.status
    }

    pub fn metrics(&self) -> SocketAddr {
        self.ready.metrics
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The watched directory.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    /// Writes `text` to `name` in the watched directory, in one step, and waits until it is in force.
    pub async fn write(&self, name: &str, text: &str) {
        let before = self.generation().await;
        write_into(&self.config(), name, text);
        self.reloaded_since(before).await;
    }

    /// Number of the configuration in force.
    pub async fn generation(&self) -> u64 {
        let status = self.config_status().await;
        status["generation"].as_u64().unwrap_or_else(|| panic!("/config/status has no generation: {status}"))
    }

    /// Waits until a configuration newer than `generation` is in force.
    pub async fn reloaded_since(&self, generation: u64) {
        eventually("the gateway reloads", || async { (self.generation().await > generation).then_some(()) }).await;
    }

    /// What the admin port says about every file and resource.
    pub async fn config_status(&self) -> Value {
        let answer = Http1::connect(self.admin()).await.get("localhost", "/config/status").await;
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("/config/status: {error}: {answer:?}"))
    }

    /// Addresses on which server port `port` accepts at the moment.
    pub async fn bound(&self, port: u16) -> Vec<String> {
        let status = self.config_status().await;
        let listeners = status["listeners"].as_array().cloned().unwrap_or_default();
        let ours = listeners.iter().filter(|listener| listener["port"] == port);
        let addresses = ours.flat_map(|listener| listener["addresses"].as_array().cloned().unwrap_or_default());
        addresses.filter_map(|address| address.as_str().map(str::to_owned)).collect()
    }

    /// Memory of the process that is in RAM, in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The text of the Prometheus page.
    pub async fn metrics_page(&self) -> String {
        let answer = Http1::connect(self.metrics()).await.get("localhost", "/stats/prometheus").await;
        String::from_utf8(answer.body).unwrap()
    }

    /// Number of lines on stdout so far; the start for [`Gateway::log_line_since`].
    pub fn log_mark(&self) -> usize {
        self.output.len()
    }

    /// The first access log line after `mark` that `wanted` picks, or `None` if it doesn't come. A line is written some
    /// time after its request: `mark` keeps out none that is still on its way.
    pub async fn log_line_since(
        &self,
        mark: usize,
        wanted: impl Fn(&LogLine) -> bool + Send + 'static,
    ) -> Option<LogLine> {
        let output = self.output.clone();
        let search = move || output.find(mark, PATIENCE / 2, |line| LogLine::parse(line).filter(|line| wanted(line)));
        tokio::task::spawn_blocking(search).await.unwrap()
    }

    /// The access log line of the first request on the connection from `client`.
    pub async fn log_line_of(&self, client: SocketAddr) -> Option<LogLine> {
        let client = client.to_string();
        self.log_line_since(0, move |line| line.remote() == client).await
    }

    /// The first line on stdout after `mark` that `wanted` picks, whatever its format.
    pub async fn output_since(&self, mark: usize, wanted: impl Fn(&str) -> bool + Send + 'static) -> Option<String> {
        let output = self.output.clone();
        let search = move || output.find(mark, PATIENCE / 2, |line| wanted(line).then(|| line.to_owned()));
        tokio::task::spawn_blocking(search).await.unwrap()
    }

    /// Everything written to stderr so far.
    pub fn stderr(&self) -> String {
        self.errors.all().join("\n")
    }

    /// Waits until `text` stands in stderr.
    pub async fn says(&self, text: &str) {
        eventually(text, || async { self.stderr().contains(text).then_some(()) }).await;
    }

    /// Sends SIGTERM. The process is waited for by [`Gateway::exit`].
    pub fn terminate(&self) {
        signal(self.pid(), "TERM");
    }

    /// Waits for the process to end by itself.
    pub async fn exit(&mut self, within: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if begin.elapsed() > within {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the gateway's stderr, its last 60 lines\n{}", tail(&self.errors.all(), 60));
            eprintln!("--- its stdout, the last 20 lines\n{}", tail(&self.output.all(), 20));
        }
    }
}

fn tail(lines: &[String], count: usize) -> String {
    lines[lines.len().saturating_sub(count)..].join("\n")
}

impl std::fmt::Display for StartFailure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(formatter, "fairlead ended with {status}:\n{}", self.stderr),
            None => write!(formatter, "fairlead wasn't ready in time:\n{}", self.stderr),
        }
    }
}

impl Ready {
    /// `None` until the file is there; it appears complete, by rename.
    fn read(file: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(file).ok()?;
        let ready: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("ready file: {error}: {text}"));
        let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
        let required = |name: &str| address(&ready[name]).unwrap_or_else(|| panic!("ready file: no {name}: {text}"));
        let listeners = ready["listeners"].as_array().expect("ready file: listeners").iter().filter_map(|listener| {
            Some((u16::try_from(listener["port"].as_u64()?).ok()?, address(&listener["address"])?))
        });
        Some(Self {
            admin: required("admin"),
            status: required("status"),
            metrics: required("metrics"),
            listeners: listeners.collect(),
        })
    }
}

/// The surroundings of the tests must not change what is tested.
pub fn undisturbed(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["FAIRLEAD_", "PILOT_", "ISTIO_", "POD_", "ENABLE_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
}

/// Sends a signal, such as `TERM`, to a process that a test started.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(sent.success(), "kill -{name} {pid}");
}

/// Writes beside the file and renames, so that no reader sees half of it.
pub fn write_into(directory: &Path, name: &str, text: &str) {
    let target = directory.join(name);
    let parent = target.parent().unwrap();
    std::fs::create_dir_all(parent).unwrap();
    let mut draft = tempfile::Builder::new().prefix(".draft-").tempfile_in(parent).unwrap();
    std::io::Write::write_all(&mut draft, text.as_bytes()).unwrap();
    draft.persist(target).unwrap();
}

/// One line of Istio's default access log format. Fields that tests ask for are named; `-` is kept as it stands.
#[derive(Debug, Clone)]
pub struct LogLine {
    pub text: String,
    fields: Vec<String>,
}

impl LogLine {
    /// `None` for a line that isn't of that format.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix('[')?;
        let (time, mut rest) = rest.split_once(']')?;
        let mut fields = vec![time.to_owned()];
        while !rest.is_empty() {
            rest = rest.trim_start_matches(' ');
            let (field, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => rest.split_once(' ').unwrap_or((rest, "")),
            };
            fields.push(field.to_owned());
            rest = after;
        }
        (fields.len() >= 20).then(|| Self { text: text.to_owned(), fields })
    }

    /// All fields in order, from the start time on, without brackets and quotes.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// Method, path and protocol.
    pub fn request(&self) -> &str {
        &self.fields[1]
    }

    pub fn code(&self) -> &str {
        &self.fields[2]
    }

    pub fn flags(&self) -> &str {
        &self.fields[3]
    }

    pub fn details(&self) -> &str {
        &self.fields[4]
    }

    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`.
    pub fn transport_failure(&self) -> &str {
        &self.fields[6]
    }

    pub fn forwarded_for(&self) -> &str {
        &self.fields[11]
    }

    pub fn user_agent(&self) -> &str {
        &self.fields[12]
    }

    pub fn authority(&self) -> &str {
        &self.fields[14]
    }

    pub fn upstream_host(&self) -> &str {
        &self.fields[15]
    }

    pub fn cluster(&self) -> &str {
        &self.fields[16]
    }

    /// `DOWNSTREAM_REMOTE_ADDRESS`.
    pub fn remote(&self) -> &str {
        &self.fields[19]
    }
}

/// Lines that a thread reads from a pipe of the process.
pub struct Lines {
    state: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Lines {
    pub fn collect(pipe: impl Read + Send + 'static) -> Arc<Self> {
        let lines = Arc::new(Self { state: Mutex::new((Vec::new(), false)), grown: Condvar::new() });
        let written = lines.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                written.state.lock().unwrap().0.push(text);
                written.grown.notify_all();
                line.clear();
            }
            written.state.lock().unwrap().1 = true;
            written.grown.notify_all();
        });
        lines
    }

    fn len(&self) -> usize {
        self.state.lock().unwrap().0.len()
    }

    pub fn all(&self) -> Vec<String> {
        self.state.lock().unwrap().0.clone()
    }

    fn wait_for_end(&self) -> Vec<String> {
        let (state, _) =
            self.grown.wait_timeout_while(self.state.lock().unwrap(), PATIENCE, |(_, ended)| !*ended).unwrap();
        state.0.clone()
    }

    /// The first line from number `from` on that `pick` picks; waits for it, at most `limit`.
    pub fn find<T>(&self, from: usize, limit: Duration, pick: impl Fn(&str) -> Option<T>) -> Option<T> {
        let begin = Instant::now();
        let mut next = from;
        let mut state = self.state.lock().unwrap();
        loop {
            while let Some(line) = state.0.get(next) {
                if let Some(found) = pick(line) {
                    return Some(found);
                }
                next += 1;
            }
            let left = limit.checked_sub(begin.elapsed()).filter(|_| !state.1)?;
            state = self.grown.wait_timeout(state, left).unwrap().0;
        }
    }
}
