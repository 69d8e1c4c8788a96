#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The measuring tools themselves: a load client that overlooks a failure, or a scan that overlooks a key, proves nothing."""
import os
import signal
import socket
import struct
import threading
import time

import harness
import wire
from harness import check


class Listener:
    """A TCP server that treats each connection in its own way, and takes no part in TLS."""

    def __init__(self, behave):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(64)
        self.port = self.socket.getsockname()[1]
        self.kept = []
        threading.Thread(target=self.serve, args=(behave,), daemon=True).start()

    def serve(self, behave):
        while True:
            try:
                connection, _ = self.socket.accept()
                behave(self, connection)
            except OSError:
                return


def close_at_hello(_, connection):
    connection.recv(4096)
    connection.close()


def reset(_, connection):
    connection.recv(4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def say_nothing(self, connection):
    self.kept.append(connection)


def talk_nonsense(_, connection):
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
    connection.close()


def send_alert(_, connection):
    connection.recv(4096)
    connection.sendall(bytes([21, 3, 3, 0, 2, 2, 80]))  # fatal, internal_error
    connection.close()


def test_each_kind_of_failure_is_counted(ws):
    cases = [(close_at_hello, "closed"), (reset, "reset"), (say_nothing, "timeout"), (talk_nonsense, "protocol"),
             (send_alert, "alert")]
    for way in [], ["--light"]:
        for behave, kind in cases:
            server = Listener(behave)
            report = harness.Load(ws, server.port, ["--clients", "3", "--count", "12", "--timeout", "0.5", *way]).wait()
            server.socket.close()
            check(report["started"] == report["failed"] == report["errors"][kind] == 12 and report["done"] == 0, way, kind,
                  report)
        report = harness.Load(ws, harness.free_port(), ["--clients", "3", "--count", "12", *way]).wait()
        check(report["failed"] == report["errors"]["refused"] == 12, way, report)


class Spoiler(Listener):
    """Between a client and a TLS 1.3 server: gets the server's first flight, and passes it on as spoil(number, flight) says."""

    def __init__(self, upstream, spoil, after=socket.socket.close):
        self.upstream, self.spoil, self.after, self.count = upstream, spoil, after, 0
        super().__init__(Spoiler.behave)

    def behave(self, client):
        with socket.create_connection(("127.0.0.1", self.upstream), 10) as server:
            server.sendall(client.recv(4096))
            flight = self.spoil(self.count, first_flight(server))
            self.count += 1
            client.sendall(flight)
            self.after(client)


def first_flight(server):
    """ServerHello, change_cipher_spec and the four records under keys."""
    flight = b""
    with server.makefile("rb") as records:
        for _ in range(6):
            header = records.read(5)
            flight += header + records.read(struct.unpack("!H", header[3:])[0])
    return flight


def answered_then_reset(client):
    client.recv(4096)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_light_each_type_of_key(ws):
    """The light client's handshakes are real ones: for nginx, of each type of key, and for openssl s_server, which sends tickets."""
    keys = [ws.make_key(kind) for kind in ("rsa2048", "rsa3072", "rsa4096", "p256", "p384", "ed25519")]
    nginx = ws.local_nginx("".join(ws.server(key, local=True) for key in keys))
    schemes = {"p256": "ecdsa_secp256r1_sha256", "p384": "ecdsa_secp384r1_sha384", "ed25519": "ed25519"}
    for key in keys:
        count = {"rsa3072": 50, "rsa4096": 50, "p384": 200, "p256": 2000}.get(key.name, 500)
        report = harness.Load(ws, key.port, ["--light", "--sni", key.host, "--clients", "20", "--count", str(count)]).wait()
        check(report["done"] == report["started"] == count and report["failed"] == 0, key.name, report)
        check(report["first"] == {"protocol": "TLSv1.3", "cipher": "TLS_AES_128_GCM_SHA256", "group": "X25519", "alpn": "",
                                  "signature": schemes.get(key.name, "rsa_pss_rsae_sha256")}, report["first"])
    report = harness.Load(ws, keys[3].port, ["--light", "--threads", "2", "--clients", "8", "--seconds", "1", "--pid",
                                             ",".join(map(str, nginx.workers()))]).wait()
    check(report["failed"] == 0 and report["measured"] > 50 and report["server_cpu_us"] > 50, report)
    port = harness.free_port()
    server = harness.popen(["openssl", "s_server", "-accept", str(port), "-cert", keys[3].crt, "-key", keys[3].key, "-quiet"],
                           os.path.join(ws.dir, "s_server.log"))
    harness.wait_until(lambda: harness.port_open(port), "s_server")
    report = harness.Load(ws, port, ["--light", "--sni", "any.keyhold.test", "--clients", "4", "--count", "100"]).wait()
    harness.kill_pid(server.pid, signal.SIGTERM)
    check(report["done"] == 100 and report["failed"] == 0, report)


def test_light_notices_what_is_spoiled(ws):
    """A byte changed anywhere, a flight cut anywhere, a server that is gone before it has answered the close: never a success."""
    key = ws.make_key("p256")
    ws.local_nginx(ws.server(key, local=True))

    def change(number, flight):
        second = 5 + struct.unpack("!H", flight[3:5])[0]
        places = [at for at in range(len(flight)) if at not in (2, second + 2)]  # what the versions say there means nothing
        at = places[number * 7 % len(places)]
        return flight[:at] + bytes([flight[at] ^ 0x10]) + flight[at + 1:]

    cases = [(change, socket.socket.close, ("protocol", "closed")),
             (lambda number, flight: flight[:number * 11 % len(flight)], socket.socket.close, ("closed",)),
             (lambda number, flight: flight, answered_then_reset, ("lost",))]
    for spoil, after, kinds in cases:
        spoiler = Spoiler(key.port, spoil, after)
        report = harness.Load(ws, spoiler.port, ["--light", "--clients", "1", "--count", "100"]).wait()
        spoiler.socket.close()
        check(report["failed"] == 100 and report["done"] == 0, kinds, report)
        check(sum(report["errors"][kind] for kind in kinds) == 100, kinds, report)


def test_light_has_no_choices(ws):
    for args in (["--tls", "1.2"], ["--ciphers", "ALL"], ["--ciphersuites", "TLS_AES_256_GCM_SHA384"], ["--groups", "P-256"],
                 ["--sigalgs", "ed25519"], ["--alpn", "h2"], ["--cafile", "x"], ["--pin", "x"], ["--request", "/"]):
        done = harness.run(harness.artefact("keyhold-bench"), "load", "--connect", "127.0.0.1:1", "--light", *args, ok=False)
        check(done.returncode == 2 and f"--light cannot do {args[0]}" in done.stderr, args, done)


def test_wrong_certificates_and_answers_are_counted(ws):
    key, other = ws.make_key("p256"), ws.make_key("p256", "other")
    ws.local_nginx(ws.server(key, local=True))
    cases = [(["--pin", other.crt], "verify"), (["--cafile", other.crt], "verify"),
             (["--cafile", key.crt, "--sni", "wrong.keyhold.test"], "verify"),
             (["--request", "/", "--expect", "something else"], "answer"), (["--sigalgs", "rsa_pss_rsae_sha256"], "alert")]
    for args, kind in cases:
        report = harness.Load(ws, key.port, ["--clients", "2", "--count", "6", *args]).wait()
        check(report["failed"] == report["errors"][kind] == 6, args, report)
    report = ws.load(key, "--pin", key.crt, "--clients", 2, "--count", 6, "--request", "/", "--expect", key.name).wait()
    check(report["done"] == report["started"] == 6 and report["failed"] == 0, report)


def test_full_handshakes_and_cpu_time(ws):
    """Nothing is resumed even where the server offers it, and the server's CPU time is that of its processes."""
    key = ws.make_key("rsa2048")
    nginx = ws.local_nginx("    log_format reuse '$ssl_session_reused';\n"
                           f"    access_log {ws.dir}/reuse.log reuse;\n"
                           "    ssl_protocols TLSv1.2 TLSv1.3;\n    keepalive_timeout 0;\n"
                           + ws.server(key, local=True, extra="ssl_session_cache shared:s:1m; ssl_session_tickets on;"))
    for version in ("1.2", "1.3"):
        report = ws.load(key, "--clients", 5, "--seconds", 1, "--tls", version, "--request", "/", "--pid",
                         ",".join(map(str, nginx.workers()))).wait()
        check(report["failed"] == 0 and report["measured"] > 20, report)
        check(report["first"]["protocol"] == "TLSv" + version, report["first"])
        check(100 < report["server_cpu_us"] < 20000, "an RSA signature alone takes longer than 100 µs:", report)
    check("r" not in harness.read(os.path.join(ws.dir, "reuse.log")), "a session was resumed")


def test_rate_and_windows(ws):
    """The rate is kept; a window has what happened in it; those that a server that stands still keeps from beginning count."""
    key = ws.make_key("p256")
    nginx = ws.local_nginx(ws.server(key, local=True))
    load = ws.load(key, "--clients", 5, "--seconds", 0, "--rate", 50)
    time.sleep(1)
    load.window()
    time.sleep(1)
    even = load.window()
    check(0.9 < even["seconds"] and 40 < even["measured"] / even["seconds"] < 60 and even["failed"] == 0, even)
    worker = nginx.workers()[0]
    wire.freeze(worker)
    late = ws.load(key, "--clients", 5, "--count", 40, "--rate", 50)
    time.sleep(1)
    wire.thaw(worker)
    report = late.wait()
    check(report["failed"] == 0 and report["latency_ms"]["p50"] > 400, "40 that were due within 800 ms, for 5 clients:", report)
    nginx.stop()
    harness.wait_until(lambda: load.window()["failed"] > 0, "failures in a window")
    report = load.stop()
    check(report["failed"] > 0 and report["started"] == report["failed"] + report["done"], report)


if __name__ == "__main__":
    harness.main(globals())
