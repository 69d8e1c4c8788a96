#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""T9: what leaves the tokens and the store in sealed form is refused when it was changed: each byte of it flipped in turn, and cut at each
length, with one clear error, and nothing of it is stored. Here the backup of a key, by way of the program; the wrapped copy
of a pool's key is tests/unit/test_p11_pool.c, with a real token."""
import json
import os

import hsm
import harness
from harness import check

FULL = os.environ.get("KH_CHECK") == "full"
STEP = 1 if FULL else 7  # every byte in full; else every seventh, and the first and last ones

agent = None


def setup(ws):
    global agent
    agent = ws.agent()


def positions(size):
    return sorted({*range(0, size, STEP), *range(min(16, size)), *range(max(0, size - 16), size)})


def damaged(data):
    """(what, bytes): each flip and each truncation."""
    for at in positions(len(data)):
        yield f"byte {at} of {len(data)} flipped", data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1:]
    for size in positions(len(data)):
        yield f"cut to {size} of {len(data)}", data[:size]


def rows():
    return json.loads(agent.ctl("key", "list", "--json").stdout)


def test_t9_backup_of_a_key(ws):
    agent.ctl("key", "create", "precious", "--type", "p256")
    whole = os.path.join(ws.dir, "precious.backup")
    agent.ctl("key", "backup", "precious", "--out", whole)
    with open(whole, "rb") as file:
        data = file.read()
    agent.ctl("key", "delete", "precious")
    agent.ctl("key", "purge", "precious", "--yes")
    before = rows()
    path = os.path.join(ws.dir, "damaged.backup")
    count = 0
    for what, bad in damaged(data):
        with open(path, "wb") as file:
            file.write(bad)
        done = agent.ctl("key", "restore", path, "--allow-purged", ok=False)
        check(done.returncode == 1 and done.stderr.count("\n") == 1, what, done.returncode, done.stdout, done.stderr)
        count += 1
    check(rows() == before, "something of a damaged backup was stored")
    agent.ctl("key", "restore", whole, "--allow-purged")
    check(hsm.signs(agent, "precious"), "the whole one is taken")
    print(f"T9: {count} damaged backups were refused", flush=True)


if __name__ == "__main__":
    harness.main(globals())
