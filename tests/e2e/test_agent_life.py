#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The agent's life: configuration checks, reload, drain, systemd, limits, fairness, the simulated slow HSM, the log."""
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time

import harness
import wire
from harness import artefact, check, read, run, wait_until

PRESET = os.environ.get("KH_PRESET", "release")
HERE = os.path.dirname(os.path.abspath(__file__))


def agent_with_keys(ws, *kinds, **more):
    agent = ws.agent(preset=PRESET, **more)
    for kind in kinds:
        agent.ctl("key", "create", kind, "--type", kind)
    return agent


def sign(connection, kind="p256", **more):
    return connection.call(wire.SIGN, *wire.sign_fields(kind, kind), **more)[0]


def reload(agent):
    count = agent.log().count("configuration_applied")
    agent.reload()
    wait_until(lambda: agent.log().count("configuration_applied") > count, "the new configuration is used")


# ---- The configuration ------------------------------------------------------------------------------------------------------------

def test_check(ws):
    agent = ws.agent(preset=PRESET, start=False)
    keyholdd = artefact("keyholdd", PRESET)
    good = run(keyholdd, "--config", agent.conf, "--check")
    check("ok, 1 listeners, 1 identities" in good.stdout, good.stdout)
    agent.configure("cache_keys = 0")
    lines = read(agent.conf).splitlines().index("cache_keys = 0") + 1
    bad = run(keyholdd, "--config", agent.conf, "--check", ok=False)
    check(bad.returncode == 1 and f"{agent.conf}:{lines}: cache_keys = 0 is out of range" in bad.stderr, bad.stderr)
    started = run(keyholdd, "--config", agent.conf, ok=False)
    check(started.returncode == 1 and f"{agent.conf}:{lines}:" in started.stderr, started.stderr)
    usage = run(keyholdd, "--wat", ok=False)
    check(usage.returncode == 2 and "usage:" in usage.stderr, usage.stderr)
    check(run(keyholdd, "--delay-ms", "x", ok=False).returncode == 2, "--delay-ms x")


def test_check_looks_beyond_the_file(ws):
    """What would keep the agent from starting: no key-encryption key, no such user."""
    agent = ws.agent(preset=PRESET, start=False)
    keyholdd = artefact("keyholdd", PRESET)
    text = read(agent.conf)
    for wrong, words in ((re.sub(r'kek_file *= *"[^"]*"', 'kek_file = "nokek"', text), "nokek: cannot be read"),
                         (re.sub(r'front_user *= *"[^"]*"', 'front_user = "nosuchuser"', text), "nosuchuser")):
        check(wrong != text, "the configuration is not as expected:", text)
        with open(agent.conf, "w") as file:
            file.write(wrong)
        done = run(keyholdd, "--config", agent.conf, "--check", ok=False)
        check(done.returncode == 1 and words in done.stderr, words, done.stderr)


def test_token_mistakes(ws):
    agent = ws.agent(preset=PRESET, start=False)
    keyholdd = artefact("keyholdd", PRESET)

    def complaint(text):
        done = run(keyholdd, "--config", agent.conf, "--check", ok=False)
        check(done.returncode == 1 and text in done.stderr and re.search(r"keyhold.conf:\d+: ", done.stderr), text, done.stderr)
    os.chmod(agent.token, 0o644)
    complaint("chmod 600")
    os.chmod(agent.token, 0o600)
    text = read(agent.token)
    with open(agent.token, "w") as file:
        file.write(text.replace("nginx", "other"))
    complaint('is for identity "other", not "nginx"')
    os.unlink(agent.token)
    complaint("No such file")


def test_it_says_why_it_does_not_start(ws):
    first = agent_with_keys(ws, "p256")
    keyholdd = artefact("keyholdd", PRESET)
    second = run(keyholdd, "--config", first.conf, ok=False)
    check(second.returncode == 1 and "another process listens there" in second.stderr, second.stderr)
    check(first.ctl("ping", ok=False).returncode == 0, "the first one goes on")
    with open(first.conf) as file:
        text = file.read().replace("agent.sock", "agent2.sock").replace("admin.sock", "admin2.sock")
    with open(os.path.join(first.dir, "second.conf"), "w") as file:
        file.write(text)
    locked = run(keyholdd, "--config", file.name, ok=False)
    check(locked.returncode == 1 and "why=locked" in locked.stderr, "one writer per store:", locked.stderr)
    first.stop()
    with open(os.path.join(first.dir, "kek"), "r+") as kek:
        text = kek.read()
        kek.seek(0)
        kek.write(text[:-3] + ("00" if text[-3:-1] != "00" else "11") + "\n")
    wrong = run(keyholdd, "--config", first.conf, ok=False)
    check(wrong.returncode == 1 and "why=passphrase" in wrong.stderr, "a wrong KEK:", wrong.stderr)
    check(not os.path.exists(first.socket), "a socket is left")


def test_interrupted_at_the_passphrase(ws):
    """^C at the prompt ends it, and the terminal shows again what is typed."""
    agent = ws.agent(preset=PRESET, start=False)
    text = re.sub(r"(?m)^\s*kek_file.*$", 'kek_passphrase_file = "-"', read(agent.conf))
    with open(agent.conf, "w") as file:
        file.write(text)
    keyholdd = artefact("keyholdd", PRESET)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(keyholdd, [keyholdd, "--config", agent.conf])
    echoes = lambda: bool(termios.tcgetattr(terminal)[3] & termios.ECHO)  # noqa: E731
    shown = b""
    while b"passphrase: " not in shown:
        shown += os.read(terminal, 4096)
    check(not echoes(), "the passphrase would be shown")
    os.write(terminal, b"abc\x03")
    while b"start_failed" not in shown:
        shown += os.read(terminal, 4096)
    check(echoes() and b"abc" not in shown, shown)
    check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1)
    os.close(terminal)


# ---- Reload -----------------------------------------------------------------------------------------------------------------------

def test_reload(ws):
    agent = agent_with_keys(ws, "p256")
    connection = wire.connect(agent.socket, agent.token)
    check(sign(connection) == wire.OK)
    old = read(agent.conf)

    # a mistake: the old configuration stays
    agent.configure("workers = 1000")
    agent.reload()
    wait_until(lambda: "reload_failed" in agent.log(), "it says what is wrong")
    check("workers = 1000 is out of range" in agent.log(), agent.log())
    check(sign(connection) == wire.OK, "the connection stays")

    # less rights, on a connection that is open
    with open(agent.conf, "w") as file:
        file.write(old.replace('keys = {"*"}', 'keys = {"other"}'))
    reload(agent)
    check(sign(connection) == wire.NOT_FOUND, "the new rights hold")

    # more: a listener, an identity
    with open(agent.conf, "w") as file:
        file.write(old + 'listen "unix:second.sock" {}\n')
    agent.add_identity("extra", os.path.join(agent.dir, "extra.token"))
    reload(agent)
    check(sign(connection) == wire.OK, "rights are back")
    second = os.path.join(agent.dir, "second.sock")
    with wire.connect(second, os.path.join(agent.dir, "extra.token")) as extra:
        check(extra.identity == "extra" and sign(extra) == wire.OK)

        # the identity and the listener go; who is on it goes too, nobody else
        with open(agent.conf, "w") as file:
            file.write(old)
        reload(agent)
        check(extra.last_word() is None, "its connection ends")
    wait_until(lambda: not os.path.exists(second), "the socket is removed")
    check(sign(connection) == wire.OK, "the other connection stays")

    # what needs a restart is said
    agent.configure("cache_keys = 77")
    reload(agent)
    check("restart_needed option=cache_keys" in agent.log(), agent.log())
    check("restart_needed option=max_connections" not in agent.log(), agent.log())
    agent.configure("max_connections = 5000")
    reload(agent)
    check("restart_needed option=max_connections" in agent.log(), agent.log())
    said = agent.log().count("restart_needed option=cache_keys")
    check(said == 2, "it is so until the restart, and said each time", agent.log())
    with open(agent.conf, "w") as file:
        file.write(old)
    reload(agent)
    check(agent.log().count("restart_needed option=cache_keys") == said, "back at the value that holds: no restart is needed")
    connection.close()


def test_reload_of_sockets(ws):
    """A reload gives sockets that stay their new mode and owner, and makes one anew whose file somebody removed."""
    agent = agent_with_keys(ws, "p256")
    metrics = os.path.join(agent.dir, "metrics.sock")
    old = read(agent.conf) + 'metrics "unix:metrics.sock" { mode = 0600 }\n'

    def configure(text):
        with open(agent.conf, "w") as file:
            file.write(text)
        reload(agent)

    def mode(path):
        return os.stat(path).st_mode & 0o777

    def scrape():
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(metrics)
            caller.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            return caller.recv(12)

    configure(old)
    connection = wire.connect(agent.socket, agent.token)
    check(mode(agent.socket) == 0o666 and mode(metrics) == 0o600)
    configure(old.replace("mode = 0666", "mode = 0660").replace("mode = 0600", "mode = 0640"))
    check(mode(agent.socket) == 0o660 and mode(metrics) == 0o640, "the files have the new mode")

    # a mistake elsewhere: they keep it
    with open(agent.conf, "w") as file:
        file.write(old + 'metrics "unix:/nonexistent/a.sock" {}\n')
    agent.reload()
    wait_until(lambda: "/nonexistent/a.sock" in agent.log(), "it says what is wrong")
    check(mode(metrics) == 0o640, oct(mode(metrics)))
    with open(agent.conf, "w") as file:
        file.write(old.replace("mode = 0600", 'owner = "nobody-here"'))
    done = run(artefact("keyholdd", PRESET), "--config", agent.conf, "--check", ok=False)
    check(done.returncode == 1)
    check('there is no user "nobody-here"' in done.stderr and done.stderr.count(agent.conf) == 1, done.stderr)

    os.unlink(agent.socket)
    os.unlink(metrics)
    configure(old)
    check(mode(agent.socket) == 0o666 and mode(metrics) == 0o600, "they are there again")
    check(scrape() == b"HTTP/1.1 200", "metrics")
    check(sign(connection) == wire.OK, "the connection of before stays")
    with wire.connect(agent.socket, agent.token) as new:
        check(sign(new) == wire.OK, "and new ones are served")
    connection.close()


def test_rotated_token(ws):
    """A token that was replaced is worth nothing after the reload, on open connections neither; the others' are."""
    agent = agent_with_keys(ws, "p256")
    other = os.path.join(agent.dir, "other.token")
    agent.add_identity("other", other)
    reload(agent)
    with wire.connect(agent.socket, agent.token) as old, wire.connect(agent.socket, other) as unchanged:
        check(sign(old) == wire.OK and sign(unchanged) == wire.OK)
        os.rename(agent.token, agent.token + ".old")
        agent.ctl("token", "create", "nginx", "--out", agent.token)
        reload(agent)
        check(old.last_word() is None, "its connection ends")
        check(sign(unchanged) == wire.OK, "the other identity's stays")
        with wire.connect(agent.socket, agent.token) as new:
            check(sign(new) == wire.OK, "the new token is known")
        name, secret = wire.read_token(agent.token + ".old")
        with wire.Caller(agent.socket) as late:
            late.hello(name)
            late.send(wire.AUTH, wire.prove(secret, b"keyhold-1 client", late.nonce, late.nonce_agent))
            check(late.last_word() == wire.UNAUTHENTICATED, "the old token is refused")


def test_reload_between_hello_and_auth(ws):
    """Known by uid at hello, no longer at auth."""
    agent = agent_with_keys(ws, "p256")
    if as_user(64990, "print('ok')").stdout.strip() != "ok":
        raise harness.Skip("another user cannot read the tests")
    old = read(agent.conf)
    agent.configure('identity "local" {\n    uid = 64990\n    allow { keys = {"*"} operations = {"sign"} }\n}')
    reload(agent)
    script = ("c = wire.Caller(sys.argv[1])\nc.hello()\nprint('said', flush=True)\nsys.stdin.readline()\n"
              "c.send(wire.AUTH, b'')\nprint(c.reply()[1])\n")
    caller = subprocess.Popen(["setpriv", "--reuid=64990", "--regid=64990", "--clear-groups", sys.executable, "-c",
                               f"import sys; sys.path.insert(0, {HERE!r})\nimport wire\n" + script, agent.socket],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    check(caller.stdout.readline().strip() == "said")
    with open(agent.conf, "w") as file:
        file.write(old + 'identity "local" {\n    uid = 64992\n    allow { keys = {"*"} operations = {"sign"} }\n}\n')
    reload(agent)
    answer, _ = caller.communicate("\n", timeout=20)
    check(answer.strip() == str(wire.UNAUTHENTICATED), answer)


def test_reload_under_load(ws):
    agent = agent_with_keys(ws, "p256")
    connection = wire.connect(agent.socket, agent.token)
    done = 0
    for turn in range(10):
        agent.reload()
        ids = {connection.submit(wire.SIGN, *wire.sign_fields("p256", "p256")) for _ in range(200)}
        while ids:
            reply = connection.reply()
            check(reply[2] == wire.OK, "reload", turn, reply)
            ids.remove(reply[1])
            done += 1
        # A second SIGHUP while the first is pending would be the same signal: each waits for the one before.
        wait_until(lambda: agent.log().count("configuration_applied") >= turn + 1, f"reload {turn + 1}")
    print(f"   {done} signatures, 10 reloads, 0 errors")


def test_a_front_that_is_new_has_the_new_configuration(ws):
    agent = agent_with_keys(ws, "p256")
    agent.add_identity("extra", os.path.join(agent.dir, "extra.token"))
    reload(agent)
    os.kill(agent.role_pid("front"), signal.SIGKILL)
    with wire.connect_until(agent.socket, os.path.join(agent.dir, "extra.token")) as extra:
        check(sign(extra) == wire.OK, extra.identity)


# ---- The end ----------------------------------------------------------------------------------------------------------------------

def test_drain(ws):
    """SIGTERM: what is queued is finished, what comes is refused with a retryable error, exit 0, nothing left."""
    agent = agent_with_keys(ws, "rsa2048")
    with wire.connect(agent.socket, agent.token) as connection:
        check(sign(connection, "rsa2048") == wire.OK)
        keeper = agent.role_pid("keeper")
        wire.freeze(keeper)
        ids = [connection.submit(wire.SIGN, *wire.sign_fields("rsa2048", "rsa2048")) for _ in range(300)]
        check(connection.call(wire.PING)[0] == wire.OK, "it has read them")
        members = agent.pids()
        os.kill(agent.pid, signal.SIGTERM)
        wait_until(lambda: "draining" in agent.log(), "it drains")
        late = connection.call(wire.SIGN, *wire.sign_fields("rsa2048", "rsa2048"))
        check(late[0] == wire.UNAVAILABLE, "a late request", late)
        wire.thaw(keeper)
        replies = [connection.reply() for _ in ids]
        check(sorted(reply[1] for reply in replies) == ids and all(reply[2] == wire.OK for reply in replies), "all are done")
        check(connection.last_word() is None, "then it closes")
    check(agent.process.wait(10) == 0, "exit status", agent.process.returncode)
    wait_until(lambda: not [pid for pid in members if harness.alive(pid)], "its processes end")
    check(not os.path.exists(agent.socket) and not os.path.exists(os.path.join(agent.dir, "admin.sock")), "sockets are left")


def test_drain_has_an_end(ws):
    agent = agent_with_keys(ws, "p256", config="drain_timeout_ms = 500")
    with wire.connect(agent.socket, agent.token) as connection:
        check(sign(connection) == wire.OK)
        wire.freeze(agent.role_pid("keeper"))
        connection.submit(wire.SIGN, *wire.sign_fields("p256", "p256"), deadline_ms=60000)
        check(connection.call(wire.PING)[0] == wire.OK)
        begun = time.monotonic()
        status = agent.stop()
        took = time.monotonic() - begun
        check(status == 0 and 0.4 < took < 9, "stopped after", took, "with", status)
        check("drain_incomplete" in agent.log(), agent.log())


def test_systemd(ws):
    path = os.path.join(ws.dir, "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        notify.settimeout(10)
        said = []

        def hear(word):
            while not any(word in text for text in said):
                said.append(notify.recv(4096).decode())
        agent = agent_with_keys(ws, env={**os.environ, "NOTIFY_SOCKET": path})
        hear("READY=1")
        said.clear()
        agent.reload()
        hear("RELOADING=1")
        check("MONOTONIC_USEC=" in "".join(said), said)
        hear("READY=1")
        said.clear()
        agent.stop()
        hear("STOPPING=1")


def test_as_root_in_the_unit(ws):
    """With the capabilities of the unit, and no others: --check, which it runs first, sockets of other owners, and what a kill -9 leaves."""
    unit = read(os.path.join(harness.ROOT, "packaging/keyhold.service"))
    names = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.M).group(1).replace("CAP_", "+").lower().split()
    wrap = ["setpriv", "--bounding-set", ",".join(["-all", *names]), "--inh-caps=-all"]
    agent = ws.agent(preset=PRESET, start=False, wrap=wrap)
    owned = '{ mode = 0660  owner = "64990"  group = "64990" }'
    text = read(agent.conf).replace("{ mode = 0666 }", owned)
    check(owned in text, text)
    with open(agent.conf, "w") as file:
        file.write(text + f'metrics "unix:metrics.sock" {owned}\n')
    run(*wrap, artefact("keyholdd", PRESET), "--config", agent.conf, "--check")
    for _ in range(2):
        agent.start()
        for path in (agent.socket, os.path.join(agent.dir, "metrics.sock")):
            made = os.stat(path)
            check((made.st_uid, made.st_gid, made.st_mode & 0o777) == (64990, 64990, 0o660), path, made)
        agent.stop(signal.SIGKILL)
    agent.start()
    second = run(*wrap, artefact("keyholdd", PRESET), "--config", agent.conf, ok=False)
    check("another process listens there" in second.stderr, second.stderr)
    check(os.stat(agent.socket).st_uid == 64990, "the other's socket is as it was")
    with open(agent.conf, "w") as file:
        file.write(text.replace("0660", "0600"))
    reload(agent)
    check(os.stat(agent.socket).st_mode & 0o777 == 0o600 and os.stat(agent.socket).st_uid == 64990, os.stat(agent.socket))
    check(agent.stop() == 0)

    store = os.path.join(agent.dir, "store")
    os.chown(store, 0, 0)
    refused = run(*wrap, artefact("keyholdd", PRESET), "--config", agent.conf, "--check", ok=False)
    check(refused.returncode == 1 and "belong to the keeper's user" in refused.stderr, refused.stderr)


def test_socket_activation(ws):
    agent = ws.agent(preset=PRESET, start=False)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(agent.socket)
        listener.listen()
        script = ("import os,sys\nos.dup2(int(sys.argv[1]), 3)\nos.set_inheritable(3, True)\n"
                  "os.environ['LISTEN_PID'] = str(os.getpid())\nos.environ['LISTEN_FDS'] = '1'\nos.execv(sys.argv[2], sys.argv[2:])\n")
        with open(agent.log_path, "ab") as log:
            agent.process = subprocess.Popen([sys.executable, "-c", script, str(listener.fileno()), artefact("keyholdd", PRESET),
                                              "--config", agent.conf], pass_fds=[listener.fileno()], stdout=log, stderr=log)
        agent.wait_ready()
        agent.stop()
        check(os.path.exists(agent.socket), "systemd's socket is not ours to remove")
        # Who comes while there is no agent waits in the queue, and is served by the next.
        early = wire.Caller(agent.socket)
        early.send(wire.HELLO, 1, 1, 65536, "early", "", os.urandom(32))
        check(not early.ready(0.3), "nobody is there yet")
        with open(agent.log_path, "ab") as log:
            agent.process = subprocess.Popen([sys.executable, "-c", script, str(listener.fileno()), artefact("keyholdd", PRESET),
                                              "--config", agent.conf], pass_fds=[listener.fileno()], stdout=log, stderr=log)
        check(early.reply()[:2] == [wire.HELLO, wire.OK], "the one who waited is served")
        early.close()
        agent.wait_ready()
        agent.stop()


# ---- Processes that stand still -----------------------------------------------------------------------------------------------------

def test_stuck_processes_are_replaced(ws):
    """A keeper, a front that says nothing for ten seconds is killed and started again. An agent that is frozen and thawed as a
    whole, as a suspended machine is, goes on as it was. All at the same time, for it takes a while."""
    agents = {name: agent_with_keys(ws, "p256") for name in ("keeper", "front", "whole")}
    callers = {name: wire.connect(agent.socket, agent.token) for name, agent in agents.items()}
    check(all(sign(caller) == wire.OK for caller in callers.values()))
    stuck = {role: agents[role].role_pid(role) for role in ("keeper", "front")}
    members = agents["whole"].pids()
    begun = time.monotonic()
    for pid in (*stuck.values(), *members):
        wire.freeze(pid)
    waiting = callers["keeper"].submit(wire.SIGN, *wire.sign_fields("p256", "p256"), deadline_ms=60000)
    reply = callers["keeper"].reply()
    check(reply[1] == waiting and reply[2] == wire.UNAVAILABLE, "what a stuck keeper had fails with a retryable error", reply)
    for role, pid in stuck.items():
        wait_until(lambda pid=pid: not harness.alive(pid), role + " is killed", 20)
        took = time.monotonic() - begun
        check(6 < took < 16, role, "was killed after", took)
        agent = agents[role]
        wait_until(lambda agent=agent: agent.ctl("key", "show", "p256", ok=False).returncode == 0, "it serves again")
        check(agent.log().count("process_kill") == 1, agent.log())
    time.sleep(max(0, 13 - (time.monotonic() - begun)))
    for pid in members:
        wire.thaw(pid)
    check(sign(callers["whole"]) == wire.OK)
    time.sleep(1)
    check(agents["whole"].pids() == members and "process_kill" not in agents["whole"].log(), agents["whole"].log())
    for caller in callers.values():
        caller.close()


# ---- Limits -----------------------------------------------------------------------------------------------------------------------

def test_queue_bounds(ws):
    agent = agent_with_keys(ws, "p256", config="queue_max = 20")
    with wire.connect(agent.socket, agent.token) as connection:
        check(sign(connection) == wire.OK)
        keeper = agent.role_pid("keeper")
        wire.freeze(keeper)
        count = 20 + 16 * os.cpu_count() + 50
        for _ in range(count):
            connection.submit(wire.SIGN, *wire.sign_fields("p256", "p256"))
        refused = [connection.reply() for _ in range(50)]
        check(all(reply[2] == wire.OVERLOADED and reply[3] > 0 for reply in refused), "refused at once, with advice", refused[0])
        wire.thaw(keeper)
        check(all(connection.reply()[2] == wire.OK for _ in range(count - 50)), "the others are done")


def test_lists_are_bounded(ws):
    """Each `list` gathers its entries in memory: an identity has but a few at a time, over all its connections."""
    agent = agent_with_keys(ws, "p256")
    token = os.path.join(agent.dir, "lister.token")
    agent.add_identity("lister", token, operations=("list",))
    reload(agent)
    callers = [wire.connect(agent.socket, token) for _ in range(10)]
    keeper = agent.role_pid("keeper")
    wire.freeze(keeper)
    for caller in callers:
        for _ in range(2):
            caller.submit(wire.LIST, "nothing-*", "", 64)
        if caller in callers[:8]:
            check(caller.call(wire.PING)[0] == wire.OK, "it has read them")
    refused = [caller.reply()[2] for caller in callers[8:] * 2]
    wire.thaw(keeper)
    check(refused == [wire.OVERLOADED] * 4, refused)
    replies = [caller.reply()[2] for caller in callers[:8] * 2]
    check(replies == [wire.OK] * 16, "the others are answered", replies)
    check(callers[0].call(wire.LIST, "*", "", 64)[0] == wire.OK, "and there is room again")
    for caller in callers:
        caller.close()


def test_full(ws):
    agent = agent_with_keys(ws, "p256", config="max_connections = 20")
    # An identity's share is 15, which test_f8_flood.py looks at; root may have them all.
    known = [wire.connect(agent.socket, agent.token) for _ in range(15)] + [wire.connect(agent.socket) for _ in range(5)]
    with wire.Caller(agent.socket) as more:
        check(more.last_word() is None, "one more is refused")
    check(all(sign(connection) == wire.OK for connection in known), "the others are served")
    for connection in known:
        connection.close()
    wait_until(lambda: agent.ctl("ping", ok=False).returncode == 0, "there is room again")


def test_out_of_descriptors(ws):
    """With fewer descriptors than connections are allowed it waits, and does not spin."""
    agent = ws.agent(preset=PRESET, start=False)
    keyholdd = artefact("keyholdd", PRESET)
    agent.process = harness.popen(["sh", "-c", f"ulimit -n 40; exec {keyholdd} --config {agent.conf}"], agent.log_path)
    agent.wait_ready()
    front = agent.role_pid("front")
    waiting = [wire.Caller(agent.socket) for _ in range(60)]
    wait_until(lambda: "accept_failed" in agent.log(), "it says so")
    cpu = cpu_seconds(front)
    time.sleep(1)
    spent = cpu_seconds(front) - cpu
    check(spent < 0.3, "out of descriptors it spins:", spent, "s of CPU in 1 s")
    for connection in waiting:
        connection.close()
    wait_until(lambda: agent.ctl("ping", ok=False).returncode == 0, "it recovers")


def cpu_seconds(pid):
    fields = read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_idle(ws):
    agent = agent_with_keys(ws, "p256", config="idle_timeout_s = 1")
    with wire.connect(agent.socket, agent.token) as busy, wire.connect(agent.socket, agent.token) as idle:
        begun = time.monotonic()
        while time.monotonic() - begun < 1.8:
            check(busy.call(wire.PING)[0] == wire.OK)
            time.sleep(0.1)
        check(idle.ready(1), "the idle one is closed")
        check(idle.last_word() is None)
        check(busy.call(wire.PING)[0] == wire.OK, "the busy one is not")


# ---- Who calls --------------------------------------------------------------------------------------------------------------------

def as_user(uid, script, *args):
    return run("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable, "-c",
               f"import sys; sys.path.insert(0, {HERE!r})\nimport wire\n" + script, *args, ok=False,
               env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


def test_by_uid(ws):
    agent = agent_with_keys(ws, "p256")
    if as_user(64990, "print('ok')").stdout.strip() != "ok":
        raise harness.Skip("another user cannot read the tests")
    agent.configure('identity "local" {\n    uid = 64990\n    allow { keys = {"p256"} operations = {"sign"} }\n}')
    reload(agent)
    script = ("try:\n    c = wire.connect(sys.argv[1])\n    print(c.identity, c.call(wire.SIGN, *wire.sign_fields('p256', 'p256'))[0],"
              " c.call(wire.STATUS)[0])\nexcept wire.Closed as why:\n    print('refused', why.args[0][0])\n")
    known = as_user(64990, script, agent.socket).stdout.split()
    check(known == ["local", "0", str(wire.FORBIDDEN)], known)
    unknown = as_user(64991, script, agent.socket).stdout.split()
    check(unknown == ["refused", str(wire.UNAUTHENTICATED)], unknown)
    with wire.connect(agent.socket) as root:
        check(root.identity == "root" and root.call(wire.STATUS)[0] == wire.OK)


# ---- Fairness and the slow HSM ------------------------------------------------------------------------------------------------------

def test_a_flood_delays_only_itself(ws):
    """While one identity keeps 1000 operations waiting, another one's single operations wait only for those in the ring."""
    agent = agent_with_keys(ws, "rsa2048")
    agent.add_identity("calm", os.path.join(agent.dir, "calm.token"))
    reload(agent)
    with wire.connect(agent.socket, agent.token) as flood, wire.connect(agent.socket, os.path.join(agent.dir, "calm.token")) as calm:
        check(sign(calm, "rsa2048") == wire.OK)
        begun = time.monotonic()
        for _ in range(1000):
            flood.submit(wire.SIGN, *wire.sign_fields("rsa2048", "rsa2048"), deadline_ms=60000)
        waits = []
        for _ in range(5):
            at = time.monotonic()
            check(sign(calm, "rsa2048", deadline_ms=60000) == wire.OK)
            waits.append(time.monotonic() - at)
        for _ in range(1000):
            check(flood.reply()[2] == wire.OK)
        whole = time.monotonic() - begun
        waits.sort()
        print(f"   the flood took {whole:.3f} s; meanwhile another caller waited {waits[2] * 1000:.1f} ms (median of 5)")
        check(waits[2] < whole / 4, "it waited for the flood", waits, whole)


def test_delay(ws):
    """--delay-ms holds each reply and nothing else."""
    agent = agent_with_keys(ws, "p256", delay_ms=100)
    with wire.connect(agent.socket, agent.token) as connection:
        begun = time.monotonic()
        check(sign(connection) == wire.OK)
        one = time.monotonic() - begun
        begun = time.monotonic()
        check(connection.call(wire.PING)[0] == wire.OK)
        ping = time.monotonic() - begun
        begun = time.monotonic()
        for _ in range(500):
            connection.submit(wire.SIGN, *wire.sign_fields("p256", "p256"))
        check(all(connection.reply()[2] == wire.OK for _ in range(500)))
        many = time.monotonic() - begun
    print(f"   one {one * 1000:.1f} ms, a ping {ping * 1000:.2f} ms, 500 together {many * 1000:.1f} ms")
    check(0.1 <= one < 0.25 and ping < 0.09 and 0.1 <= many < 1, "delays", one, ping, many)


# ---- What it says -----------------------------------------------------------------------------------------------------------------

def test_status_and_log(ws):
    agent = agent_with_keys(ws, "p256", config='log_format = "json"\nlog_level = "debug"')
    with wire.connect(agent.socket, agent.token) as connection:
        for _ in range(20):
            check(sign(connection) == wire.OK)
        check(connection.call(wire.SIGN, *wire.sign_fields("absent", "p256"))[0] == wire.NOT_FOUND)
    with wire.connect(agent.socket) as root:
        status = json.loads(root.call(wire.STATUS)[1][0])
    check({process["role"]: process["pid"] for process in status["processes"]} ==
          {"supervisor": agent.pid, "front": agent.role_pid("front"), "keeper": agent.role_pid("keeper")}, status["processes"])
    check(status["operations"]["sign"]["results"] == {"ok": 20, "not_found": 1}, status["operations"]["sign"])
    latency = status["operations"]["sign"]["latency_us"]
    check(latency["count"] == 21 and 0 < latency["p50"] <= latency["p99"] <= latency["p999"], latency)
    check(sum(latency["log2_us"]) == 21, latency)
    check(status["lanes"]["p256"]["operations"] == 20 and sum(status["lanes"]["p256"]["batches"]) > 0, status["lanes"]["p256"])
    nginx = [identity for identity in status["identities"] if identity["name"] == "nginx"][0]
    check(nginx["requests"] == 21 and nginx["refused"] == 1, nginx)
    check(status["directory"]["entries"] == 1 and status["directory"]["absent"] == 1, status["directory"])
    roles = set()
    secret = wire.read_token(agent.token)[1].hex()
    for line in agent.log().splitlines():
        if line.startswith("{"):
            roles.add(json.loads(line)["role"])
    check(roles == {"supervisor", "front", "keeper"}, roles)
    check(secret not in agent.log(), "the token's secret is in the log")


if __name__ == "__main__":
    harness.main(globals())
