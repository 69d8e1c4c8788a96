#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M11: `nginx -s reload` ten times, SIGHUP to the agent ten times, and a binary upgrade (USR2) once, under load of 100
clients that ask for a page after each handshake: not one of them fails."""
import os
import signal

import harness
from harness import check, kill_pid, read, wait_until


def start(ws):
    agent = ws.agent()
    keys = [ws.make_key("p256"), ws.make_key("rsa2048")]
    for key in keys:
        agent.import_key(key)
    nginx = ws.nginx(agent, "".join(ws.server(key) for key in keys))
    loads = [ws.load(key, "--clients", 50, "--seconds", 0, "--request", "/", "--expect", key.name, "--timeout", 30)
             for key in keys]
    return agent, nginx, loads


def signed(agent):
    return agent.status()["operations"].get("sign", {"results": {}})["results"].get("ok", 0)


def more_load(agent, count=60):
    """Waits until that many more signatures were made: load goes on between any two events."""
    before = signed(agent)
    wait_until(lambda: signed(agent) >= before + count, f"{count} more signatures")


def finish(what, loads):
    reports = [load.stop() for load in loads]
    for report in reports:
        print(f"M11: {what}: {report['done']} handshakes and answers, {report['failed']} failed")
        check(report["failed"] == 0 and report["done"] > 100, report)


def test_m11_nginx_reload(ws):
    agent, nginx, loads = start(ws)
    for _ in range(10):
        more_load(agent)
        old = nginx.workers()
        nginx.reload()
        # The next one only when the old workers are gone: then they had the time to finish what they had begun.
        wait_until(lambda old=old: not [pid for pid in old if harness.alive(pid)], "the old workers end")
    finish("nginx reloaded 10 times", loads)


def test_m11_agent_reload(ws):
    agent, _, loads = start(ws)
    for _ in range(10):
        more_load(agent)
        agent.reload()
    more_load(agent)
    check(agent.log().count("configuration_applied") >= 10, "ten reloads were done:", agent.log()[-3000:])
    check(agent.process.poll() is None, "the agent lives")
    finish("agent reloaded 10 times", loads)


def test_m11_binary_upgrade(ws):
    agent, nginx, loads = start(ws)
    more_load(agent)
    old = nginx.pid
    os.kill(old, signal.SIGUSR2)
    wait_until(lambda: (pid := int(read(nginx.pid_file).strip() or 0)) and pid != old and nginx.workers(), 
               "the new master's workers")
    more_load(agent)
    new = nginx.pid
    kill_pid(old, signal.SIGQUIT)
    wait_until(lambda: harness.reap() or not harness.alive(old), "the old master ends")
    more_load(agent)
    nginx.reload()
    more_load(agent)
    check(nginx.pid == new, "the new master goes on")
    finish("nginx upgraded", loads)


if __name__ == "__main__":
    harness.main(globals())
