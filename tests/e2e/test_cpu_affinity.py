#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""cpu_affinity: while operations come one at a time, the front has a CPU and the workers have the others; else all have all."""
import contextlib
import os
import re
import signal
import time

import harness
from harness import Skip, check, wait_until

ALL = os.sched_getaffinity(0)


def setup(ws):
    if len(ALL) < 2:
        raise Skip("there is one CPU only")
    ws.key = ws.make_key("rsa2048")
    ws.main = ws.agent(config='log_level = "debug"')
    ws.main.import_key(ws.key)


@contextlib.contextmanager
def serial(ws, agent):
    """Signatures one after the other, as long as the block lasts."""
    process = harness.popen([harness.artefact("keyhold-bench"), "op", "--socket", agent.socket, "--token", agent.token, "--key",
                             ws.key.key, "--rounds", "1000000", "--per-round", "100"], os.path.join(ws.dir, "op.log"))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def front_cpus(agent):
    return os.sched_getaffinity(agent.role_pid("front"))


def keeper_cpus(agent):
    """Of each thread of the keeper that is not allowed everything."""
    found = []
    for thread in os.listdir(f"/proc/{agent.role_pid('keeper')}/task"):
        cpus = os.sched_getaffinity(int(thread))
        if cpus != ALL:
            found.append(cpus)
    return found


def anywhere(agent):
    return front_cpus(agent) == ALL and not keeper_cpus(agent)


def ended(agent):
    """[(why, naps)] of each time that it was over."""
    return [(why, int(naps)) for why, naps in re.findall(r" cpu_any why=(\w+) naps=(\d+)", agent.log())]


def wait_ended(agent, why):
    """It ends for this reason, and the front is let go. Begins again as often as somebody else ends it."""
    before = [reason for reason, _ in ended(agent)].count(why)
    wait_until(lambda: [reason for reason, _ in ended(agent)].count(why) > before, f"it ends: {why}")
    wait_until(lambda: front_cpus(agent) == ALL, "the front may run anywhere")


def wait_apart(agent):
    """It may be over in milliseconds where somebody else wants the CPU. That workers follow is test_keeper.c's."""
    front = agent.role_pid("front")
    wait_until(lambda: len(os.sched_getaffinity(front)) == 1, "the front has a CPU for itself", every=0.001)


def test_one_at_a_time(ws):
    with serial(ws, ws.main):
        wait_apart(ws.main)
        with serial(ws, ws.main):
            wait_ended(ws.main, "company")
            wait_until(lambda: not keeper_cpus(ws.main), "the workers may run anywhere")
        wait_apart(ws.main)


def test_naps(ws):
    """Most operations are interrupted by one nap's end or more."""
    with serial(ws, ws.main):
        wait_apart(ws.main)
        time.sleep(0.3)
    with serial(ws, ws.main), serial(ws, ws.main):
        wait_until(lambda: any(naps > 10 for why, naps in ended(ws.main)), "an end with naps")


def test_leave(ws):
    with serial(ws, ws.main):
        wait_apart(ws.main)
        ws.main.configure('cpu_affinity = "leave"')
        ws.main.reload()
        wait_until(lambda: anywhere(ws.main), "all may run anywhere")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            check(front_cpus(ws.main) == ALL and not keeper_cpus(ws.main), "it is left alone")
    with open(ws.main.conf) as file:
        text = file.read()
    with open(ws.main.conf, "w") as file:
        file.write(text.replace('cpu_affinity = "leave"', 'cpu_affinity = "auto"'))
    ws.main.reload()
    with serial(ws, ws.main):
        wait_apart(ws.main)


def test_keeper_killed(ws):
    with serial(ws, ws.main):
        wait_apart(ws.main)
        os.kill(ws.main.role_pid("keeper"), signal.SIGKILL)
        wait_until(lambda: front_cpus(ws.main) == ALL, "the front may run anywhere when its keeper is gone")
    ws.main.wait_ready()
    with serial(ws, ws.main):
        wait_apart(ws.main)


def test_front_killed(ws):
    with serial(ws, ws.main):
        wait_apart(ws.main)
        os.kill(ws.main.role_pid("front"), signal.SIGKILL)
        ws.main.wait_ready()
        wait_until(lambda: not keeper_cpus(ws.main), "the workers may run anywhere for the new front")


def test_within_what_is_allowed(ws):
    """An agent that its operator gave one CPU stays there."""
    cpu = min(ALL)
    agent = ws.agent(wrap=["taskset", "-c", str(cpu)])
    agent.import_key(ws.key)
    with serial(ws, agent):
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            check(front_cpus(agent) == {cpu}, "the front left its CPU")
            check(all(cpus == {cpu} for cpus in keeper_cpus(agent)), "a worker left its CPU")
    agent.stop()


if __name__ == "__main__":
    harness.main(globals())
