#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""T6: kill -9 of any process of the agent in the middle of create, import, rotate, delete, recover, purge, moving a key, a pool's repair
and the replacement of the KEK. What was acknowledged is there, what was not is there as a whole or not at all: in the store, which
`store fsck` finds clean, and in the tokens, which hold exactly the keys of the store.

KH_T6_ROUNDS is the number of kills (200; 2,000 in `./check full`)."""
import json
import os
import random
import signal
import threading
import time

import hsm
import harness
import wire
from harness import check, wait_until

FULL = os.environ.get("KH_CHECK") == "full"
ROUNDS = int(os.environ.get("KH_T6_ROUNDS", "2000" if FULL else "200"))
LOOK_EVERY = 25  # rounds between two looks at everything
VICTIMS = ("keeper", "token", "token", "keeper", "front", "all")

agent = single = None
tokens = []


class Model:
    """What must be there: name to versions to states; None stands for what a change that nobody acknowledged may have left."""

    def __init__(self):
        self.keys = {}    # name: {version: state}
        self.tiers = {}   # name: tier
        self.public = {}  # (name, version): id

    def live(self, state=None, tier=None):
        return [name for name, versions in self.keys.items() if (state is None or set(versions.values()) == {state})
                and (tier is None or self.tiers[name] in tier)]


model = Model()


def setup(ws):
    global agent, tokens, single
    single = hsm.SoftToken(ws, "single")
    tokens = [hsm.SoftToken(ws, name) for name in ("p1", "p2", "p3")]
    agent = hsm.agent_with(ws, [single, *tokens], [hsm.pool("pool", tokens)])
    agent.ctl("pool", "init", "pool")
    for token in tokens:
        token.save()
    model.pem = [ws.make_key("p256", f"brought{number}") for number in range(4)]


# ---- The changes: each gives the command and what it makes of the model when it is acknowledged --------------------------------------

def some(names):
    return random.choice(names) if names else None


def fresh():
    fresh.count += 1
    return f"k{fresh.count}"


fresh.count = 0
TIERS = ("software", "hsm", "hsm", "hsm-pool", "hsm-pool")


def create():
    name, tier = fresh(), random.choice(TIERS)
    return ["key", "create", name, "--type", "p256", "--tier", tier, *place(tier)], name, {1: "enabled"}, tier


def place(tier):
    return {"software": [], "hsm": ["--place", "single"], "hsm-pool": ["--place", "pool"]}[tier]


def bring():
    """Imports a key. The store takes the same public key several times."""
    name, tier = fresh(), random.choice(TIERS)
    return ["key", "import", name, random.choice(model.pem).key, "--tier", tier, *place(tier)], name, {1: "enabled"}, tier


def rotate():
    name = some(model.live("enabled"))
    if name is None:
        return create()
    versions = dict(model.keys[name])
    versions[max(versions) + 1] = "enabled"
    return ["key", "rotate", name], name, versions, model.tiers[name]


def delete():
    name = some(model.live("enabled"))
    if name is None:
        return create()
    return ["key", "delete", name], name, {version: "deleted" for version in model.keys[name]}, model.tiers[name]


def recover():
    name = some(model.live("deleted"))
    if name is None:
        return delete()
    return ["key", "recover", name], name, {version: "enabled" for version in model.keys[name]}, model.tiers[name]


def purge():
    name = some(model.live("deleted"))
    if name is None:
        return delete()
    return ["key", "purge", name, "--yes"], name, {}, model.tiers[name]


def move():
    name = some([name for name in model.live("enabled", ["software"]) if len(model.keys[name]) == 1])
    if name is None:
        return create()
    tier = random.choice(("hsm", "hsm-pool"))
    return ["key", "move", name, "--tier", tier, *place(tier)], name, dict(model.keys[name]), tier


def replace_kek():
    return ["kek", "rotate"], None, None, None


def repair():
    """A partition is as it was before it had any key, and is brought up to date."""
    token = random.choice(tokens)
    token.go_back()
    return ["pool", "repair", "pool"], None, None, None


CHANGES = [create, create, bring, move, rotate, delete, recover, purge, replace_kek, repair]
MANY = 25  # keys; from then on more go than come, so that the last round costs what the first did


def change():
    """The one that is next."""
    return random.choice(CHANGES if len(model.keys) < MANY else CHANGES[4:] + [delete, purge, purge])


# ---- What is there -----------------------------------------------------------------------------------------------------------------

def listed():
    """What the store has: name: {version: state}, and the name's tier. The agent is awaited."""
    def ask():
        done = agent.ctl("key", "list", "--json", ok=False)
        return done.returncode == 0 and (json.loads(done.stdout),)
    found, tiers = {}, {}
    for row in wait_until(ask, "the agent lists its keys")[0]:
        found.setdefault(row["name"], {})[row["version"]] = row["state"]
        check(tiers.setdefault(row["name"], row["tier"]) == row["tier"], "versions in several tiers:", row)
        model.public.setdefault((row["name"], row["version"]), row["id"])
        check(model.public[row["name"], row["version"]] == row["id"], "another key has the name", row)
    return found, tiers


def settle(name, wanted, tier, acknowledged):
    """Compares with the model; takes over what an unacknowledged change may have done."""
    there, tiers = listed()
    for other, versions in model.keys.items():
        check(other == name or (there.get(other), tiers.get(other)) == (versions, model.tiers[other]), other, "was", versions,
              model.tiers[other], "and is", there.get(other), tiers.get(other))
    extra = set(there) - set(model.keys) - {name}
    check(not extra, "keys that nobody asked for:", extra)
    if name is None:
        return
    now, before = there.get(name, {}), model.keys.get(name, {})
    check(now == wanted or (not acknowledged and now == before), name, "was", before, "should be", wanted, "and is", now,
          "acknowledged" if acknowledged else "not acknowledged")
    check(not now or tiers[name] == tier or (not acknowledged and tiers[name] == model.tiers.get(name)), name, "is in", tiers.get(name))
    model.keys.pop(name, None)
    if now:
        model.keys[name], model.tiers[name] = now, tiers[name]


def look_at_everything():
    """The store is clean, every enabled key signs, and the tokens have exactly the store's keys."""
    wait_until(lambda: agent.ctl("pool", "repair", "pool", ok=False).returncode == 0, "the pool is whole")
    done = wait_until(lambda: (d := agent.ctl("store", "fsck", ok=False)).returncode == 0 and d, "fsck is clean")
    check("damaged" not in done.stdout, done.stdout)
    for name in model.live("enabled"):
        wait_until(lambda: hsm.signs(agent, name), f"{name} signs ({model.tiers[name]})", 10)
    counts = {tier: sum(len(model.keys[name]) for name in model.live(tier=[tier])) for tier in ("hsm", "hsm-pool")}
    for token, tier in [(single, "hsm"), *((token, "hsm-pool") for token in tokens)]:
        wait_until(lambda: token.count() == (counts[tier], counts[tier]),
                   f"{token.name} has {counts[tier]} private and public keys, not {token.count()}", 10)
    return counts


# ---- The killing -------------------------------------------------------------------------------------------------------------------

def kill_one(victim):
    if victim == "all":
        agent.stop(signal.SIGKILL)
        return
    pids = [pid for pid in harness.descendants(agent.pid) if harness.command_line(pid).startswith(f"keyholdd: {victim}")]
    if pids:
        harness.kill_pid(random.choice(pids), signal.SIGKILL)


usual_s = {}  # how long a change takes that nobody disturbs


def change_and_kill():
    """The kill comes at some time between the change's beginning and a little after its usual end."""
    argv, name, wanted, tier = change()()
    what = " ".join(argv[:2])
    outcome = {}

    def work():
        begun = time.monotonic()
        outcome["done"] = agent.ctl(*argv, ok=False, timeout=120)
        outcome["took"] = time.monotonic() - begun

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(random.uniform(0.2, 1.2) * usual_s.get(what, 0.03))
    victim = random.choice(VICTIMS)
    kill_one(victim)
    if victim == "all":
        agent.start()
    worker.join()
    done = outcome["done"]
    check(done.returncode in (0, 1, 3), argv, done.returncode, done.stderr)
    if done.returncode == 0:
        usual_s[what] = min(1.1 * usual_s.get(what, 1), outcome["took"])  # what waited for a killed process is not usual
    settle(name, wanted, tier, done.returncode == 0)
    return what, done.returncode == 0


def test_t6_killed_during_changes(_):
    random.seed(os.environ.get("KH_T6_SEED", "6"))
    counts = {}
    for number in range(1, ROUNDS + 1):
        what, acknowledged = change_and_kill()
        entry = counts.setdefault(what, [0, 0])
        entry[0] += 1
        entry[1] += acknowledged
        if number % LOOK_EVERY == 0 or number == ROUNDS:
            print(f"   T6: {number} kills; keys in tokens: {look_at_everything()}", flush=True)
    print("   T6: " + ", ".join(f"{what}: {entry[0]} ({entry[1]} acknowledged)" for what, entry in sorted(counts.items())), flush=True)
    cut = sum(entry[0] - entry[1] for entry in counts.values())
    check(cut >= ROUNDS / 20, "few kills came in the middle:", cut)


def test_t6_after_all_that(_):
    """A start from what is on the disk."""
    agent.stop()
    agent.start()
    look_at_everything()
    with wire.connect(agent.socket, agent.token) as caller:
        check(caller.call(wire.PING)[0] == wire.OK)


if __name__ == "__main__":
    harness.main(globals())
