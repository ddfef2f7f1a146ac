#!/usr/bin/env python3
"""From a written file to a live route, and the memory of a route, on the real binary.

Usage: benches/compare/reload.py [--fairlead PATH] [--services N] [--edits N] [--routes N]

1. N VirtualServices (10,000), in one file and in a file each. One of them is edited again and again; the time runs from
   the moment the new file is renamed over the old one to the first answer that shows the edit, asked for on an open
   connection without pause.
2. Resident memory with N routes (100,000) of one virtual host, less that without them.

Needs nothing but Python. Prints minimum, median and maximum.
"""
import argparse, json, os, signal, socket, statistics, subprocess, sys, tempfile, time
from pathlib import Path

GATEWAY = """apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: origin}
spec:
  hosts: [origin.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
"""


def virtual_service(number, body):
    return f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: service-{number}}}
spec:
  hosts: [host-{number}.example.com]
  gateways: [gateway]
  http:
  - match: [{{uri: {{exact: /version}}}}]
    directResponse: {{status: 200, body: {{string: "{body}"}}}}
  - route: [{{destination: {{host: origin.example.com}}}}]
"""


def many_routes(count):
    rules = "\n".join(
        f"  - match: [{{uri: {{prefix: /tenant-{number}/}}, headers: {{x-version: {{exact: v{number % 7}}}}}}}]\n"
        "    route: [{destination: {host: origin.example.com}}]"
        for number in range(count))
    return f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: many}}
spec:
  hosts: [many.example.com]
  gateways: [gateway]
  http:
{rules}
"""


class Fairlead:
    def __init__(self, binary, config):
        self.ready = config.parent / f"{config.name}.ready"
        self.process = subprocess.Popen(
            [binary, "run", "--config", str(config), "--bind", "127.0.0.1", "--port-map", "80:0", "--workers", "1", "--admin", "off",
             "--status", "off", "--metrics", "off", "--log", "warn", "--ready-file", str(self.ready)])
        end = time.monotonic() + 120
        while not self.ready.exists():
            if time.monotonic() > end or self.process.poll() is not None:
                sys.exit("fairlead did not start")
            time.sleep(0.02)
        host, port = json.loads(self.ready.read_text())["listeners"][0]["address"].rsplit(":", 1)
        self.address = (host, int(port))

    def resident_kib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def answer(connection, host):
    connection.sendall(f"GET /version HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, body = data.split(b"\r\n\r\n", 1)
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    return body.decode()


def edits(fairlead, path, text, host, count):
    times = []
    with socket.create_connection(fairlead.address) as connection:
        for number in range(1, count + 1):
            temporary = path.with_name("." + path.name)
            temporary.write_text(text(f"edit {number}"))
            begin = time.perf_counter()
            os.rename(temporary, path)
            while answer(connection, host) != f"edit {number}":
                if time.perf_counter() - begin > 30:
                    sys.exit("the edit never came into force")
            times.append((time.perf_counter() - begin) * 1e3)
            time.sleep(0.05)
    return times


def show(name, times):
    print(f"{name:44} {min(times):8.2f} {statistics.median(times):8.2f} {max(times):8.2f}  ms (min, median, max of {len(times)})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fairlead", default="target/release/fairlead")
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--routes", type=int, default=100_000)
    options = parser.parse_args()
    edited = options.services // 2
    host = f"host-{edited}.example.com"
    with tempfile.TemporaryDirectory() as name:
        for layout in ("a file each", "one file"):
            config = Path(name) / layout.replace(" ", "-")
            config.mkdir()
            (config / "gateway.yaml").write_text(GATEWAY)
            documents = [virtual_service(number, "edit 0") for number in range(options.services)]
            if layout == "one file":
                path = config / "all.yaml"
                before, after = "---\n".join(documents[:edited]), "---\n".join(documents[edited + 1:])
                text = lambda body: f"{before}---\n{virtual_service(edited, body)}---\n{after}"
                path.write_text(text("edit 0"))
            else:
                for number, document in enumerate(documents):
                    (config / f"service-{number}.yaml").write_text(document)
                path = config / f"service-{edited}.yaml"
                text = lambda body: virtual_service(edited, body)
            fairlead = Fairlead(options.fairlead, config)
            try:
                show(f"write to live, {options.services} services, {layout}", edits(fairlead, path, text, host, options.edits))
            finally:
                fairlead.stop()
        resident = []
        for count in (1, options.routes):
            config = Path(name) / f"routes-{count}"
            config.mkdir()
            (config / "gateway.yaml").write_text(GATEWAY)
            (config / "many.yaml").write_text(many_routes(count))
            fairlead = Fairlead(options.fairlead, config)
            resident.append(fairlead.resident_kib())
            fairlead.stop()
        print(f"{options.routes} routes: {(resident[1] - resident[0]) / options.routes:.2f} KiB a route "
              f"({resident[1]} KiB resident, {resident[0]} KiB with one)")


if __name__ == "__main__":
    main()
