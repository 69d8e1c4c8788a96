# SPDX-License-Identifier: Apache-2.0
"""The protocol in a few lines of Python, for tests that must say exactly what goes over the wire (protocol/SPEC.md).

    with wire.connect(agent.socket, agent.token) as caller:
        status, fields = caller.call(wire.SIGN, "www", 0x0403, 0, wire.tls13_message())
"""
import hashlib
import hmac
import os
import select
import signal
import socket
import ssl
import struct
import time

HELLO, AUTH, PING, CANCEL, SIGN, TLS_RSA, DECRYPT, PUBLIC, LIST, STATUS = range(10)
IMPORT_KEY, CREATE, IMPORT, SET_STATE = 16, 17, 18, 19

OK, MALFORMED, UNSUPPORTED, UNAUTHENTICATED, NOT_FOUND, USAGE = 0, 2, 3, 4, 5, 6
DISABLED, INVALID, TOO_LARGE, OVERLOADED, DEADLINE, CANCELLED, UNAVAILABLE, ORDER, FORBIDDEN = 8, 15, 16, 17, 19, 20, 21, 25, 28
RETRYABLE = {17, 18, 21, 24, 26, 27}

# One build directory for whatever preset a test asks for.
if "KH_BUILD_DIR" in os.environ:
    for _preset in ("RELEASE", "DEV", "ASAN", "TSAN"):
        os.environ.setdefault("KH_BUILD_" + _preset, os.environ["KH_BUILD_DIR"])


class Closed(Exception):
    """The agent closed the connection; args[0] is its last word (status, detail), if there was one."""


# ---- msgpack, shortest form ---------------------------------------------------------------------------------------------------

def _number(value):
    if value < 0x80:
        return bytes([value])
    for mark, form, limit in ((0xcc, ">B", 1 << 8), (0xcd, ">H", 1 << 16), (0xce, ">I", 1 << 32), (0xcf, ">Q", 1 << 64)):
        if value < limit:
            return bytes([mark]) + struct.pack(form, value)
    raise ValueError(value)


def _sized(marks, size):
    for mark, form, limit in marks:
        if size < limit:
            return bytes([mark]) + struct.pack(form, size)
    raise ValueError(size)


def pack(value):
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, str):
        raw = value.encode()
        head = bytes([0xa0 | len(raw)]) if len(raw) < 32 else _sized(((0xd9, ">B", 256), (0xda, ">H", 65536)), len(raw))
        return head + raw
    if isinstance(value, (bytes, bytearray)):
        return _sized(((0xc4, ">B", 256), (0xc5, ">H", 65536), (0xc6, ">I", 1 << 32)), len(value)) + bytes(value)
    head = bytes([0x90 | len(value)]) if len(value) < 16 else _sized(((0xdc, ">H", 65536),), len(value))
    return head + b"".join(pack(item) for item in value)


def _unpack(data, at):
    mark = data[at]
    at += 1
    if mark < 0x80:
        return mark, at
    if 0x90 <= mark < 0xa0:
        return _items(data, at, mark & 15)
    if 0xa0 <= mark < 0xc0:
        return data[at:at + (mark & 31)].decode(), at + (mark & 31)
    if mark in (0xc2, 0xc3):
        return mark == 0xc3, at
    form = {0xc4: ">B", 0xc5: ">H", 0xc6: ">I", 0xcc: ">B", 0xcd: ">H", 0xce: ">I", 0xcf: ">Q", 0xd9: ">B", 0xda: ">H",
            0xdb: ">I", 0xdc: ">H"}[mark]
    value, = struct.unpack_from(form, data, at)
    at += struct.calcsize(form)
    if mark in (0xc4, 0xc5, 0xc6):
        return bytes(data[at:at + value]), at + value
    if mark in (0xd9, 0xda, 0xdb):
        return data[at:at + value].decode(), at + value
    if mark == 0xdc:
        return _items(data, at, value)
    return value, at


def _items(data, at, count):
    items = []
    for _ in range(count):
        item, at = _unpack(data, at)
        items.append(item)
    return items, at


def unpack(data):
    value, at = _unpack(data, 0)
    if at != len(data):
        raise ValueError("trailing bytes")
    return value


def frame(message):
    payload = message if isinstance(message, bytes) else pack(message)
    return struct.pack(">I", len(payload)) + payload


# ---- A connection -------------------------------------------------------------------------------------------------------------

def read_token(path):
    with open(path) as file:
        _, name, secret = file.read().split()
    return name, bytes.fromhex(secret)


def prove(secret, label, nonce_client, nonce_agent):
    return hmac.new(secret, label + nonce_client + nonce_agent, hashlib.sha256).digest()


class Caller:
    """One connection. Replies may be read one by one (reply) or waited for by id (call)."""

    def __init__(self, path, timeout=30, connected=None):
        self.socket = connected or socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        if not connected:
            self.socket.connect(path)
        self.buffer = bytearray()
        self.next_id = 1
        self.credit = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send_raw(self, data):
        self.socket.sendall(data)

    def send(self, *message):
        self.send_raw(frame(list(message)))

    def fill(self):
        """One read; False at the end of the stream."""
        try:
            data = self.socket.recv(262144)
        except (ConnectionResetError, BrokenPipeError):
            return False
        self.buffer += data
        return bool(data)

    def take(self):
        """A frame that is there already, decoded; else None."""
        if len(self.buffer) < 4:
            return None
        size, = struct.unpack_from(">I", self.buffer)
        if len(self.buffer) < 4 + size:
            return None
        message = unpack(bytes(self.buffer[4:4 + size]))
        del self.buffer[:4 + size]
        return message

    def reply(self):
        """The next frame."""
        while (message := self.take()) is None:
            if not self.fill():
                raise Closed(None)
        return message

    def last_word(self):
        """Reads to the end of the stream; the status of the agent's last word, None if it had none."""
        word = None
        try:
            while True:
                message = self.reply()
                word = message[1] if message[0] in (HELLO, AUTH) else None
        except Closed:
            return word

    def ready(self, seconds=0):
        return bool(select.select([self.socket], [], [], seconds)[0])

    def hello(self, identity="", nonce=None, max_frame=65536):
        self.nonce = nonce or os.urandom(32)
        self.send(HELLO, 1, 1, max_frame, "test", identity, self.nonce)
        reply = self.reply()
        if reply[1] != OK:
            raise Closed((reply[1], reply[2]))
        self.credit, self.nonce_agent, self.agent_proof = reply[4], reply[5], reply[6]
        return reply

    def handshake(self, token=None):
        name, secret = read_token(token) if token else ("", b"")
        self.hello(name)
        if token and self.agent_proof != prove(secret, b"keyhold-1 agent", self.nonce, self.nonce_agent):
            raise Closed("the agent's proof is wrong")
        self.send(AUTH, prove(secret, b"keyhold-1 client", self.nonce, self.nonce_agent) if token else b"")
        reply = self.reply()
        if reply[1] != OK:
            raise Closed((reply[1], reply[2]))
        self.identity = reply[2]
        return self

    def submit(self, op, *fields, deadline_ms=10000):
        """Sends a request and returns its id."""
        request_id, self.next_id = self.next_id, self.next_id + 1
        self.send(op, request_id, deadline_ms, *fields)
        return request_id

    def call(self, op, *fields, deadline_ms=10000):
        """One request alone: (status, fields after it)."""
        request_id = self.submit(op, *fields, deadline_ms=deadline_ms)
        reply = self.reply()
        if reply[0] == HELLO:
            raise Closed((reply[1], reply[2]))
        if reply[0] != op or reply[1] != request_id:
            raise ValueError(f"reply to something else: {reply[:3]}")
        return reply[2], reply[3:]


class TlsCaller(Caller):
    """A caller over TCP. identity: a pki.Certificate, None: it shows none. `more` goes to tls_socket."""

    def __init__(self, port, ca, identity, timeout=30, **more):
        super().__init__(None, timeout, tls_socket(port, ca, identity, timeout, **more))

    def handshake(self, token=None):
        super().handshake(token)
        self.session = self.socket.session  # the ticket has come by now
        return self

    def ready(self, seconds=0):
        return self.socket.pending() > 0 or super().ready(seconds)


def tls_context(ca, identity, alpn=("keyhold/1",), version=ssl.TLSVersion.TLSv1_3):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if identity:
        context.load_cert_chain(identity.crt, identity.key)
    return context


def tls_socket(port, ca, identity, timeout=30, name="127.0.0.1", session=None, context=None, **more):
    """Connected and through its half of the TLS handshake; whether the agent likes us shows with the first read."""
    context = context or tls_context(ca, identity, **more)
    raw = socket.create_connection(("127.0.0.1", port), timeout)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(raw, server_hostname=name, session=session)


def connect(path, token=None, timeout=30):
    """A caller that is ready."""
    return Caller(path, timeout).handshake(token)


def connect_until(path, token=None, seconds=10):
    """The same, tried again while the agent is not there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connect(path, token)
        except (OSError, Closed):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def freeze(pid):
    """Stops a process and waits until every thread of it stands still; the signal alone returns before."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while any(open(f"/proc/{pid}/task/{thread}/stat").read().rsplit(")", 1)[1].split()[0] != "T"
              for thread in os.listdir(f"/proc/{pid}/task")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} does not stop")
        time.sleep(0.001)


def thaw(pid):
    os.kill(pid, signal.SIGCONT)


def tls13_message(digest=bytes(32)):
    """What a TLS 1.3 server signs."""
    return b" " * 64 + b"TLS 1.3, server CertificateVerify\0" + digest


SCHEMES = {"rsa2048": 0x0804, "rsa3072": 0x0804, "rsa4096": 0x0804, "p256": 0x0403, "p384": 0x0503, "p521": 0x0603,
           "ed25519": 0x0807}


def sign_fields(key, kind, digest=None):
    """The fields of a sign request that this type of key accepts."""
    size = {0x0503: 48}.get(SCHEMES[kind], 32)
    return key, SCHEMES[kind], 0, tls13_message(digest or os.urandom(size))
