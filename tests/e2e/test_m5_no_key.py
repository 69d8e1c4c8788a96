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


# ---- Cores -----------------------------------------------------------------------------------------------------------------

def cores_in(folder):
    return [path for path in all_files(folder) if os.path.basename(path).startswith("core")]


def crash(pid, number, folder):
    """Ends a process by a signal whose default is a core; the cores that it leaves in the folder, emptied before."""
    for path in cores_in(folder):
        os.unlink(path)
    os.kill(pid, number)
    wait_until(lambda: not alive(pid), "the process ends")
    return cores_in(folder)


def allow_cores(ws):
    """Cores of any size, into the working directory: where the machine's pattern sends them elsewhere, nothing can be shown."""
    pattern = harness.read("/proc/sys/kernel/core_pattern").strip()
    if pattern.startswith(("/", "|")):
        raise harness.Skip(f"this machine sends cores to {pattern}")
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    folder = os.path.join(ws.dir, "cores")
    os.mkdir(folder)
    os.chmod(folder, 0o777)
    return folder


def core_of_worker(ws, nginx, folder):
    """The worker's core: one there must be, of nginx's making."""
    cores = crash(nginx.workers()[0], signal.SIGSEGV, folder)
    wait_until(nginx.workers, "a new worker")
    check(len(cores) == 1 and os.path.getsize(cores[0]) > 1 << 20, "the worker leaves a core:", cores)
    return cores


def test_m5_core_of_nginx(ws):
    """A worker that crashes leaves a core: with local keys each of them is in it, with keys in the agent none."""
    folder = allow_cores(ws)
    main = f"worker_rlimit_core 4g; working_directory {folder};"
    agent = ws.agent()
    keys = [ws.make_key(kind) for kind in KINDS]
    for key in keys:
        agent.import_key(key)
    nginx = ws.nginx(agent, "".join(ws.server(key) for key in keys), main=main)
    use(ws, keys)
    report = ws.scan(keys, files=core_of_worker(ws, nginx, folder))
    print(f"M5: core of a worker with keys in the agent: {report['bytes'] / 1e6:.0f} MB, {report['found']} found")
    check(report["found"] == 0, "private keys found:", where(report))
    use(ws, keys[:1])  # and the next worker serves
    nginx.stop()

    local = ws.local_nginx("".join(ws.server(key, local=True) for key in keys), main=main)
    use(ws, keys)
    cores = core_of_worker(ws, local, folder)
    for key in keys:
        check(ws.scan([key], files=cores)["found"] > 0, key.name, "is not in the core of the worker that has it: a blind control")


def test_m5_no_core_of_the_agent(ws):
    """No process of the agent leaves a core, whatever ends it, where another program of the same user does."""
    folder = allow_cores(ws)
    here = os.getcwd()
    os.chdir(folder)  # the agent's working directory too
    try:
        agent, keys, _ = serve(ws)
        use(ws, keys)
        for role in ("front", "keeper"):
            uid = harness.status_of(agent.role_pid(role))["Uid"].split()[0]
            control = harness.popen(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sleep", "60"],
                                    os.path.join(ws.dir, "control.log"))
            wait_until(lambda pid=control.pid: harness.command_line(pid).startswith("sleep"), "the control runs")
            check(len(crash(control.pid, signal.SIGABRT, folder)) == 1, "a program of", role + "'s user leaves no core: a blind control")
            for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGQUIT):
                pid = wait_until(lambda role=role: agent.role_pid(role), role + " runs")
                check(not crash(pid, number, folder), role, "leaves a core after signal", number)
                wait_until(lambda role=role, pid=pid: agent.role_pid(role) not in (None, pid), role + " is back")
                wait_until(lambda: agent.ctl("ping", ok=False).returncode == 0, "the agent answers")
        use(ws, keys[:1])
        check(not crash(agent.pid, signal.SIGSEGV, folder), "the supervisor leaves a core")
        agent.process.wait(20)
        print("M5: a core of each control, none of the agent")
    finally:
        os.chdir(here)


if __name__ == "__main__":
    harness.main(globals())
