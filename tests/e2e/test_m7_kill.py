#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M7: the front and the keeper are killed under load, 50 times. Operations in flight fail with a retryable error, the agent
is back within a second, and nothing else is lost.

KH_KILLS says how often (default 50).
"""
import os
import signal
import threading
import time

import harness
import wire
from harness import check, wait_until

PRESET = os.environ.get("KH_PRESET", "release")
KILLS = int(os.environ.get("KH_KILLS", "50"))
BACK_S = 1.0
SERVE_S = 0.7         # so long a role serves before it is killed again: it is no crash loop
OUTSTANDING = 48      # per caller

agent = None


class Load(threading.Thread):
    """A caller that keeps requests outstanding and keeps account of what became of each."""

    def __init__(self, key, kind):
        super().__init__(daemon=True)
        self.key, self.kind = key, kind
        self.ending = False
        self.sent = self.done = self.retryable = self.lost_with_connection = self.connections = 0
        self.odd = {}
        self.error = None

    def run(self):
        try:
            while not self.ending:
                self.one_connection()
        except Exception as error:  # noqa: BLE001 - reported by the test
            self.error = error

    def one_connection(self):
        try:
            caller = wire.connect_until(agent.socket, agent.token)
        except (OSError, wire.Closed):
            return
        self.connections += 1
        waiting = set()
        try:
            with caller:
                while not self.ending or waiting:
                    while not self.ending and len(waiting) < OUTSTANDING:
                        waiting.add(caller.submit(wire.SIGN, *wire.sign_fields(self.key, self.kind)))
                        self.sent += 1
                    reply = caller.reply()
                    if reply[0] == wire.HELLO:
                        raise wire.Closed(reply[1:])
                    waiting.remove(reply[1])  # KeyError: a reply that nobody waits for
                    self.account(reply)
        except (OSError, wire.Closed):
            self.lost_with_connection += len(waiting)

    def account(self, reply):
        if reply[2] == wire.OK:
            self.done += 1
        elif reply[2] in wire.RETRYABLE:
            self.retryable += 1
        else:
            self.odd[reply[2]] = self.odd.get(reply[2], 0) + 1


def setup(ws):
    global agent
    agent = ws.agent(preset=PRESET)
    for kind in ("p256", "rsa2048"):
        agent.ctl("key", "create", kind, "--type", kind)


def signs():
    """Whether a new caller gets a signature."""
    try:
        with wire.connect(agent.socket, agent.token, timeout=5) as caller:
            return caller.call(wire.SIGN, *wire.sign_fields("p256", "p256"), deadline_ms=5000)[0] == wire.OK
    except (OSError, wire.Closed):
        return False


def kill(role):
    """Kills it and returns the seconds until the agent signs again."""
    pid = agent.role_pid(role)
    check(pid, "there is no", role)
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not harness.alive(pid), "it dies", 5, every=0.001)
    wait_until(signs, f"the agent signs after its {role} was killed", every=0.002)
    return time.monotonic() - begun


def test_m7_killed_under_load(_):
    loads = [Load(kind, kind) for kind in ("p256", "rsa2048", "p256", "rsa2048")]
    descriptors = len(os.listdir(f"/proc/{agent.pid}/fd"))
    for load in loads:
        load.start()
    time.sleep(0.5)
    slowest = {"front": 0, "keeper": 0}
    since = {"front": 0, "keeper": 0}
    for turn in range(KILLS):
        role = ("front", "keeper")[turn % 2]
        expected = len(loads) * (1 + (turn + 1) // 2)  # each killed front costs each caller one
        wait_until(lambda: sum(load.connections for load in loads) == expected, "the callers are connected")
        time.sleep(max(0, since[role] + SERVE_S - time.monotonic()))
        back = kill(role)
        since[role] = time.monotonic()
        slowest[role] = max(slowest[role], back)
        check(back <= BACK_S, f"kill {turn} of the {role}: back after {back:.3f} s")
        if role == "keeper":
            check(sum(load.connections for load in loads) == expected, "a killed keeper cost a connection")
    before_end = sum(load.done for load in loads)
    wait_until(lambda: sum(load.done for load in loads) > before_end, "the load goes on")
    for load in loads:
        load.ending = True
    for load in loads:
        load.join(30)
        check(not load.is_alive(), "a request was never answered")
        check(load.error is None, "caller:", repr(load.error))
        check(not load.odd, "errors that are not retryable (by number):", load.odd)
        check(load.sent == load.done + load.retryable + load.lost_with_connection, "requests do not add up")
    total = {name: sum(getattr(load, name) for load in loads)
             for name in ("sent", "done", "retryable", "lost_with_connection", "connections")}
    print(f"   M7: {KILLS} kills; slowest return front {slowest['front']:.3f} s, keeper {slowest['keeper']:.3f} s; {total}")
    check(total["retryable"] > 0 or total["lost_with_connection"] > 0, "no operation was in flight: this showed nothing")
    check(len(os.listdir(f"/proc/{agent.pid}/fd")) <= descriptors + 2, "the supervisor leaks descriptors")
    log = agent.log()
    check(log.count("process_died") == KILLS, "deaths logged:", log.count("process_died"))
    check("crash_loop" not in log, "kills were taken for a crash loop")
    check("Sanitizer" not in log, log)


def test_m7_queued_operations_survive_the_keeper(_):
    """What waits in the front's queues while there is no keeper is done by the next one."""
    with wire.connect(agent.socket, agent.token) as caller:
        check(caller.call(wire.SIGN, *wire.sign_fields("rsa2048", "rsa2048"))[0] == wire.OK, "it signs")
        pid = agent.role_pid("keeper")
        wire.freeze(pid)  # so that the ring fills and the rest waits
        count = 400
        for _ in range(count):
            caller.submit(wire.SIGN, *wire.sign_fields("rsa2048", "rsa2048"), deadline_ms=20000)
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        results = [caller.reply()[2] for _ in range(count)]
        lost = results.count(wire.UNAVAILABLE)
        print(f"   {lost} of {count} were in flight, {results.count(wire.OK)} waited and were done")
        check(lost + results.count(wire.OK) == count, "other results:", sorted(set(results)))
        check(0 < lost <= 64 * os.cpu_count(), "in flight:", lost)


def test_m7_crash_loop_backs_off(ws):
    """A front that dies again and again before it has served is started again, but ever more seldom; then it serves."""
    deadline = time.monotonic() + 2.5
    kills = 0
    while time.monotonic() < deadline:
        pid = agent.role_pid("front")
        if pid:
            harness.kill_pid(pid, signal.SIGKILL)
            kills += 1
        time.sleep(0.001)
    check(kills < 40, "no back-off:", kills, "starts in 2.5 s")
    check("crash_loop role=front" in agent.log(), "it is not logged")
    wait_until(signs, "it serves again", 10)


if __name__ == "__main__":
    harness.main(globals())
