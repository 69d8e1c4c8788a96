#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""keyholdctl at a real terminal: the completion in an interactive bash, and `status --watch`."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time

import harness
from harness import READY_S, artefact, check, run, wait_until

agent = None


def setup(ws):
    global agent
    agent = ws.agent()
    for kind in ("p256", "p384", "ed25519"):
        agent.ctl("key", "create", "key-" + kind, "--type", kind)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, rows, columns, *argv):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(argv[0], [str(a) for a in argv])
        harness._popen_pids.add(self.pid)
        self.seen = ""
        self.resize(rows, columns)

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.fd, text.encode())

    def read(self, seconds=0.0):
        """All that was shown so far, after waiting for more."""
        while select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data.decode(errors="replace")
            seconds = 0.05
        return self.seen

    def until(self, pattern, what):
        return wait_until(lambda: re.search(pattern, self.read(0.05), re.S), f"{what}: {self.seen!r}")

    def end(self):
        """Its exit status; waits for it."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self.read(0.05)
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
        raise harness.Failure("does not end")


def test_completion(ws):
    script = os.path.join(ws.dir, "keyholdctl.bash")
    with open(script, "w") as file:
        file.write(run(artefact("keyholdctl"), "completion", "bash").stdout)
    shell = Terminal(24, 200, "/bin/bash", "--norc", "--noprofile")
    shell.type(f"PS1='> '; PATH={os.path.dirname(artefact('keyholdctl'))}:$PATH; . {script}; echo sour''ced\n")
    shell.until("sourced", "the completion is read")
    for typed, completed in (("keyholdctl key im", "port "), ("keyholdctl check-n", "ginx "),
                             ("keyholdctl key create x --ty", "pe "), ("keyholdctl key create x --type p3", "84 "),
                             ("keyholdctl key create x --type=ed", "25519 "),
                             ("keyholdctl key create x --usage tls-server,dec", "rypt "),
                             ("keyholdctl key create x --usage=si", "gn "),
                             (f"keyholdctl --config {agent.conf} key show key-e", "d25519 "),
                             (f"keyholdctl --config={agent.conf} key show key-e", "d25519 "),
                             (f"keyholdctl key import x {ws.dir}/keyh", "oldctl.bash ")):
        shell.seen = ""
        shell.type(typed + "\t")
        shell.until(re.escape(typed + completed) + "$", f"{typed} is completed")
        shell.type("\x15")  # ^U
    shell.type("\nexit\n")
    check(shell.end() == 0, "the shell's exit status")


def pictures(text):
    return text.replace("\r\n", "\n").split("\x1b[H\x1b[2J")[1:]


def test_watch(_):
    watching = Terminal(8, 40, artefact("keyholdctl"), "--config", agent.conf, "status", "--watch=60")
    watching.until("LANE", "a first picture")
    picture = pictures(watching.read(0.2))[-1]
    lines = picture.split("\n")
    check(len(lines) == 8 and lines.pop() == "", "as many lines as fit, and the cursor below them", lines)
    check(max(len(line) for line in lines) == 40, "lines as long as fit", lines)
    check("keyholdd" in lines[0] and "LANE" in lines[4], lines)
    watching.resize(60, 250)
    watching.until("connections: ", "a larger picture at once, not a minute later")
    picture = pictures(watching.read(0.2))[-1]
    check("keyholdd" in picture and "OPERATION" in picture and "CALLER" in picture and "queues: " in picture, picture)
    check("p999 µs" in picture, "characters are whole", picture)
    before = termios.tcgetattr(watching.fd)
    watching.type("\x03")
    check(watching.end() == -signal.SIGINT, "ends by ^C")
    check(termios.tcgetattr(watching.fd) == before and before[3] & termios.ECHO, "the terminal is as it was")


if __name__ == "__main__":
    harness.main(globals())
