#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""T3: what a token can do wrong, under load, again and again: it fails, loses sessions, handles and its login, is slow, hangs, crashes its
library, answers with wrong lengths, and is pulled out and put back; its keeper is killed and stopped. Callers see retryable
errors, and only while the token is away; within two seconds of its return it is used again; and nothing is left over: no session, memory,
process, descriptor. A wrong PIN is tried once.

One agent has several tokens, each with a load and a shim of its own, and each has its faults while the others have theirs.
KH_T3_ROUNDS says how often each fault is made (20)."""
import os
import queue
import signal
import threading
import time

import hsm
import harness
import wire
from harness import check, wait_until

FULL = os.environ.get("KH_CHECK") == "full"
ROUNDS = int(os.environ.get("KH_T3_ROUNDS", "20"))
SESSIONS, CALL_MS, OUTSTANDING = 4, 400, 12
LASTS_S = 0.6  # longer than a call may take
MEMORY_KB = 8192  # that a process may have grown by at the end; one leak of a session's memory for each round would be seen

agent = token = None  # the first lane's token and key are for the tests that need one
KEY = "site1"
lanes = []

# What the shim is told, and whether signatures are expected to go on meanwhile.
ORDERS = [
    ("C_Sign error CKR_DEVICE_ERROR every 3", True),
    ("C_Sign error CKR_FUNCTION_FAILED", False),
    ("C_Sign error CKR_SESSION_HANDLE_INVALID every 5", True),
    ("sessions lost", True),
    ("login lost", True),
    ("C_Sign error CKR_USER_NOT_LOGGED_IN every 7", True),
    ("C_Sign error CKR_KEY_HANDLE_INVALID every 5", True),
    ("C_SignInit error CKR_OBJECT_HANDLE_INVALID every 5", True),
    ("C_Sign delay 50", True),
    ("C_Sign hang", False),
    ("C_Sign length +1 every 3", True),
    ("C_Sign length -1 every 3", True),
    ("C_SignInit hang", False),
    ("C_Sign error CKR_DEVICE_REMOVED", False),
    ("token gone", False),
    ("C_Sign error CKR_HOST_MEMORY every 2", True),
]


class Fault:
    def __init__(self, name, begin, end=lambda lane: None, goes_on=False):
        self.name, self.begin, self.end, self.goes_on = name, begin, end, goes_on


class Lane:
    """A token, a key in it, and who asks for signatures with it."""

    def __init__(self, ws, number):
        self.key = f"site{number}"
        self.token = hsm.SoftToken(ws, f"soft{number}", shim=True)
        self.load = self.error = self.stopped = None

    def create_key(self):
        agent.ctl("key", "create", self.key, "--type", "p256", "--tier", "hsm", "--place", self.token.name)

    def keeper(self):
        return wait_until(lambda: self.token.keeper(agent), "the token's keeper")

    def stop_keeper(self):
        self.stopped = self.keeper()
        wire.freeze(self.stopped)

    def thaw_keeper(self):
        harness.kill_pid(self.stopped, signal.SIGCONT)

    def crash_library(self):
        """Once: a library that crashes at each start is another matter, and the supervisor takes its time."""
        pid = self.keeper()
        self.token.order("C_Sign crash")
        wait_until(lambda: self.token.keeper(agent) != pid, "its library crashes")
        self.token.order()

    def one_round(self, fault):
        """Returns how long the token took to be used again."""
        fault.begin(self)
        if fault.goes_on:
            self.load.more(5)
        time.sleep(LASTS_S)
        fault.end(self)
        took = hsm.back(agent, self.key, what=f"after '{fault.name}' {self.token.name} is used again")
        self.load.more(2 * OUTSTANDING)  # what was asked for before that has been answered
        errors = self.load.retryable
        self.load.more(20)
        check(self.load.retryable == errors, f"errors when '{fault.name}' was over")
        return took

    def work(self, rounds, told):
        """Takes faults from the queue until there is none."""
        try:
            while True:
                fault = rounds.get_nowait()
                told.append((fault.name, self.one_round(fault)))
        except queue.Empty:
            pass
        except Exception as error:  # noqa: BLE001 - raised again by the test
            self.error = error


def ordered(order, goes_on):
    return Fault(order, lambda lane: lane.token.order(order), lambda lane: lane.token.order(), goes_on)


FAULTS = [ordered(*one) for one in ORDERS] + [
    Fault("C_Sign crash", Lane.crash_library, goes_on=True),
    Fault("the token's directory goes", lambda lane: lane.token.hide(), lambda lane: lane.token.bring_back()),
    Fault("kill -9 of the keeper", lambda lane: hsm.kill(lane.keeper()), goes_on=True),
    Fault("SIGSTOP of the keeper", Lane.stop_keeper, Lane.thaw_keeper),
]
LANES = 6


def setup(ws):
    global agent, token, lanes
    lanes = [Lane(ws, number) for number in range(1, LANES + 1)]
    token = lanes[0].token
    agent = hsm.agent_with(ws, [lane.token for lane in lanes], sessions=SESSIONS, call_timeout_ms=CALL_MS)
    for lane in lanes:
        lane.create_key()
    agent.ctl("key", "create", "other", "--type", "p256")


def sizes():
    """What may not grow: processes, descriptors and memory of those that live on."""
    return {"processes": len(agent.pids()), "supervisor": hsm.open_files(agent.pid), "front": hsm.open_files(agent.role_pid("front")),
            "keeper": hsm.open_files(agent.role_pid("keeper"))}


def memory():
    return {role: hsm.memory_kb(pid) for role, pid in
            {"supervisor": agent.pid, "front": agent.role_pid("front"), "keeper": agent.role_pid("keeper")}.items()}


def test_t3_faults_under_load(_):
    beside = hsm.Load(agent, "other", outstanding=1, gap_s=0.005)  # a key of the software tier goes on, whatever happens
    for lane in lanes:
        lane.load = hsm.Load(agent, lane.key, outstanding=OUTSTANDING, gap_s=0.001)
        lane.load.more()
    before, pids = sizes(), [agent.role_pid("front"), agent.role_pid("keeper")]
    rounds, told = queue.Queue(), []
    for number in range(ROUNDS):
        for fault in FAULTS:
            rounds.put(fault)
    workers = [threading.Thread(target=lane.work, args=(rounds, told)) for lane in lanes]
    for worker in workers:
        worker.start()
    wait_until(lambda: len(told) > 2 * LANES or any(lane.error for lane in lanes), "the first faults are over", 120)
    memory_before = memory()
    for worker in workers:
        worker.join()
    for lane in lanes:
        if lane.error:
            raise lane.error
    for name in [fault.name for fault in FAULTS]:
        times = [took for what, took in told if what == name]
        check(len(times) == ROUNDS, name, len(times))
        print(f"   T3: {name}: {len(times)} times, back after at most {max(times):.2f} s", flush=True)
    check([agent.role_pid("front"), agent.role_pid("keeper")] == pids, "another process has died")
    wait_until(lambda: sizes() == before, f"processes and descriptors are as before: {before}, {sizes()}", 10)
    for role, kb in memory().items():
        check(kb <= memory_before[role] + MEMORY_KB, role, "grows from", memory_before[role], "to", kb)
    check(beside.retryable == beside.lost == 0, "the software tier was touched:", beside.retryable, beside.lost)
    loads = [beside, *(lane.load for lane in lanes)]
    for load in loads:
        load.finish()
    print(f"T3: {len(told)} faults, {sum(load.done for load in loads)} signatures, {sum(load.retryable for load in loads)} retryable "
          f"errors, back after at most {max(took for _, took in told):.2f} s; {before}, memory {memory_before}, then {memory()} kB", flush=True)


def test_t3_sessions_are_not_leaked(_):
    """One keeper lives through a hundred losses of its sessions; it has as much memory, threads and descriptors as before."""
    load = hsm.Load(agent, KEY)
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
        check(not hsm.signs(agent, KEY, deadline_ms=300), "it signs without a PIN")
        agent.reload()
        time.sleep(0.5)
    hsm.kill(agent.role_pid("front"))
    wait_until(lambda: hsm.signs(agent, "other"), "the software tier signs")
    check(logins() == 1, "the wrong PIN was tried", logins(), "times")
    told = [line for line in agent.log().splitlines() if "PIN" in line and token.name in line]
    check(1 <= len(told) <= 5, "what the log says of the PIN:", *told)
    token.write_pin(hsm.PIN)
    agent.reload()
    hsm.back(agent, KEY, seconds=5, what="with the right PIN the token is used")
    check(logins() == 2, logins())
    token.order()


def test_t3_absent_at_start(_):
    """The agent starts without the token, serves the software tier, and takes the token when it comes."""
    agent.stop()
    token.hide()
    agent.start()
    wait_until(lambda: hsm.signs(agent, "other"), "the software tier signs")
    check(not hsm.signs(agent, KEY, deadline_ms=300), "it signs without a token")
    token.bring_back()
    hsm.back(agent, KEY)


if __name__ == "__main__":
    harness.main(globals())
