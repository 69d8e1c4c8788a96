#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M0: ./demo works from a clean clone, twice, as root without a terminal, and leaves nothing running.

KH_CHECK=fast spares the clone's own build and uses the one that is there."""
import os
import shlex

import harness
from harness import ROOT, Skip, alive, build_dir, check, port_open, run, wait_until

KEYS = ["rsa2048", "rsa3072", "rsa4096", "p256", "p384", "ed25519"]


def environment(ws):
    """A terminal-less root with little in its environment, and a directory for temporary files that must be empty again."""
    tmp = os.path.join(ws.dir, "tmp")
    os.makedirs(tmp, exist_ok=True)
    return {"PATH": "/usr/bin:/bin", "HOME": ws.dir, "TMPDIR": tmp, "CI": "true", "CCACHE_DIR":
            os.environ.get("CCACHE_DIR", os.path.expanduser("~/.cache/ccache"))}


def demo(ws, *args, ok=True):
    return run(os.path.join(ROOT, "demo"), *args, ok=ok, env=environment(ws), timeout=600, start_new_session=True)


def nothing_left(ws):
    """Orphans come to us (we are a subreaper), so whatever a demo left running is our descendant."""
    harness.reap()
    left = [harness.command_line(pid) for pid in harness.descendants(os.getpid()) if alive(pid)]
    check(not left, "left running:", left)
    check(os.listdir(environment(ws)["TMPDIR"]) == [], "left behind:", os.listdir(environment(ws)["TMPDIR"]))


def read_env(path):
    with open(path) as file:
        return {name: " ".join(shlex.split(value)) for name, value in (line.rstrip("\n").split("=", 1) for line in file)}


def test_m0_clean_clone_twice(ws):
    if not os.path.isdir(os.path.join(ROOT, ".git")):
        raise Skip("not a git checkout")
    clone = os.path.join(ws.dir, "clone")
    run("git", "clone", "-q", ROOT, clone)
    args = ["--build-dir", build_dir()] if os.environ.get("KH_CHECK") == "fast" else []
    for number in (1, 2):
        done = run(os.path.join(clone, "demo"), *args, env=environment(ws), timeout=900, start_new_session=True, ok=False)
        check(done.returncode == 0, f"demo, time {number}:", done.stdout, done.stderr)
        check("VERDICT: PASSED" in done.stdout and done.stderr == "", done.stdout, done.stderr)
        nothing_left(ws)
    check(run("git", "-C", clone, "status", "--porcelain").stdout == "", "the demo wrote into the source tree")


def test_m0_keep_and_stop(ws):
    home = os.path.join(ws.dir, "kept")
    for delay in (0, 5):  # the second one replaces the first
        demo(ws, "--keep", "--dir", home, "--build-dir", build_dir(), "--delay-ms", str(delay))
        env = read_env(os.path.join(home, "env"))
        for key in KEYS:
            check(port_open(int(env["PORT_" + key])) and port_open(int(env["PORT_local_" + key])), "ports of", key)
        for name in ("NGINX_PID", "NGINX_WORKER_PIDS", "LOCAL_NGINX_PID", "LOCAL_WORKER_PIDS", "AGENT_PIDS"):
            check(env[name] and all(alive(int(pid)) for pid in env[name].split()), name, env[name])
        check(len(env["NGINX_WORKER_PIDS"].split()) == len(env["LOCAL_WORKER_PIDS"].split()) == 1, "one worker each")
        check(len(env["AGENT_PIDS"].split()) >= 3, "supervisor, front, keeper:", env["AGENT_PIDS"])
        for name in ("AGENT_SOCKET", "AGENT_CONF", "NGINX_CONF", "LOCAL_NGINX_CONF"):
            check(os.path.exists(env[name]), name, env[name])
    demo(ws, "--stop", "--dir", home)
    check(not os.path.exists(home), "--stop removes its directory")
    wait_until(lambda: harness.reap() or not [pid for pid in harness.descendants(os.getpid()) if alive(pid)], "all ends", 5)
    nothing_left(ws)
    check(demo(ws, "--stop", "--dir", home).returncode == 0, "--stop once more does no harm")


def test_m0_refuses_what_is_not_its_own(ws):
    home = os.path.join(ws.dir, "precious")
    os.mkdir(home)
    with open(os.path.join(home, "file"), "w") as file:
        file.write("mine")
    for args in (["--keep", "--build-dir", build_dir()], ["--stop"]):
        done = demo(ws, *args, "--dir", home, ok=False)
        check(done.returncode == 2 and os.path.exists(os.path.join(home, "file")), done.stdout, done.stderr)
    check(demo(ws, "--nonsense", ok=False).returncode == 2)
    check("--delay-ms" in demo(ws, "--help").stdout)


if __name__ == "__main__":
    harness.main(globals())
