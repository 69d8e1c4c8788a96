#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The agent's metrics: the format to the letter (a strict parser of our own; promtool too where it is installed), names as in
docs/metrics.md, figures that are right, and a listener that nobody can use to hurt or to delay signing."""
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import harness
import wire
from harness import ROOT, Failure, Skip, artefact, check, free_port, read, run, wait_until

PRESET = os.environ.get("KH_PRESET", "release")
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')


# ---- The format, strictly --------------------------------------------------------------------------------------------------------

def take_labels(text):
    """The labels between braces: a tuple of pairs."""
    labels, at = [], 0
    while at < len(text):
        match = LABEL.match(text, at)
        check(match, "labels:", text)
        labels.append((match[1], match[2]))
        at = match.end()
        check(at == len(text) or text[at] == ",", "labels:", text)
        at += 1
    check(len({name for name, _ in labels}) == len(labels), "a label twice:", text)
    return tuple(labels)


def parse(text):
    """{family: (type, {(sample name, labels): value})}; every rule of the format that the document could break."""
    check(text.endswith("\n") and "\r" not in text and "\n\n" not in text, "lines")
    families, family, helped = {}, None, None
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            helped = re.fullmatch(rf"# HELP ({NAME}) (\S.*)", line)
            check(helped and helped[1] not in families, line)
            continue
        if line.startswith("# TYPE "):
            match = re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|histogram)", line)
            check(match and helped and helped[1] == match[1] and match[1] not in families, line)
            family = match[1]
            families[family] = (match[2], {})
            continue
        match = re.fullmatch(rf"({NAME})(?:\{{(.*)\}})? (\+Inf|[0-9]+(?:\.[0-9]+)?)", line)
        check(match, "not a sample:", line)
        kind, samples = families[family]
        allowed = [family + end for end in ("_bucket", "_sum", "_count")] if kind == "histogram" else [family]
        check(match[1] in allowed, match[1], "stands among", family)
        key = (match[1], take_labels(match[2] or ""))
        check(key not in samples, "twice:", line)
        samples[key] = float(match[3])
    for name, (kind, samples) in families.items():
        check(samples, name, "has no sample")
        check((kind == "counter") == name.endswith("_total"), name, "is a", kind)
        if kind == "histogram":
            check_histogram(name, samples)
    return families


def check_histogram(name, samples):
    groups = {}
    for (sample, labels), value in samples.items():
        if sample == name + "_bucket":
            check(labels[-1][0] == "le", labels)
            groups.setdefault(labels[:-1], []).append((float(labels[-1][1]), value))
    for labels, buckets in groups.items():
        check(buckets == sorted(buckets) and buckets[-1][0] == float("inf"), name, labels, buckets)
        check([count for _, count in buckets] == sorted(count for _, count in buckets), "not cumulative:", name, labels)
        check(samples[(name + "_count", labels)] == buckets[-1][1] and (name + "_sum", labels) in samples, name, labels)


# ---- Asking ----------------------------------------------------------------------------------------------------------------------

def open_to(where, timeout=10):
    sock = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
    sock.settimeout(timeout)
    sock.connect(where if isinstance(where, str) else ("127.0.0.1", where))
    return sock


def read_all(sock):
    data = b""
    while True:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


def ask(where, request=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", timeout=10):
    """(status, headers, body)"""
    with open_to(where, timeout) as sock:
        try:
            sock.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass
        data = read_all(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    check(re.fullmatch(r"HTTP/1\.1 \d{3} [A-Za-z ]+", lines[0]), "status line:", lines)
    return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), body.decode()


def scrape(where):
    status, headers, body = ask(where)
    check(status == 200 and headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8", status, headers)
    check(int(headers["Content-Length"]) == len(body.encode()) and headers["Connection"] == "close", headers)
    return parse(body)


def value(families, name, **labels):
    family = re.sub("_(bucket|sum|count)$", "", name) if name not in families else name
    return families[family][1][(name, tuple(labels.items()))]


ws_socket = agent = None


def setup(ws):
    global agent, ws_socket
    ws_socket = os.path.join(ws.dir, "agent1", "metrics.sock")
    ws.port = free_port()
    agent = ws.agent(preset=PRESET, config=f'metrics "unix:metrics.sock" {{ mode = 0640 }}\nmetrics "tcp:127.0.0.1:{ws.port}" {{}}')
    agent.ctl("key", "create", "p256", "--type", "p256")


# ---- Tests -----------------------------------------------------------------------------------------------------------------------

def test_the_document(ws):
    families = scrape(ws_socket)
    check(families.keys() == scrape(ws.port).keys(), "the same everywhere")
    text = read(os.path.join(ROOT, "docs/metrics.md"))
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.M))
    for name in [name for name in listed if name.startswith(("keyhold_token_", "keyhold_pool_"))]:
        listed.pop(name)  # this agent has no tokens
    check(listed == {name: kind for name, (kind, _) in families.items()}, "docs/metrics.md lists others:",
          set(listed.items()) ^ {(name, kind) for name, (kind, _) in families.items()})
    for name, labels in re.findall(r"^\| `(\w+)` \| \w+ \| ([^|]*) \|", text, re.M):
        if name not in listed:
            continue
        shown = {label for _, pairs in families[name][1] for label, _ in pairs} - {"le"}
        check(shown == set(re.findall(r"`(\w+)`", labels)), name, "has the labels", shown)
        for label, values in re.findall(r"`(\w+)` \(([\w, -]+)\)", labels):
            if label not in ("kernels", "fill", "role"):
                check({dict(pairs)[label] for _, pairs in families[name][1]} <= set(values.split(", ")), name, label)
    check(os.stat(ws_socket).st_mode & 0o777 == 0o640, "mode")
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=ask(ws_socket)[2], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        check(done.returncode == 0 and not done.stdout, "promtool:", done.stdout)


def test_the_figures(ws):
    before = scrape(ws_socket)
    with wire.connect(agent.socket, agent.token) as caller:
        for _ in range(20):
            check(caller.call(wire.SIGN, *wire.sign_fields("p256", "p256"))[0] == wire.OK)
        for _ in range(3):
            check(caller.call(wire.SIGN, *wire.sign_fields("nobody", "p256"))[0] == wire.NOT_FOUND)
        with wire.Caller(agent.socket) as stranger:
            stranger.hello("nobody")
            stranger.send(wire.AUTH, bytes(32))
            check(stranger.last_word() == wire.UNAUTHENTICATED)
        time.sleep(0.15)
        after = scrape(ws_socket)

        def more(name, **labels):
            key = (name, tuple(labels.items()))
            family = re.sub("_(bucket|sum|count)$", "", name) if name not in after else name
            return after[family][1][key] - before[family][1].get(key, 0)

        check(more("keyhold_operations_total", op="sign", result="ok") == 20)
        check(more("keyhold_operations_total", op="sign", result="not_found") == 3)
        check(more("keyhold_operation_duration_seconds_count", op="sign") in (20, 23))
        check(more("keyhold_operation_duration_seconds_bucket", op="sign", le="16.777216") >= 20)
        check(0 < more("keyhold_operation_duration_seconds_sum", op="sign") < 20)
        check(more("keyhold_queue_wait_seconds_count", lane="p256") == 20)
        check(more("keyhold_lane_operations_total", lane="p256") == 20)
        check(sum(more("keyhold_lane_batches_total", lane="p256", fill=str(fill)) * fill for fill in range(1, 9)) == 20)
        check(more("keyhold_lane_way_operations_total", lane="p256", way="openssl")
              + more("keyhold_lane_way_operations_total", lane="p256", way="kernel") == 20)
        check(more("keyhold_lane_busy_seconds_total", lane="p256") > 0)
        check(more("keyhold_auth_failures_total") == 1 and more("keyhold_connections_accepted_total") == 2)
        check(more("keyhold_identity_completed_total", identity="nginx") in (20, 23))
        check(more("keyhold_identity_refused_total", identity="nginx") == 3)
        check(value(after, "keyhold_identity_connections", identity="nginx") == 1)
        check(value(after, "keyhold_connections", state="ready") == 1)
    status = agent.status()
    check(value(after, "keyhold_build_info", version=status["version"]) == 1)
    check(value(after, "process_start_time_seconds") == status["started"] and 0 < value(after, "keyhold_uptime_seconds") < 1000)
    check(value(after, "keyhold_keeper_up") == 1 and value(after, "keyhold_kernels_failed") == 0)
    check(status["keeper"]["kernels_failed"] is False)
    check(value(after, "keyhold_keeper_info", kernels=status["keeper"]["kernels"]) == 1)


def test_a_keeper_that_dies_is_seen(ws):
    losses = value(scrape(ws_socket), "keyhold_keeper_losses_total")
    starts = value(scrape(ws_socket), "keyhold_process_starts_total", role="keeper")
    os.kill(agent.role_pid("keeper"), signal.SIGKILL)
    wait_until(lambda: value(scrape(ws_socket), "keyhold_keeper_losses_total") == losses + 1, "it is counted")
    wait_until(lambda: value(scrape(ws_socket), "keyhold_keeper_up") == 1, "another serves")
    wait_until(lambda: value(scrape(ws_socket), "keyhold_process_starts_total", role="keeper") == starts + 1, "its start is counted")


def test_http(ws):
    """What a scraper may say, and what nobody should."""
    get = b"GET /metrics HTTP/1.1\r\n"
    for request, status in ((get + b"\r\n", 200), (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
                            (b"GET /metrics?collect[]=x HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n", 200),
                            (b"GET http://agent:9464/metrics HTTP/1.1\r\nHost: agent:9464\r\n\r\n", 200),
                            (b"GET / HTTP/1.1\r\n\r\n", 404), (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
                            (b"GET http://agent HTTP/1.1\r\n\r\n", 404),
                            (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
                            (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405), (b"GET /metrics\r\n\r\n", 400),
                            (b"GET  /metrics HTTP/1.1\r\n\r\n", 400), (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
                            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400), (b"\r\n\r\n", 400), (b"\0\r\n\r\n", 400),
                            (b"GET /met\0rics HTTP/1.1\r\n\r\n", 400), (b"\x16\x03\x01\x02\x00\x01\n\n", 400),
                            (get + b"X: " + b"x" * 8100 + b"\r\n\r\n", 200), (get + b"X: " + b"x" * 9000, 431),
                            (b"x" * 20000, 431)):
        for where in (ws_socket, ws.port):
            answered, headers, body = ask(where, request)
            check(answered == status, request[:60], "is answered with", answered)
            check(int(headers["Content-Length"]) == len(body.encode()), headers)
            check(status != 405 or headers["Allow"] == "GET, HEAD", headers)
    status, headers, body = ask(ws_socket, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    check(status == 200 and int(headers["Content-Length"]) > 1000 and body == "", "HEAD:", headers, body)
    with open_to(ws_socket) as sock:  # byte by byte
        for byte in get + b"\r\n":
            sock.sendall(bytes([byte]))
        check(read_all(sock).startswith(b"HTTP/1.1 200 OK\r\n"))


def test_scrapers_that_misbehave(ws):
    """Silent ones are closed in time and take nobody's place; the agent's callers notice nothing."""
    held = [open_to(ws_socket) for _ in range(40)] + [open_to(ws.port) for _ in range(20)]
    stubborn = [open_to(ws_socket) for _ in range(4)]
    for sock in stubborn:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and never reads
    with wire.connect(agent.socket, agent.token) as caller:
        check(caller.call(wire.SIGN, *wire.sign_fields("p256", "p256"))[0] == wire.OK, "callers have their own places")
    front = agent.role_pid("front")
    check(len(os.listdir(f"/proc/{front}/fd")) < 60, "the front holds", os.listdir(f"/proc/{front}/fd"))
    begun = time.monotonic()
    status, _, _ = ask(ws_socket, timeout=60)
    took = time.monotonic() - begun
    check(status == 200 and took < 20, "it is served after", took)
    for sock in held:
        check(read_all(sock) == b"", "a silent one was answered")
    for sock in held + stubborn:
        sock.close()
    check(agent.role_pid("front") == front and scrape(ws_socket) and scrape(ws.port))


def test_a_thousand_identities(ws):
    """The largest document, scraped without a pause while somebody signs."""
    large = ws.agent(preset=PRESET, start=False, config='metrics "unix:metrics.sock" {}')
    large.configure("\n".join(f'identity "tenant-with-a-long-name-{n:04}-{"x" * 60}" {{ uid = {100000 + n} }}' for n in range(1000)))
    large.start()
    large.ctl("key", "create", "p256", "--type", "p256")
    where = os.path.join(large.dir, "metrics.sock")
    families = scrape(where)
    check(len(families["keyhold_identity_waiting"][1]) == 1002, "root, nginx and a thousand")
    size = len(ask(where)[2])
    check(size < 1 << 20, size)

    def p99():
        times = []
        with wire.connect(large.socket, large.token) as caller:
            for _ in range(600):
                begun = time.monotonic()
                check(caller.call(wire.SIGN, *wire.sign_fields("p256", "p256"))[0] == wire.OK)
                times.append(time.monotonic() - begun)
        return sorted(times)[594] * 1000

    alone = p99()
    scraper = subprocess.Popen(["sh", "-c", f"while :; do curl -s --noproxy '*' --unix-socket {where} http://x/metrics >/dev/null; done"])
    try:
        beside = p99()
    finally:
        scraper.kill()
        scraper.wait()
    print(f"metrics: {size} bytes; signing p99 {alone:.2f} ms, while it is scraped without pause {beside:.2f} ms", flush=True)
    check(beside < alone + 50, "scraping delays signing:", alone, beside)


def test_reload(ws):
    """Listeners come and go with the configuration; what cannot be opened leaves the old one."""
    other = ws.agent(preset=PRESET)
    where, port = os.path.join(other.dir, "m.sock"), free_port()
    kept = read(other.conf)
    check("metrics" not in kept.replace("# metrics", ""))
    other.configure(f'metrics "unix:m.sock" {{ mode = 0600 }}\nmetrics "tcp:[::1]:{port}" {{}}')
    other.reload()
    wait_until(lambda: os.path.exists(where), "the socket")
    wait_until(lambda: ask(where)[0] == 200, "it is served")
    with socket.socket(socket.AF_INET6) as six:
        six.settimeout(10)
        six.connect(("::1", port))
        six.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        check(read_all(six).startswith(b"HTTP/1.1 200"))
    os.kill(other.role_pid("front"), signal.SIGKILL)
    wait_until(lambda: (front := other.role_pid("front")) and front and other.ctl("ping", ok=False).returncode == 0, "a new front")
    check(value(scrape(where), "keyhold_process_starts_total", role="front") == 2, "a new front serves them too")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with open(other.conf, "a") as file:
            file.write(f'metrics "tcp:127.0.0.1:{taken.getsockname()[1]}" {{}}\n')
        other.reload()
        wait_until(lambda: "reload_failed" in other.log() and "in use" in other.log(), "it says why")
        check(ask(where)[0] == 200, "the old ones stay")
    with open(other.conf, "w") as file:
        file.write(kept)
    other.reload()
    wait_until(lambda: not os.path.exists(where), "the socket goes")
    other.stop()


def test_addresses_that_are_refused(ws):
    one = ws.agent(preset=PRESET, start=False)
    kept = read(one.conf)
    for line, why in (('metrics "tcp:0.0.0.0:9464" {}', "public = true"), ('metrics "tcp:192.0.2.1:9464" {}', "public = true"),
                      ('metrics "tcp:[::]:9464" {}', "public = true"), ('metrics "tcp:localhost:9464" {}', "numeric"),
                      ('metrics "tcp:127.0.0.1" {}', "tcp:ADDRESS:PORT"), ('metrics "tcp:127.0.0.1:0" {}', "tcp:ADDRESS:PORT"),
                      ('metrics "tcp:127.0.0.1:65536" {}', "tcp:ADDRESS:PORT"), ('metrics "tcp:::1:9464" {}', "tcp:ADDRESS:PORT"),
                      ('metrics "/run/m.sock" {}', "unix:PATH"), ('metrics "unix:" {}', "unix:PATH"),
                      ('metrics "unix:' + "x" * 200 + '" {}', "too long"), ('metrics "unix:agent.sock" {}', "something else"),
                      ('metrics "unix:m" {}\nmetrics "unix:./m" { mode = 01000 }', "out of range"),
                      ('metrics "unix:m" { public = perhaps }', "public")):
        with open(one.conf, "w") as file:
            file.write(kept + "\n" + line + "\n")
        done = run(artefact("keyholdd", PRESET), "--config", one.conf, "--check", ok=False)
        check(done.returncode == 1 and why in done.stderr, line, done.stderr)
    with open(one.conf, "w") as file:
        file.write(kept + f'\nmetrics "tcp:0.0.0.0:{ws.port + 1 if not harness.port_open(ws.port + 1) else free_port()}" {{ public = true }}\n')
    one.start()
    check("metrics_public" in one.log(), "it says so")
    one.stop()


if __name__ == "__main__":
    harness.main(globals())
