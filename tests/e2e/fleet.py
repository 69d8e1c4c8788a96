# SPDX-License-Identifier: Apache-2.0
"""Several agents with the same keys, on Unix sockets and on TCP with mutual TLS, and what can happen to them and to the way there.

    fleet = Fleet(ws, ["unix", "tcp"], keys)             # started
    nginx = ws.nginx(None, fleet.directives() + servers) # with both
    fleet.members[0].freeze()
"""
import os
import selectors
import shutil
import signal
import socket
import threading

import harness
import wire
from harness import check, free_port, kill_pid, run, wait_until

EDGE = "edge.keyhold.test"    # nginx, in its certificate
AGENT = "agent.keyhold.test"  # each agent on TCP, in its


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, ws, name="ca"):
        self.ws, self.name = ws, name
        self.dir = os.path.join(ws.dir, ws.new_name(name))
        os.mkdir(self.dir, 0o755)
        self.key, self.crt = os.path.join(self.dir, "ca.key"), os.path.join(self.dir, "ca.crt")
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", self.key,
            "-subj", f"/CN={name}", "-days", "30", "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-out", self.crt)

    def issue(self, name, *names):
        """(certificate, key) for these subject alternative names, as openssl writes them ("DNS:www")."""
        key, crt = os.path.join(self.dir, name + ".key"), os.path.join(self.dir, name + ".crt")
        run("openssl", "req", "-x509", "-CA", self.crt, "-CAkey", self.key, "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:P-256", "-noenc", "-keyout", key, "-subj", f"/CN={name}", "-days", "30", "-addext",
            "subjectAltName=" + ",".join(names), "-addext", "basicConstraints=critical,CA:FALSE", "-out", crt)
        return crt, key


# ---- The way to an agent --------------------------------------------------------------------------------------------------------

class Wire:
    """A wire between nginx and an agent on TCP. It can be cut: then nothing passes, and nobody is told. One thread carries; while
    the wire is cut that thread stands still, and others may change what it works on."""

    def __init__(self, port):
        self.to, self.port = port, free_port()
        self.whole = threading.Event()
        self.whole.set()
        self.still = threading.Event()  # the thread has seen the cut
        self.select = selectors.DefaultSelector()
        self.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def listen(self):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.select.register(listener, selectors.EVENT_READ)

    def cut(self):
        self.whole.clear()
        check(self.still.wait(10), "the wire is cut")

    def heal(self):
        self.still.clear()
        self.whole.set()

    def block(self):
        """Cut, and at its end somebody with a full accept queue."""
        self.cut()
        for key in list(self.select.get_map().values()):
            self.select.unregister(key.fileobj)
            key.fileobj.close()
        self.queue = FullQueue(socket.AF_INET, ("127.0.0.1", self.port))

    def unblock(self):
        self.queue.close()
        self.listen()
        self.heal()

    def serve(self):
        while True:
            if not self.whole.is_set():
                self.still.set()
                self.whole.wait()
            for key, _ in self.select.select(0.02):
                if key.data is None:
                    self.accept(key.fileobj)
                elif key.fileobj.fileno() >= 0:  # else its other end closed both in this very turn
                    self.carry(key.fileobj, key.data)

    def accept(self, listener):
        client = listener.accept()[0]
        try:
            server = socket.create_connection(("127.0.0.1", self.to), timeout=5)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(5)
            self.select.register(one, selectors.EVENT_READ, other)

    def carry(self, one, other):
        try:
            data = one.recv(65536)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        for end in (one, other):
            self.select.unregister(end)
            end.close()


class Namespace:
    """A network namespace with a cable to ours. Cut, it drops every packet that it would answer with. The addresses are of the network
    that RFC 2544 keeps for measurements, of a part that nobody here has a route to."""

    def __init__(self):
        if not shutil.which("ip"):
            raise harness.Skip("no ip (package iproute2)")
        net = next(net for net in (f"198.19.{i}" for i in range(256)) if net + "." not in run("ip", "route", "show", "table", "all").stdout)
        self.near, self.far = net + ".1", net + ".2"
        self.name, here, there = (f"kh{kind}{os.getpid()}" for kind in ("ns", "a", "b"))
        self.here = here
        if run("ip", "netns", "add", self.name, ok=False).returncode != 0:
            raise harness.Skip("no network namespaces here")
        try:
            run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
            run("ip", "address", "add", self.near + "/30", "dev", here)
            run("ip", "link", "set", here, "up")
            for words in (f"address add {self.far}/30 dev {there}", f"link set {there} up", "link set lo up"):
                run("ip", "-n", self.name, *words.split())
        except harness.Failure:
            self.remove()
            raise

    def prefix(self):
        """What a command line begins with that runs in it."""
        return ["nsenter", "--net=/run/netns/" + self.name, "--"]

    def cut(self):
        run("ip", "-n", self.name, "route", "add", "blackhole", self.near + "/32")

    def heal(self):
        run("ip", "-n", self.name, "route", "del", "blackhole", self.near + "/32")

    def remove(self):
        run("ip", "link", "del", self.here, ok=False)
        run("ip", "netns", "del", self.name, ok=False)


class FullQueue:
    """Somebody who listens at an address, accepts nobody, and has no room for one more."""

    def __init__(self, family, address):
        self.listener = socket.socket(family)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.family, self.address, self.waiting = family, address, []
        if family == socket.AF_UNIX and os.path.exists(address):
            os.unlink(address)
        self.listener.bind(address)
        if family == socket.AF_UNIX:
            os.chmod(address, 0o666)
        self.listener.listen(0)
        while self.fill():
            pass

    def fill(self):
        """One more in the queue; False: it is full."""
        one = socket.socket(self.family)
        one.settimeout(0.05)
        self.waiting.append(one)
        try:
            one.connect(self.address)
        except (BlockingIOError, TimeoutError, InterruptedError):
            return False
        return True

    def close(self):
        for one in (*self.waiting, self.listener):
            one.close()
        if self.family == socket.AF_UNIX:
            os.unlink(self.address)


# ---- Agents -----------------------------------------------------------------------------------------------------------------------

class Member:
    """An agent of a fleet, and the way to it: `kind` is "unix", "tcp" (through a Wire) or a Namespace."""

    def __init__(self, ws, kind, authority, delay_ms, config):
        self.ws, self.kind = ws, kind
        self.agent = ws.agent(start=False, delay_ms=delay_ms, config=config)
        self.network = self.exe = None
        if kind == "unix":
            self.address = "unix:" + self.agent.socket
            self.directive = f"{self.address} token={self.agent.token}"
            return
        crt, key = authority.issue(os.path.basename(self.agent.dir), "DNS:" + AGENT)
        self.port = free_port()
        host = kind.far if isinstance(kind, Namespace) else "127.0.0.1"
        self.agent.configure(f'listen "tcp:{host}:{self.port}" {{\n    certificate = "{crt}"\n    certificate_key = "{key}"\n'
                             f'    client_ca = "{authority.crt}"\n}}\nidentity "edge" {{\n    san = {{"dns:{EDGE}"}}\n'
                             '    allow { keys = {"*"} operations = {"sign", "public-key", "tls-rsa-decrypt"} }\n}')
        self.network = kind if isinstance(kind, Namespace) else Wire(self.port)
        if isinstance(kind, Namespace):
            self.agent.prefix = kind.prefix()
            self.address = f"tcp:{host}:{self.port}"
        else:
            self.address = f"tcp:{host}:{self.network.port}"
        self.directive = f"{self.address} name={AGENT}"

    def start(self):
        self.agent.start()

    def pids(self):
        return self.agent.pids()

    def kill(self):
        """kill -9 of all its processes, the one that would start the others anew first."""
        pids = self.pids()
        for pid in pids:
            kill_pid(pid, signal.SIGKILL)
        self.agent.process.wait(20)
        wait_until(lambda: harness.reap() or not [pid for pid in pids if harness.alive(pid)], "the agent's processes die")

    def freeze(self):
        self.frozen = self.pids()
        for pid in self.frozen:
            wire.freeze(pid)

    def thaw(self):
        for pid in reversed(self.frozen):
            wire.thaw(pid)

    def block(self):
        """Killed, and in its place somebody with a full accept queue."""
        self.kill()
        if self.network:
            self.network.block()
        else:
            self.queue = FullQueue(socket.AF_UNIX, self.agent.socket)

    def unblock(self):
        if self.network:
            self.network.unblock()
        else:
            self.queue.close()
        self.start()

    def upgrade(self):
        """Another build of the program takes the place of the one that runs, and is started."""
        old = self.agent.exe
        new = old + ".new"
        run("strip", "--strip-all", "-o", new, harness.artefact("keyholdd"))
        os.rename(new, old)
        self.agent.stop()
        self.start()

    def signed(self):
        """Private-key operations that it has done; its restart begins anew."""
        done = self.agent.status()["operations"]
        return sum(done.get(name, {"results": {}})["results"].get("ok", 0) for name in ("sign", "tls-rsa-decrypt"))


class Fleet:
    def __init__(self, ws, kinds, keys, delay_ms=0, config="", start=True):
        self.ws = ws
        self.authority = Authority(ws)
        self.members = [Member(ws, kind, self.authority, delay_ms, config) for kind in kinds]
        self.edge = self.authority.issue("edge", "DNS:" + EDGE)
        for member in self.members:
            # Programs of its own, so that they can be replaced.
            member.agent.exe = os.path.join(member.agent.dir, "keyholdd")
            shutil.copy(harness.artefact("keyholdd"), member.agent.exe)
            if start:
                member.start()
                for key in keys:
                    member.agent.import_key(key)

    def directives(self, *more):
        """For nginx's http block: the agents, what TCP needs, and settings."""
        lines = [f"keyhold_agent {member.directive};" for member in self.members]
        if any(member.network for member in self.members):
            lines += [f"keyhold_certificate {self.edge[0]};", f"keyhold_certificate_key {self.edge[1]};",
                      f"keyhold_trusted_certificate {self.authority.crt};"]
        return "".join(f"    {line}\n" for line in (*lines, *more))

    def in_use(self, count=5, of=None):
        """Waits until each agent (or these) has done that many more operations."""
        members = of or self.members
        before = [member.signed() for member in members]
        wait_until(lambda: all(member.signed() >= done + count for member, done in zip(members, before)),
                   "every agent is in use")
