#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""F5: 5,000 handshakes parked at once in one worker. All complete; what a parked one costs of our own is less than 24 KiB; one more
than keyhold_max_inflight is refused at once, and the log says so.

So that all of them are parked at the same time on any machine, the agent's keeper stands still until the last one is; then it goes on,
and each reply is held back for 2 s more (--delay-ms 2000).

Our own memory of a parked handshake is
  * the touched pages of its stack, on which the coroutine's own state, the operation and the buffer of its signature are: Rss of the
    worker's mappings that are a stack (256 KiB, with a page that nobody may touch below), from /proc/PID/smaps, nothing estimated;
  * on the heap: the handshake's state, and its place in the session with the agent. kh-test-sizes prints what these are by sizeof in
    this build; malloc's own 16 bytes are added, and the session's table, which grows by doubling, is counted twice.
nginx's connection and libssl's SSL are there with a local key too, and are not ours. The worker's growth as a whole is printed beside it."""
import os
import re
import resource
import time

import harness
import wire
from harness import check, read, run, wait_until

PARKED, REFUSED, BOUND = 5000, 20, 24 * 1024
STACK_KB = 256
FILES = 3 * PARKED
MAPS = 4 * PARKED


def room_for_all():
    """Descriptors and mappings, as far as root can raise the limits."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, max(most, FILES)))
    except (OSError, ValueError):
        raise harness.Skip(f"needs {FILES} descriptors, and the limit of {most} cannot be raised") from None
    if int(read("/proc/sys/vm/max_map_count")) < MAPS:
        try:
            with open("/proc/sys/vm/max_map_count", "w") as file:
                file.write(str(MAPS))
        except OSError:
            raise harness.Skip(f"needs vm.max_map_count {MAPS}, and it cannot be raised") from None


def mappings(pid):
    """Of /proc/PID/smaps: (permissions, kilobytes, kilobytes in memory), in their order."""
    found, size = [], 0
    for line in read(f"/proc/{pid}/smaps").splitlines():
        if match := re.match(r"[0-9a-f]+-[0-9a-f]+ (\S+) ", line):
            found.append([match[1], 0, 0])
        elif line.startswith("Size:"):
            found[-1][1] = int(line.split()[1])
        elif line.startswith("Rss:"):
            found[-1][2] = int(line.split()[1])
    return found


def guards(pid):
    """About as many as there are stacks; quicker to be had."""
    return read(f"/proc/{pid}/maps").count(" ---p ")


def stacks(pid):
    """The bytes in memory of each coroutine's stack."""
    found = mappings(pid)
    return [rss * 1024 for below, (mode, size, rss) in zip(found, found[1:])
            if mode == "rw-p" and size == STACK_KB and below[:2] == ["---p", 4]]


def resident(pid):
    return int(harness.status_of(pid)["VmRSS"].split()[0]) * 1024


def sizes():
    """{"handshake": bytes, "flight": …}"""
    return {name: int(size) for name, size in (line.split() for line in run(harness.artefact("kh-test-sizes")).stdout.splitlines())}


def refused_at_once(ws, key, nginx):
    """Clients beyond the limit, one after the other."""
    for _ in range(REFUSED):
        begun = time.monotonic()
        done = ws.curl(key, ok=False)
        took = time.monotonic() - begun
        check(done.returncode != 0 and took < 1, f"refused at once: {took:.3f} s", done.stdout, done.stderr)
    lines = [line for line in nginx.log().splitlines() if "[error]" in line]
    check(lines and all(f"keyhold: handshake refused: keyhold_max_inflight ({PARKED}) reached" in line for line in lines),
          len(lines), lines[:3])
    check("client: 127.0.0.1" in lines[0], lines[0])
    return lines


def test_f5_parked(ws):
    room_for_all()
    agent = ws.agent(delay_ms=2000, config="credit = 16384")
    keys = {"1.3": ws.make_key("p256"), "1.2": ws.make_key("rsa2048")}
    for key in keys.values():
        agent.import_key(key)
    nginx = ws.nginx(agent, f"    keyhold_max_inflight {PARKED};\n    keyhold_timeout 60s;\n    keyhold_try_timeout 60s;\n"
                     + "".join(map(ws.server, keys.values())),
                     main=f"pcre_jit off; events {{ worker_connections {PARKED + 1000}; }}")
    worker, = nginx.workers()
    for key in keys.values():
        check(ws.curl(key).stdout == key.name + "\n", "it serves")
    before = resident(worker)
    keeper = agent.role_pid("keeper")
    wire.freeze(agent.pid)  # the supervisor, which would take the keeper for one that is stuck
    wire.freeze(keeper)
    each = PARKED // len(keys)
    loads = [ws.load(key, "--clients", each, "--count", each, "--rate", 1000, "--timeout", 100, "--request", "/", "--expect", key.name,
                     "--tls", version) for version, key in keys.items()]
    wait_until(lambda: guards(worker) >= PARKED, f"{PARKED} handshakes are parked", 60, every=0.5)
    held, grown = stacks(worker), resident(worker) - before
    check(len(held) == PARKED, "stacks:", len(held), held[:3])
    lines = refused_at_once(ws, keys["1.3"], nginx)
    wire.thaw(keeper)
    begun = time.monotonic()
    reports = [load.wait() for load in loads]
    took = time.monotonic() - begun
    wire.thaw(agent.pid)
    for report in reports:
        check(report["failed"] == 0 and report["done"] == each, report)
    check(took >= 2, f"the last one was held back for 2 s: {took:.1f} s")
    check(nginx.workers() == [worker], "the worker lives")
    of = sizes()
    stack = sum(held) / len(held)
    heap = of["handshake"] + 16 + 2 * of["flight"]
    print(f"F5: {PARKED} parked, all completed; each: stack {stack / 1024:.1f} KiB (most {max(held) / 1024:.0f}), heap {heap} bytes "
          f"({', '.join(f'{name} {size}' for name, size in of.items())}); the whole worker grew by {grown / PARKED / 1024:.1f} KiB each")
    print(f"F5: {REFUSED} beyond it refused at once: {len(lines)} lines")
    check(stack + heap < BOUND, f"F5: {(stack + heap) / 1024:.1f} KiB")
    check(ws.curl(keys["1.3"]).stdout == "p256\n", "it goes on")


if __name__ == "__main__":
    harness.main(globals())
