#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The keepers of tokens, as processes: start, a wrong PIN, a token that is not there, SIGHUP, confinement, the end."""
import os
import re
import signal

import harness
import hsm
from harness import alive, check, command_line, descendants, kill_pid, read, wait_until


def opened(agent, token):
    return agent.log().count(f"token {token.name}: open")


def settle(agent, token, count=1):
    wait_until(lambda: opened(agent, token) >= count, f"token {token.name} is open ({count})")


def token_keepers(agent):
    return [pid for pid in descendants(agent.pid) if command_line(pid).startswith(hsm.ROLE)]


def reload(agent, text, old, new):
    with open(agent.conf, "w") as file:
        file.write(text.replace(old, new))
    count = agent.log().count("reloaded")
    agent.reload()
    wait_until(lambda: agent.log().count("reloaded") > count, "SIGHUP is done")


def test_start_kill_stop(ws):
    one, two = hsm.SoftToken(ws, "one"), hsm.SoftToken(ws, "two")
    agent = hsm.agent_with(ws, [one, two])
    settle(agent, one)
    settle(agent, two)
    first = one.keeper(agent)
    check(len(token_keepers(agent)) == 2, token_keepers(agent))
    # Only its own environment, its own user, and the library in nobody else's memory.
    check(read(f"/proc/{first}/environ") == f"SOFTHSM2_CONF={one.conf}\0", read(f"/proc/{first}/environ"))
    for pid in agent.pids():
        loaded = "libsofthsm2" in read(f"/proc/{pid}/maps")
        check(loaded == (pid in token_keepers(agent)), command_line(pid))
    kill_pid(first, signal.SIGKILL)
    settle(agent, one, 2)
    check(one.keeper(agent) not in (None, first) and two.keeper(agent) is not None, "one keeper is new, the other is not")
    check(agent.stop() == 0, "the agent ends well")
    check("process_kill" not in agent.log(), agent.log())


def test_wrong_pin_is_tried_once(ws):
    token = hsm.SoftToken(ws, "one", shim=True)
    token.write_pin("000000")
    token.order(f"C_Login count-file {token.logins}")
    os.mknod(token.logins)
    os.chmod(token.logins, 0o666)
    agent = hsm.agent_with(ws, [token], start=False).start()
    wait_until(lambda: "pin_refused" in agent.log(), "the PIN was refused")
    check(token.keeper(agent) is None, "its keeper is not started again")
    agent.reload()
    wait_until(lambda: "reloaded" in agent.log(), "SIGHUP is done")
    agent.ctl("key", "create", "soft", "--type", "p256")  # the rest of the agent works
    check(len(read(token.logins).splitlines()) == 1, read(token.logins))
    token.write_pin(hsm.PIN)
    agent.reload()
    settle(agent, token)
    check(len(read(token.logins).splitlines()) == 2, read(token.logins))


def test_absent_token_is_waited_for(ws):
    token = hsm.SoftToken(ws, "one")
    token.hide()
    agent = hsm.agent_with(ws, [token], start=False).start()
    wait_until(lambda: "token one: cannot be opened" in agent.log(), "the log says that it is not there")
    first = token.keeper(agent)
    token.bring_back()
    wait_until(lambda: opened(agent, token) == 1, "it is open", 2)
    check(token.keeper(agent) == first, "the same process waited")
    check(agent.log().count("cannot be opened") == 1, "it is said once")


def test_a_library_that_hangs_is_replaced(ws):
    token = hsm.SoftToken(ws, "one", shim=True)
    token.order("C_GetTokenInfo hang")
    agent = hsm.agent_with(ws, [token], start=False, call_timeout_ms=300).start()
    wait_until(lambda: "does not come back" in agent.log(), "the watch sees that it hangs", 30)
    token.order()
    settle(agent, token)


def test_reload(ws):
    one, two = hsm.SoftToken(ws, "one"), hsm.SoftToken(ws, "two")
    agent = hsm.agent_with(ws, [one])
    settle(agent, one)
    text = read(agent.conf)
    first = one.keeper(agent)
    # A second one comes; the first stays.
    reload(agent, text, one.block(), one.block() + "\n" + two.block())
    settle(agent, two)
    second = two.keeper(agent)
    check(one.keeper(agent) == first, "the keeper of an unchanged block stays")
    # A block that changes: the old keeper is gone before the new one opens the token.
    reload(agent, text, one.block(), one.block(sessions=3) + "\n" + two.block())
    settle(agent, one, 2)
    check("token one: open, 3 sessions" in agent.log() and not alive(first), agent.log())
    # One goes.
    reload(agent, text, one.block(), two.block())
    wait_until(lambda: "token_removed" in agent.log() and one.keeper(agent) is None, "its keeper is gone")
    wait_until(lambda: two.keeper(agent) == second, "the other stays")
    check(agent.stop() == 0 and "process_kill" not in agent.log(), agent.log())


def test_the_first_token_needs_a_restart(ws):
    """An agent without tokens forbids itself more, so the reload says what to do."""
    one = hsm.SoftToken(ws, "one")
    agent = ws.agent()
    text = read(agent.conf)
    reload(agent, text, text, text + "\n" + one.block())
    check(re.search(r'restart_needed option=token means="an agent that began without tokens', agent.log()), agent.log())
    wait_until(lambda: [token["state"] for token in agent.status()["tokens"]] == ["down"], "it is known, and not there")
    check(one.keeper(agent) is None, "and has no keeper")
    agent.stop()
    agent.start()
    settle(agent, one)


def test_mistakes_are_named(ws):
    token = hsm.SoftToken(ws, "one")
    agent = hsm.agent_with(ws, [token], start=False)
    keyholdd = harness.artefact("keyholdd")
    good = harness.run(keyholdd, "--config", agent.conf, "--check")
    check("1 tokens, 0 pools" in good.stdout, good.stdout)
    os.chmod(token.pin_file, 0o644)
    bad = harness.run(keyholdd, "--config", agent.conf, "--check", ok=False)
    check(re.search(r"keyhold.conf:\d+: the PIN of token one: .*chmod 600", bad.stderr), bad.stderr)
    os.unlink(token.pin_file)
    bad = harness.run(keyholdd, "--config", agent.conf, "--check", ok=False)
    check("the PIN of token one" in bad.stderr and "No such file" in bad.stderr, bad.stderr)


def test_strict(ws):
    """`confine = strict`: SoftHSM works, and its process can open nothing else and make no connection."""
    token = hsm.SoftToken(ws, "one")
    block = token.block(confine="strict").replace("env =", f'paths = {{"{token.store}"}}\n    env =')
    agent = ws.agent(start=False, config=block)
    agent.start()
    settle(agent, token)
    status = read(f"/proc/{token.keeper(agent)}/status")
    check(re.search(r"^Seccomp:\s+2$", status, re.M) and re.search(r"^NoNewPrivs:\s+1$", status, re.M), status)


if __name__ == "__main__":
    harness.main(globals())
