//! The command line: options, output, exit codes.

mod egress;
mod output;
mod value;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use config::compile::{AccessLogChoice, Features, Options as Identity};
use gateway::admin::Addresses;
use gateway::demo::DemoOptions;
use gateway::echo::EchoOptions;
use gateway::listener::DefaultAddresses;
use gateway::tls::credentials::{IdentityPlaces, Places};
use gateway::tls::handshakes::HandshakeLimits;
use gateway::{Options, Shutdown, StartFailure, demo, echo};
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use value::{KeyValue, NameServer, Port, PortMapping};

/// An Istio gateway in one process: a directory of Istio YAML in, Istio's behaviour out.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve what the watched directories say, and follow their changes
    Run(Box<RunArgs>),
    /// Check directories of YAML and print what is wrong with them
    ///
    /// Exit codes: 0 clean (warnings allowed, unless --strict), 1 errors found, 2 wrong use.
    Validate(ValidateArgs),
    /// Print what directories compile to: listeners, hosts, routes in order, clusters
    Routes(RoutesArgs),
    /// What goes out: find out what to allow
    #[command(subcommand)]
    Egress(egress::EgressCommand),
    /// Start a gateway on an example directory with example backends, and print curl lines to try
    Demo(DemoOptions),
    /// Start an example backend, which answers with what it received
    Echo(EchoOptions),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Who this gateway is. `validate` and `routes` need to know as well: selectors and short names depend on it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Identity")]
struct IdentityArgs {
    /// Label of this gateway, which the selectors of Gateways are compared with; may be repeated. Given once, it
    /// replaces the defaults [default: istio=ingressgateway app=istio-ingressgateway]
    #[arg(long, value_name = "KEY=VALUE", env = "FAIRLEAD_LABEL", value_delimiter = ',')]
    label: Vec<KeyValue>,
    /// Namespace of this gateway, and the root namespace unless MeshConfig names another [default: $POD_NAMESPACE, or
    /// istio-system]
    #[arg(long, value_name = "NAMESPACE", env = "FAIRLEAD_NAMESPACE")]
    namespace: Option<String>,
    /// Name of this workload, for metrics and access logs [default: $ISTIO_META_WORKLOAD_NAME, or the label `app`]
    #[arg(long, value_name = "NAME", env = "FAIRLEAD_NAME")]
    name: Option<String>,
    /// Service account of this gateway [default: $SERVICE_ACCOUNT, or default]
    #[arg(long, value_name = "NAME", env = "FAIRLEAD_SERVICE_ACCOUNT")]
    service_account: Option<String>,
    /// Cluster of this gateway, for metrics [default: $ISTIO_META_CLUSTER_ID, or Kubernetes]
    #[arg(long, value_name = "ID", env = "FAIRLEAD_CLUSTER_ID")]
    cluster_id: Option<String>,
    /// Suffix of the names of Kubernetes Services
    #[arg(long, value_name = "DOMAIN", env = "FAIRLEAD_DOMAIN", default_value = "cluster.local")]
    domain: String,
    /// SPIFFE trust domain, unless MeshConfig names one [default: $TRUST_DOMAIN]
    #[arg(long, value_name = "DOMAIN", env = "FAIRLEAD_TRUST_DOMAIN")]
    trust_domain: Option<String>,
    /// Where this gateway runs, as REGION/ZONE/SUBZONE
    #[arg(long, value_name = "LOCALITY", env = "FAIRLEAD_LOCALITY")]
    locality: Option<String>,
    /// Open port B for server port A of a Gateway; may be repeated. B = 0 lets the kernel choose [default: the target
    /// port of a Service that selects this gateway, or the port itself]
    #[arg(long, value_name = "A:B", env = "FAIRLEAD_PORT_MAP", value_delimiter = ',')]
    port_map: Vec<PortMapping>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Directory (or file) of YAML to watch, with everything below it; may be repeated
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_CONFIG", value_delimiter = ',', required = true)]
    config: Vec<PathBuf>,
    /// Start although some documents are invalid; they are absent until repaired
    #[arg(long, env = "FAIRLEAD_ACCEPT_INVALID")]
    accept_invalid: bool,

    #[command(flatten)]
    identity: IdentityArgs,

    #[command(flatten)]
    credentials: CredentialArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    logging: LoggingArgs,
}

/// Where certificates and keys are, besides the Secrets of the configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Credentials")]
struct CredentialArgs {
    /// Directory of mounted secrets, DIR/CREDENTIAL/KEY, as in DIR/shop-cert/tls.crt; may be repeated
    #[arg(long, value_name = "DIR", env = "FAIRLEAD_CERTS", value_delimiter = ',')]
    certs: Vec<PathBuf>,
    /// Directory of this workload's certificate, key and roots: cert-chain.pem, key.pem, root-cert.pem [default:
    /// /etc/certs or /var/run/secrets/workload-spiffe-credentials, or as $ISTIO_META_TLS_CLIENT_CERT_CHAIN says]
    #[arg(long = "identity", value_name = "DIR", env = "FAIRLEAD_IDENTITY")]
    identity_directory: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
struct NetworkArgs {
    /// Address of servers that have no `bind`; may be repeated [default: 0.0.0.0 and ::]
    #[arg(long, value_name = "IP", env = "FAIRLEAD_BIND", value_delimiter = ',')]
    bind: Vec<IpAddr>,
    /// Where the admin pages are: /config/status, /config/routes, /ready, /stats/prometheus
    #[arg(long, value_name = "ADDR:PORT|off", env = "FAIRLEAD_ADMIN", default_value = "127.0.0.1:15000")]
    admin: Port,
    /// Where readiness is: /healthz/ready
    #[arg(long, value_name = "ADDR:PORT|off", env = "FAIRLEAD_STATUS", default_value = "0.0.0.0:15021")]
    status: Port,
    /// Where metrics are: /stats/prometheus
    #[arg(long, value_name = "ADDR:PORT|off", env = "FAIRLEAD_METRICS", default_value = "0.0.0.0:15090")]
    metrics: Port,
    /// Worker threads [default: number of CPUs]
    #[arg(long, value_name = "N", env = "FAIRLEAD_WORKERS")]
    workers: Option<NonZeroUsize>,
    /// Offer WebSocket over HTTP/2 (RFC 8441) to clients; Istio's gateway doesn't
    #[arg(long, env = "FAIRLEAD_HTTP2_WEBSOCKET")]
    http2_websocket: bool,
    /// Answer 421 to requests whose host belongs to another TLS server of the port; Istio's gateway answers 404
    #[arg(long, env = "FAIRLEAD_STRICT_SNI")]
    strict_sni: bool,
    /// Addresses beyond public ones that hosts which clients choose may stand for: wildcard ServiceEntries with DYNAMIC_DNS
    /// and forward proxies with ALLOW_ANY; may be repeated
    #[arg(long, value_name = "CIDR", env = "FAIRLEAD_EGRESS_ALLOW", value_delimiter = ',')]
    egress_allow: Vec<IpNet>,
    /// TLS handshakes under way at once on each worker; one more cuts the oldest
    #[arg(long, value_name = "N", env = "FAIRLEAD_MAX_HANDSHAKES", default_value_t = DEFAULT_MAX_HANDSHAKES)]
    max_handshakes: NonZeroUsize,
    /// Name server to ask instead of those of /etc/resolv.conf, such as a cache of this node; may be repeated. /etc/hosts
    /// still comes first, and search domains and options of /etc/resolv.conf hold [default port: 53]
    #[arg(long, value_name = "IP[:PORT]", env = "FAIRLEAD_NAME_SERVER", value_delimiter = ',')]
    name_server: Vec<NameServer>,
    /// Write where everything listens to FILE, as JSON, once the gateway is ready and after each change
    #[arg(long, value_name = "FILE", env = "FAIRLEAD_READY_FILE")]
    ready_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
struct LoggingArgs {
    /// Whether and how requests are logged to standard output [default: as MeshConfig says]
    #[arg(long, value_name = "FORMAT", env = "FAIRLEAD_ACCESS_LOG")]
    access_log: Option<AccessLog>,
    /// Lowest level of our own log, on standard error: error, warn, info, debug, trace; or a filter such as
    /// info,gateway::reload=debug
    #[arg(long, value_name = "LEVEL", env = "FAIRLEAD_LOG", default_value = "info")]
    log: String,
    /// Format of our own log
    #[arg(long, value_name = "FORMAT", env = "FAIRLEAD_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AccessLog {
    Off,
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
struct ValidateArgs {
    /// Directories (or files) of YAML
    #[arg(value_name = "DIR", required = true)]
    directories: Vec<PathBuf>,
    /// Fail on warnings, too
    #[arg(long)]
    strict: bool,
    /// How findings are printed; SARIF is what code hosts and editors read
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: output::FindingsFormat,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
}

#[derive(Debug, Args)]
struct RoutesArgs {
    /// Directories (or files) of YAML
    #[arg(value_name = "DIR", required = true)]
    directories: Vec<PathBuf>,
    /// How they are printed
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: output::RoutesFormat,
    #[command(flatten)]
    identity: IdentityArgs,
}

/// Enough for bursts; a handshake holds some 20 KiB.
const DEFAULT_MAX_HANDSHAKES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Wrong use, as in clap.
const WRONG_USE: u8 = 2;

impl Cli {
    /// Does what was asked, and says how it went.
    pub(crate) fn run(self) -> ExitCode {
        match self.command {
            Command::Run(arguments) => run(*arguments),
            Command::Validate(arguments) => {
                let ValidateArgs { directories, strict, format, identity, credentials } = arguments;
                with_identity(identity, |identity| match credentials.places(&identity) {
                    Ok(places) => output::validate(&directories, identity, places, strict, format),
                    Err(error) => complain(&error, WRONG_USE),
                })
            }
            Command::Routes(arguments) => {
                let RoutesArgs { directories, format, identity } = arguments;
                with_identity(identity, |identity| output::routes(&directories, identity, format))
            }
            Command::Egress(command) => command.run(),
            Command::Demo(options) => control(async {
                initialize_log("warn", LogFormat::Text);
                demo::run(options).await
            }),
            Command::Echo(options) => control(echo::run(options)),
            Command::Version => output::print(&format!("fairlead {}\n", env!("CARGO_PKG_VERSION"))),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "fairlead", &mut script);
                output::print(&String::from_utf8_lossy(&script))
            }
        }
    }
}

fn with_identity(arguments: IdentityArgs, then: impl FnOnce(Identity) -> ExitCode) -> ExitCode {
    match arguments.resolve(None) {
        Ok(identity) => then(identity),
        Err(error) => complain(&error, WRONG_USE),
    }
}

fn run(arguments: RunArgs) -> ExitCode {
    if let Err(error) = EnvFilter::try_new(&arguments.logging.log) {
        return complain(&format!("--log: {error}"), WRONG_USE);
    }
    initialize_log(&arguments.logging.log, arguments.logging.log_format);
    let options = match arguments.into_options() {
        Ok(options) => options,
        Err(error) => return complain(&error, WRONG_USE),
    };
    control(async {
        match gateway::start(options).await {
            Ok(running) => Ok(running.serve().await?),
            Err(StartFailure::Invalid(diagnostics)) => {
                output::explain(&diagnostics);
                anyhow::bail!("the configuration is invalid; --accept-invalid starts without what is wrong")
            }
            Err(failure) => Err(failure.into()),
        }
    })
}

impl RunArgs {
    fn into_options(self) -> Result<Options, String> {
        let Self { config, accept_invalid, identity, credentials, network, logging } = self;
        let NetworkArgs {
            bind,
            admin,
            status,
            metrics,
            workers,
            http2_websocket,
            strict_sni,
            egress_allow,
            max_handshakes,
            name_server,
            ready_file,
        } = network;
        let access_log = logging.access_log.map(|choice| match choice {
            AccessLog::Off => AccessLogChoice::Off,
            AccessLog::Text => AccessLogChoice::Text,
            AccessLog::Json => AccessLogChoice::Json,
        });
        let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let identity = identity.resolve(access_log)?;
        Ok(Options {
            roots: config,
            credentials: credentials.places(&identity)?,
            identity,
            accept_invalid,
            bind: if bind.is_empty() { DefaultAddresses::Any } else { DefaultAddresses::Given(bind) },
            ports: Addresses { admin: admin.0, status: status.0, metrics: metrics.0 },
            workers: workers.unwrap_or(cpus),
            max_connections: value::from_environment("ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS", value::number)?,
            own_address: value::from_environment("INSTANCE_IP", |text| text.parse().ok())?,
            http2_websocket,
            strict_sni,
            egress_allow,
            handshakes: HandshakeLimits {
                concurrent: max_handshakes.get(),
                timeout: match value::from_environment(
                    "PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT",
                    value::duration,
                )? {
                    Some(Duration::ZERO) => None,
                    given => given.or(HandshakeLimits::default().timeout),
                },
            },
            name_servers: name_server.into_iter().map(|server| server.0).collect(),
            dual_stack: value::from_environment("ISTIO_DUAL_STACK", value::boolean)?.unwrap_or(false),
            ready_file,
            shutdown: Shutdown {
                drain: value::from_environment("TERMINATION_DRAIN_DURATION_SECONDS", value::number)?
                    .map(Duration::from_secs),
                until_no_connections: value::from_environment("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", value::boolean)?
                    .unwrap_or(false),
                minimum: value::from_environment("MINIMUM_DRAIN_DURATION", value::duration)?
                    .unwrap_or(DEFAULT_MINIMUM_DRAIN),
            },
        })
    }
}

impl CredentialArgs {
    fn places(self, identity: &Identity) -> Result<Places, String> {
        let Self { certs, identity_directory } = self;
        // The operating system names changed files as it was told the directories.
        let absolute =
            |path: PathBuf| std::path::absolute(&path).map_err(|error| format!("{}: {error}", path.display()));
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Ok(Places {
            mounts: certs.into_iter().map(absolute).collect::<Result<_, _>>()?,
            identity: match identity_directory {
                Some(directory) => IdentityPlaces::below(&absolute(directory)?),
                None => IdentityPlaces::of_platform(variable),
            },
            namespace: identity.namespace.clone(),
        })
    }
}

/// Source: `reference/telemetry-and-operations.md` §9.
const DEFAULT_MINIMUM_DRAIN: Duration = Duration::from_secs(5);

impl IdentityArgs {
    fn resolve(self, access_log: Option<AccessLogChoice>) -> Result<Identity, String> {
        let Self { label, namespace, name, service_account, cluster_id, domain, trust_domain, locality, port_map } =
            self;
        let defaults = Identity::default();
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let labels: BTreeMap<String, String> = if label.is_empty() {
            defaults.labels
        } else {
            label.into_iter().map(|KeyValue { key, value }| (key, value)).collect()
        };
        let features = Features {
            http10: value::from_environment("PILOT_HTTP10", value::boolean)?.unwrap_or(false),
            scope_gateway_to_namespace: value::from_environment("PILOT_SCOPE_GATEWAY_TO_NAMESPACE", value::boolean)?
                .unwrap_or(false),
            idle_timeout: value::from_environment("ISTIO_META_IDLE_TIMEOUT", value::duration)?,
        };
        Ok(Identity {
            namespace: namespace.or_else(|| variable("POD_NAMESPACE")).map_or(defaults.namespace, Into::into),
            name: name
                .or_else(|| variable("ISTIO_META_WORKLOAD_NAME"))
                .or_else(|| labels.get("app").cloned())
                .unwrap_or(defaults.name),
            service_account: service_account
                .or_else(|| variable("SERVICE_ACCOUNT"))
                .unwrap_or(defaults.service_account),
            cluster_id: cluster_id.or_else(|| variable("ISTIO_META_CLUSTER_ID")).unwrap_or(defaults.cluster_id),
            domain,
            trust_domain: trust_domain.or_else(|| variable("TRUST_DOMAIN")),
            locality,
            port_map: port_map.into_iter().map(|PortMapping { from, to }| (from, to)).collect(),
            access_log,
            labels,
            features,
        })
    }
}

/// Runs `life` on the control runtime: files, names, admin. Requests are served elsewhere.
fn control(life: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let built =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("control").enable_all().build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("can't start: {error}"), 1),
    };
    let result = runtime.block_on(life);
    // A query or a page that is under way must not delay the exit.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

fn complain(message: &str, code: u8) -> ExitCode {
    eprintln!("fairlead: {message}");
    ExitCode::from(code)
}

/// Our own log, to standard error: standard output belongs to the access log.
fn initialize_log(filter: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        let all = ["fairlead", "run", "--config", "/etc/fairlead"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(arguments) => arguments.into_options().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let options = options(&[]);
        assert_eq!(options.bind, DefaultAddresses::Any);
        assert_eq!(options.ports.admin, Some("127.0.0.1:15000".parse().unwrap()));
        assert_eq!(options.ports.status, Some("0.0.0.0:15021".parse().unwrap()));
        assert_eq!(options.ports.metrics, Some("0.0.0.0:15090".parse().unwrap()));
        assert_eq!(&*options.identity.namespace, "istio-system");
        assert_eq!(options.identity.labels["istio"], "ingressgateway");
        assert_eq!(options.identity.name, "istio-ingressgateway");
        assert!(!options.accept_invalid);
    }

    #[test]
    fn labels_replace_the_defaults() {
        let options = options(&["--label", "app=egress", "--label", "tier=edge"]);
        let labels: Vec<_> = options.identity.labels.into_iter().collect();
        assert_eq!(labels, [("app".into(), "egress".into()), ("tier".into(), "edge".into())]);
        assert_eq!(options.identity.name, "egress");
    }

    #[test]
    fn ports_may_be_off_or_chosen_by_the_kernel() {
        let options = options(&["--admin", "off", "--status", "127.0.0.1:0", "--port-map", "80:0"]);
        assert_eq!(options.ports.admin, None);
        assert_eq!(options.ports.status, Some("127.0.0.1:0".parse().unwrap()));
        assert_eq!(options.identity.port_map, BTreeMap::from([(80, 0)]));
    }

    #[test]
    fn name_servers_are_on_port_53_unless_they_say_otherwise() {
        let options =
            options(&["--name-server", "192.0.2.1", "--name-server", "192.0.2.2:54,2001:db8::1,[2001:db8::2]:54"]);
        let servers: Vec<String> = options.name_servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "192.0.2.2:54", "[2001:db8::1]:53", "[2001:db8::2]:54"]);
    }

    #[test]
    fn every_option_has_its_variable() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for option in run.get_arguments().filter(|option| option.get_id() != "help") {
            let long = option.get_long().unwrap();
            let expected = format!("FAIRLEAD_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(option.get_env().unwrap().to_str().unwrap(), expected, "--{long}");
        }
    }

    #[test]
    fn wrong_use_is_refused() {
        for arguments in [
            &["fairlead", "run"][..],
            &["fairlead", "run", "--config", "a", "--port-map", "80"],
            &["fairlead", "run", "--config", "a", "--label", "app"],
            &["fairlead", "run", "--config", "a", "--admin", "15000"],
            &["fairlead", "run", "--config", "a", "--name-server", "ns.example"],
            &["fairlead", "run", "--config", "a", "--name-server", "192.0.2.1:0"],
            &["fairlead", "validate"],
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(WRONG_USE), "{arguments:?}");
        }
    }
}
