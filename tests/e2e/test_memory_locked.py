#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The keeper's memory is locked where that may be, as the front's tokens are; where not, the log says so and all works.

Three ways: the limit is none or may be raised; root may lock past it (CAP_IPC_LOCK), and the keeper keeps that one capability;
neither. The last one is made with setpriv and prlimit."""
import resource

import harness
from harness import Skip, check, read, status_of

CAP_IPC_LOCK, CAP_SYS_RESOURCE = 14, 24
WARNING = "cannot lock memory"


def has_capability(number):
    return int(status_of("self")["CapEff"], 16) >> number & 1


def locked_kb(pid):
    return int(status_of(pid)["VmLck"].split()[0])


def memory_kb(pid):
    return int(status_of(pid)["RssAnon"].split()[0])


def use(ws, agent, keys):
    """Keys of each size are made and used: allocations succeed."""
    nginx = ws.nginx(agent, "".join(ws.server(key) for key in keys))
    for key in keys:
        report = ws.load(key, "--clients", 20, "--count", 200).wait()
        check(report["failed"] == 0, key.name, report)
    agent.ctl("key", "create", "made", "--type", "rsa4096")
    nginx.stop()


def serve(ws, **more):
    agent = ws.agent(**more)
    keys = [ws.make_key(kind) for kind in ("rsa2048", "p256")]
    for key in keys:
        agent.import_key(key)
    use(ws, agent, keys)
    return agent


def test_locked(ws):
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY or has_capability(CAP_SYS_RESOURCE)
    if not unlimited and not has_capability(CAP_IPC_LOCK):
        raise Skip("memory may not be locked here")
    agent = serve(ws)
    keeper, front = agent.role_pid("keeper"), agent.role_pid("front")
    print(f"  keeper: {locked_kb(keeper)} kB of mappings locked, front: {locked_kb(front)} kB;",
          "no limit" if unlimited else "past the limit")
    # With MCL_ONFAULT each mapping counts as a whole; what has been touched is resident and locked.
    check(locked_kb(keeper) >= memory_kb(keeper), "not all of the keeper's memory is locked")
    check(locked_kb(front) > 0, "the front's tokens are not locked")
    check(WARNING not in agent.log() and "memory_not_locked" not in agent.log(), agent.log())
    status = status_of(keeper)
    expected = 0 if unlimited else 1 << CAP_IPC_LOCK
    for kind in ("CapEff", "CapPrm"):
        check(int(status[kind], 16) == expected, kind, status[kind])
    check(int(status_of(front)["CapEff"], 16) == 0, "the front has capabilities")


def test_not_locked(ws):
    agent = serve(ws, wrap=["setpriv", "--bounding-set", "-ipc_lock,-sys_resource", "prlimit", "--memlock=0:0"])
    keeper = agent.role_pid("keeper")
    check(locked_kb(keeper) == 0, "memory is locked, somehow")
    check(int(status_of(keeper)["CapEff"], 16) == 0, "the keeper has capabilities")
    check(WARNING in agent.log(), "no warning of the keeper:", agent.log())
    check("memory_not_locked" in agent.log(), "no warning of the front:", agent.log())
    check("Max locked memory         0" in read(f"/proc/{keeper}/limits"), "the limit")


if __name__ == "__main__":
    harness.main(globals())
