#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A key-encryption key that only a token can open: the store is sealed under it while it serves, starts with it, and not without."""
import os
import signal

import harness
import hsm
from harness import check, command_line, descendants, kill_pid, read, run, wait_until


def agent_in_token(ws):
    token = hsm.SoftToken(ws, "safe")
    agent = hsm.agent_with(ws, [token])
    agent.ctl("key", "create", "site", "--type", "p256")
    agent.ctl("kek", "rotate", "--in-token", "safe")
    return agent, token, os.path.join(os.path.dirname(agent.conf), "kek")


def refused(agent, word):
    """The agent does not start, and says why."""
    done = run(harness.artefact("keyholdd"), "--config", agent.conf, "--foreground", ok=False, timeout=40)
    check(done.returncode != 0 and word in done.stderr + done.stdout, "refused with", word, "in:", done.stderr, done.stdout)


def test_lives(ws):
    agent, token, kek = agent_in_token(ws)
    first = read(kek)
    check(first.startswith("keyhold-kek-token-1 safe ") and os.stat(kek).st_mode & 0o777 == 0o600, "the file has it wrapped:", first)
    check(hsm.signs(agent, "site"), "signs on")
    for pid in [pid for pid in descendants(agent.pid) if command_line(pid).startswith("keyholdd: keeper")]:
        kill_pid(pid, signal.SIGKILL)  # the one that comes needs the new key: the token is asked for it
    wait_until(lambda: hsm.signs(agent, "site"), "the store is opened again")
    check(not [pid for pid in descendants(agent.pid) if command_line(pid).startswith("keyholdd: kek")], "the helper is gone")
    agent.ctl("kek", "rotate", "--in-token", "safe")
    check(read(kek) != first, "another one")
    agent.stop()
    agent.start()
    wait_until(lambda: hsm.signs(agent, "site"), "starts with it")
    check("ok 1 keys" in agent.ctl("store", "fsck").stdout, "clean")
    backup = os.path.join(ws.dir, "backup.db")
    agent.ctl("store", "backup", backup)
    agent.ctl("key", "create", "later", "--type", "p256")
    agent.stop()
    broken = os.path.join(ws.dir, "broken.db")
    with open(backup, "rb") as whole, open(broken, "wb") as half:
        half.write(whole.read()[:9000])
    done = agent.ctl("store", "restore", broken, ok=False)
    check(done.returncode == 1 and "nothing was changed" in done.stderr, done.stderr)
    os.unlink(os.path.join(agent.dir, "store", "keys.db"))  # a new disk: nothing says whose the store was
    check("store fsck" in agent.ctl("store", "restore", backup).stdout, "what is left to do")
    agent.start()
    wait_until(lambda: hsm.signs(agent, "site"), "the backup serves")
    check("ok 1 keys" in agent.ctl("store", "fsck").stdout, "the store of then")
    agent.ctl("kek", "rotate")
    check(read(kek).startswith("keyhold-kek-1 "), "and back into a plain file")
    agent.stop()
    token.hide()
    agent.start()
    wait_until(lambda: hsm.signs(agent, "site"), "which needs no token")


def test_what_is_refused(ws):
    agent, token, kek = agent_in_token(ws)
    none = agent.ctl("kek", "rotate", "--in-token", "other", ok=False)
    check(none.returncode == 1 and "no block token" in none.stderr, none.stderr)
    agent.stop()
    whole = read(kek)

    token.write_pin("00000000")
    refused(agent, "PIN is wrong")
    token.write_pin(hsm.PIN)
    token.hide()
    refused(agent, "is it there")
    token.bring_back()
    for at in range(len("keyhold-kek-token-1 safe "), len(whole) - 1, 17):  # the key's name in the token, and what is wrapped
        digit = "0" if whole[at] != "0" else "1"
        with open(kek, "w", encoding="ascii") as file:
            file.write(whole[:at] + digit + whole[at + 1:])
        refused(agent, kek)
    with open(kek, "w", encoding="ascii") as file:
        file.write(whole)
    offline = agent.ctl("store", "check", "--store", os.path.join(os.path.dirname(agent.conf), "store", "keys.db"), ok=False)
    check(offline.returncode != 0 and "safe" in offline.stderr, "what cannot be opened without an agent says so:", offline.stderr)
    agent.start()
    wait_until(lambda: hsm.signs(agent, "site"), "and all is well again")


if __name__ == "__main__":
    harness.main(globals())
