#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""T8: a key whose operations take 500 ms each, asked for without a pause, moves the p99 of another key of the same token, of another
token, and of the software tier by less than 50 ms (2 ms in the gate)."""
import hsm
import harness
from harness import check

BOUND_S = 0.050
COUNT = 400

agent = token = other = None


def setup(ws):
    global agent, token, other
    token, other = hsm.SoftToken(ws, "one", shim=True), hsm.SoftToken(ws, "two")
    agent = hsm.agent_with(ws, [token, other], sessions=4, call_timeout_ms=5000)
    for name in ("slow", "fast"):
        agent.ctl("key", "create", name, "--type", "p256", "--tier", "hsm", "--place", "one")
    agent.ctl("key", "create", "elsewhere", "--type", "p256", "--tier", "hsm", "--place", "two")
    agent.ctl("key", "create", "soft", "--type", "p256")


def p99(name):
    load = hsm.Load(agent, name, outstanding=1, gap_s=0.002)
    load.more(50)
    load.latencies.clear()
    load.more(COUNT, 60)
    load.finish()
    check(load.retryable == 0, name, "got errors")
    return hsm.quantile(load.latencies, 0.99)


def test_t8_beside_a_slow_key(_):
    names = ("fast", "elsewhere", "soft")
    alone = {name: p99(name) for name in names}
    token.order("C_Sign delay 500 label=slow")
    slow = hsm.Load(agent, "slow", outstanding=32, deadline_ms=20000)
    slow.more(1)
    beside = {name: p99(name) for name in names}
    slow.finish()
    for name in names:
        print(f"T8: {name}: p99 {alone[name] * 1000:.1f} ms alone, {beside[name] * 1000:.1f} ms beside the slow key", flush=True)
        check(beside[name] - alone[name] < BOUND_S, name, "waits for the slow key")
    check(slow.done > 0 and min(slow.latencies) > 0.4, "it was slow:", slow.done, slow.latencies[:5])


if __name__ == "__main__":
    harness.main(globals())
