#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""F2: both agents are gone, then one comes back. For a second an agent may be about to be back, and is waited for; after that a handshake
fails within a second (keyhold_timeout is 5 s). nginx's log gets at most one line a second about it, besides the one that says of each
agent that it is out of reach, and why. Within a second of the return handshakes succeed again, and from then on all do."""
import os
import re
import signal
import socket
import ssl
import threading
import time

import harness
from fleet import Fleet
from harness import check, wait_until

GRACE_S, FAST_S, BACK_S, GONE_S, CLIENTS = 1.0, 1.0, 1.0, 5, 20
STAMP = re.compile(r"^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) \[(\w+)\]")


class Clients:
    """Twenty clients, each with one handshake after another; every one is noted: (begun, seconds, succeeded)."""

    def __init__(self, key):
        self.key, self.noted, self.ending = key, [], False
        self.context = ssl.create_default_context(cafile=key.crt)
        self.threads = [threading.Thread(target=self.body, daemon=True) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def body(self):
        while not self.ending:
            begun = time.monotonic()
            good = True
            try:
                with socket.create_connection(("127.0.0.1", self.key.port), timeout=15) as raw:
                    with self.context.wrap_socket(raw, server_hostname=self.key.host):
                        pass
            except OSError:
                good = False
            self.noted.append((begun, time.monotonic() - begun, good))
            time.sleep(0.2)

    def since(self, moment, until=None):
        return [one for one in list(self.noted) if one[0] >= moment and (until is None or one[0] < until)]

    def stop(self):
        self.ending = True
        for thread in self.threads:
            thread.join(20)


def keyhold_lines(text):
    """(second, line) of those that an operator sees: warn and above."""
    return [(match[1], line) for line in text.splitlines()
            if (match := STAMP.match(line)) and match[2] not in ("debug", "info", "notice") and "keyhold" in line]


def both_gone(ws, kinds):
    key = ws.make_key("p256")
    fleet = Fleet(ws, kinds, [key])
    nginx = ws.nginx(None, fleet.directives("keyhold_timeout 5s;") + ws.server(key))
    clients = Clients(key)
    fleet.in_use()
    told = len(nginx.log())
    for member in fleet.members:
        member.kill()
    wait_until(lambda: all(f"agent {member.address} is out of reach" in nginx.log() for member in fleet.members),
               "the log says so of both", 10)
    gone = time.monotonic()
    time.sleep(GONE_S)

    back = fleet.members[0]
    back.start()
    ready = time.monotonic()
    wait_until(lambda: [one for one in clients.since(gone) if one[2]], "a handshake succeeds again", 10, every=0.01)
    first = min(begun + took for begun, took, good in clients.since(gone) if good) - ready
    time.sleep(1.5)
    clients.stop()

    outage = clients.since(gone, ready - FAST_S)
    slowest = max(begun + took - max(begun, gone + GRACE_S) for begun, took, _ in outage)
    after = clients.since(ready + BACK_S)
    lines = keyhold_lines(nginx.log()[told:])
    states = [line for _, line in lines if " is out of reach" in line or " is back" in line]
    seconds = {}
    for second, line in lines:
        if line not in states:
            seconds.setdefault(second, []).append(line)
    print(f"F2: {'+'.join(kinds)}: {len(outage)} handshakes failed, the slowest {slowest:.3f} s after the agents were found gone; {len(lines)} lines in {GONE_S} s "
          f"and more; the first success {first:.3f} s after the agent was ready; {len(after)} later, "
          f"{sum(not good for _, _, good in after)} failed")
    check(len(outage) >= CLIENTS and not [one for one in outage if one[2]], "nobody was served meanwhile", len(outage))
    check(slowest <= FAST_S, f"failing fast: {slowest:.3f} s")
    crowded = {second: found for second, found in seconds.items() if len(found) > 1}
    check(not crowded, "more than one line in a second:", crowded)
    check(seconds, "but it is said:", lines)
    anew = 2 * int((time.monotonic() - gone) / 10)  # another reason than before, at most every ten seconds
    check(len(states) <= 2 + 1 + anew, "each agent's state is said once:", states)
    check(first <= BACK_S, f"works again after {first:.3f} s")
    check(after and all(good for _, _, good in after), "all is well after that:", after)


def test_f2_two_unix_sockets(ws):
    both_gone(ws, ["unix", "unix"])


def test_f2_unix_and_tcp(ws):
    both_gone(ws, ["tcp", "unix"])


if __name__ == "__main__":
    harness.main(globals())
