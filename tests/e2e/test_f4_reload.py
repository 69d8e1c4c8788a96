#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""F4: nginx is reloaded ten times, agents are reloaded ten times, and one of two agents is restarted ten times, each time with 200
handshakes parked at agents that hold each reply back for 100 ms: not one fails.

How many are parked is not left to chance: both keepers stand still until all 200 clients have a handshake at the agents. Then it
happens, and the keepers go on."""
import os
import signal

import harness
import wire
from fleet import Fleet
from harness import check, kill_pid, wait_until

PARKED, TIMES = 200, 10


class Site:
    def __init__(self, ws):
        self.key = ws.make_key("p256")
        self.fleet = Fleet(ws, ["unix", "tcp"], [self.key], delay_ms=100)
        # A first try has more time than the keepers stand still, however busy the machine is.
        self.nginx = ws.nginx(None, self.fleet.directives("keyhold_try_timeout 10s;", "keyhold_timeout 30s;") + ws.server(self.key))
        self.load = ws.load(self.key, "--clients", PARKED, "--seconds", 0, "--request", "/", "--expect", self.key.name,
                            "--timeout", 40)

    def agents(self):
        return [member.agent for member in self.fleet.members]

    def outstanding(self):
        return sum(agent.status()["queues"]["jobs"] for agent in self.agents())

    def with_all_parked(self, what, happens):
        self.fleet.in_use()
        keepers = [agent.role_pid("keeper") for agent in self.agents()]
        for keeper in keepers:
            wire.freeze(keeper)
        wait_until(lambda: self.outstanding() >= PARKED, f"{PARKED} handshakes are parked")
        before = self.load.window()
        check(before["failed"] == 0, what, before)
        finish = happens()
        for keeper in keepers:
            wire.thaw(keeper)
        if finish:
            finish()

    def finish(self, what):
        self.fleet.in_use()
        report = self.load.stop()
        print(f"F4: {what} {TIMES} times with {PARKED} parked: {report['done']} handshakes and answers, {report['failed']} failed")
        check(report["failed"] == 0 and report["done"] >= TIMES * PARKED, report)
        bad = [line for line in self.nginx.log().splitlines() if "[alert]" in line or "keyhold: handshake" in line]
        check(not bad, bad[:5])


def test_f4_nginx_is_reloaded(ws):
    site = Site(ws)

    def reload():
        old = site.nginx.workers()
        os.kill(site.nginx.pid, signal.SIGHUP)
        wait_until(lambda: (new := site.nginx.workers()) and not set(new) & set(old), "the old worker shuts down, with them")
        check(all(map(harness.alive, old)), "it does not leave them")
        return lambda: wait_until(lambda: not [pid for pid in old if harness.alive(pid)], "the old worker ends")

    for _ in range(TIMES):
        site.with_all_parked("nginx reloaded", reload)
    site.finish("nginx reloaded")


def test_f4_agents_are_reloaded(ws):
    site = Site(ws)

    def reload():
        before = [agent.log().count("configuration_applied") for agent in site.agents()]
        for agent in site.agents():
            agent.reload()
        wait_until(lambda: all(agent.log().count("configuration_applied") > seen for agent, seen in zip(site.agents(), before)),
                   "both have read their configuration anew")

    for _ in range(TIMES):
        site.with_all_parked("agents reloaded", reload)
    site.finish("both agents reloaded")


def test_f4_an_agent_is_restarted(ws):
    """The one and the other in turn: what they have begun they finish, and what they have not is done by the other."""
    site = Site(ws)
    for turn in range(TIMES):
        member = site.fleet.members[turn % 2]

        def restart(member=member):
            kill_pid(member.agent.pid, signal.SIGTERM)
            return lambda: (member.agent.stop(), member.start())

        site.with_all_parked("agent restarted", restart)
    site.finish("an agent restarted")


if __name__ == "__main__":
    harness.main(globals())
