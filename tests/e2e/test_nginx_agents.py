#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Several agents behind one nginx: what `nginx -t` refuses, shares by weight, backups, keys that only one of them has, second
tries and their limit, an agent that is away, silent, busy or wrong, and how it comes back."""
import os
import signal
import time

import fake_agent
import harness
import wire
from fake_agent import FakeAgent
from fleet import Fleet
from harness import check, read, run, wait_until

fake_agent.use_build_dir()


# ---- What they share ------------------------------------------------------------------------------------------------------

def agents_of(ws, count, keys, *options):
    """Test agents that all have these keys, started."""
    made = [FakeAgent(ws, *options) for _ in range(count)]
    for one in made:
        one.keys = [key.key for key in keys]
        one.start()
    return made


def site(ws, agents, keys, parameters=(), settings=""):
    """http{} with one keyhold_agent line for each, and a server for each key."""
    parameters = list(parameters) + [""] * len(agents)
    lines = [f"    keyhold_agent unix:{one.socket} {more};" for one, more in zip(agents, parameters)]
    return ws.PLAIN + "\n".join(lines) + f"\n    {settings}\n" + "".join(ws.server(key) for key in keys)


def done_by(agents):
    return [one.counters()[0] for one in agents]


def handshakes(ws, key, count, clients=1):
    report = ws.load(key, "--clients", clients, "--count", count, "--seconds", 60).wait()
    check(report["failed"] == 0 and report["done"] >= count, report)
    return report


def lines(nginx, *words):
    return [line for line in nginx.log().splitlines() if all(word in line for word in words)]


def restart(nginx, agent, *options):
    """Starts an agent anew; returns when nginx has noticed."""
    before = len(lines(nginx, agent.socket, "is back"))
    agent.stop()
    agent.start(*options)
    wait_until(lambda: len(lines(nginx, agent.socket, "is back")) > before, "it is back")


def background(ws, key, clients=20):
    return ws.load(key, "--clients", clients, "--seconds", 0, "--timeout", 30)


def finish(load, least=100):
    report = load.stop()
    check(report["failed"] == 0 and report["done"] >= least, report)
    return report


# ---- Configuration -----------------------------------------------------------------------------------------------------------

def test_directives(ws):
    key = ws.make_key("p256")
    one, two = "unix:" + os.path.join(ws.dir, "one.sock"), "unix:" + os.path.join(ws.dir, "two.sock")

    def outcome(text):
        done = ws.nginx(None, ws.PLAIN + text + ws.server(key), start=False).test()
        return done.returncode, [line for line in done.stderr.splitlines() if "[emerg]" in line]

    def refused(text, *words):
        status, said = outcome(text)
        check(status != 0 and len(said) == 1 and all(word in said[0] for word in words), text, said)

    check(outcome(f"keyhold_agent {one} weight=3; keyhold_agent {two} backup weight=1000;")[0] == 0)
    check(outcome(f"keyhold_agent {one}; keyhold_try_timeout 50ms;")[0] == 0)
    refused(f"keyhold_agent {one}; keyhold_agent {one};", "duplicate agent", one)
    refused(f"keyhold_agent {one} weight=0;", "weight=0", "1 to 1000")
    refused(f"keyhold_agent {one} weight=1001;", "weight=1001")
    refused(f"keyhold_agent {one} weight=x;", "weight=x")
    refused("keyhold_agent 127.0.0.1:4711;", "unix:PATH", "tcp:HOST:PORT")
    refused(f"keyhold_agent {one} name=x;", "name=x")
    refused(f"keyhold_agent {one} heavy;", "invalid parameter", "heavy")
    refused(f"keyhold_agent {one} backup;", "backup")
    refused(f"keyhold_agent {one}; keyhold_try_timeout 0;", "keyhold_try_timeout")
    for text, warned in (("keyhold_timeout 1s; keyhold_try_timeout 1s;", True), ("keyhold_timeout 900ms;", False)):
        done = ws.nginx(None, ws.PLAIN + f"keyhold_agent {one}; keyhold_agent {two}; {text}" + ws.server(key), start=False).test()
        check(done.returncode == 0 and ("will fail before another is asked" in done.stderr) == warned, text, done.stderr)
    refused("".join(f"keyhold_agent {one}{n};" for n in range(33)), "more than 32")


# ---- Shares --------------------------------------------------------------------------------------------------------------------

def test_weights(ws):
    """One after the other, and many at a time."""
    key = ws.make_key("p256")
    agents = agents_of(ws, 3, [key])
    nginx = ws.nginx(None, site(ws, agents, [key], ["weight=5", "weight=3", "weight=2"]))
    for clients in (1, 20):
        before = done_by(agents)
        handshakes(ws, key, 600, clients)
        shares = [after - start for after, start in zip(done_by(agents), before)]
        for share, weight in zip(shares, (5, 3, 2)):
            check(abs(share - sum(shares) * weight / 10) < sum(shares) * 0.08, f"{clients} clients:", shares)
    nginx.stop()


def test_least_outstanding(ws):
    """An agent that takes forty times as long gets little while the other is idle."""
    key = ws.make_key("p256")
    fast, slow = agents_of(ws, 2, [key], "--delay-ms", 5)
    slow.stop()
    slow.start("--delay-ms", 200)
    nginx = ws.nginx(None, site(ws, (fast, slow), [key]))
    handshakes(ws, key, 1000, 20)
    done = done_by((fast, slow))
    check(done[0] > 3 * done[1] > 0, done)
    nginx.stop()


def test_backup(ws):
    """Asked only while the primary is away; and nobody notices."""
    key = ws.make_key("p256")
    primary, backup = agents_of(ws, 2, [key])
    nginx = ws.nginx(None, site(ws, (primary, backup), [key], ["", "backup"]))
    handshakes(ws, key, 100, 5)
    check(done_by((backup,)) == [0], "the backup is asked for nothing")
    load = background(ws, key)
    wait_until(lambda: done_by((primary,))[0] > 200, "load")
    primary.stop(signal.SIGKILL)
    wait_until(lambda: done_by((backup,))[0] > 100, "the backup serves")
    primary.start()
    wait_until(lambda: done_by((primary,))[0] > 100, "the primary serves again")
    before = done_by((backup,))
    handshakes(ws, key, 100, 5)
    check(done_by((backup,)) == before, "the backup rests")
    finish(load)
    nginx.stop()


# ---- Faults --------------------------------------------------------------------------------------------------------------------

def test_one_of_two_is_killed(ws):
    key = ws.make_key("p256")
    agents = agents_of(ws, 2, [key], "--delay-ms", 20)
    nginx = ws.nginx(None, site(ws, agents, [key]))
    load = background(ws, key, 60)
    for _ in range(3):
        for one in agents:
            before = done_by(agents)
            wait_until(lambda: all(now > then + 30 for now, then in zip(done_by(agents), before)), "both serve")
            one.stop(signal.SIGKILL)
            time.sleep(0.3)
            one.start()
    wait_until(lambda: len(lines(nginx, "is back")) == 6, "they are back")
    report = finish(load)
    check(report["latency_ms"]["p99"] < 1000, report)
    check(len(lines(nginx, "out of reach")) == 6 and len(lines(nginx, "is back")) == 6, "one line for each change:",
          lines(nginx, "keyhold:"))
    nginx.stop()


def test_one_of_two_is_silent(ws):
    """SIGSTOP: what it had goes to the other after keyhold_try_timeout; it comes back gently."""
    key = ws.make_key("p256")
    agents = agents_of(ws, 2, [key], "--delay-ms", 5)
    nginx = ws.nginx(None, site(ws, agents, [key], settings="keyhold_try_timeout 500ms;"))
    load = background(ws, key, 60)
    wait_until(lambda: min(done_by(agents)) > 100, "both serve")
    wire.freeze(agents[0].process.pid)
    wait_until(lambda: lines(nginx, agents[0].socket, "left out"), "it is left out")
    before = done_by(agents[1:])[0]
    wait_until(lambda: done_by(agents[1:])[0] > before + 500, "the other serves")
    wire.thaw(agents[0].process.pid)
    thawed = done_by(agents)
    wait_until(lambda: lines(nginx, agents[0].socket, "is back"), "it is back")
    wait_until(lambda: done_by(agents)[1] > thawed[1] + 200, "load")
    some = [now - then for now, then in zip(done_by(agents), thawed)]
    check(some[0] < some[1] / 2, "it comes back gently:", some)
    time.sleep(5.5)
    before = done_by(agents)
    wait_until(lambda: done_by(agents)[1] > before[1] + 300, "load")
    some = [now - then for now, then in zip(done_by(agents), before)]
    check(some[0] > some[1] * 0.8, "its whole share is back:", some)
    report = finish(load)
    check(report["latency_ms"]["max"] < 2000, report)
    nginx.stop()


def test_slow_fleet(ws):
    """Agents that are all slower than keyhold_try_timeout get a tenth more to do, and no more."""
    key = ws.make_key("p256")
    agents = agents_of(ws, 2, [key], "--delay-ms", 250)
    nginx = ws.nginx(None, site(ws, agents, [key], settings="keyhold_try_timeout 100ms;"))
    report = handshakes(ws, key, 1500, 60)
    asked = sum(done_by(agents))
    print(f"{report['done']} handshakes, {asked} requests")
    check(asked <= report["done"] * 1.1 + 50 + 60, f"{report['done']} handshakes, {asked} requests")
    check(not lines(nginx, "left out") and not lines(nginx, "out of reach"), lines(nginx, "keyhold:"))
    nginx.stop()


def test_one_is_slow(ws):
    """A single reply that does not come in time is fetched elsewhere; the late one is swallowed."""
    key = ws.make_key("p256")
    slow, fast = agents_of(ws, 2, [key])
    slow.stop()
    slow.start("--delay-ms", 700)
    nginx = ws.nginx(None, site(ws, (slow, fast), [key], settings="keyhold_try_timeout 200ms;"))
    report = handshakes(ws, key, 400, 10)
    check(report["latency_ms"]["max"] < 650, "nobody waits for the slow one:", report)
    time.sleep(1)
    handshakes(ws, key, 50, 5)
    check(not lines(nginx, "wrongly"), lines(nginx, "keyhold:"))
    nginx.stop()


def test_late_second_try(ws):
    """An agent that got an operation just before its deadline is not blamed for having said nothing."""
    key = ws.make_key("p256")
    silent, busy = agents_of(ws, 2, [key])
    nginx = ws.nginx(None, site(ws, (silent, busy), [key], settings="keyhold_timeout 1s; keyhold_try_timeout 900ms;"))
    ws.curl(key), ws.curl(key)
    restart(nginx, silent, "--delay-ms", 5000)
    restart(nginx, busy, "--delay-ms", 400)
    for _ in range(3):
        ws.curl(key, ok=False)
    check(lines(nginx, silent.socket, "left out") and lines(nginx, "handshake failed", busy.socket), lines(nginx, "keyhold:"))
    check(not lines(nginx, busy.socket, "left out"), lines(nginx, busy.socket, "left out"))
    nginx.stop()


def test_refusals(ws):
    """What one refuses the other does."""
    key = ws.make_key("p256")
    bad, good = agents_of(ws, 2, [key])
    nginx = ws.nginx(None, site(ws, (bad, good), [key]))
    for why in ("overloaded", "throttled", "unavailable", "memory", "crypto", "storage", "damaged"):
        bad.stop()
        bad.start("--fail", why)
        before = done_by((good,))[0]
        handshakes(ws, key, 200, 10)
        check(done_by((good,))[0] >= before + 200, why)
        check(done_by((bad,))[0] > 0, why)
    check(not lines(nginx, "handshake failed"), lines(nginx, "handshake failed"))
    nginx.stop()


def test_unable(ws):
    """One that fails at a key, again and again, is not asked for that key for a while: second tries do not run out."""
    key = ws.make_key("p256")
    bad, good = agents_of(ws, 2, [key])
    nginx = ws.nginx(None, site(ws, (bad, good), [key]))
    for why in ("crypto", "damaged", "storage", "internal"):
        restart(nginx, bad, "--fail", why)
        handshakes(ws, key, 1000, 10)
    check(not lines(nginx, "handshake failed"), lines(nginx, "handshake failed"))
    check(lines(nginx, bad.socket, "refuses", "others are asked first"), lines(nginx, "keyhold:"))
    nginx.stop()


def test_final_refusals(ws):
    """A usage that does not fit fits nowhere: nobody else is asked."""
    key = ws.make_key("p256")
    agents = agents_of(ws, 2, [key], "--fail", "usage")
    nginx = ws.nginx(None, site(ws, agents, [key]))
    check(ws.curl(key, ok=False).returncode != 0)
    check(sum(done_by(agents)) == 1 and len(lines(nginx, "handshake failed", "usage")) == 1, nginx.log())
    nginx.stop()


# ---- Keys that one of them lacks ------------------------------------------------------------------------------------------------

def test_key_at_one_of_two(ws):
    """Said once by each worker for each agent; the other is asked; and who lacks it is not asked again."""
    key, other = ws.make_key("p256"), ws.make_key("p256", "other")
    without, having = agents_of(ws, 2, [key])
    having.stop()
    having.keys.append(other.key)
    having.start()
    nginx = ws.nginx(None, site(ws, (without, having), [key, other]))
    wait_until(lambda: lines(nginx, "which the configuration needs"), "the missing key is said")
    handshakes(ws, other, 100, 5)
    check(done_by((without,)) == [0], "who lacks the key is not asked for it")
    handshakes(ws, key, 100, 5)
    check(min(done_by((without, having))) > 20, "for the other key both are asked:", done_by((without, having)))
    said = lines(nginx, "which the configuration needs")
    check(len(said) == 1 and without.socket in said[0] and "no such key" in said[0], said)
    nginx.stop()


def test_key_that_goes_missing(ws):
    """Found out by an operation: it is asked once, and again after ten seconds."""
    key = ws.make_key("p256")
    without, having = agents_of(ws, 2, [key])
    nginx = ws.nginx(None, site(ws, (without, having), [key], settings="keyhold_timeout 3s;"))
    wait_until(lambda: ws.curl(key).returncode == 0, "it works")
    without.stop()
    without.keys.clear()
    without.start()
    wait_until(lambda: lines(nginx, without.socket, "is back"), "it is back")
    time.sleep(5.5)  # its whole share
    begun = time.monotonic()
    handshakes(ws, key, 300, 5)
    if time.monotonic() - begun < 9:
        check(1 <= done_by((without,))[0] <= 5, "asked once, and what was on its way:", done_by((without,)))
    check(done_by((having,))[0] >= 300)
    nginx.stop()


def test_key_at_none(ws):
    """It fails at once, naming why, and works a moment after one has it."""
    key, stranger = ws.make_key("p256"), ws.make_key("p256", "stranger")
    agents = agents_of(ws, 2, [key])
    nginx = ws.nginx(None, site(ws, agents, [key, stranger]))
    wait_until(lambda: len(lines(nginx, "which the configuration needs")) == 2, "both say so")
    begun = time.monotonic()
    check(ws.curl(stranger, ok=False).returncode != 0)
    check(time.monotonic() - begun < 2, "at once")
    check("no such key" in lines(nginx, "handshake failed")[-1], nginx.log())
    agents[1].stop()
    agents[1].keys.append(stranger.key)
    agents[1].start()
    wait_until(lambda: ws.curl(stranger, ok=False).returncode == 0, "it works", 5)
    check(ws.curl(key).returncode == 0)
    nginx.stop()


# ---- Nobody is there -------------------------------------------------------------------------------------------------------------

def test_all_are_gone(ws):
    """After a second they fail at once, with one line a second; an agent that is back serves within a second."""
    key = ws.make_key("p256")
    agents = agents_of(ws, 2, [key])
    nginx = ws.nginx(None, site(ws, agents, [key]))
    check(ws.curl(key).returncode == 0)
    for one in agents:
        one.stop(signal.SIGKILL)
    begun = time.monotonic()
    check(ws.curl(key, ok=False).returncode != 0)
    check(0.5 < time.monotonic() - begun < 2.5, "a restart would have been waited for")
    before = len(lines(nginx, "handshake failed"))
    begun = time.monotonic()
    failed = 0
    while time.monotonic() < begun + 3:
        one = time.monotonic()
        check(ws.curl(key, ok=False).returncode != 0)
        check(time.monotonic() - one < 0.7, "it fails at once")
        failed += 1
    said = lines(nginx, "handshake failed")[before:]
    check(failed > 8 and 1 <= len(said) <= 5, failed, said)
    check(all(agents[0].socket in line and agents[1].socket in line for line in said), said)
    check(any("handshakes before" in line for line in said), said)
    agents[1].start()
    begun = time.monotonic()
    wait_until(lambda: ws.curl(key, ok=False).returncode == 0, "it works again", 1.5)
    print(f"works {time.monotonic() - begun:.2f} s after one is back")
    nginx.stop()


def test_restart_of_the_only_agent(ws):
    """Away for less than a second: nobody notices."""
    key = ws.make_key("p256")
    agents = agents_of(ws, 1, [key])
    nginx = ws.nginx(None, site(ws, agents, [key]))
    load = background(ws, key)
    for pause in (0.05, 0.2, 0.5):
        before = done_by(agents)[0]
        wait_until(lambda before=before: done_by(agents)[0] > before + 50, "load")
        agents[0].stop(signal.SIGKILL)
        time.sleep(pause)
        agents[0].start()
    finish(load)
    nginx.stop()


def test_log_variables(ws):
    """$keyhold_agent is the one that did it, $keyhold_tries how often it was asked for."""
    key = ws.make_key("p256")
    bad, good = agents_of(ws, 2, [key])
    bad.stop()
    bad.start("--fail", "overloaded")
    log = os.path.join(ws.dir, "access.txt")
    http = site(ws, (bad, good), [key], ["weight=1000"],
                f"log_format k '$keyhold_status $keyhold_agent $keyhold_tries'; access_log {log} k;")
    nginx = ws.nginx(None, http)
    check(ws.curl(key).returncode == 0)
    wait_until(lambda: read(log), "a line")
    check(read(log) == f"ok unix:{good.socket} 2\n", read(log))
    nginx.stop()


# ---- TCP -----------------------------------------------------------------------------------------------------------------------

def test_tcp(ws):
    """Two agents on TCP, whose key of ours only root can read; one is killed; sessions are resumed."""
    key = ws.make_key("p256")
    fleet = Fleet(ws, ["tcp", "tcp"], [key])
    check(os.stat(fleet.edge[1]).st_mode & 0o077 == 0, "root's key")
    nginx = ws.nginx(None, ws.PLAIN + fleet.directives() + ws.server(key), main="worker_processes 2;")
    handshakes(ws, key, 200, 10)
    check(min(member.signed() for member in fleet.members) > 50, "both serve")
    load = background(ws, key)
    fleet.in_use()
    fleet.members[0].kill()
    fleet.in_use(50, of=fleet.members[1:])
    fleet.members[0].start()
    fleet.in_use(20)
    finish(load)
    check(not lines(nginx, "handshake failed") and not lines(nginx, "[alert]"), lines(nginx, "keyhold:"))
    nginx.stop(signal.SIGQUIT)


def test_tcp_directives(ws):
    key = ws.make_key("p256")
    fleet = Fleet(ws, ["tcp"], [key], start=False)
    crt, secret = fleet.edge
    agent = f"keyhold_agent {fleet.members[0].address}"
    files = {"keyhold_certificate": crt, "keyhold_certificate_key": secret, "keyhold_trusted_certificate": fleet.authority.crt}

    def outcome(first, **change):
        given = dict(files, **change)
        text = first + ";" + "".join(f" {name} {value};" for name, value in given.items() if value)
        done = ws.nginx(None, ws.PLAIN + text + ws.server(key), start=False).test()
        return done.returncode, [line for line in done.stderr.splitlines() if "[emerg]" in line]

    def refused(first, *words, **change):
        status, said = outcome(first, **change)
        check(status != 0 and len(said) == 1 and all(word in said[0] for word in words), first, change, said)

    check(outcome(agent)[0] == 0)
    check(outcome(agent + " name=agent.example weight=2")[0] == 0)
    check(outcome("keyhold_agent tcp:[::1]:7443")[0] == 0)
    for name in files:
        refused(agent, "needs", name, **{name: None})
        refused(agent, "/nonexistent", **{name: "/nonexistent"})
    refused(agent, secret, **{"keyhold_certificate": secret})
    refused(agent, crt, **{"keyhold_certificate_key": crt})
    refused(agent, key.key, **{"keyhold_certificate_key": key.key})
    refused(agent, "key", **{"keyhold_certificate_key": fake_agent.write_reference(ws, key)})
    refused(agent + " token=/x", "token", "keyhold_certificate")
    refused("keyhold_agent tcp:127.0.0.1", "tcp:HOST:PORT")
    refused("keyhold_agent tcp:no-such-host.invalid:7443", "no-such-host.invalid")
    refused("keyhold_agent tcp:127.0.0.1:99999", "port")
    encrypted = os.path.join(ws.dir, "encrypted.key")
    run("openssl", "pkey", "-in", secret, "-aes256", "-passout", "pass:x", "-out", encrypted)
    refused(agent, encrypted, **{"keyhold_certificate_key": encrypted})


def test_tcp_is_not_believed(ws):
    """An agent whose certificate has another name, or comes from another authority, gets nothing; the log says why."""
    key = ws.make_key("p256")
    fleet = Fleet(ws, ["tcp", "unix"], [key])
    tcp, unix = fleet.members
    for bad in (f"    keyhold_agent {tcp.address} name=other.keyhold.test;\n    keyhold_agent {unix.directive};\n"
                f"    keyhold_certificate {fleet.edge[0]}; keyhold_certificate_key {fleet.edge[1]};\n"
                f"    keyhold_trusted_certificate {fleet.authority.crt};\n",
                fleet.directives().replace(f"keyhold_trusted_certificate {fleet.authority.crt}",
                                           f"keyhold_trusted_certificate {key.crt}")):
        before = tcp.signed()
        nginx = ws.nginx(None, ws.PLAIN + bad + ws.server(key))
        handshakes(ws, key, 50, 5)
        check(tcp.signed() == before, "it is asked for nothing")
        said = lines(nginx, tcp.address, "out of reach")
        check(len(said) == 1 and "certificate" in said[0], lines(nginx, "keyhold:"))
        nginx.stop()


if __name__ == "__main__":
    harness.main(globals())
