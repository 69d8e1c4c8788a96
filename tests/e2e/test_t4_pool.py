#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""T4: a pool of three partitions under the load of 100 clients. Each partition in turn is killed, stopped (SIGSTOP), hangs in its
library, is emptied, and is restarted: no handshake fails, the partition is in use again afterwards, and the log tells it: one line when it is lost, one
when it is back, and none of the others.

Emptied means: the token is again as it was when only the pool's key was in it; the site's key comes back from the store's wrapped
copy before the partition serves. The load goes on without a break from fault to fault."""
import os
import re
import signal
import time

import hsm
import harness
import wire
from harness import check, wait_until

CLIENTS = 100
LASTS_S = 1.0   # a fault; more than any try may take
AGAIN_S = 10.0  # until a partition is in use again: the breaker's probes come less often the longer it is away
NAMES = ("p1", "p2", "p3")

agent = load = nginx = workers = key = None
tokens = []


def setup(ws):
    global agent, tokens, load, nginx, workers, key
    agent, tokens = hsm.agent_with_pool(ws, NAMES, shim=True, sessions=4, call_timeout_ms=2000)
    for token in tokens:
        token.save()
    key = hsm.create(ws, agent, "site", "p256", tier="hsm-pool")
    for token in tokens:
        wait_until(lambda: token.objects(), "the key is in each partition")
    nginx = ws.nginx(agent, ws.server(key))
    workers = nginx.workers()
    load = ws.load(key, "--clients", CLIENTS, "--seconds", 0, "--request", "/", "--expect", key.name, "--timeout", 20)
    in_use()
    load.window()


def signed():
    """Operations that each partition has done, by its name."""
    tokens_now = agent.status()["tokens"]
    return {token["name"]: token["operations"] for token in tokens_now}


def in_use(count=5):
    """Waits until each partition has done that many more operations."""
    for name in NAMES:
        before = signed()[name]
        wait_until(lambda: not before <= signed()[name] < before + count, f"partition {name} is in use", 30)


def told(logged, event="partition_"):
    """What the log says of partitions since it had that length: (event, token)s."""
    found = re.findall(r" (partition_\w+) pool=pool token=(\w+) ", agent.log()[logged:])
    return [one for one in found if one[0].startswith(event)]


def fault(name, begin, end, token):
    """The fault begins, lasts, and ends; no handshake fails, and the log has a line for each: it is lost, it is back."""
    in_use()
    load.window()
    logged = len(agent.log())
    begin()
    time.sleep(LASTS_S)
    during = load.window()
    while during["measured"] < CLIENTS / 10 and during["failed"] == 0:  # a machine that is busy
        time.sleep(LASTS_S)
        during = load.window()
    wait_until(lambda: told(logged), f"the log tells of {token.name}")
    end()
    begun = time.monotonic()
    wait_until(lambda: told(logged, "partition_back"), f"{token.name} is back", AGAIN_S)
    in_use()
    took = time.monotonic() - begun
    after = load.window()
    failed = during["failed"] + after["failed"]
    print(f"T4: {name} of {token.name}: {during['measured']} handshakes meanwhile, {failed} failed, p99 "
          f"{during['latency_ms']['p99']:.0f} ms, in use again after {took:.1f} s", flush=True)
    check(failed == 0, name, during, after)
    check(told(logged) == [("partition_lost", token.name), ("partition_back", token.name)], name, "of", token.name, "told:",
          *[line for line in agent.log()[logged:].splitlines() if "partition_" in line or token.name in line])
    check(nginx.workers() == workers, "a worker died")


def in_turn(name, begin, end=lambda token: None):
    for token in tokens:
        fault(name, lambda: begin(token), lambda: end(token), token)


def test_t4_killed(_):
    in_turn("kill -9", lambda token: hsm.kill(token.keeper(agent)))


def test_t4_stopped(_):
    stopped = {}

    def begin(token):
        stopped[token] = token.keeper(agent)
        wire.freeze(stopped[token])

    in_turn("SIGSTOP", begin, lambda token: harness.kill_pid(stopped[token], signal.SIGCONT))


def test_t4_hung(_):
    in_turn("a library that hangs", lambda token: token.order("C_Sign hang"), lambda token: token.order())


def test_t4_failing(_):
    in_turn("a device error", lambda token: token.order("C_Sign error CKR_DEVICE_ERROR"), lambda token: token.order())


def test_t4_emptied(_):
    def begin(token):
        token.go_back()

    in_turn("emptying", begin)
    for token in tokens:
        wait_until(lambda: token.objects(), "the key is in the partition again")


def test_t4_gone(_):
    in_turn("pulling out", lambda token: token.hide(), lambda token: token.bring_back())


def test_t4_restarted(_):
    in_turn("an end and a start", lambda token: os.kill(token.keeper(agent), signal.SIGTERM))


def test_t4_at_the_end(_):
    report = load.stop()
    print(f"T4: all in all {report['done']} handshakes, {report['failed']} failed", flush=True)
    check(report["failed"] == 0 and report["done"] > 1000, report)
    bad = [line for line in nginx.log().splitlines() if "[alert]" in line or "[emerg]" in line]
    check(not bad, bad)
    status = agent.ctl("pool", "status", "pool").stdout
    check(all(name in status for name in NAMES), status)


if __name__ == "__main__":
    harness.main(globals())
