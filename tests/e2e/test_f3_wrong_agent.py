#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""F3: beside a good agent one that answers wrongly, in every way there is, with AddressSanitizer and UndefinedBehaviorSanitizer in
the module (KH_PRESET=release for a build without). A wrong answer costs at most the handshake that it was for; where it can be told
from a right one without verifying a signature, not even that. No answer gets to another connection: clients verify signatures,
and look for the page of their own site. The worker lives, the agent is left out, and the log names it."""
import hashlib
import os
import subprocess
import time

import harness
import test_m12_abuse as abuse
from harness import check, wait_until
from wrong_agent import Ways, WrongAgent

PRESET = os.environ.get("KH_PRESET", "asan")
TRY_MS, RATE = 300, 50
SETTLED, WATCHED, SHARE = 60, 60, 0.05  # handshakes until it is to be known, and after that; its share of those

# What nobody need verify a signature for. The others cost at most the handshakes that they were for.
AT_ONCE = {"wrong_id", "wrong_operation", "too_short", "too_long", "empty", "garbage", "oversized", "half_a_frame",
           "late", "twice", "come_back_never", "hello_wrong_proof"}
WAYS = {name: getattr(Ways, name) for name in vars(Ways) if not name.startswith("__")}


def key_id(key):
    spki = subprocess.run(["openssl", "pkey", "-in", key.key, "-pubout", "-outform", "DER"], check=True,
                          stdout=subprocess.PIPE).stdout
    return hashlib.sha256(spki).digest()


def setup(ws):
    ws.site_keys = [ws.make_key("p256"), ws.make_key("rsa2048")]
    others = [ws.make_key("p256", "other-p256"), ws.make_key("rsa2048", "other-rsa")]
    agents = [ws.agent(), ws.agent()]
    for agent in agents:
        for key in ws.site_keys + others:
            agent.import_key(key)
    ids = [[key_id(key) for key in keys] for keys in (ws.site_keys, others)]
    ws.wrong = WrongAgent(ws, agents[0], dict(zip(*ids)), 2 * TRY_MS / 1000)
    http = (ws.PLAIN + f"    keyhold_agent unix:{ws.wrong.socket} token={ws.wrong.token};\n"
            f"    keyhold_agent unix:{agents[1].socket} token={agents[1].token};\n    keyhold_try_timeout {TRY_MS}ms;\n"
            + "".join(map(ws.server, ws.site_keys)))
    env = abuse.sanitizer_env(ws) if PRESET == "asan" else None
    ws.site = ws.nginx(None, http, preset=PRESET, env=env)
    ws.loads = [ws.load(key, "--clients", 10, "--rate", RATE, "--seconds", 0, "--request", "/", "--expect", key.name)
                for key in ws.site_keys]


def fresh(ws):
    """A worker that knows nothing bad of anybody yet, and asks the wrong agent as well as the good one."""
    ws.wrong.how = None
    old = ws.site.workers()
    ws.site.reload()
    wait_until(lambda: not [pid for pid in old if harness.alive(pid)], "the old worker ends")
    before = ws.wrong.requests
    wait_until(lambda: ws.wrong.requests >= before + 10, "the agent is in use")


def windows(ws, least=0):
    """(done, failed) since the last time, when it was that many."""
    done = failed = 0
    deadline = time.monotonic() + harness.READY_S
    while True:
        found = [load.window() for load in ws.loads]
        done += sum(window["measured"] for window in found)
        failed += sum(window["failed"] for window in found)
        if done + failed >= least:
            return done, failed
        check(time.monotonic() < deadline, "only", done, "handshakes in", harness.READY_S, "s: the others are not served")
        time.sleep(0.1)


def one_way(ws, name):
    fresh(ws)
    check(windows(ws)[1] == 0, "failures while the agent was good")
    workers, told = ws.site.workers(), len(ws.site.log())
    before = ws.wrong.mangled
    ws.wrong.how = WAYS[name]
    if name.startswith("hello_"):
        ws.site.reload()  # for who has let it in once is not asked for a proof again
        workers = ws.site.workers()
    wait_until(lambda: ws.wrong.mangled > before, "it answers wrongly")
    done, failed = windows(ws, SETTLED)
    asked = ws.wrong.requests
    done_after, failed_after = windows(ws, WATCHED)
    asked = ws.wrong.requests - asked
    wrong = ws.wrong.mangled - before
    log = ws.site.log()[told:]
    named = [line for line in log.splitlines() if ws.wrong.socket in line and "keyhold: agent" in line]
    print(f"F3: {name}: {wrong} wrong answers, {failed + failed_after} of {done + done_after} handshakes failed; then {asked} of "
          f"{done_after} were asked for; {named[0].split('keyhold: ', 1)[1] if named else 'the log says nothing'}", flush=True)
    check(ws.site.workers() == workers, "the worker lives")
    check(failed + failed_after <= (0 if name in AT_ONCE else wrong), name, "cost more than it was for")
    check(failed_after == 0, name, "fails still when the agent is known to be wrong")
    check(asked <= SHARE * done_after + 1, name, "it is not left out:", asked, "of", done_after)
    check(named, name, "the log does not name it:", log[-1500:])


for _name in WAYS:
    globals()["test_f3_" + _name] = lambda ws, name=_name: one_way(ws, name)


def test_f3_good_again_and_clean(ws):
    """After all that: it is good again, and is asked again; and nothing was found by the sanitizers."""
    fresh(ws)
    check(windows(ws)[1] == 0, "no failure with both good")
    for load in ws.loads:
        load.stop()
    if PRESET == "asan":
        abuse.finish(ws, ws.site)


if __name__ == "__main__":
    harness.main(globals())
