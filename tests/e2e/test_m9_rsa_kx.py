#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M9 on the wire: TLS RSA key exchange through nginx, and what a prober sees of a bad ClientKeyExchange.

A TLS 1.2 client of our own (RFC 5246) sends ClientKeyExchange messages whose decryption differs in padding, version, separator and
length. Whatever is wrong, nginx must answer with the same bytes; only a right premaster secret makes a handshake.
"""
import os
import re
import socket
import struct

import harness
from harness import check, run

SUITE = 0x009C  # TLS_RSA_WITH_AES_128_GCM_SHA256, RFC 5288
agent = None
allowed = forbidden = local = None
modulus = exponent = 0


def setup(ws):
    global agent, allowed, forbidden, local, modulus, exponent
    agent = ws.agent()
    allowed = ws.make_key("rsa2048", "kx")
    agent.import_key(allowed, "--usage", "tls-server,tls-rsa-kx")
    forbidden = ws.make_key("rsa2048", "nokx")
    agent.import_key(forbidden)
    local = ws.make_key("rsa2048", "localkx")
    ciphers = "ssl_ciphers AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256;"
    ws.nginx(agent, "".join(ws.server(key, extra=ciphers, local=key is local) for key in (allowed, forbidden, local)))
    text = run("openssl", "x509", "-in", allowed.crt, "-noout", "-pubkey").stdout
    text = run("openssl", "pkey", "-pubin", "-noout", "-text", input=text).stdout
    modulus = int(re.sub(r"[^0-9a-f]", "", text.split("Modulus:")[1].split("Exponent")[0]), 16)
    exponent = int(re.search(r"Exponent: (\d+)", text).group(1))


def handshake_message(kind, body):
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def record(kind, body):
    return struct.pack(">BHH", kind, 0x0303, len(body)) + body


def read_exactly(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def probe(key, ciphertext, length=None):
    """Sends a ClientKeyExchange with these bytes and a Finished of rubbish; everything that nginx answers."""
    with socket.create_connection(("127.0.0.1", key.port), 10) as sock:
        sock.settimeout(10)
        name = key.host.encode()
        sni = struct.pack(">HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
        algorithms = bytes.fromhex("000d0006000404010804")
        extensions = sni + algorithms
        hello = (b"\x03\x03" + os.urandom(32) + b"\x00" + struct.pack(">HH", 2, SUITE) + b"\x01\x00"
                 + struct.pack(">H", len(extensions)) + extensions)
        sock.sendall(record(22, handshake_message(1, hello)))
        handshake = b""
        while not handshake.endswith(handshake_message(14, b"")):
            header = read_exactly(sock, 5)
            check(len(header) == 5 and header[0] == 22, "no ServerHelloDone:", header)
            handshake += read_exactly(sock, int.from_bytes(header[3:5], "big"))
        exchange = struct.pack(">H", len(ciphertext) if length is None else length) + ciphertext
        sock.sendall(record(22, handshake_message(16, exchange)) + record(20, b"\x01") + record(22, bytes(40)))
        answer = b""
        try:
            while more := sock.recv(4096):
                answer += more
        except ConnectionResetError:
            pass
        return answer


def encrypt(block):
    return pow(int.from_bytes(block, "big"), exponent, modulus).to_bytes(256, "big")


def block(first=0, second=2, separator=0, version=b"\x03\x03", filler=b"\x41" * 205, premaster_len=46):
    return bytes([first, second]) + filler + bytes([separator]) + version + bytes(premaster_len)


FAULTS = {
    "right form, unknown secret": lambda: encrypt(block()),
    "first byte": lambda: encrypt(block(first=1)),
    "block type 1": lambda: encrypt(block(second=1)),
    "no separator": lambda: encrypt(block(separator=7)),
    "zero early in the padding": lambda: encrypt(block(filler=b"\x41" * 3 + b"\0" + b"\x41" * 201)),
    "zero late in the padding": lambda: encrypt(block(filler=b"\x41" * 204 + b"\0")),
    "version 3.2": lambda: encrypt(block(version=b"\x03\x02")),
    "version 0": lambda: encrypt(block(version=b"\0\0")),
    "secret too short": lambda: encrypt(block(filler=b"\x41" * 206, premaster_len=45)),
    "secret too long": lambda: encrypt(block(filler=b"\x41" * 204, premaster_len=47)),
    "all zero": lambda: bytes(256),
    "one": lambda: bytes(255) + b"\x01",
    "modulus": lambda: modulus.to_bytes(256, "big"),
    "beyond the modulus": lambda: b"\xff" * 256,
    "random": lambda: os.urandom(256),
    "one byte short": lambda: encrypt(block())[:255],
    "one byte long": lambda: encrypt(block()) + b"\0",
    "eight bytes": lambda: bytes(8),
}


def test_m9_works_when_allowed(ws):
    done = ws.s_client(allowed, "-tls1_2", "-cipher", "AES128-GCM-SHA256")
    check("Cipher is AES128-GCM-SHA256" in done.stdout, done.stdout[-1500:])


def test_m9_refused_without_the_usage(ws):
    done = ws.s_client(forbidden, "-tls1_2", "-cipher", "AES128-GCM-SHA256", ok=False)
    check(done.returncode != 0 and " alert " in done.stderr, done.stdout[-1500:], done.stderr)
    check("ECDHE" in ws.s_client(forbidden, "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256").stdout)


def test_m9_all_faults_look_alike(ws):
    answers = {what: probe(allowed, make()) for what, make in FAULTS.items()}
    expected = answers["right form, unknown secret"]
    check(expected == bytes.fromhex("15030300020214"), "not a bad_record_mac alert:", expected)
    for what, answer in answers.items():
        check(answer == expected, what, answer)


def test_m9_same_alert_as_a_local_key(ws):
    # Below any modulus of 2048 bits: OpenSSL alone, with a local key, answers what lies above it with another alert.
    answers = [probe(key, b"\0" + os.urandom(255)) for key in (local, allowed)]
    check(answers[0] == answers[1], "a prober can tell remote from local keys:", answers)


if __name__ == "__main__":
    harness.main(globals())
