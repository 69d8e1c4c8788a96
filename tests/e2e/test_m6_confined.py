#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M6: supervisor, front and keeper are confined.

A daemon with probes (KH_TEST_PROBES) lets each role try from inside what it must not be able to do; the rest is read from outside.
"""
import os
import re

import harness
import wire  # noqa: F401 - KH_BUILD_DIR
from harness import check, read, run, status_of, wait_until

CAP_IPC_LOCK = 14
ROLES = ("supervisor", "front", "keeper")
agent = None


def setup(ws):
    global agent
    agent = ws.agent(daemon="keyholdd-probes", env={**os.environ, "KEYHOLD_PROBE": "1"})
    agent.ctl("key", "create", "k", "--type", "p256")


def pid_of(role):
    return agent.pid if role == "supervisor" else agent.role_pid(role)


def probes(role):
    """What the role logged of its attempts: {attempt: outcome}."""
    line = re.search(rf"^.* probe process={role} .*$", agent.log(), re.M)
    state = re.search(rf"^.* probe_state process={role} .*$", agent.log(), re.M)
    check(line and state, "no probe line of", role, agent.log())
    return dict(word.split("=", 1) for word in (line.group() + " " + state.group()).split() if "=" in word)


def test_refused_from_inside(_):
    for role in ROLES:
        found = probes(role)
        print("  ", role, {name: found[name] for name in sorted(found) if name != "process"})
        common = ("open", "open_dir", "create", "exec", "connect", "ptrace", "set_dumpable")
        children = ("own_signals", "kill", "executable", "socket", "priority_futex", "schedule_other", "affinity_other",
                    "real_time", "nice")
        more = {"supervisor": (), "front": (*children, "pass_descriptor"), "keeper": children}
        for attempt in (*common, *more[role]):
            if role == "supervisor" and attempt.startswith(("open", "create")) and "landlock_unavailable" in agent.log():
                print("   (this kernel has no Landlock)")
                continue
            check(found[attempt] in ("EPERM", "EACCES"), role, attempt, found[attempt])
        check(found["dumpable"] == "0", role, "is dumpable")


def test_seen_from_outside(_):
    for role in ROLES:
        pid = pid_of(role)
        status = status_of(pid)
        check(status["NoNewPrivs"] == "1", role, "may gain privileges")
        check(status["Seccomp"] == "2", role, "has no filter")
        check(re.search(r"Max core file size\s+0\s+0", read(f"/proc/{pid}/limits")), role, "may leave a core")
        if role != "supervisor":
            # The keeper's CAP_IPC_LOCK, where root may not raise the limit on locked memory: test_memory_locked.py.
            kept = {0, 1 << CAP_IPC_LOCK} if role == "keeper" else {0}
            check(int(status["CapEff"], 16) in kept and int(status["CapPrm"], 16) in kept, role, "has capabilities")
            check(status["Groups"].strip() == "", role, "has groups", status["Groups"])
    uids = {role: status_of(pid_of(role))["Uid"].split()[0] for role in ROLES}
    check(len(set(uids.values())) == 3 and uids["supervisor"] == "0", "users", uids)


def test_unreadable_for_its_own_user(_):
    """Another process of the same user can neither trace it nor read its memory: it is not dumpable."""
    for role in ("front", "keeper"):
        pid = pid_of(role)
        uid = status_of(pid)["Uid"].split()[0]
        done = run("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all",
                   "head", "-c1", f"/proc/{pid}/mem", ok=False)
        check(done.returncode != 0 and "Permission denied" in done.stderr, role, done.stderr)


def test_only_its_own_descriptors(_):
    """No role holds a file but the keeper its store; nobody holds the configuration, a token or the terminal."""
    for role in ("front", "keeper"):
        held = []
        for fd in os.listdir(f"/proc/{pid_of(role)}/fd"):
            target = os.readlink(f"/proc/{pid_of(role)}/fd/{fd}")
            if int(fd) > 2 and target.startswith("/") and not target.startswith("/memfd:"):
                held.append(target)
        expected = os.path.join(agent.dir, "store") + "/"
        check(all(role == "keeper" and path.startswith(expected) for path in held), role, held)


def test_what_an_operator_set_stays(_):
    """While requests gather the front changes its own policy (turns.h) and nothing else: not its nice value."""
    front = pid_of("front")
    before = os.sched_getscheduler(front)
    os.setpriority(os.PRIO_PROCESS, front, 5)
    with wire.connect(agent.socket) as caller:
        def burst(policy):
            for _ in range(16):
                caller.submit(wire.SIGN, *wire.sign_fields("k", "p256"))
            check(all(caller.reply()[2] == wire.OK for _ in range(16)), "signed")
            return os.sched_getscheduler(front) == policy

        if before != os.SCHED_OTHER:
            print("   (the policy of this test is the agent's, which leaves it alone)")
            burst(before)
        else:
            wait_until(lambda: burst(os.SCHED_BATCH), "requests gather")
            check(os.getpriority(os.PRIO_PROCESS, front) == 5, "it keeps its nice value when they begin to")
            wait_until(lambda: caller.call(wire.PING) and os.sched_getscheduler(front) == before, "and no more")
    check(os.getpriority(os.PRIO_PROCESS, front) == 5 and os.sched_getscheduler(front) == before)


def test_nothing_left_when_the_supervisor_is_killed(_):
    agent.stop(signal_number=9)
    agent.start()
    wait_until(lambda: agent.ctl("key", "show", "k", ok=False).returncode == 0, "it serves again")
    agent.stop()
    check(not os.path.exists(agent.socket), "the socket is left")


if __name__ == "__main__":
    harness.main(globals())
