#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M12: what can happen to a handshake while it is parked, with AddressSanitizer and UndefinedBehaviorSanitizer in module and
provider inside Debian's nginx: clients that abort, half-close, reset, send garbage; time-outs; graceful, fast and bounded
shutdown; reloads; drained connections; an agent that dies, refuses, says nothing. No report, no leak, no [alert] in the log,
and those who behave are served."""
import os
import random
import re
import signal
import socket
import ssl
import struct
import threading
import time

import fake_agent
import harness
from fake_agent import FakeAgent
from harness import check, read, run, wait_until

fake_agent.use_build_dir()

# nginx itself leaves its three arrays of connections and events behind at exit: elements of 96 and 240 bytes (later: 248).
ARRAY_UNIT, ARRAY_LEAST = 8, 64 * 96
NGINX_ARRAYS = re.compile(r"(?:Direct|Indirect) leak of (\d+) byte\(s\) in ([1-3]) object\(s\) allocated from:\n"
                          r"\s+#0 [^\n]*malloc[^\n]*\n\s+#1 [^\n]*ngx_alloc [^\n]*/nginx[^\n]*\n(?:\s*\n|$)")


# ---- nginx under the sanitizers ---------------------------------------------------------------------------------------------

def sanitizer_env(ws):
    folder = os.path.join(ws.dir, "sanitizer")
    os.makedirs(folder, exist_ok=True)
    os.chmod(folder, 0o777)
    libraries = [run("gcc", "-print-file-name=" + name).stdout.strip() for name in ("libasan.so", "libubsan.so")]
    return dict(os.environ, LD_PRELOAD=" ".join(libraries),
                ASAN_OPTIONS=f"detect_leaks=1:detect_stack_use_after_return=1:log_path={folder}/asan",
                UBSAN_OPTIONS=f"print_stacktrace=1:log_path={folder}/ubsan")


def reports(ws):
    """What the sanitizers have to say, without nginx's own arrays."""
    text = ""
    folder = os.path.join(ws.dir, "sanitizer")
    for name in sorted(os.listdir(folder)):
        report = read(os.path.join(folder, name))
        rest = NGINX_ARRAYS.sub(lambda m: "" if int(m[1]) % ARRAY_UNIT == 0 and int(m[1]) >= ARRAY_LEAST else m[0],
                                report)
        if re.search(r"leak of|ERROR: AddressSanitizer|runtime error|DEADLYSIGNAL|CHECK failed", rest):
            text += f"--- {name}\n{report}"
    return text


def start(ws, agent, http, main=""):
    if "ssl_protocols" not in http:
        http = ws.PLAIN + http
    return ws.nginx(agent, http, main=main, preset="asan", env=sanitizer_env(ws))


def finish(ws, nginx, signal_number=signal.SIGQUIT):
    nginx.stop(signal_number, 60)
    found = reports(ws)
    check(not found, "sanitizer:", found[:6000])
    bad = [line for line in nginx.log().splitlines()
           if re.search(r"\[(alert|emerg|crit)\]|exited on signal", line)]
    check(not bad, "error log:", "\n".join(bad[:20]))


# ---- Clients ------------------------------------------------------------------------------------------------------------------

def client_hello(key, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    outgoing = ssl.MemoryBIO()
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=key.host)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def rude(how, hello, sock):
    """One client that does something to a handshake that is parked, or about to be."""
    if how == "split":
        sock.sendall(hello[:60])
        time.sleep(0.02)
        sock.sendall(hello[60:])
    else:
        sock.sendall(hello)
    if how == "garbage at once":
        sock.sendall(b"\x17\x03\x03\x40\x00" + os.urandom(2000))
    time.sleep(random.choice((0, 0.01, 0.05)))
    if how == "garbage":
        # Of no version: where chance makes a record's header of it, nginx logs [crit], with a local key too.
        sock.sendall(os.urandom(1) + b"\xff" + os.urandom(498))
        time.sleep(0.4)
    elif how == "alert":
        sock.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
        time.sleep(0.4)
    elif how == "half-close":
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
    elif how == "never reads":
        time.sleep(0.4)
    elif how == "reset":
        reset(sock)


RUDE = ("close", "reset", "half-close", "garbage", "garbage at once", "alert", "split", "never reads")


def rudeness(key, rounds, ways=RUDE):
    """`rounds` clients in each way, forty at a time."""
    hellos = [client_hello(key, version) for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)]
    work = [(how, random.choice(hellos)) for how in ways for _ in range(rounds)]
    random.shuffle(work)

    def worker():
        while True:
            try:
                how, hello = work.pop()
            except IndexError:
                return
            try:
                with socket.create_connection(("127.0.0.1", key.port), timeout=10) as sock:
                    rude(how, hello, sock)
            except OSError:
                pass  # nginx may well have closed first

    threads = [threading.Thread(target=worker) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def polite(ws, key, results, tls="1.3", max_time=30):
    """One curl in a thread; appends whether it was served, and what it said."""
    def body():
        done = run("curl", "-sS", "--noproxy", "*", "--max-time", str(max_time), "--cacert", key.crt, "--tlsv" + tls,
                   "--tls-max", tls, "--resolve", f"{key.host}:{key.port}:127.0.0.1", f"https://{key.host}:{key.port}/",
                   ok=False)
        results.append((done.stdout == key.name + "\n", done.stderr))
    thread = threading.Thread(target=body)
    thread.start()
    return thread


def several(ws, key, count, **more):
    results = []
    return [polite(ws, key, results, random.choice(("1.2", "1.3")), **more) for _ in range(count)], results


def all_served(threads, results, what):
    for thread in threads:
        thread.join()
    bad = [result for result in results if not result[0]]
    check(not bad and len(results) == len(threads), f"{what}: {len(bad)} of {len(threads)} failed:", bad[:3])


def two_keys(ws, agent):
    keys = [ws.make_key("p256"), ws.make_key("rsa2048")]
    for key in keys:
        agent.import_key(key)
    return keys, "".join(ws.server(key) for key in keys)


# ---- Tests ----------------------------------------------------------------------------------------------------------------------

def test_m12_rude_clients_with_load(ws):
    agent = FakeAgent(ws, "--delay-ms", 50)
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http)
    loads = [ws.load(key, "--clients", 20, "--seconds", 0, "--request", "/", "--expect", key.name, "--timeout", 60)
             for key in keys]
    for key in keys:
        rudeness(key, 40)
    for load in loads:
        load.more(50)
        report = load.stop()
        check(report["failed"] == 0 and report["done"] > 50, report)
        print(f"M12: {report['done']} handshakes beside {len(RUDE) * 40} rude clients per key, 0 failed")
    finish(ws, nginx)


def test_m12_client_header_timeout(ws):
    agent = FakeAgent(ws, "--delay-ms", 1500)
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, ws.PLAIN + "    client_header_timeout 300ms;\n" + http)
    for key in keys:
        threads, results = several(ws, key, 10)
        for thread in threads:
            thread.join()
        check(not any(result[0] for result in results), "the time-out holds while a handshake is parked:", results)
    rudeness(keys[0], 5)
    wait_until(lambda: "client timed out" in nginx.log(), "nginx's own message")
    finish(ws, nginx)


def test_m12_graceful_shutdown(ws):
    agent = FakeAgent(ws, "--delay-ms", 3000)
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http)
    threads, results = several(ws, keys[0], 15)
    wait_until(lambda: agent.counters()[1] >= 15, "all are parked")
    finish(ws, nginx, signal.SIGQUIT)
    all_served(threads, results, "parked when the worker was told to end gracefully")


def test_m12_fast_shutdown(ws):
    agent = FakeAgent(ws, "--silent")
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http + "    keyhold_timeout 50s;\n")
    threads, results = several(ws, keys[1], 15)
    wait_until(lambda: agent.counters()[0] >= 15, "all are parked")
    begun = time.monotonic()
    finish(ws, nginx, signal.SIGTERM)
    check(time.monotonic() - begun < 8, "a fast shutdown waits for nobody")
    for thread in threads:
        thread.join()
    check(not any(result[0] for result in results), results)


def test_m12_shutdown_timeout(ws):
    agent = FakeAgent(ws, "--silent")
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http + "    keyhold_timeout 50s;\n", main="worker_shutdown_timeout 1s;")
    threads, results = several(ws, keys[0], 10)
    wait_until(lambda: agent.counters()[0] >= 10, "all are parked")
    begun = time.monotonic()
    finish(ws, nginx, signal.SIGQUIT)
    check(time.monotonic() - begun < 10, "worker_shutdown_timeout ends parked handshakes")
    for thread in threads:
        thread.join()
    check(not any(result[0] for result in results), results)


def test_m12_reload_with_parked(ws):
    agent = FakeAgent(ws, "--delay-ms", 300)
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http)
    load = ws.load(keys[0], "--clients", 40, "--seconds", 0, "--request", "/", "--expect", keys[0].name)
    for _ in range(4):
        time.sleep(0.5)
        nginx.reload()
    report = load.stop()
    check(report["failed"] == 0 and report["done"] > 50, report)
    # A configuration without the module, and back: libcrypto goes on calling what is no longer loaded.
    nginx.write(ws.server(keys[0], local=True), module=False)
    nginx.reload()
    check(ws.curl(keys[0]).stdout == "p256\n", "a local key after the module was taken out")
    nginx.write(ws.PLAIN + http, agent_socket=agent.socket)
    nginx.reload()
    check(ws.curl(keys[0]).stdout == "p256\n", "the module is back")
    finish(ws, nginx)


def test_m12_connections_are_drained(ws):
    """More clients than connections: nginx closes idle ones; handshakes that are parked are not idle."""
    agent = FakeAgent(ws, "--delay-ms", 100)
    keys, http = two_keys(ws, agent)
    agent.start()
    http = http.replace("location /", "keepalive_timeout 60s; location /")
    nginx = start(ws, agent, ws.PLAIN.replace("keepalive_timeout 0;", "") + http,
                  main="events { worker_connections 64; }")
    idle = []
    for _ in range(50):
        sock = socket.create_connection(("127.0.0.1", keys[0].port), timeout=10)
        idle.append(sock)  # never says a word: reusable
    threads, results = several(ws, keys[1], 20)
    for thread in threads:
        thread.join()
    check(any(result[0] for result in results), "those who speak are served:", results)
    for sock in idle:
        sock.close()
    nginx.stop(signal.SIGQUIT, 60)
    found = reports(ws)
    check(not found, "sanitizer:", found[:6000])


def test_m12_agent_dies(ws):
    """In flight when the agent is killed: asked again when it is back, within the deadline."""
    agent = FakeAgent(ws, "--delay-ms", 100)
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http + "    keyhold_timeout 10s;\n")
    load = ws.load(keys[0], "--clients", 30, "--seconds", 0, "--request", "/", "--expect", keys[0].name, "--timeout", 30)
    for _ in range(5):
        time.sleep(0.4)
        agent.stop(signal.SIGKILL)
        time.sleep(0.2)
        agent.start()
    report = load.stop()
    check(report["failed"] == 0 and report["done"] > 20, report)
    finish(ws, nginx)


def test_m12_agent_refuses_for_now(ws):
    """Retryable refusals are asked again; connections that the agent closes, and a small credit, are made up for."""
    agent = FakeAgent(ws, "--fail", "unavailable", "--fail-first", 30)
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http)
    all_served(*several(ws, keys[0], 20), "unavailable for a while")
    agent.stop()
    agent.start("--close-after", 7, "--delay-ms", 20)
    wait_until(lambda: ws.curl(keys[0], ok=False).returncode == 0, "the agent is found again")
    all_served(*several(ws, keys[1], 20), "connections closed by the agent")
    agent.stop()
    agent.start("--credit", 2, "--delay-ms", 20)
    all_served(*several(ws, keys[0], 40), "a credit of two")
    finish(ws, nginx)


def test_m12_agent_refuses_for_good(ws):
    """One line for each handshake, with agent, key and reason; others go on."""
    agent = FakeAgent(ws, "--fail", "usage")
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http)
    check(ws.curl(keys[0], ok=False).returncode != 0, "refused")
    lines = [line for line in nginx.log().splitlines() if "[error]" in line]
    check(len(lines) == 1 and agent.socket in lines[0] and "usage" in lines[0], lines)
    finish(ws, nginx)


def test_m12_silent_agent_and_limit(ws):
    agent = FakeAgent(ws, "--silent")
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http + "    keyhold_timeout 1s;\n    keyhold_max_inflight 5;\n")
    threads, results = several(ws, keys[0], 12)
    for thread in threads:
        thread.join()
    check(not any(result[0] for result in results), results)
    lines = [line for line in nginx.log().splitlines() if "[error]" in line]
    refused = [line for line in lines if "keyhold_max_inflight" in line]
    check(len(lines) == 12 and len(refused) >= 7, len(lines), len(refused), lines[:3])
    finish(ws, nginx)


def test_m12_upstream_is_freed_while_parked(ws):
    """A client certificate of nginx's own, its key in the agent: the request goes away while the upstream handshake is
    parked, and with it the SSL."""
    agent = FakeAgent(ws, "--delay-ms", 400)
    front, back, client = ws.make_key("p256", "front"), ws.make_key("p256", "back"), ws.make_key("rsa2048", "client")
    for key in (back, client):
        agent.import_key(key)
    agent.start()
    reference = fake_agent.write_reference(ws, client)
    proxied = (f"location /up {{ proxy_pass https://127.0.0.1:{back.port}; proxy_ssl_certificate {client.crt}; "
               f"proxy_ssl_certificate_key {reference}; proxy_ssl_session_reuse off; proxy_connect_timeout 5s; }}")
    http = ws.server(front, local=True, extra=proxied) + ws.server(
        back, local=True, extra=f"ssl_verify_client on; ssl_client_certificate {client.crt}; "
                                "location /up { return 200 \"$ssl_client_s_dn\\n\"; }")
    nginx = start(ws, agent, http)
    check(ws.curl(front, path="/up").stdout == f"CN={client.host}\n", "a client's key in the agent")
    context = ssl.create_default_context(cafile=front.crt)

    def aborted():
        with socket.create_connection(("127.0.0.1", front.port), timeout=10) as raw:
            with context.wrap_socket(raw, server_hostname=front.host) as sock:
                sock.sendall(f"GET /up HTTP/1.1\r\nHost: {front.host}\r\n\r\n".encode())
                time.sleep(random.uniform(0, 0.3))
                reset(sock)

    for _ in range(6):
        threads = [threading.Thread(target=aborted) for _ in range(25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    check(ws.curl(front, path="/up").stdout == f"CN={client.host}\n", "still")
    finish(ws, nginx)


def test_m12_credit_of_cancelled_requests(ws):
    """All credit is held by clients that have gone: the next one is served when the agent has answered for those, though
    these answers are for nobody."""
    agent = FakeAgent(ws, "--credit", 2, "--delay-ms", 700)
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, http + "    keyhold_timeout 8s;\n")
    hello = client_hello(keys[0], ssl.TLSVersion.TLSv1_3)
    socks = [socket.create_connection(("127.0.0.1", keys[0].port), timeout=10) for _ in range(2)]
    for sock in socks:
        sock.sendall(hello)
    wait_until(lambda: agent.counters()[1] >= 2, "the credit is used up")
    for sock in socks:
        sock.close()
    wait_until(lambda: nginx.log().count("peer closed connection in SSL handshake") >= 2, "both are given up")
    begun = time.monotonic()
    all_served(*several(ws, keys[1], 1), "after those that have gone")
    check(time.monotonic() - begun < 5, f"served after {time.monotonic() - begun:.1f} s")
    finish(ws, nginx)


class Relay:
    """Passes a connection's first two exchanges, hello and auth, to an agent, and hangs up."""

    token = None

    def __init__(self, ws, agent):
        self.socket, self.agent, self.count = os.path.join(ws.dir, "relay.sock"), agent, 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.socket)
        os.chmod(self.socket, 0o777)
        self.listener.listen(64)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            client = self.listener.accept()[0]
            self.count += 1
            with client, socket.socket(socket.AF_UNIX) as server:
                server.connect(self.agent.socket)
                for _ in range(2):
                    server.sendall(client.recv(65536))
                    client.sendall(server.recv(65536))


def test_m12_agent_that_hangs_up(ws):
    """An agent that lets a worker in and hangs up is asked again at most every 500 ms after a while, and noted once."""
    agent = FakeAgent(ws)
    key, other = ws.make_key("p256"), ws.make_key("p256", "local")
    agent.import_key(key)
    agent.start()
    relay = Relay(ws, agent)
    nginx = start(ws, relay, ws.server(other, local=True) + "    keyhold_timeout 1s;\n" + ws.server(key))
    time.sleep(3)
    check(3 <= relay.count <= 20, f"{relay.count} connections in 3 s")
    check(ws.curl(key, ok=False).returncode != 0, "no agent to speak of")
    lines = [line for line in nginx.log().splitlines() if "keyhold: agent " in line]
    check(len(lines) == 1 and "out of reach" in lines[0], lines)
    lines = [line for line in nginx.log().splitlines() if "[error]" in line]
    check(len(lines) == 1 and "handshake failed" in lines[0], lines)
    nginx.write(ws.PLAIN + ws.server(key), agent_socket=agent.socket)
    nginx.reload()
    check(ws.curl(key).stdout == "p256\n", "an agent that stays")
    finish(ws, nginx)


def test_m12_time_outs_at_any_moment(ws):
    """client_header_timeout about as long as a handshake: it ends some before the ClientHello has come, some between the gate
    and the taking over, some while they are parked, some after."""
    agent = FakeAgent(ws, "--delay-ms", 3)
    keys, http = two_keys(ws, agent)
    agent.start()
    nginx = start(ws, agent, ws.PLAIN + "    client_header_timeout 6ms;\n" + http)
    load = ws.load(keys[0], "--clients", 60, "--seconds", 0, "--request", "/", "--expect", keys[0].name)
    for key in keys:
        rudeness(key, 20, ("close", "reset", "split", "half-close"))
    report = load.stop()
    check(report["failed"] > 0, "some were too late:", report)
    finish(ws, nginx)


if __name__ == "__main__":
    harness.main(globals())
