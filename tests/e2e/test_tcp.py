#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Agents behind TCP: TLS 1.3 with certificates on both sides, who the caller is, what may be done over it, and what a peer that
means no good can do."""
import base64
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time

import harness
import pki
import wire
from harness import artefact, check, free_port, read, run, wait_until

HANDSHAKE_MS = 1500  # the agent's time for a caller to say who it is
STALL_MS = 2000
KEY = "www"


class Site:
    """The agent with one TCP listener, the two authorities, and some callers' certificates."""

    def __init__(self, ws, administration=False, crl=False, start=True, more=""):
        self.ws = ws
        self.edges, self.agents = pki.Authority(ws.dir, ws.new_name("edges")), pki.Authority(ws.dir, ws.new_name("agents"))
        self.edge = self.edges.issue("edge", "DNS:other.example,DNS:Edge1.example")
        self.port = free_port()
        self.agent = ws.agent(start=False)
        self.use(self.agents.issue("agent", "IP:127.0.0.1,DNS:agent.example"))
        self.crl = self.edges.crl(os.path.join(self.agent.dir, "edges.crl")) if crl else None
        shutil.copy(self.edges.crt, os.path.join(self.agent.dir, "edges.crt"))
        self.agent.configure(self.listen(administration) + more)
        self.agent.configure(f"handshake_timeout_ms = {HANDSHAKE_MS}\nstall_timeout_ms = {STALL_MS}")
        self.base = read(self.agent.conf)
        self.identify("dns:edge1.example")
        if start:
            self.agent.start()
            self.agent.ctl("key", "create", KEY, "--type", "p256")

    def use(self, certificate):
        """The agent's own certificate, from its next start or SIGHUP on."""
        shutil.copy(certificate.crt, os.path.join(self.agent.dir, "tls.crt"))
        shutil.copy(certificate.key, os.path.join(self.agent.dir, "tls.key"))

    def listen(self, administration=False):
        return (f'listen "tcp:127.0.0.1:{self.port}" {{\n    certificate = "tls.crt"\n    certificate_key = "tls.key"\n'
                f'    client_ca = "edges.crt"\n' + ('    client_crl = "edges.crl"\n' if self.crl else "") +
                f'    administration = {"true" if administration else "false"}\n}}\n')

    def identify(self, *sans, operations=("sign", "public-key", "status", "list")):
        """The configuration with one identity that has these names; none: without it."""
        listed = ", ".join(f'"{san}"' for san in sans)
        allowed = ", ".join(f'"{operation}"' for operation in operations)
        with open(self.agent.conf, "w") as file:
            file.write(self.base)
            if sans:
                file.write(f'identity "edge" {{\n    san = {{{listed}}}\n    allow {{ keys = {{"*"}} operations = {{{allowed}}} }}\n}}\n')

    def reload(self, event="configuration_applied"):
        before = self.agent.log().count(event)
        self.agent.reload()
        wait_until(lambda: self.agent.log().count(event) > before, event)

    def call(self, identity=None, **more):
        """A caller that is ready."""
        return wire.TlsCaller(self.port, self.agents.crt, identity or self.edge, **more).handshake()

    def counters(self):
        listener, = [one for one in self.agent.status()["listeners"] if one["kind"] == "tcp"]
        return listener

    def ctl(self, *args, identity=None, ok=True, **more):
        identity = identity or self.edge
        return run(artefact("keyholdctl"), "--agent", f"tcp:127.0.0.1:{self.port}", "--agent-ca", self.agents.crt, "--agent-cert",
                   identity.crt, "--agent-key", identity.key, *args, ok=ok, **more)


site = None


def setup(ws):
    global site
    site = Site(ws)


def sign(caller):
    status, fields = caller.call(wire.SIGN, KEY, wire.SCHEMES["p256"], 0, wire.tls13_message())
    check(status == wire.OK, "sign:", status, fields)


def refused(make, *words):
    """That make() gives no connection that works, with one of these words in what it says."""
    try:
        make()
    except (ssl.SSLError, ConnectionError, OSError, wire.Closed) as why:
        check(not words or any(word in str(why) for word in words), "refused, but as:", repr(why))
        return str(why)
    raise harness.Failure("it was let in")


def logged(pattern, before=""):
    wait_until(lambda: re.search(pattern, site.agent.log()[len(before):]), f"the log has {pattern}", 10)


# ---- Who is let in ------------------------------------------------------------------------------------------------------------

def test_works_with_the_right_certificate(_):
    with site.call() as caller:
        check(caller.identity == "edge", "known as", caller.identity)
        check(caller.socket.version() == "TLSv1.3" and caller.socket.selected_alpn_protocol() == "keyhold/1", "TLS")
        for _ in range(20):
            sign(caller)
        ids = [caller.submit(wire.SIGN, *wire.sign_fields(KEY, "p256")) for _ in range(64)]
        got = {caller.reply()[1] for _ in ids}
        check(got == set(ids), "64 in flight")
    check(site.counters()["accepted"] >= 1, "accepted")


def test_large_messages_and_small_records(_):
    """Frames that span records, records that span frames, and one byte at a time."""
    with site.call() as caller:
        name = "x" * 127
        for _ in range(3):
            ids = [caller.submit(wire.PUBLIC, name) for _ in range(200)]
            check({caller.reply()[1] for _ in ids} == set(ids), "many at once")
        request = wire.frame([wire.SIGN, 7777, 10000, *wire.sign_fields(KEY, "p256")])
        for byte in request:
            caller.send_raw(bytes([byte]))
        check(caller.reply()[:3] == [wire.SIGN, 7777, wire.OK], "byte by byte")
        big = wire.frame([wire.DECRYPT, 7778, 10000, KEY, 1, b"", b"x" * 16000])
        caller.send_raw(big * 1 + wire.frame([wire.PING, 7779, 1000]))
        got = {tuple(caller.reply()[:2]) for _ in range(2)}
        check(got == {(wire.DECRYPT, 7778), (wire.PING, 7779)}, "large", got)


def test_no_certificate(_):
    before = site.agent.log()
    refused(lambda: wire.TlsCaller(site.port, site.agents.crt, None).handshake(), "CERTIFICATE_REQUIRED")
    logged("tls_refused .*peer did not return a certificate", before)


def test_wrong_ca(ws):
    stranger = pki.Authority(ws.dir, "stranger").issue("edge", "DNS:edge1.example")
    failed = site.counters()["tls_failed"]
    refused(lambda: site.call(stranger), "UNKNOWN_CA", "unknown ca")
    wait_until(lambda: site.counters()["tls_failed"] > failed, "the failure is counted")


def test_expired_and_not_yet_valid(_):
    for name, begins, ends in (("expired", -7200, -60), ("early", 3600, 7200)):
        certificate = site.edges.issue(name, "DNS:edge1.example", begins, ends)
        refused(lambda: site.call(certificate), "CERTIFICATE_EXPIRED", "BAD_CERTIFICATE", "certificate expired")


def test_unknown_names(_):
    """A certificate of the right authority whose names nobody has; the log says which."""
    before = site.agent.log()
    for name, san in (("other", "DNS:edge2.example"), ("none", ""), ("sub", "DNS:a.edge1.example"), ("wild", "DNS:*.example"),
                      ("uri", "URI:dns:edge1.example"), ("mail", "email:edge1.example@edge1.example")):
        certificate = site.edges.issue("unknown-" + name, san)
        word = refused(lambda: site.call(certificate))
        check(f"({wire.UNAUTHENTICATED}," in word, "not like others:", word)
    logged("auth_refused peer=127.0.0.1:[0-9]+ certificate=dns:edge2.example .*by=certificate", before)


def test_two_identities_in_one_certificate(ws):
    two = Site(ws, more='identity "second" { san = {"ip:192.0.2.7"} allow { keys = {"*"} operations = {"sign"} } }\n')
    both = two.edges.issue("both", "DNS:edge1.example,IP:192.0.2.7")
    refused(lambda: two.call(both), f"({wire.UNAUTHENTICATED},")
    with two.call(two.edges.issue("seven", "IP:192.0.2.7")) as caller:
        check(caller.identity == "second", "known as", caller.identity)
    two.agent.stop()


def test_kinds_of_names(ws):
    kinds = Site(ws)
    kinds.identify("uri:spiffe://example/edge1", "ip:2001:db8:0::7", "email:Ops@EXAMPLE.org", "dns:EDGE9.example")
    kinds.reload()
    for name, san in (("uri", "URI:spiffe://example/edge1"), ("ip", "IP:2001:db8::7"), ("mail", "email:Ops@example.ORG"),
                      ("dns", "DNS:edge9.EXAMPLE")):
        with kinds.call(kinds.edges.issue(name, san)) as caller:
            check(caller.identity == "edge", san)
    for name, san in (("uri2", "URI:spiffe://example/Edge1"), ("mail2", "email:ops@example.org")):
        refused(lambda: kinds.call(kinds.edges.issue(name, san)), f"({wire.UNAUTHENTICATED},")
    kinds.agent.stop()


def test_older_tls_and_other_protocols(_):
    refused(lambda: site.call(version=ssl.TLSVersion.TLSv1_2), "PROTOCOL_VERSION", "protocol version")
    for alpn in (("h2", "http/1.1"), ("keyhold/2",), ()):
        refused(lambda: site.call(alpn=alpn), "NO_APPLICATION_PROTOCOL", "no application protocol")
    with site.call(alpn=("h2", "keyhold/1")) as caller:
        sign(caller)


def test_named_identity_and_token_are_refused(_):
    """Over TCP nothing counts but the certificate: no token, no name, and root least of all."""
    name, _ = wire.read_token(site.agent.token)
    for wanted in (name, "edge", "root"):
        caller = wire.TlsCaller(site.port, site.agents.crt, site.edge)
        refused(lambda: caller.hello(wanted), f"({wire.UNAUTHENTICATED},")
        caller.close()


def test_revoked(ws):
    """A list is read again on SIGHUP, and ends the connections of those that are on it now."""
    listed = Site(ws, crl=True)
    good, bad = listed.edges.issue("good", "DNS:edge1.example"), listed.edges.issue("bad", "DNS:edge1.example")
    with listed.call(good) as stays, listed.call(bad) as goes:
        context = wire.tls_context(listed.agents.crt, bad)
        again = listed.call(bad, context=context)
        listed.edges.revoke(bad)
        listed.edges.crl(listed.crl)
        listed.reload()
        check(not goes.fill(), "the revoked one is still there")
        sign(stays)
        refused(lambda: listed.call(bad), "CERTIFICATE_REVOKED", "revoked")
        refused(lambda: listed.call(bad, context=context, session=again.session), "CERTIFICATE_REVOKED", "revoked")
        again.close()
    listed.agent.stop()


# ---- Reloads and resumption -----------------------------------------------------------------------------------------------------

def test_resumption(_):
    context = wire.tls_context(site.agents.crt, site.edge)
    with site.call(context=context) as first:
        session = first.session
    before = site.counters()
    with site.call(context=context, session=session) as second:
        check(second.socket.session_reused, "was not resumed")
        check(second.identity == "edge", "known as", second.identity)
        sign(second)
    after = site.counters()
    check(after["tls_resumed"] == before["tls_resumed"] + 1, "counted", before, after)


def test_a_name_that_is_removed(ws):
    """SIGHUP without it: the connection ends, a session of before gives nothing, and it all comes back with the name."""
    moving = Site(ws)
    context = wire.tls_context(moving.agents.crt, moving.edge)
    with moving.call(context=context) as caller:
        session = caller.session
        moving.identify("dns:edge2.example")
        moving.reload()
        check(not caller.fill(), "the connection is still there")
    resumed = wire.TlsCaller(moving.port, moving.agents.crt, moving.edge, context=context, session=session)
    check(resumed.socket.session_reused, "the certificates are the same: the session may be resumed")
    refused(resumed.handshake, f"({wire.UNAUTHENTICATED},")
    resumed.close()
    moving.identify("dns:edge1.example")
    moving.reload()
    with moving.call(context=context, session=session) as caller:
        sign(caller)
    moving.agent.stop()


def test_rights_are_those_of_now(ws):
    """A session of before a reload is resumed with the rights of after it."""
    rights = Site(ws)
    context = wire.tls_context(rights.agents.crt, rights.edge)
    with rights.call(context=context) as stays:
        session = stays.session
        sign(stays)
        rights.identify("dns:edge1.example", operations=("public-key",))
        rights.reload()
        for caller in (stays, rights.call(context=context, session=session)):
            status, _ = caller.call(wire.SIGN, *wire.sign_fields(KEY, "p256"))
            check(status == wire.NOT_FOUND, "still may sign:", status)
            caller.close()
    rights.agent.stop()


def test_a_session_that_outlives_its_certificate(_):
    """It can be resumed, and is nobody's."""
    ends = time.time() + 6
    brief = site.edges.issue("brief", "DNS:edge1.example", ends=6)
    context = wire.tls_context(site.agents.crt, brief)
    with site.call(brief, context=context) as caller:
        session = caller.session
    wait_until(lambda: time.time() > ends + 1, "the certificate's end", 15)
    resumed = wire.TlsCaller(site.port, site.agents.crt, brief, context=context, session=session)
    check(resumed.socket.session_reused, "it was not resumed")
    refused(resumed.handshake, f"({wire.UNAUTHENTICATED},")
    resumed.close()


def test_certificates_are_replaced(ws):
    """SIGHUP: new connections get the new certificate, those that are there stay, sessions of before begin anew."""
    renewed = Site(ws)
    context = wire.tls_context(renewed.agents.crt, renewed.edge)
    with renewed.call(context=context) as stays:
        session, old = stays.session, stays.socket.getpeercert()["serialNumber"]
        certificate = renewed.agents.issue("agent2", "IP:127.0.0.1")
        renewed.use(certificate)
        renewed.reload()
        sign(stays)
        with renewed.call(context=context, session=session) as caller:
            check(not caller.socket.session_reused, "a session of the old certificate was resumed")
            check(caller.socket.getpeercert()["serialNumber"] != old, "the old certificate")
            sign(caller)
        sign(stays)
    with open(os.path.join(renewed.agent.dir, "tls.crt"), "w") as file:
        file.write("nonsense")
    renewed.reload("reload_failed")
    check("certificate " in renewed.agent.log() and "nothing of that kind" in renewed.agent.log(), "why")
    with renewed.call() as caller:  # as before
        sign(caller)
    renewed.agent.stop()


def test_a_listener_that_is_removed(ws):
    """Its connections end; the agent serves on by its socket; and it can come back."""
    gone = Site(ws)
    with open(gone.agent.conf) as file:
        text = file.read()
    with gone.call() as caller:
        with open(gone.agent.conf, "w") as file:
            file.write(text.replace(gone.listen(), ""))
        gone.reload()
        check(not caller.fill(), "the connection is still there")
    refused(lambda: gone.call())
    with wire.connect(gone.agent.socket, None) as local:
        sign(local)
    with open(gone.agent.conf, "w") as file:
        file.write(text)
    gone.reload()
    with gone.call() as caller:
        sign(caller)
    gone.agent.stop()


def test_socket_activation(ws):
    """systemd's socket is taken, in a unit that has no network of its own; what was waiting in it is served."""
    passed = Site(ws, start=False)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", passed.port))
        listener.listen()
        early = socket.create_connection(("127.0.0.1", passed.port), 30)  # before the agent runs
        script = ("import os,sys\nos.dup2(int(sys.argv[1]), 3)\nos.set_inheritable(3, True)\n"
                  "os.environ['LISTEN_PID'] = str(os.getpid())\nos.environ['LISTEN_FDS'] = '1'\nos.execv(sys.argv[2], sys.argv[2:])\n")
        with open(passed.agent.log_path, "ab") as log:
            passed.agent.process = subprocess.Popen(
                [sys.executable, "-c", script, str(listener.fileno()), artefact("keyholdd"), "--config", passed.agent.conf],
                pass_fds=[listener.fileno()], stdout=log, stderr=log)
        context = wire.tls_context(passed.agents.crt, passed.edge)
        caller = wire.Caller(None, 30, context.wrap_socket(early, server_hostname="127.0.0.1"))
        caller.handshake()
        check(caller.identity == "edge", "known as", caller.identity)
        caller.close()
        passed.agent.wait_ready()
        passed.agent.stop()


def test_front_dies(_):
    """It is started again, has the certificates again, and takes connections."""
    front = site.agent.role_pid("front")
    with site.call() as caller:
        harness.kill_pid(front, 9)
        check(not caller.fill(), "the connection")
    wait_until(lambda: site.agent.role_pid("front") not in (None, front) and site.agent.ready(), "a new front")
    with site.call() as caller:
        sign(caller)


# ---- Peers that mean no good ----------------------------------------------------------------------------------------------------

def test_silent_and_slow_handshakes(_):
    """They cost a connection for handshake_timeout_ms, and nobody else anything."""
    silent = socket.create_connection(("127.0.0.1", site.port), 30)
    partly = socket.create_connection(("127.0.0.1", site.port), 30)
    outgoing = ssl.MemoryBIO()
    hello = wire.tls_context(site.agents.crt, site.edge).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    try:
        hello.do_handshake()
    except ssl.SSLWantReadError:
        pass
    first = outgoing.read()
    done = wire.tls_socket(site.port, site.agents.crt, site.edge)  # TLS, and then no hello
    stop = threading.Event()

    def drip():
        for byte in first:
            try:
                partly.send(bytes([byte]))
            except OSError:
                return
            if stop.wait(HANDSHAKE_MS / 1000 / len(first) * 3):
                return

    thread = threading.Thread(target=drip)
    thread.start()
    begun = time.monotonic()
    try:
        with site.call() as caller:
            sign(caller)
        for peer in (silent, partly, done):
            try:
                check(peer.recv(1) == b"", "something came")
            except ConnectionResetError:
                pass
        took = time.monotonic() - begun
        check(took < HANDSHAKE_MS / 1000 * 3, "closed after", took)
    finally:
        stop.set()
        thread.join()
        for peer in (silent, partly, done):
            peer.close()


def test_garbage(_):
    """What is no TLS ends the connection and is told; nothing else is disturbed."""
    before = site.agent.log()
    with site.call() as caller:
        for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(4000), b"\x16\x03\x01\xff\xff" + bytes(100),
                     b"\x16\x03\x01\x00\x05\x01\x00\xff\xff\xff" * 50, wire.frame([0, 1, 1, 65536, "x", "", bytes(32)]), b"\x00"):
            with socket.create_connection(("127.0.0.1", site.port), 30) as raw:
                raw.sendall(data)
                raw.shutdown(socket.SHUT_WR)
                try:
                    while raw.recv(4096):
                        pass
                except ConnectionResetError:
                    pass
        sign(caller)
    logged("tls_refused .*why=", before)


def test_a_flood_of_key_updates(ws):
    """Records without data get their turn and no more. (Python's ssl cannot send a KeyUpdate: openssl s_client does, for a K.)"""
    out = os.path.join(ws.dir, "s_client.out")
    with open(out, "w") as file:
        process = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{site.port}", "-CAfile", site.agents.crt, "-cert", site.edge.crt, "-key",
             site.edge.key, "-alpn", "keyhold/1", "-tls1_3", "-msg"], stdin=subprocess.PIPE, stdout=file, stderr=file)
    try:
        wait_until(lambda: "NewSessionTicket" in read(out), "s_client is connected")
        with site.call() as caller:
            for done in range(1, 101):
                process.stdin.write(b"K\n")
                process.stdin.flush()
                wait_until(lambda: process.poll() is not None or read(out).count(">>> TLS 1.3, Handshake [length 0005], KeyUpdate") >= done,
                           "the next one", 10, 0.001)
                sign(caller)
        check(read(out).count("KeyUpdate") >= 100, "they were not sent:", read(out)[-500:])
    finally:
        process.kill()
        process.wait()


def test_never_reads(_):
    """Who asks and does not read makes the agent buffer no more than the protocol's mark, and is closed."""
    front = site.agent.role_pid("front")

    def rss():
        return int(re.search(r"VmRSS:\s+(\d+)", read(f"/proc/{front}/status"))[1])

    with site.call() as other:
        before = rss()
        greedy = [site.call() for _ in range(4)]
        for caller in greedy:
            caller.socket.settimeout(0.2)
            try:
                for _ in range(3000):
                    caller.submit(wire.LIST, "*", "", 64)
                    caller.submit(wire.STATUS)
            except (OSError, ssl.SSLError):
                pass  # the agent reads no more
            sign(other)
        grown = rss() - before
        print(f"   4 callers that never read: the front grew by {grown} KiB")
        check(grown < 16 * 1024, "the front grew by", grown, "KiB")
        wait_until(lambda: site.agent.status()["connections"]["closed_stalled"] >= 4, "they are closed", 20)
        for caller in greedy:
            caller.close()
        sign(other)


def test_dead_peers_are_noticed(_):
    """The kernel asks after a peer that says nothing: the connection has a keepalive timer of at most 30 s."""
    with site.call() as caller:
        local = caller.socket.getsockname()[1]
        tail = f":{site.port:04X} "

        def keepalive():
            lines = [line.split() for line in read("/proc/net/tcp").splitlines() if tail in line and f":{local:04X} 01 " in line]
            timer, when = lines[0][5].split(":")
            return timer == "02" and 0 < int(when, 16) <= 30 * os.sysconf("SC_CLK_TCK")

        wait_until(keepalive, "the agent's end has a keepalive timer", 10)


# ---- What may be done -----------------------------------------------------------------------------------------------------------

def manage(caller):
    return [caller.call(wire.CREATE, "remote", 2, 256, 1, 0)[0], caller.call(wire.IMPORT_KEY)[0],
            caller.call(wire.SET_STATE, KEY, 1)[0], caller.call(wire.IMPORT, "other", 1, 0, b"x" * 100)[0]]


ADMIN = ("sign", "public-key", "status", "list", "create", "import", "import-key", "set-state")


def test_what_is_left_of_the_key(ws):
    """Of the key of a TCP listener the supervisor has the copy in locked memory, which a new front gets, and no other; the front
    has its numbers alone, which OpenSSL keeps in another form."""
    if os.geteuid() != 0:
        raise harness.Skip("only root reads the memory of a process that is not dumpable")
    if re.search(r"^KH_SANITIZE:[A-Z]+=.", read(os.path.join(harness.build_dir(), "CMakeCache.txt")), re.M):
        raise harness.Skip("a sanitizer maps terabytes")
    left = Site(ws)
    left.reload()
    der = base64.b64decode(read(os.path.join(left.agent.dir, "tls.key")).split("-----")[2])
    at = der.index(b"\x04\x20") + 2
    found = [places(pid, der[at:at + 32]) for pid in (left.agent.process.pid, left.agent.role_pid("front"))]
    check(found == [[""], []], "places:", found)
    left.agent.stop()


def places(pid, needle):
    """The names of the mappings of its memory where this is, each as often as it is there."""
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            area, mode, _, _, _, *name = line.split()
            begin, end = (int(number, 16) for number in area.split("-"))
            if mode.startswith("rw"):
                memory.seek(begin)
                found += [name[0] if name else ""] * memory.read(end - begin).count(needle)
    return found


def test_remote_administration_is_off(ws):
    """Though the ACL grants all of it; and what the ACL does not grant stays so with administration = true."""
    admin = Site(ws)
    admin.identify("dns:edge1.example", operations=ADMIN)
    admin.reload()
    with admin.call() as caller:
        got = manage(caller)
        check(got == [wire.FORBIDDEN] * 4, "off:", got)
        check(caller.call(wire.STATUS)[0] == wire.OK and caller.call(wire.LIST, "*", "", 10)[0] == wire.OK, "the ACL's")
        admin.base = admin.base.replace("administration = false", "administration = true")
        admin.identify("dns:edge1.example", operations=("sign", "list"))
        admin.reload()
        got = manage(caller)
        check(got == [wire.NOT_FOUND, wire.FORBIDDEN, wire.NOT_FOUND, wire.NOT_FOUND], "without the right:", got)
        check(caller.call(wire.STATUS)[0] == wire.FORBIDDEN, "status")
        admin.identify("dns:edge1.example", operations=ADMIN)
        admin.reload()
        got = manage(caller)
        check(got[:3] == [wire.OK] * 3 and got[3] not in (wire.OK, wire.FORBIDDEN), "on:", got)
    admin.agent.stop()


def test_keyholdctl_from_afar(ws):
    """A key is imported with the pinned import key, and with no other."""
    admin = Site(ws, administration=True)
    admin.identify("dns:edge1.example", operations=ADMIN)
    admin.reload()
    key = ws.make_key("p256", "remote")
    check("edge" in admin.ctl("ping").stdout, "ping")
    check(KEY in admin.ctl("key", "list").stdout, "key list")
    wrong = os.path.join(ws.dir, "wrong.pub")
    with open(wrong, "w") as file:
        file.write("keyhold-import-1 " + "11" * 32 + "\n")
    done = admin.ctl("key", "import", "remote", key.key, "--pin", wrong, ok=False)
    check(done.returncode == 1 and "is pinned; nothing was sent" in done.stderr, "a wrong pin:", done.stderr)
    done = admin.ctl("key", "import", "remote", key.key, "--config", os.path.join(ws.dir, "keyhold.conf"), ok=False)
    check(done.returncode == 1 and "give --pin" in done.stderr, "no pin:", done.stderr)
    check("remote" not in admin.agent.ctl("key", "list").stdout, "it was imported nevertheless")
    admin.ctl("key", "import", "remote", key.key, "--pin", os.path.join(admin.agent.dir, "import.pub"))
    check("remote" in admin.agent.ctl("key", "list").stdout, "import")
    conf = os.path.join(ws.dir, "asks.conf")
    text = (f"http {{ keyhold_agent tcp:127.0.0.1:{admin.port} name=agent.example; keyhold_trusted_certificate {admin.agents.crt};\n"
            f"keyhold_certificate {admin.edge.crt}; keyhold_certificate_key {admin.edge.key};\n"
            f"server {{ listen 1 ssl; keyhold on; ssl_certificate {key.crt}; }} }}\n")
    for given, code, says in ((text, 0, "0 bad"), (text.replace("name=agent.", "name=other."), 1, "not accepted"),
                              (text.replace(key.crt, admin.edge.crt), 1, "MISSING")):
        with open(conf, "w") as file:
            file.write(given)
        done = run(artefact("keyholdctl"), "check-nginx", conf, ok=False)
        check(done.returncode == code and says in done.stdout + done.stderr, "check-nginx:", says, done.stdout, done.stderr)
    admin.ctl("key", "disable", "remote")
    done = admin.ctl("key", "purge", "remote", "--yes", ok=False)
    check(done.returncode == 2 and "admin socket" in done.stderr, "purge:", done.stderr)
    done = admin.ctl("--agent-name", "other.example", "ping", ok=False)
    check(done.returncode == 1 and "hostname mismatch" in done.stderr.lower(), "another name:", done.stderr)
    admin.ctl("--agent-name", "agent.example", "ping")
    stranger = pki.Authority(ws.dir, ws.new_name("stranger")).issue("edge", "DNS:edge1.example")
    done = admin.ctl("ping", identity=stranger, ok=False)
    check(done.returncode == 1 and "unknown CA" in done.stderr, "a stranger:", done.stderr)
    admin.agent.stop()


def test_provider_over_tcp(_):
    """openssl dgst signs with keyhold.so and an agent behind TCP."""
    reference = os.path.join(site.ws.dir, "www.ref.pem")
    with open(reference, "w") as file:
        file.write(site.agent.ctl("key", "reference", KEY).stdout)
    env = dict(os.environ, KH_AGENT=f"tcp:127.0.0.1:{site.port}", KH_CA=site.agents.crt, KH_CERTIFICATE=site.edge.crt,
               KH_KEY=site.edge.key, OPENSSL_MODULES=os.path.dirname(artefact("keyhold.so")))
    message, signature = os.path.join(site.ws.dir, "message"), os.path.join(site.ws.dir, "signature")
    with open(message, "wb") as file:
        file.write(wire.tls13_message(os.urandom(32)))
    args = ("openssl", "dgst", "-sha256", "-provider", "default", "-provider", "keyhold", "-sign", reference, "-out", signature, message)
    run(*args, env=env)
    # Ours loaded before the default one: TLS with the agent must not come back to us for its own keys.
    run("openssl", "dgst", "-sha256", "-provider", "keyhold", "-provider", "default", "-propquery", "?provider!=keyhold", "-sign", reference,
        "-out", signature, message, env=env)
    public = os.path.join(site.ws.dir, "www.pub")
    with open(public, "w") as file:
        file.write(site.agent.ctl("key", "public", KEY).stdout)
    run("openssl", "dgst", "-sha256", "-verify", public, "-signature", signature, message)
    env["KH_NAME"] = "other.example"
    done = run(*args, env=env, ok=False)
    check(done.returncode != 0 and "hostname mismatch" in done.stderr.lower(), "another name:", done.stderr)


def test_f9_bench_over_tcp(ws):
    """keyhold-bench op --agent: both ways in one run. The figure itself is the gate's."""
    bench = Site(ws)
    key = ws.make_key("p256", "bench")
    bench.agent.import_key(key)
    done = run(artefact("keyhold-bench"), "op", "--json", "--socket", bench.agent.socket, "--key", key.key, "--rounds", "2", "--per-round",
               "500", "--agent", f"tcp:127.0.0.1:{bench.port}", "--agent-ca", bench.agents.crt, "--agent-cert", bench.edge.crt,
               "--agent-key", bench.edge.key)
    report = json.loads(done.stdout)
    check(report["failed"] == 0 and report["in_flight"] == 64, report)
    check(report["tcp"]["operations"] == report["unix"]["operations"] == 1000 and report["ratio"] > 0, report)
    bench.agent.stop()


# ---- What --check says ------------------------------------------------------------------------------------------------------------

def test_check_of_the_files(ws):
    """keyholdd --check names file and line of what is wrong with certificates and keys, and warns of dates."""
    checked = Site(ws, start=False)
    folder, agent = checked.agent.dir, checked.agent
    line = 1 + next(at for at, text in enumerate(read(agent.conf).splitlines()) if "administration" in text) + 1

    def says(*words, status=1):
        done = run(artefact("keyholdd"), "--check", "--config", agent.conf, ok=False)
        text = done.stdout + done.stderr
        check(done.returncode == status and all(word in text for word in words), words, done.returncode, text)

    good = {name: read(os.path.join(folder, name)) for name in ("tls.crt", "tls.key", "edges.crt")}

    def put(name, text):
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)

    says("2 listeners, 2 identities", status=0)
    put("tls.key", read(checked.edge.key))
    says(f"{agent.conf}:{line}: certificate_key", "does not belong to the certificate")
    put("tls.key", good["tls.key"])
    os.chmod(os.path.join(folder, "tls.key"), 0o644)
    says(f"{agent.conf}:{line}: certificate_key", "everybody may read it")
    os.chmod(os.path.join(folder, "tls.key"), 0o640)
    put("edges.crt", "")
    says(f":{line}: client_ca", "nothing of that kind")
    put("edges.crt", good["edges.crt"].replace("A", "!", 1))
    says(f":{line}: client_ca", "damaged")
    os.unlink(os.path.join(folder, "edges.crt"))
    says(f":{line}: client_ca", "No such file")
    put("edges.crt", good["edges.crt"])
    old = checked.agents.issue("old", "IP:127.0.0.1", -7200, -3600)
    checked.use(old)
    says("warning: ", f":{line}: certificate", "it expired", status=0)
    soon = checked.agents.issue("soon", "IP:127.0.0.1", -72000, 3600)
    checked.use(soon)
    says("warning: ", "it expires soon", status=0)


if __name__ == "__main__":
    harness.main(globals())
