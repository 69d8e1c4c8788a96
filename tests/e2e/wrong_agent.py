# SPDX-License-Identifier: Apache-2.0
"""An agent that answers wrongly on order: it stands before a real one, with real tokens and real keys, passes on what goes to and fro, and
changes what it is told to change. `how` is one of the Ways, or None while it is good."""
import os
import selectors
import socket
import struct
import threading
import time

import wire

PRIVATE = (wire.SIGN, wire.TLS_RSA, wire.DECRYPT)


class Ways:
    """Each takes a connection and a good reply to a private-key operation, and sends something else. A reply is
    [op, id, status, signature]. Those whose names begin with `request_` change the request instead."""

    @staticmethod
    def wrong_id(conn, reply):
        conn.tell([reply[0], reply[1] ^ 0x5a5a5a, *reply[2:]])

    @staticmethod
    def wrong_operation(conn, reply):
        conn.tell([wire.DECRYPT if reply[0] == wire.SIGN else wire.SIGN, *reply[1:]])

    @staticmethod
    def swapped(conn, reply):
        """The next two answers, each with the id of the other."""
        if conn.held is None:
            conn.held, conn.held_since = reply, time.monotonic()
            return
        one, conn.held = conn.held, None
        for mine, other in ((one, reply), (reply, one)):
            conn.tell([mine[0], mine[1], 0, other[3]])

    @staticmethod
    def too_short(conn, reply):
        conn.tell([*reply[:3], reply[3][:-1]])

    @staticmethod
    def too_long(conn, reply):
        conn.tell([*reply[:3], reply[3] + bytes(512)])

    @staticmethod
    def empty(conn, reply):
        conn.tell([*reply[:3], b""])

    @staticmethod
    def bad_value(conn, reply):
        """Of the right form: one bit of the last byte is another."""
        conn.tell([*reply[:3], reply[3][:-1] + bytes([reply[3][-1] ^ 1])])

    @staticmethod
    def request_other_key(conn, request):
        request[3] = conn.agent.other_key(request[3])

    @staticmethod
    def request_other_message(conn, request):
        request[6] = request[6][:-1] + bytes([request[6][-1] ^ 1])

    @staticmethod
    def garbage(conn, reply):
        conn.tell_raw(os.urandom(300))

    @staticmethod
    def oversized(conn, reply):
        conn.tell_raw(struct.pack(">I", 0x7fffffff) + b"x" * 100)

    @staticmethod
    def half_a_frame(conn, reply):
        """And silence from then on."""
        if not conn.silent:
            conn.silent = True
            conn.caller.sendall(wire.frame(reply)[:20])
        conn.agent.mangled += 1

    @staticmethod
    def late(conn, reply):
        conn.later.append((time.monotonic() + conn.agent.late_s, reply))
        conn.agent.mangled += 1

    @staticmethod
    def twice(conn, reply):
        conn.tell(reply)
        conn.tell(reply)

    @staticmethod
    def come_back_never(conn, reply):
        conn.tell([*reply[:2], wire.OVERLOADED, 0xffffffff, "come back in seven weeks"])

    @staticmethod
    def hello_wrong_proof(reply):
        reply[6] = bytes([reply[6][0] ^ 1]) + reply[6][1:]


class Connection(threading.Thread):
    """One caller's connection, and ours to the real agent for it."""

    def __init__(self, agent, caller):
        super().__init__(daemon=True)
        self.agent, self.caller = agent, caller
        self.real = socket.socket(socket.AF_UNIX)
        self.held = self.held_since = None
        self.later, self.silent = [], False
        self.buffers = {caller: bytearray(), self.real: bytearray()}

    def tell(self, reply):
        self.tell_raw(wire.frame(list(reply)))

    def tell_raw(self, data):
        self.agent.mangled += 1
        self.pass_on(data)

    def pass_on(self, data):
        if not self.silent:
            self.caller.sendall(data)

    def run(self):
        try:
            self.real.connect(self.agent.real.socket)
            with selectors.DefaultSelector() as select:
                for sock in self.buffers:
                    select.register(sock, selectors.EVENT_READ)
                while True:
                    for key, _ in select.select(0.01):
                        data = key.fileobj.recv(262144)
                        if not data:
                            return
                        self.buffers[key.fileobj] += data
                        self.frames(key.fileobj)
                    self.timers()
        except OSError:
            pass
        finally:
            self.close()

    def timers(self):
        now = time.monotonic()
        while self.later and self.later[0][0] <= now:
            self.pass_on(wire.frame(self.later.pop(0)[1]))
        if self.held is not None and now > self.held_since + 0.1:
            self.pass_on(wire.frame(self.held))  # there is none to exchange it with
            self.held = None

    def close(self):
        self.agent.connections.discard(self)
        for sock in self.buffers:
            sock.close()

    def frames(self, sock):
        buffer = self.buffers[sock]
        while len(buffer) >= 4:
            size, = struct.unpack_from(">I", buffer)
            if len(buffer) < 4 + size:
                return
            message = wire.unpack(bytes(buffer[4:4 + size]))
            del buffer[:4 + size]
            if sock is self.caller:
                self.request(message)
            else:
                self.reply(message)

    def request(self, message):
        how = self.agent.how
        if message[0] in PRIVATE:
            self.agent.requests += 1
            if how and how.__name__.startswith("request_"):
                self.agent.mangled += 1
                how(self, message)
        self.real.sendall(wire.frame(message))

    def reply(self, message):
        how = self.agent.how
        if how and how.__name__.startswith("hello_"):
            if message[0] == wire.HELLO and message[1] == wire.OK:
                self.agent.mangled += 1
                how(message)
        elif how and not how.__name__.startswith("request_") and message[0] in PRIVATE and message[2] == wire.OK:
            how(self, message)
            return
        self.pass_on(wire.frame(message))


class WrongAgent:
    """Has what nginx needs of an agent: a socket, and a token."""

    def __init__(self, ws, real, other_keys, late_s):
        self.real, self.token, self.other_keys, self.late_s = real, real.token, other_keys, late_s
        self.socket = os.path.join(ws.dir, ws.new_name("wrong") + ".sock")
        self.how = None
        self.requests = self.mangled = 0  # private-key operations; replies (with `request_`: requests) that were changed
        self.connections = set()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.socket)
        os.chmod(self.socket, 0o666)
        self.listener.listen(64)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            connection = Connection(self, self.listener.accept()[0])
            self.connections.add(connection)
            connection.start()

    def other_key(self, key):
        """Of a key's id, that of another one of its type."""
        return self.other_keys[key]
