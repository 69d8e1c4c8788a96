#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""F6: handshakes towards proxied servers, with the client's key in the agent, that end otherwise than planned while they are
parked: the request's client leaves, the worker is told to end (gracefully, at once, after a time), the configuration is read
again; and sessions that are kept and resumed. With AddressSanitizer and UndefinedBehaviorSanitizer in module and provider
inside Debian's nginx, and once under valgrind: no report, no leak, no [alert]."""
import os
import random
import shutil
import signal
import socket
import threading
import time

import fake_agent
import harness
from contexts import EVENTS, UwsgiServer, get, getters, load_modules, upstream_servers
from fake_agent import FakeAgent
from harness import check, popen, read, wait_until
from test_m12_abuse import finish, reset, sanitizer_env

fake_agent.use_build_dir()

PROTOCOLS = ("proxy", "grpc", "uwsgi", "stream")


# ---- nginx as everybody's client -------------------------------------------------------------------------------------------------

class Front:
    """An nginx with one way to each kind of proxied server, all of which want a client certificate whose key the agent has.
    Plain HTTP at .port for /proxy, /grpc and /uwsgi; stream's way has a port of its own."""

    def __init__(self, ws, *options, reuse="off", zones=False, settings="", main="", preset="asan"):
        self.ws, self.port, self.stream_port = ws, harness.free_port(), harness.free_port()
        self.client, back = ws.make_key("rsa2048", "client"), ws.make_key("p256", "back")
        self.agent = FakeAgent(ws, *options)
        self.agent.import_key(self.client)
        self.agent.start()
        reference = fake_agent.write_reference(ws, self.client)
        h2, uwsgi = upstream_servers(ws, back, [self.client]), UwsgiServer(ws, back, [self.client])
        zone = "zone z$ 256k;" if zones else ""
        upstreams = "".join(f"    upstream {name} {{ {zone.replace('$', name)} server 127.0.0.1:{port}; }}\n"
                            for name, port in (("one", back.port), ("two", h2), ("uw", uwsgi.port)))
        ways = (("proxy", "proxy_pass https://one"), ("grpc", "grpc_pass grpcs://two"), ("uwsgi", "uwsgi_pass suwsgi://uw"))
        locations = "".join(
            f"        location /{protocol} {{ {where}; {protocol}_ssl_certificate {self.client.crt};\n"
            f"            {protocol}_ssl_certificate_key {reference}; {protocol}_ssl_session_reuse {reuse}; }}\n"
            for protocol, where in ways)
        self.http = (ws.PLAIN + settings + f"    keyhold_agent unix:{self.agent.socket};\n{upstreams}"
                     f"    server {{ listen 127.0.0.1:{self.port} backlog=1024;\n{locations}    }}\n")
        self.main = (load_modules("ngx_stream_module.so", "ngx_stream_keyhold_module.so", preset=preset) + main + EVENTS
                     + f"stream {{ upstream st {{ {zone.replace('$', 'st')} server 127.0.0.1:{back.port}; }}\n"
                     f"    server {{ listen 127.0.0.1:{self.stream_port} backlog=1024; proxy_pass st;\n"
                     f"    proxy_ssl on; proxy_ssl_certificate {self.client.crt}; proxy_ssl_certificate_key {reference};\n"
                     f"    proxy_ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_session_reuse {reuse}; }} }}\n")
        env = sanitizer_env(ws) if preset == "asan" else None
        if env and reuse == "on" and not zones:
            # nginx leaves the session of each upstream behind at exit, whoever has the key.
            env["ASAN_OPTIONS"] = env["ASAN_OPTIONS"].replace("detect_leaks=1", "detect_leaks=0")
        self.nginx = ws.nginx(None, self.http, main=self.main, preset=preset, env=env, start=preset == "asan")

    def where(self, protocol):
        return (self.stream_port, "/") if protocol == "stream" else (self.port, "/" + protocol)

    def get(self, protocol):
        return get(*self.where(protocol))

    def good(self, body):
        return f" CN={self.client.host} " in body

    def check_all(self, text):
        for protocol in PROTOCOLS:
            got = self.get(protocol)
            check(self.good(got), text, protocol, got)

    def leaves(self, protocol, seconds, how):
        """A client that asks, waits a little and is gone."""
        port, path = self.where(protocol)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: front\r\n\r\n".encode())
            time.sleep(seconds)
            if how == "reset":
                reset(sock)
            elif how == "half-close":
                sock.shutdown(socket.SHUT_WR)
                time.sleep(0.1)

    def several(self, count):
        """Clients of every kind that stay; their threads, and the list of what they get."""
        results = []

        def body(protocol):
            results.append((protocol, self.get(protocol)))

        threads = [threading.Thread(target=body, args=(PROTOCOLS[i % len(PROTOCOLS)],)) for i in range(count)]
        for thread in threads:
            thread.start()
        return threads, results


def together(bodies):
    threads = [threading.Thread(target=body) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- Tests ------------------------------------------------------------------------------------------------------------------------

def test_f6_client_leaves(ws):
    """In each way, at any moment before, while and after the upstream's handshake is parked; others are served meanwhile."""
    front = Front(ws, "--delay-ms", 300)
    front.check_all("at first")
    others = [getters(*front.where(protocol), clients=2) for protocol in PROTOCOLS]
    for _ in range(3):
        together([lambda protocol=protocol, how=how: front.leaves(protocol, random.uniform(0, 0.4), how)
                  for protocol in PROTOCOLS for how in ("close", "reset", "half-close") for _ in range(4)])
    # All at once, when they are known to be parked.
    before = front.agent.counters()[0]
    together([lambda protocol=protocol: front.leaves(protocol, 0.15, "reset") for protocol in PROTOCOLS for _ in range(8)])
    check(front.agent.counters()[0] > before, "they had got as far as the agent")
    for one in others:
        found = one.stop()
        check(all(front.good(body) for body in found) and found, found)
    front.check_all("still")
    finish(ws, front.nginx)


def test_f6_graceful_exit(ws):
    """QUIT: what is parked is finished first."""
    front = Front(ws, "--delay-ms", 2000)
    threads, results = front.several(16)
    wait_until(lambda: front.agent.counters()[0] >= 16, "all have got as far as the agent")
    finish(ws, front.nginx, signal.SIGQUIT)
    for thread in threads:
        thread.join()
    check(len(results) == 16 and all(front.good(body) for _, body in results), results)


def test_f6_fast_exit(ws):
    """TERM: nobody is waited for."""
    front = Front(ws, "--silent", settings="    keyhold_timeout 50s;\n")
    threads, results = front.several(16)
    wait_until(lambda: front.agent.counters()[0] >= 16, "all are parked")
    begun = time.monotonic()
    finish(ws, front.nginx, signal.SIGTERM)
    check(time.monotonic() - begun < 8, "it waited")
    for thread in threads:
        thread.join()
    check(not any(front.good(body) for _, body in results), results)


def test_f6_shutdown_timeout(ws):
    """QUIT with worker_shutdown_timeout, and an agent that never answers."""
    front = Front(ws, "--silent", settings="    keyhold_timeout 50s;\n", main="worker_shutdown_timeout 1s;\n")
    threads, results = front.several(16)
    wait_until(lambda: front.agent.counters()[0] >= 16, "all are parked")
    begun = time.monotonic()
    finish(ws, front.nginx, signal.SIGQUIT)
    check(0.5 < time.monotonic() - begun < 15, f"{time.monotonic() - begun:.1f} s")
    for thread in threads:
        thread.join()
    check(not any(front.good(body) for _, body in results), results)


def test_f6_exit_after_clients_have_left(ws):
    """The worker ends while upstream handshakes are parked whose clients are just leaving."""
    front = Front(ws, "--silent", settings="    keyhold_timeout 50s;\n")
    leaving = [threading.Thread(target=front.leaves, args=(protocol, random.uniform(0.5, 1.5), "reset"))
               for protocol in PROTOCOLS for _ in range(6)]
    for thread in leaving:
        thread.start()
    wait_until(lambda: front.agent.counters()[0] >= 20, "they are parked")
    time.sleep(0.6)
    finish(ws, front.nginx, signal.SIGTERM)
    for thread in leaving:
        thread.join()


def test_f6_timeouts(ws):
    """keyhold_timeout before nginx's own, and nginx's own before that: an error for the client, no more."""
    front = Front(ws, "--silent", settings="    keyhold_timeout 600ms;\n    proxy_connect_timeout 300ms;\n")
    threads, results = front.several(12)
    for thread in threads:
        thread.join()
    check(not any(front.good(body) for _, body in results), results)
    lines = [line for line in front.nginx.log().splitlines() if "[error]" in line]
    said = [line for line in lines if "keyhold: handshake failed" in line]
    gone = "does not answer" in front.nginx.log()  # on a busy machine the agent counts as gone before: then one line a second
    check(len(said) == 9 or (gone and 0 < len(said) < 9), "one line each, but none where nginx gave up:", lines)
    check(not any("/proxy" in line for line in said), "nginx gave up there:", said)
    check(sum("upstream timed out" in line and "/proxy" in line for line in lines) == 3, lines)
    front.agent.stop()
    front.agent.start("--delay-ms", 10)
    wait_until(lambda: front.good(front.get("grpc")), "the agent answers again")
    front.check_all("afterwards")
    finish(ws, front.nginx)


def sessions_are_kept(ws, zones):
    front = Front(ws, "--delay-ms", 100, reuse="on", zones=zones)
    front.check_all("full handshakes")
    asked = front.agent.counters()[0]
    for protocol in ("proxy", "grpc", "stream"):
        got = [front.get(protocol) for _ in range(4)]
        check(all(front.good(body) and body.endswith(" r\n") for body in got), protocol, got)
    check(front.agent.counters()[0] == asked, "resumed sessions need no key")
    together([lambda protocol=protocol: front.leaves(protocol, random.uniform(0, 0.15), how)
              for protocol in PROTOCOLS for how in ("close", "reset") for _ in range(8)])
    front.check_all("after clients that left")
    front.nginx.reload()
    front.check_all("after a reload")
    finish(ws, front.nginx)


def test_f6_sessions_are_kept(ws):
    """With session reuse the agent is asked once per worker and upstream; clients that leave do no harm to what is kept."""
    sessions_are_kept(ws, False)


def test_f6_sessions_are_kept_in_zones(ws):
    sessions_are_kept(ws, True)


def test_f6_reload_while_parked(ws):
    front = Front(ws, "--delay-ms", 250)
    clients = [getters(*front.where(protocol), clients=3) for protocol in PROTOCOLS]
    for _ in range(4):
        enough = sum(one.count() for one in clients) + 12
        wait_until(lambda: sum(one.count() for one in clients) >= enough, "requests go on")
        front.nginx.reload()
    found = [one.stop() for one in clients]
    check(all(front.good(body) for one in found for body in one), found)
    print(f"F6: {sum(sum(one.values()) for one in found)} requests over 4 reloads, 0 failed")
    finish(ws, front.nginx)


def test_f6_valgrind(ws):
    """A small run of everything, with another tool's eyes: no invalid access, nothing lost for good but nginx's own."""
    if not shutil.which("valgrind"):
        raise harness.Skip("no valgrind")
    front = Front(ws, "--delay-ms", 500, settings="    keyhold_timeout 60s;\n", preset="release")
    front.nginx.write(front.http, front.main + "master_process off; daemon off;\n")
    log, own = os.path.join(ws.dir, "valgrind.log"), os.path.join(ws.dir, "nginx.supp")
    with open(own, "w") as file:
        file.write("{\n   environment\n   Memcheck:Leak\n   fun:malloc\n   fun:ngx_alloc\n   fun:ngx_set_environment\n}\n")
    process = popen(["valgrind", "--log-file=" + log, "--leak-check=full", "--errors-for-leak-kinds=definite,indirect",
                     "--show-leak-kinds=definite,indirect", "--suppressions=" + own, "--num-callers=30", *front.nginx.argv()],
                    os.path.join(ws.dir, "valgrind.out"))
    wait_until(lambda: harness.port_open(front.port) or process.poll() is not None, "nginx listens under valgrind", 90)
    front.check_all("under valgrind")
    for _ in range(3):
        together([lambda protocol=protocol, how=how: front.leaves(protocol, random.uniform(0.1, 0.6), how)
                  for protocol in PROTOCOLS for how in ("close", "reset")])
    front.check_all("after clients that left")
    threads, _ = front.several(8)
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)  # some are parked
    process.wait(60)
    for thread in threads:
        thread.join()
    text = read(log)
    check("ERROR SUMMARY: 0 errors" in text, "valgrind:", text[-8000:])
    check("HEAP SUMMARY" in text, "valgrind saw it end:", text[-2000:])


if __name__ == "__main__":
    harness.main(globals())
