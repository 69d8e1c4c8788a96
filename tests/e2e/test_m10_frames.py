#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M10: no frame and no peer can hurt the running front: memory stays bounded, others are served, errors are exact."""
import fcntl
import glob
import os
import socket
import struct
import termios
import time

import harness
import wire
from harness import ROOT, check, read, status_of, wait_until

PRESET = os.environ.get("KH_PRESET", "release")
HANDSHAKE_MS, STALL_MS, MOST = 2000, 2000, 200
MEMORY_KIB = 24 * 1024  # what the front may grow by, whatever one peer does (a sanitizer build needs more)

agent = None
front_pid = None


def setup(ws):
    global agent, front_pid
    # A sanitizer keeps freed memory for a while; that is not the front's growth.
    env = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=8:" + os.environ.get("ASAN_OPTIONS", "")}
    agent = ws.agent(preset=PRESET, env=env, config=f"handshake_timeout_ms = {HANDSHAKE_MS}\nstall_timeout_ms = {STALL_MS}\n"
                                           f"max_connections = {MOST}")
    agent.ctl("key", "create", "p256", "--type", "p256")
    front_pid = agent.role_pid("front")


def caller():
    return wire.connect(agent.socket, agent.token)


def served():
    """Others are served, by the same process as at the start."""
    with caller() as other:
        check(other.call(wire.SIGN, *wire.sign_fields("p256", "p256"))[0] == wire.OK, "another caller is not served")
    check(agent.role_pid("front") == front_pid, "the front has died")
    check("Sanitizer" not in agent.log(), agent.log())


def resident_kib():
    return int(status_of(front_pid)["VmRSS"].split()[0])


class Bounded:
    """The front's memory may not grow beyond the bound within the block."""

    def __init__(self, what):
        self.what = what

    def __enter__(self):
        self.before = resident_kib()

    def __exit__(self, kind, *_):
        grown = resident_kib() - self.before
        print(f"   {self.what}: {grown:+} KiB")
        if kind is None:
            check(grown < MEMORY_KIB * (4 if PRESET in ("asan", "tsan") else 1), self.what, "grew the front by KiB", grown)


def taken(connection):
    """Waits until the agent has read everything that was sent: the next send is a read of its own."""
    def empty():
        left = fcntl.ioctl(connection.socket, termios.TIOCOUTQ, struct.pack("i", 0))
        return struct.unpack("i", left)[0] == 0
    wait_until(empty, "the agent reads", every=0)


def vectors():
    """The golden request vectors: {name: bytes}."""
    found = {}
    for path in sorted(glob.glob(os.path.join(ROOT, "protocol", "vectors", "request-*.txt"))):
        text = "".join(line.split("#")[0] for line in read(path).splitlines())
        found[os.path.basename(path)[8:-4]] = bytes.fromhex(text)
    check(len(found) >= 14, "too few vectors", len(found))
    return found


def outcome(connection, name):
    """What a vector came to: the reply without what is different each time, or the end."""
    if name == "cancel":  # no reply of its own: see that the connection goes on
        status, _ = connection.call(wire.PING)
        return "cancel", status
    reply = connection.reply()
    return (reply[0], reply[1]) if reply[0] in (wire.HELLO, wire.AUTH) else tuple(reply[:3])


def opened(name):
    """A connection in the state in which the vector may come."""
    if name.startswith("hello"):
        return wire.Caller(agent.socket)
    if name.startswith("auth"):
        connection = wire.Caller(agent.socket)
        connection.hello("" if name == "auth-uid" else "edge-1")
        return connection
    return caller()


# ---- The golden vectors --------------------------------------------------------------------------------------------------------

def test_m10_vectors_split_at_each_byte(_):
    cuts = 0
    for name, data in vectors().items():
        with opened(name) as connection:
            connection.send_raw(data)
            whole = outcome(connection, name)
        step = 1 if len(data) <= 300 else len(data) // 200
        for cut in range(1, len(data), step):
            with opened(name) as connection:
                connection.send_raw(data[:cut])
                taken(connection)
                connection.send_raw(data[cut:])
                split = outcome(connection, name)
            check(split == whole, name, "split at", cut, split, "instead of", whole)
            cuts += 1
    print(f"   {cuts} splits")
    served()


def test_m10_vectors_truncated(_):
    """A frame that never ends is never answered, and the connection ends with the peer."""
    for name, data in vectors().items():
        for length in range(1, len(data), 1 if len(data) <= 150 else len(data) // 75):
            with opened(name) as connection:
                connection.send_raw(data[:length])
                connection.socket.shutdown(socket.SHUT_WR)
                check(connection.last_word() is None, name, "of", length, "bytes was answered")
    served()


def test_m10_vectors_each_byte_flipped(_):
    """Whatever comes of it, it is a reply or the end, and nobody else notices."""
    with Bounded("flipped bytes"):
        for name, data in vectors().items():
            if name in ("import", "create"):
                continue
            for at in range(4, len(data), 1 if len(data) <= 150 else len(data) // 75):
                flipped = data[:at] + bytes([data[at] ^ (0x80 >> at % 8)]) + data[at + 1:]
                with opened(name) as connection:
                    connection.send_raw(flipped)
                    connection.socket.shutdown(socket.SHUT_WR)
                    connection.last_word()
    served()


# ---- Frames that lie -----------------------------------------------------------------------------------------------------------

LIES = {
    "array 2^32-1": b"\xdd\xff\xff\xff\xff",
    "map 2^32-1": b"\xdf\xff\xff\xff\xff",
    "bin 2^32-1": b"\x97\x04\x01\xcd\x03\xe8\xa1k\xcd\x04\x03\x00\xc6\xff\xff\xff\xff",
    "str 2^32-1": b"\x97\x04\x01\xcd\x03\xe8\xdb\xff\xff\xff\xff",
    "ext 2^32-1": b"\xc9\xff\xff\xff\xff\x01",
    "array 2^16-1": b"\xdc\xff\xff",
    "nesting": b"\x91" * 1000,
    "nothing": b"\xc1",
    "a number": b"\x05",
    "an empty array": b"\x90",
    "floats": b"\x93\x02\xca\x00\x00\x00\x00\x01",
    "trailing bytes": wire.pack([wire.PING, 1, 1000]) + b"\x00",
    "a long form": b"\x93\x02\xcc\x01\xcd\x03\xe8",
}


def test_m10_lying_frames(_):
    with Bounded("lying frames, 100 times each"):
        for name, payload in LIES.items():
            for _ in range(100):
                with caller() as connection:
                    connection.send_raw(wire.frame(payload))
                    check(connection.last_word() == wire.MALFORMED, name)
            with wire.Caller(agent.socket) as connection:
                connection.send_raw(wire.frame(payload))
                word = connection.last_word()
                check(word in (wire.MALFORMED, wire.ORDER), name, "before hello:", word)
    served()


def test_m10_lying_lengths(_):
    with Bounded("lengths"):
        for length in (0, 65537, 1 << 20, (1 << 32) - 1):
            with caller() as connection:
                connection.send_raw(struct.pack(">I", length))
                check(connection.last_word() == wire.MALFORMED, "length", length)
        with wire.Caller(agent.socket) as connection:  # before hello the cap is 1024
            connection.send_raw(struct.pack(">I", 1025))
            check(connection.last_word() == wire.MALFORMED, "length 1025 before hello")
    with caller() as connection:  # announces much, sends little: costs what it sent
        with Bounded("a frame that never comes"):
            connection.send_raw(struct.pack(">I", 65536) + bytes([0x97]))
            taken(connection)
    served()


def test_m10_order(_):
    """What comes out of order is refused by name."""
    with wire.Caller(agent.socket) as connection:
        connection.send(wire.PING, 1, 1000)
        check(connection.last_word() == wire.ORDER, "ping before hello")
    with caller() as connection:
        connection.send(wire.HELLO, 1, 1, 65536, "x", "", bytes(32))
        check(connection.last_word() == wire.ORDER, "hello twice")
    with caller() as connection:
        wire.freeze(agent.role_pid("keeper"))
        try:
            connection.send(wire.SIGN, 7, 2000, *wire.sign_fields("p256", "p256"))
            connection.send(wire.SIGN, 7, 2000, *wire.sign_fields("p256", "p256"))
            check(connection.last_word() == wire.INVALID, "an id used twice")
        finally:
            wire.thaw(agent.role_pid("keeper"))
    with caller() as connection:
        status, _ = connection.call(77)
        check(status == wire.UNSUPPORTED, "an unknown operation", status)
        check(connection.call(wire.PING)[0] == wire.OK, "the connection goes on")
        check(connection.call(wire.SIGN, "p256", 0x0403, 0, bytes(16385))[0] == wire.TOO_LARGE, "17 KiB to sign")
        check(connection.call(wire.PING)[0] == wire.OK, "the connection goes on")
    served()


def test_m10_wrong_proof_and_unknown_identity_look_alike(_):
    words = []
    for identity in ("nginx", "nobody-has-this-name"):
        with wire.Caller(agent.socket) as connection:
            hello = connection.hello(identity)
            check(len(hello[6]) == 32, "a proof in any case")
            connection.send(wire.AUTH, bytes(32))
            words.append(connection.reply())
            check(connection.last_word() is None, "the connection ends")
    check(words[0] == words[1] and words[0][1] == wire.UNAUTHENTICATED, "they differ:", words)
    served()


def test_m10_unknown_and_forbidden_look_alike(ws):
    agent.add_identity("narrow", os.path.join(agent.dir, "narrow.token"), keys="site-*", operations=("sign",))
    agent.reload()
    wait_until(lambda: "configuration_applied" in agent.log(), "the new configuration")
    with wire.connect(agent.socket, os.path.join(agent.dir, "narrow.token")) as connection:
        answers = [connection.call(wire.SIGN, *wire.sign_fields(key, "p256")) for key in ("p256", "absent", "site-absent", bytes(32))]
        answers.append(connection.call(wire.PUBLIC, "p256"))
    check(all(answer == answers[0] for answer in answers) and answers[0][0] == wire.NOT_FOUND, answers)
    for key, why in (("p256", "forbidden"), ("site-absent", "unknown"), ("00" * 32, "unknown")):
        check(f"key={key} why={why}" in agent.log(), "the log does not tell", key, why, agent.log()[-2000:])
    served()


# ---- Peers that misbehave -------------------------------------------------------------------------------------------------------

def test_m10_a_million_pings(_):
    count, window = 1_000_000, 1000
    with Bounded("a million pings"), caller() as connection:
        connection.socket.settimeout(60)
        sent = got = 0
        batch = b"".join(wire.frame([wire.PING, number, 1000]) for number in range(window))
        while got < count:
            if sent < count:
                connection.send_raw(batch)
                sent += window
            while got < sent:
                reply = connection.take()
                if reply is None:
                    check(connection.fill(), "the agent closed")
                elif reply[2] == wire.OK:
                    got += 1
                else:
                    check(False, "a ping was refused", reply)
    served()


def test_m10_a_peer_that_never_reads(_):
    """It is read no more when its replies pile up, and closed when nothing moves for the time configured."""
    requests = {"pings": lambda number: [wire.PING, number, 1000], "status": lambda number: [wire.STATUS, number, 1000],
                "list": lambda number: [wire.LIST, number, 1000, "*", "", 64],
                "sign": lambda number: [wire.SIGN, number, 60000, *wire.sign_fields("p256", "p256")]}
    for name, make in requests.items():
        with Bounded(f"never reads: {name}"), wire.connect(agent.socket) as connection:
            connection.socket.setblocking(False)
            number, begun, blocked = 0, time.monotonic(), None
            data = b""
            while blocked is None or time.monotonic() - blocked < 0.3:
                if not data:
                    number += 1
                    data = wire.frame(make(number % 900 if name == "sign" else number))
                try:
                    data = data[connection.socket.send(data):]
                    blocked = None
                except BlockingIOError:
                    blocked = blocked or time.monotonic()
                    time.sleep(0.005)
                except (BrokenPipeError, ConnectionResetError):
                    break  # an id used twice: the session ended it
                check(time.monotonic() - begun < 60, name, "is never stopped", number)
            served()
            connection.socket.setblocking(True)
            begun = time.monotonic()
            gone = wait_until(lambda: closed_by_agent(connection), f"{name}: the agent gives it up", 15, every=0.05)
            check(gone, name)
    served()


def closed_by_agent(connection):
    """Whether the agent has closed its end, seen without reading: sending fails."""
    try:
        connection.socket.send(b"", socket.MSG_DONTWAIT)
        connection.socket.send(b"\0", socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


def test_m10_a_peer_that_says_nothing(_):
    """Silent callers fill the front; known ones still get in, and the silent ones are closed in time."""
    silent = []
    with Bounded(f"{MOST + 50} silent peers"):
        for _ in range(MOST + 50):
            connection = wire.Caller(agent.socket)
            silent.append(connection)
        served()
    begun = time.monotonic()
    for connection in silent:
        check(connection.last_word() is None, "a silent peer was answered")
    took = time.monotonic() - begun
    check(took < HANDSHAKE_MS / 1000 + 3, "they were closed after", took)
    served()


def test_m10_half_a_hello(_):
    """One byte at a time does not keep a connection alive that never says who it is."""
    hello = wire.frame([wire.HELLO, 1, 1, 65536, "slow", "", bytes(32)])
    with wire.Caller(agent.socket) as connection:
        begun = time.monotonic()
        try:
            for byte in hello:
                connection.send_raw(bytes([byte]))
                time.sleep(0.1)
        except OSError:
            pass
        took = time.monotonic() - begun
        check(took < HANDSHAKE_MS / 1000 + 2, "it could go on for", took)
    served()


def test_m10_cancel(_):
    """Cancels, of what is there, what is not, twice: each request still gets exactly one reply."""
    with Bounded("cancels"), caller() as connection:
        for _ in range(20):
            ids = [connection.submit(wire.SIGN, *wire.sign_fields("p256", "p256")) for _ in range(50)]
            for number in ids + ids + [4_000_000_000]:
                connection.send(wire.CANCEL, number)
            replies = [connection.reply() for _ in ids]
            check(sorted(reply[1] for reply in replies) == ids, "one reply each")
            check({reply[2] for reply in replies} <= {wire.OK, wire.CANCELLED}, {reply[2] for reply in replies})
    served()


def test_m10_credit_and_deadline(_):
    with caller() as connection:
        wire.freeze(agent.role_pid("keeper"))
        try:
            begun = time.monotonic()
            status, _ = connection.call(wire.SIGN, *wire.sign_fields("p256", "p256"), deadline_ms=100)
            took = time.monotonic() - begun
            check(status == wire.DEADLINE and 0.09 < took < 1, "a stuck keeper:", status, took)
            for number in range(connection.credit + 1):
                connection.send(wire.SIGN, 10000 + number, 2000, *wire.sign_fields("p256", "p256"))
            check(connection.last_word() == wire.OVERLOADED, "more than the credit")
        finally:
            wire.thaw(agent.role_pid("keeper"))
    served()


if __name__ == "__main__":
    harness.main(globals())
