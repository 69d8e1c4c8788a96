# SPDX-License-Identifier: Apache-2.0
"""kh-test-agent for the tests of the callers' side: an agent that delays, refuses, forgets and dies as it is told to."""
import base64
import os
import signal
import subprocess

from harness import artefact, check, kill_pid, popen, read, wait_until


class FakeAgent:
    """Has what harness.Nginx needs of an agent. Starts with start(); may be started again with other options."""

    token = None

    def __init__(self, ws, *options):
        self.dir = os.path.join(ws.dir, ws.new_name("fake"))
        os.mkdir(self.dir)
        self.socket = os.path.join(self.dir, "agent.sock")
        self.log_path = os.path.join(self.dir, "agent.log")
        self.keys, self.options, self.process = [], options, None

    def import_key(self, key):
        self.keys.append(key.key)

    def start(self, *options):
        if options:
            self.options = options
        before = read(self.log_path).count("ready")
        argv = [artefact("kh-test-agent"), "--socket", self.socket, *map(str, self.options)]
        for key in self.keys:
            argv += ["--key", key]
        self.process = popen(argv, self.log_path)
        wait_until(lambda: read(self.log_path).count("ready") > before or self.process.poll() is not None,
                   "the test agent listens")
        check(self.process.poll() is None, "the test agent does not start:", read(self.log_path))
        return self

    def stop(self, signal_number=signal.SIGTERM):
        kill_pid(self.process.pid, signal_number)
        self.process.wait(20)

    def counters(self):
        """(private-key operations, most of them outstanding at a time)"""
        before = read(self.log_path).count("operations")
        kill_pid(self.process.pid, signal.SIGUSR1)
        wait_until(lambda: read(self.log_path).count("operations") > before, "the test agent's counters")
        line = [line for line in read(self.log_path).splitlines() if line.startswith("operations")][-1]
        words = line.replace(",", "").split()
        return int(words[1]), int(words[4])


def _tlv(tag, body):
    length = len(body)
    if length < 128:
        return bytes([tag, length]) + body
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + body


def key_reference(key, name=None):
    """The PEM key reference of a harness.Key, by its name (\"\": by its public key alone)."""
    spki = subprocess.run(["openssl", "pkey", "-in", key.key, "-pubout", "-outform", "DER"], check=True,
                          stdout=subprocess.PIPE).stdout
    name = key.name if name is None else name
    der = _tlv(0x30, _tlv(0x0c, b"keyhold-reference-1") + _tlv(0x0c, name.encode()) + spki)
    text = base64.b64encode(der).decode()
    lines = [text[i:i + 64] for i in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN KEYHOLD KEY REFERENCE-----", *lines, "-----END KEYHOLD KEY REFERENCE-----", ""])


def write_reference(ws, key, name=None):
    path = os.path.join(ws.dir, f"{ws.new_name('ref')}.{key.name}.ref.pem")
    with open(path, "w") as file:
        file.write(key_reference(key, name))
    return path


def use_build_dir():
    """KH_BUILD_DIR names one build for all that a test needs, instead of one for each preset."""
    if os.environ.get("KH_BUILD_DIR"):
        for preset in ("RELEASE", "ASAN"):
            os.environ.setdefault("KH_BUILD_" + preset, os.environ["KH_BUILD_DIR"])

