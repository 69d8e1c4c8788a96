#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""T3: what a token can do wrong, under load, again and again: it fails, loses sessions, handles and its login, is slow, hangs, crashes its
library, answers with wrong lengths, and is pulled out and put back; its keeper is killed and stopped. Callers see retryable
errors at most; within two seconds of the token's return it is used again; and nothing is left over: no session, memory, process,
descriptor. A wrong PIN is tried once.

KH_T3_ROUNDS says how often each fault is made (2; 20 in `./check full`)."""
import os
import signal
import time

import hsm
import harness
import wire
from harness import check, wait_until

FULL = os.environ.get("KH_CHECK") == "full"
ROUNDS = int(os.environ.get("KH_T3_ROUNDS", "20" if FULL else "2"))
SESSIONS, CALL_MS = 4, 400
LASTS_S = 0.6  # longer than a call may take
MEMORY_KB = 8192  # that a process may have grown by at the end; one leak of a session's memory for each round would be seen

agent = token = None

# What the shim is told, and whether signatures are expected to go on meanwhile.
ORDERS = [
    ("C_Sign error CKR_DEVICE_ERROR every 3", True),
    ("C_Sign error CKR_FUNCTION_FAILED", False),
    ("C_Sign error CKR_SESSION_HANDLE_INVALID every 5", True),
    ("sessions lost", True),
    ("C_Sign error CKR_USER_NOT_LOGGED_IN every 7", True),
    ("C_Sign error CKR_KEY_HANDLE_INVALID every 5", True),
    ("C_SignInit error CKR_OBJECT_HANDLE_INVALID every 5", True),
    ("C_Sign delay 50", True),
    ("C_Sign hang", False),
    ("C_Sign length +1 every 3", True),
    ("C_SignInit hang", False),
    ("C_Sign error CKR_DEVICE_REMOVED", False),
    ("token gone", False),
    ("C_Sign error CKR_HOST_MEMORY every 2", True),
]


def setup(ws):
    global agent, token
    token = hsm.SoftToken(ws, "soft", shim=True)
    agent = hsm.agent_with(ws, [token], sessions=SESSIONS, call_timeout_ms=CALL_MS)
    agent.ctl("key", "create", "site", "--type", "p256", "--tier", "hsm")
    agent.ctl("key", "create", "other", "--type", "p256")


def ordered(order):
    return order, lambda: token.order(order), lambda: token.order()


def stop_keeper():
    pid = token.keeper(agent)
    if pid:
        wire.freeze(pid)
        stopped.append(pid)


def thaw_keeper():
    while stopped:
        harness.kill_pid(stopped.pop(), signal.SIGCONT)


def kill_keeper():
    wait_until(lambda: token.keeper(agent), "the token's keeper")
    hsm.kill(token.keeper(agent))


def crash_library():
    """Once: a library that crashes at each start is another matter, and the supervisor takes its time."""
    pid = wait_until(lambda: token.keeper(agent), "the token's keeper")
    token.order("C_Sign crash")
    wait_until(lambda: token.keeper(agent) != pid, "its library crashes")
    token.order()


stopped = []
FAULTS = [(*ordered(order), goes_on) for order, goes_on in ORDERS] + [
    ("C_Sign crash", crash_library, lambda: None, True),
    ("the token's directory goes", lambda: token.hide(), lambda: token.bring_back(), False),
    ("kill -9 of the keeper", kill_keeper, lambda: None, True),
    ("SIGSTOP of the keeper", stop_keeper, thaw_keeper, False),
]


def one_round(load, name, begin, end, goes_on):
    begin()
    if goes_on:
        load.more(5)
    time.sleep(LASTS_S)
    end()
    took = hsm.back(agent, "site", what=f"after '{name}' the token is used again")
    load.more(20)
    return took


def sizes():
    """What may not grow: processes, descriptors and memory of those that live on."""
    return {"processes": len(agent.pids()), "supervisor": hsm.open_files(agent.pid), "front": hsm.open_files(agent.role_pid("front"))}


def test_t3_faults_under_load(_):
    loads = [hsm.Load(agent, "site"), hsm.Load(agent, "site")]
    beside = hsm.Load(agent, "other", outstanding=1, gap_s=0.005)  # a key of the software tier goes on, whatever happens
    loads[0].more()
    hsm.back(agent, "site")
    before = sizes()
    front_kb = None
    slowest = {}
    front = agent.role_pid("front")
    for number in range(ROUNDS * len(FAULTS)):
        name, begin, end, goes_on = FAULTS[number % len(FAULTS)]
        took = one_round(loads[0], name, begin, end, goes_on)
        slowest[name] = max(slowest.get(name, 0), took)
        if number == len(FAULTS) - 1:
            front_kb = hsm.memory_kb(front)
    for name, took in slowest.items():
        print(f"   T3: {name}: back after {took:.2f} s", flush=True)
    check(agent.role_pid("front") == front, "the front has died")
    wait_until(lambda: sizes() == before, f"processes and descriptors are as before: {before}, {sizes()}", 10)
    check(hsm.memory_kb(front) <= front_kb + MEMORY_KB, "the front grows")
    check(beside.retryable == beside.lost == 0, "the software tier was touched:", beside.retryable, beside.lost)
    for load in (*loads, beside):
        load.finish()
    print(f"   T3: {sum(load.done for load in loads)} signatures, {sum(load.retryable for load in loads)} retryable errors", flush=True)


def test_t3_sessions_are_not_leaked(_):
    """One keeper lives through a hundred losses of its sessions; it has as much memory, threads and descriptors as before."""
    load = hsm.Load(agent, "site")
    load.more()
    pid = token.keeper(agent)

    def once():
        token.order("sessions lost")
        load.more(2 * SESSIONS)
        token.order()
        load.more(2 * SESSIONS)

    for _ in range(10):
        once()
    before = (hsm.memory_kb(pid), hsm.open_files(pid), harness.status_of(pid)["Threads"])
    for _ in range(100 if FULL else 30):
        once()
    load.finish()
    check(token.keeper(agent) == pid, "the keeper was replaced")
    after = (hsm.memory_kb(pid), hsm.open_files(pid), harness.status_of(pid)["Threads"])
    check(after[0] <= before[0] + 2048 and after[1] <= before[1] + SESSIONS and after[2] == before[2], before, after)


def logins():
    """How often C_Login was called, by however many keepers."""
    return harness.read(token.logins).count("C_Login ")


def test_t3_wrong_pin(_):
    """Tried exactly once, however often whatever else happens; a right one after a reload is used."""
    agent.stop()
    with open(token.logins, "w"):
        pass
    os.chown(token.logins, hsm.KEEPER, hsm.KEEPER)
    token.order(f"C_Login count-file {token.logins}")
    token.write_pin("000000")
    agent.start()
    wait_until(lambda: logins() == 1, "the PIN is tried")
    for _ in range(3):
        check(not hsm.signs(agent, "site", deadline_ms=300), "it signs without a PIN")
        agent.reload()
        time.sleep(0.5)
    hsm.kill(agent.role_pid("front"))
    wait_until(lambda: hsm.signs(agent, "other"), "the software tier signs")
    check(logins() == 1, "the wrong PIN was tried", logins(), "times")
    told = [line for line in agent.log().splitlines() if "PIN" in line and token.name in line]
    check(1 <= len(told) <= 5, "what the log says of the PIN:", *told)
    token.write_pin(hsm.PIN)
    agent.reload()
    hsm.back(agent, "site", seconds=5, what="with the right PIN the token is used")
    check(logins() == 2, logins())
    token.order()


def test_t3_absent_at_start(_):
    """The agent starts without the token, serves the software tier, and takes the token when it comes."""
    agent.stop()
    token.hide()
    agent.start()
    wait_until(lambda: hsm.signs(agent, "other"), "the software tier signs")
    check(not hsm.signs(agent, "site", deadline_ms=300), "it signs without a token")
    token.bring_back()
    hsm.back(agent, "site")


if __name__ == "__main__":
    harness.main(globals())
