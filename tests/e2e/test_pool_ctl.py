#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""keyholdctl pool: init, status, remove, add, repair, while the agent serves."""
import json
import os
import signal

import harness
import hsm
from harness import check, kill_pid, wait_until


def states(agent):
    done = agent.ctl("pool", "status", "pool", "--json", ok=False)
    return {one["partition"]: one["key"] for one in json.loads(done.stdout)["partitions"]}, done.returncode


def test_the_life_of_a_pool(ws):
    agent, tokens = hsm.agent_with_pool(ws)
    names = [token.name for token in tokens]
    check(states(agent) == ({name: True for name in names}, 0), "all have the pool's key:", states(agent))
    agent.ctl("key", "create", "site", "--type", "p256", "--tier", "hsm-pool")
    check(hsm.signs(agent, "site"), "signs")

    again = agent.ctl("pool", "init", "pool", ok=False)
    check(again.returncode == 1 and "already" in again.stderr, "a pool begins once:", again.stderr)
    check(states(agent)[1] == 0, "and nothing changed")

    asked = agent.ctl("pool", "remove", "pool", names[1], ok=False)
    check(asked.returncode == 2 and "--yes" in asked.stderr, "it asks first:", asked.stderr)
    agent.ctl("pool", "remove", "pool", names[1], "--yes")
    found, code = states(agent)
    check(found == {names[0]: True, names[1]: False, names[2]: True} and code == 1, "one lacks it:", found, code)

    pin = os.path.join(os.path.dirname(agent.conf), "so-pin")
    for text, code in (("87654321", 1), (hsm.SO_PIN, 0)):
        with open(pin, "w", encoding="ascii") as file:
            file.write(text + "\n")
        os.chmod(pin, 0o600)
        done = agent.ctl("pool", "add", "pool", names[1], "--so-pin-file", pin, ok=False)
        check(done.returncode == code, "the officer's PIN decides:", done.stderr)
        check(code == 0 or "PIN_INCORRECT" in done.stderr, "and the error says so:", done.stderr)
    check(states(agent)[1] == 0, "all have it again")
    for name in names[1:]:
        agent.ctl("pool", "remove", "pool", name, "--yes")
    last = agent.ctl("pool", "remove", "pool", names[0], "--yes", ok=False)
    check(last.returncode == 1 and "--last" in last.stderr, "the last one stays:", last.stderr)
    for name in names[1:]:
        agent.ctl("pool", "add", "pool", name, "--so-pin-file", pin)
    check(states(agent)[1] == 0, "all have it again")
    agent.ctl("pool", "repair", "pool")
    wait_until(lambda: hsm.signs(agent, "site"), "signs on")


def test_a_partition_comes_back_to_an_idle_pool(ws):
    """Nobody asks anything of it: status and log say within 2 s that it is back, and it takes part afterwards."""
    agent, tokens = hsm.agent_with_pool(ws)
    name = tokens[1].name
    agent.ctl("key", "create", "site", "--type", "p256", "--tier", "hsm-pool")
    opened = agent.log().count(f"token {name}: open")
    kill_pid(tokens[1].keeper(agent), signal.SIGKILL)
    wait_until(lambda: "partition_lost" in agent.log(), "it is lost")
    wait_until(lambda: agent.log().count(f"token {name}: open") > opened, "its keeper has the token again")
    wait_until(lambda: "partition_back" in agent.log(), "it is back", hsm.BACK_S)
    check(agent.log().count("partition_back") == 1 == agent.log().count("partition_lost"), "a line each:", agent.log())
    partitions = json.loads(agent.ctl("status", "--json").stdout)["pools"][0]["partitions"]
    check([one["state"] for one in partitions] == ["up"] * 3, "status says so:", partitions)
    for _ in range(10):
        check(hsm.signs(agent, "site"), "signs")
    check(agent.log().count("partition_lost") == 1, "and it was right:", agent.log())


def test_what_is_not_there(ws):
    agent, tokens = hsm.agent_with_pool(ws)
    for args, word in ((("status", "other"), "no pool"), (("add", "pool", "other"), "no partition"),
                       (("repair", "other"), "no pool")):
        done = agent.ctl("pool", *args, ok=False)
        check(done.returncode == 1 and word in done.stderr, args, done.stderr)


if __name__ == "__main__":
    harness.main(globals())
