#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The measuring tools themselves: a load client that overlooks a failure, or a scan that overlooks a key, proves nothing."""
import os
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
    for behave, kind in cases:
        server = Listener(behave)
        report = harness.Load(ws, server.port, ["--clients", "3", "--count", "12", "--timeout", "0.5"]).wait()
        server.socket.close()
        check(report["started"] == report["failed"] == report["errors"][kind] == 12 and report["done"] == 0, kind, report)
    report = harness.Load(ws, harness.free_port(), ["--clients", "3", "--count", "12"]).wait()
    check(report["failed"] == report["errors"]["refused"] == 12, report)


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
