#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""keyholdctl kek rotate: the store gets another key-encryption key while it serves, and at whatever point somebody is killed it opens."""
import os
import random
import signal
import subprocess
import time

import harness
import hsm
from harness import artefact, check, command_line, descendants, kill_pid, read, wait_until

ROUNDS = 20


def keeper(agent):
    return [pid for pid in descendants(agent.pid) if command_line(pid).startswith("keyholdd: keeper")]


def serves(agent):
    wait_until(lambda: hsm.signs(agent, "site"), "the store is used")


def test_rotates(ws):
    agent = ws.agent()
    agent.ctl("key", "create", "site", "--type", "p256")
    kek = os.path.join(os.path.dirname(agent.conf), "kek")
    seen = {read(kek)}
    for _ in range(3):
        out = agent.ctl("kek", "rotate").stdout
        check(kek in out, "it says where:", out)
        check(os.stat(kek).st_mode & 0o777 == 0o600, "others may read it")
        check(read(kek) not in seen, "it is another key")
        seen.add(read(kek))
        check(hsm.signs(agent, "site"), "signs on")
        for pid in keeper(agent):  # the one that comes needs the new key
            kill_pid(pid, signal.SIGKILL)
        serves(agent)
    old = [name for name in os.listdir(os.path.dirname(kek)) if ".until-" in name]
    check(len(old) == 3, "the ones before are kept:", old)
    check("ok 1 keys" in agent.ctl("store", "fsck").stdout, "clean")
    agent.stop()
    agent.start()
    serves(agent)


def test_t6_kek_rotation(ws):
    """T6: whoever is killed, whenever: one of the two keys that were in the file opens the store, and the next rotation ends it."""
    agent = ws.agent()
    agent.ctl("key", "create", "site", "--type", "p256")
    chance = random.Random(6)
    for _ in range(ROUNDS):
        ctl = subprocess.Popen([artefact("keyholdctl"), "--config", agent.conf, "kek", "rotate"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 0.04))
        if chance.random() < 0.5:
            ctl.kill()
        else:
            for pid in keeper(agent):
                kill_pid(pid, signal.SIGKILL)
        ctl.wait()
        agent.stop()  # a supervisor that starts anew has read the file anew, and knows of no deaths before
        agent.start()
        serves(agent)
    agent.ctl("kek", "rotate")
    check("ok 1 keys" in agent.ctl("store", "fsck").stdout, "clean")
    agent.stop()
    agent.start()
    serves(agent)


def test_refuses(ws):
    agent = ws.agent()
    kek = os.path.join(os.path.dirname(agent.conf), "kek")
    with open(kek, "w", encoding="ascii") as file:
        file.write("keyhold-kek-1 " + "00" * 32 + "\n")
    done = agent.ctl("kek", "rotate", ok=False)
    check(done.returncode == 1 and "00" * 32 in read(kek), "a key that does not open the store changes nothing:", done.stderr)
    check(not os.path.exists(kek + ".next"), "and no key that nobody needs is left")
    with open(kek + ".next", "w", encoding="ascii") as file:  # perhaps of an interrupted run, and in use
        file.write("keyhold-kek-1 " + "11" * 32 + "\n")
    os.chmod(kek + ".next", 0o600)
    done = agent.ctl("kek", "rotate", ok=False)
    check(done.returncode == 1 and os.path.exists(kek + ".next"), "one that was there before stays:", done.stderr)


if __name__ == "__main__":
    harness.main(globals())
