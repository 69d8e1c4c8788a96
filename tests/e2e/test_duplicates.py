#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same key under several names, asked for by its id: the one is taken that is enabled, permitted and of a fitting usage."""
import hashlib
import os

import harness
import wire
from harness import check, run


def key_id(ws, key):
    """SHA-256 of the public key's canonical form, as SPEC.md has it."""
    run("openssl", "pkey", "-in", key.key, "-pubout", "-outform", "DER", "-out", os.path.join(ws.dir, "pub.der"))
    with open(os.path.join(ws.dir, "pub.der"), "rb") as file:
        return hashlib.sha256(file.read()).digest()


def encrypt(ws, key, plaintext):
    """PKCS#1 v1.5, by the public key."""
    paths = [os.path.join(ws.dir, name) for name in ("plain", "cipher")]
    with open(paths[0], "wb") as file:
        file.write(plaintext)
    run("openssl", "pkeyutl", "-encrypt", "-inkey", key.key, "-in", paths[0], "-out", paths[1])
    with open(paths[1], "rb") as file:
        return file.read()


def test_usage_decides(ws):
    agent = ws.agent()
    key = ws.make_key("rsa2048", "site")
    for name, usage in (("a-mail", "decrypt"), ("b-code", "sign"), ("c-site", "tls-server"), ("d-old", "tls-rsa-kx")):
        agent.ctl("key", "import", name, key.key, "--usage", usage, "--allow-duplicate")
    agent.add_identity("edge", os.path.join(agent.dir, "edge.token"), keys="?-*",
                       operations=("sign", "decrypt", "tls-rsa-decrypt", "public-key"))
    agent.add_identity("site-only", os.path.join(agent.dir, "site.token"), keys="c-*")
    agent.stop()
    agent.start()
    site = key_id(ws, key)
    message = wire.tls13_message(os.urandom(32))
    with wire.connect(agent.socket, os.path.join(agent.dir, "edge.token")) as caller:
        for _ in range(3):  # each time, whatever the directory remembers by now
            check(caller.call(wire.SIGN, site, 0x0804, 0, message)[0] == wire.OK, "a TLS server's handshake")
            check(caller.call(wire.SIGN, site, 0x0401, 1, bytes(32))[0] == wire.OK, "a bare digest")
            status, fields = caller.call(wire.DECRYPT, site, 2, b"", encrypt(ws, key, b"hello"))
            check((status, fields[0]) == (wire.OK, b"hello"), "a decryption", status, fields)
            status, fields = caller.call(wire.TLS_RSA, site, 0x0303, encrypt(ws, key, b"\3\3" + bytes(46)))
            check((status, fields[0]) == (wire.OK, b"\3\3" + bytes(46)), "a TLS RSA key exchange", status, fields)
        # Without the one that signs anything, a bare digest is no longer signed, and the reason is the usage.
        agent.ctl("key", "disable", "b-code")
        check(caller.call(wire.SIGN, site, 0x0401, 1, bytes(32))[0] == wire.USAGE, "a bare digest of a server's key")
        check(caller.call(wire.SIGN, site, 0x0804, 0, message)[0] == wire.OK, "a TLS server's handshake")
    with wire.connect(agent.socket, os.path.join(agent.dir, "site.token")) as caller:
        check(caller.call(wire.SIGN, site, 0x0804, 0, message)[0] == wire.OK, "by who may use only that one")
        check(caller.call(wire.SIGN, site, 0x0401, 1, bytes(32))[0] == wire.USAGE, "who may use only that one gets no more of it")
    ws.nginx(agent, ws.server(key))
    ws.curl(key)


if __name__ == "__main__":
    harness.main(globals())
