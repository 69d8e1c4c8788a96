#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""T8: a key whose operations take 500 ms each, asked for without a pause, moves the p99 of another key of the same token, of another
token, and of the software tier by less than 50 ms (2 ms in the gate). So does such a key of a pool that of another key of the pool, and a
partition in which everything takes 500 ms that of the pool's keys."""
import hsm
import harness
from harness import check

BOUND_S = 0.050
COUNT = 400

agent = token = other = None
partitions = []


def setup(ws):
    global agent, token, other, partitions
    token, other = hsm.SoftToken(ws, "one", shim=True), hsm.SoftToken(ws, "two")
    partitions = [hsm.SoftToken(ws, name, shim=True) for name in ("p1", "p2", "p3")]
    agent = hsm.agent_with(ws, [token, other, *partitions], [hsm.pool("pool", partitions, quorum=3)], sessions=4, call_timeout_ms=5000)
    agent.ctl("pool", "init", "pool")
    for name in ("slow", "fast"):
        agent.ctl("key", "create", name, "--type", "p256", "--tier", "hsm", "--place", "one")
    agent.ctl("key", "create", "elsewhere", "--type", "p256", "--tier", "hsm", "--place", "two")
    agent.ctl("key", "create", "soft", "--type", "p256")
    for name in ("slow-pooled", "pooled"):
        agent.ctl("key", "create", name, "--type", "p256", "--tier", "hsm-pool")


def p99(name):
    load = hsm.Load(agent, name, outstanding=1, gap_s=0.002)
    load.more(50)
    load.latencies.clear()
    load.more(COUNT, 60)
    load.finish()
    check(load.retryable == 0, name, "got errors")
    return hsm.quantile(load.latencies, 0.99)


def compare(names, slow_key, begin, end):
    """Each key alone, and then beside the slow key's load, once begin() has made it slow."""
    alone = {name: p99(name) for name in names}
    begin()
    slow = hsm.Load(agent, slow_key, outstanding=32, deadline_ms=20000)
    slow.more(1)
    beside = {name: p99(name) for name in names}
    slow.finish()
    end()
    for name in names:
        print(f"T8: {name}: p99 {alone[name] * 1000:.1f} ms alone, {beside[name] * 1000:.1f} ms beside {slow_key}", flush=True)
        check(beside[name] - alone[name] < BOUND_S, name, "waits for", slow_key)
    return slow


def test_t8_beside_a_slow_key(_):
    slow = compare(("fast", "elsewhere", "soft", "pooled"), "slow", lambda: token.order("C_Sign delay 500 label=slow"), token.order)
    check(slow.done > 0 and min(slow.latencies) > 0.4, "it was slow:", slow.done, slow.latencies[:5])


def each_partition(*orders):
    for partition in partitions:
        partition.order(*orders)


def test_t8_beside_a_slow_key_of_a_pool(_):
    slow = compare(("pooled", "soft"), "slow-pooled", lambda: each_partition("C_Sign delay 500 label=slow-pooled"), each_partition)
    check(slow.done > 0 and min(slow.latencies) > 0.4, "it was slow:", slow.done, slow.latencies[:5])


def test_t8_beside_a_slow_partition(_):
    """The pool's keys go round it; it is asked now and then, and another one with it, so that nobody waits for it."""
    compare(("pooled", "soft"), "slow-pooled", lambda: partitions[0].order("C_Sign delay 500"), each_partition)


if __name__ == "__main__":
    harness.main(globals())
