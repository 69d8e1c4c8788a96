#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M5: no private key in nginx's files or memory, in the front's or the supervisor's memory, in any log or core.

The scan looks for any 16 bytes of d, p, q, the CRT values, the Ed25519 seed and what is derived from it, in both byte orders,
and for the PEM text; it must find every key in the nginx with local keys, or it would prove nothing."""
import os
import resource
import signal

import harness
from harness import alive, check, wait_until

KINDS = ["rsa2048", "rsa3072", "rsa4096", "p256", "p384", "ed25519"]


def all_files(folder, skip=()):
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if os.path.join(where, name) not in skip]
        found += [path for path in (os.path.join(where, name) for name in files) if os.path.isfile(path)]
    return found


def serve(ws):
    agent = ws.agent()
    keys = [ws.make_key(kind) for kind in KINDS]
    for key in keys:
        agent.import_key(key)
    nginx = ws.nginx(agent, "".join(ws.server(key) for key in keys))
    return agent, keys, nginx


def use(ws, keys):
    for key in keys:
        for version in ("1.2", "1.3"):
            report = ws.load(key, "--clients", 10, "--count", 60, "--tls", version).wait()
            check(report["failed"] == 0, key.name, report)


def where(report):
    return [f"{one['what']} in {one['where']}" for one in report["findings"]]


def test_m5_memory_files_logs(ws):
    agent, keys, nginx = serve(ws)
    use(ws, keys)
    nginx.reload()
    agent.reload()
    use(ws, keys[-2:])
    front, keeper = agent.role_pid("front"), agent.role_pid("keeper")
    check(front and keeper, "front and keeper run:", [harness.command_line(pid) for pid in agent.pids()])
    outside = nginx.pids() + [agent.pid, front]
    files = all_files(ws.dir, skip=(ws.keys,))
    check(any("nginx.conf" in path for path in files) and any("store" in path for path in files), files)
    report = ws.scan(keys, outside, files)
    print(f"M5: {report['pieces']} pieces, {report['bytes'] / 1e6:.0f} MB of memory and files: {report['found']} found")
    check(report["found"] == 0, "private keys found:", where(report))
    # The keeper is the one place where they are: with each key just used, the scan sees at least one of them there.
    use(ws, keys)
    check(ws.scan(keys, [keeper])["found"] > 0, "the scan must find keys in the keeper")


def test_m5_control(ws):
    """The same scan finds each single key in an nginx that has it as a local file, and in that file."""
    keys = [ws.make_key(kind) for kind in KINDS]
    nginx = ws.local_nginx("".join(ws.server(key, local=True) for key in keys))
    use(ws, keys)
    for key in keys:
        check(ws.scan([key], nginx.workers())["found"] > 0, key.name, "not found in the worker's memory")
        check(ws.scan([key], files=[key.key])["found"] > 0, key.name, "not found in its file")
        check(ws.scan([key], files=[key.crt])["found"] == 0, key.name, "found in its certificate")


def test_m5_no_core(ws):
    """Processes of the agent leave no core, even where cores are allowed; nginx's core holds no key."""
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    here = os.getcwd()
    os.chdir(ws.dir)  # where cores land with the kernel's default pattern
    try:
        agent, keys, nginx = serve(ws)
        use(ws, keys)
        for role in ("front", "keeper"):
            pid = agent.role_pid(role)
            os.kill(pid, signal.SIGABRT)
            wait_until(lambda pid=pid: not alive(pid), role + " ends")
            wait_until(lambda role=role: agent.role_pid(role), role + " is back")
        worker = nginx.workers()[0]
        os.kill(worker, signal.SIGSEGV)
        wait_until(lambda: not alive(worker), "the worker ends")
        wait_until(nginx.workers, "a new worker")
        use(ws, keys[:1])
        os.kill(agent.pid, signal.SIGABRT)
        agent.process.wait(20)
        cores = [path for path in all_files(ws.dir, skip=(ws.keys,)) if os.path.basename(path).startswith("core")]
        report = ws.scan(keys, files=all_files(ws.dir, skip=(ws.keys,)))
        print(f"M5: {len(cores)} cores")
        check(report["found"] == 0, "private keys found:", where(report))
    finally:
        os.chdir(here)


if __name__ == "__main__":
    harness.main(globals())
