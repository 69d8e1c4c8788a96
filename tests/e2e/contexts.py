# SPDX-License-Identifier: Apache-2.0
"""What the tests of nginx's other contexts share: modules to load, servers that ask for a client certificate, clients."""
import http.client
import os
import re
import socket
import ssl
import threading

import harness
from harness import artefact, check, run

MODULES = "/usr/lib/nginx/modules"


def load_modules(*names, preset="release"):
    """load_module lines: ours from the build, others as Debian has them; skips the test where there is none."""
    lines = []
    for name in names:
        path = artefact(name, preset) if "keyhold" in name else os.path.join(MODULES, name)
        if not os.path.exists(path):
            raise harness.Skip(f"no {path}")
        lines.append(f"load_module {path};\n")
    return "".join(lines)


EVENTS = "events { worker_connections 4096; }\n"


def readable(ws, path):
    """A copy that nginx's workers can read, for what is looked up while they run."""
    copy = os.path.join(ws.dir, ws.new_name("copy") + "." + os.path.basename(path))
    with open(copy, "w") as file:
        file.write(harness.read(path))
    os.chmod(copy, 0o644)
    return copy


def bundle(ws, keys):
    """One file with the certificates of several keys, for ssl_client_certificate."""
    path = os.path.join(ws.dir, ws.new_name("bundle") + ".crt")
    with open(path, "w") as file:
        file.write("".join(harness.read(key.crt) for key in keys))
    return path


def upstream_servers(ws, key, clients):
    """A stock nginx that wants a client certificate: over HTTP/1 at key.port, over HTTP/2 at the port that is returned. It answers
    with the protocol, the client's name and whether the session was resumed."""
    h2 = harness.free_port()
    ca = bundle(ws, clients)
    common = (f"ssl_certificate {key.crt}; ssl_certificate_key {key.key}; ssl_verify_client on; ssl_client_certificate {ca};\n"
              "        ssl_session_tickets on; location / { return 200 \"$ssl_protocol $ssl_client_s_dn $ssl_session_reused\\n\"; }")
    # No connection is kept: newer versions of nginx would use it again, and no session would be resumed.
    ws.local_nginx("    ssl_protocols TLSv1.2 TLSv1.3; keepalive_timeout 0;\n"
                   f"    server {{ listen 127.0.0.1:{key.port} ssl backlog=1024;\n        {common} }}\n"
                   f"    server {{ listen 127.0.0.1:{h2} ssl http2 backlog=1024;\n        {common} }}\n")
    return h2


class UwsgiServer:
    """Speaks uwsgi over TLS, wants a client certificate, and answers like the others."""

    def __init__(self, ws, key, clients):
        self.port = harness.free_port()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(key.crt, key.key)
        self.context.load_verify_locations(bundle(ws, clients))
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            raw = self.listener.accept()[0]
            threading.Thread(target=self.answer, args=(raw,), daemon=True).start()

    def answer(self, raw):
        try:
            raw.settimeout(20)
            with self.context.wrap_socket(raw, server_side=True) as sock:
                self.read_request(sock)
                name = dict(pair[0] for pair in sock.getpeercert()["subject"])["commonName"]
                body = f"{sock.version()} CN={name} {'r' if sock.session_reused else '.'}\n"
                sock.sendall(f"Status: 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        except OSError:
            pass  # a client that left

    @staticmethod
    def read_request(sock):
        data = b""
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[1:3], "little"):
            got = sock.recv(65536)
            if not got:
                raise OSError("end of file")
            data += got


def get(port, path="/", timeout=30):
    """GET over plain HTTP; the body, or what went wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Host": "front", "Connection": "close"})
        answer = connection.getresponse()
        body = answer.read().decode()
        return body if answer.status == 200 else f"status {answer.status}"
    except (OSError, http.client.HTTPException) as why:
        return repr(why)
    finally:
        connection.close()


class Clients:
    """Threads that call() over and over; stop() tells what they got: {result as text: how often}."""

    def __init__(self, call, clients=6):
        self.found, self.lock, self.going = {}, threading.Lock(), True
        self.threads = [threading.Thread(target=self.body, args=(call,)) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def body(self, call):
        while self.going:
            try:
                got = str(call())
            except Exception as why:  # noqa: BLE001 - whatever it is, it is a result
                got = repr(why)
            with self.lock:
                self.found[got] = self.found.get(got, 0) + 1

    def count(self):
        with self.lock:
            return sum(self.found.values())

    def stop(self):
        self.going = False
        for thread in self.threads:
            thread.join()
        return self.found


def getters(port, path, clients=6):
    return Clients(lambda: get(port, path), clients)


def quiet(nginx, parked=True):
    """No alert in the log; and nothing that waited for an agent where it should have been suspended."""
    log = nginx.log()
    bad = [line for line in log.splitlines() if re.search(r"\[(alert|emerg|crit)\]|exited on signal", line)]
    check(not bad, "error log:", "\n".join(bad[:20]))
    if parked:
        check("waits for the agent" not in log, "a handshake was not suspended")


def first_line(port, key, *args):
    """What a TLS server says before it closes, to an s_client that verifies it."""
    return run("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", "-CAfile", key.crt, "-verify_return_error",
               *args, ok=False, timeout=30).stdout
