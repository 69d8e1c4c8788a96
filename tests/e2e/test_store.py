#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The store as an operator has to do with it: backup while the agent serves, restore, check, versions, and two agents with the
same keys.

KH_STORE_KEYS says how many keys the large store has (default 2000).
"""
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time

import harness
import wire
from harness import READY_S, artefact, check, read, run, wait_until

PRESET = os.environ.get("KH_PRESET", "release")
KEYS = int(os.environ.get("KH_STORE_KEYS", "2000"))
FIXTURE = os.path.join(harness.ROOT, "tests", "fixtures", "store-v1")
KEEPER = 64802


# ---- Helpers ---------------------------------------------------------------------------------------------------------------

def store_of(agent):
    return os.path.join(agent.dir, "store", "keys.db")


def own(agent):
    """Gives what root did to the store's directory back to the keeper."""
    folder = os.path.dirname(store_of(agent))
    for name in os.listdir(folder):
        os.chown(os.path.join(folder, name), KEEPER, KEEPER)
        os.chmod(os.path.join(folder, name), 0o600)


def agent_with(ws, keys=0, kek_of=None, start=True):
    """An agent whose store has so many keys, under the KEK of another one."""
    agent = ws.agent(preset=PRESET, start=False)
    if kek_of:
        for suffix in ("", "-wal"):
            if os.path.exists(store_of(agent) + suffix):
                os.unlink(store_of(agent) + suffix)
        shutil.copy(os.path.join(kek_of.dir, "kek"), os.path.join(agent.dir, "kek"))
    if keys or kek_of:
        run(artefact("kh-test-fill", PRESET), store_of(agent), os.path.join(agent.dir, "kek"), max(keys, 1), timeout=300)
        own(agent)
    return agent.start() if start else agent


def sql(path, *statements):
    """Damages a store that nobody has open."""
    db = sqlite3.connect(path)
    try:
        for statement in statements:
            db.execute(statement)
        db.commit()
    finally:
        db.close()


def names(agent):
    return sorted((key["name"], key["version"], key["state"], key["id"])
                  for key in json.loads(agent.ctl("--json", "key", "list").stdout))


def error_of(done, status=1):
    check(done.returncode == status, "exit status", done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    check(len(lines) == 1 and lines[0].startswith("keyholdctl: "), "one line of error:", done.stderr)
    return lines[0]


def signs(agent, name, kind="p256"):
    with wire.connect(agent.socket, agent.token, timeout=READY_S) as caller:
        return caller.call(wire.SIGN, *wire.sign_fields(name, kind), deadline_ms=READY_S * 1000)[0] == wire.OK


class Load(threading.Thread):
    """Signs and makes keys until it is told to stop; keeps account of both."""

    def __init__(self, agent, name, create=False):
        super().__init__(daemon=True)
        self.agent, self.name, self.create = agent, name, create
        self.ending, self.done, self.made, self.error = False, 0, [], None

    def run(self):
        try:
            with wire.connect(self.agent.socket, self.agent.token, timeout=READY_S) as caller:
                while not self.ending:
                    if self.create:
                        name = f"made-{len(self.made):04}"
                        self.agent.ctl("key", "create", name, "--type", "p256")
                        self.made.append(name)
                    status = caller.call(wire.SIGN, *wire.sign_fields(self.name, "p256"), deadline_ms=READY_S * 1000)[0]
                    check(status == wire.OK, "a signature failed:", status)
                    self.done += 1
        except Exception as error:  # noqa: BLE001 - reported by the test
            self.error = error

    def stop(self):
        self.ending = True
        self.join(READY_S)
        check(self.error is None, "the load failed:", self.error)


# ---- Backup and restore ----------------------------------------------------------------------------------------------------

def test_backup_under_load(ws):
    """Backups while keys sign and others are made: no client's error, and every key that was acknowledged before is in it."""
    agent = agent_with(ws, KEYS)
    loads = [Load(agent, "fill-000000"), Load(agent, "fill-000002", create=True)]
    for load in loads:
        load.start()
    wait_until(lambda: all(load.done > 3 for load in loads), "the load runs")
    backup = os.path.join(ws.dir, "backup.db")
    for _ in range(3):
        before = list(loads[1].made)
        said = json.loads(agent.ctl("--json", "store", "backup", backup).stdout)
        check(said["keys"] >= KEYS + len(before), said, len(before))
    for load in loads:
        load.stop()
    check(os.stat(backup).st_mode & 0o777 == 0o600, "the backup's mode")
    check(not [name for name in os.listdir(ws.dir) if "partial" in name], os.listdir(ws.dir))
    check(agent.status()["keeper"]["store"]["last_backup"] > 0, agent.status()["keeper"])
    clean = agent.ctl("store", "fsck", "--store", backup, timeout=300)
    check(f"ok {said['keys']} keys" in clean.stdout, clean.stdout)

    # Another agent with the same KEK takes it over, and has them all.
    second = agent_with(ws, 0, kek_of=agent, start=False)
    restored = second.ctl("store", "restore", backup, timeout=300)
    check(f"{said['keys']} keys restored" in restored.stdout and "remove it when all is well" in restored.stdout, restored.stdout)
    second.start()
    have = {name for name, *_ in names(second)}
    check(have.issuperset(before) and len(have) == said["keys"], "keys are missing")
    check(signs(second, before[-1]) and signs(second, f"fill-{KEYS - 2:06}"), "a restored key does not sign")
    check(agent.status()["keeper"]["store"]["id"] == second.status()["keeper"]["store"]["id"], "a copy has the same id")


def test_restore_is_careful(ws):
    agent = ws.agent(preset=PRESET)
    agent.ctl("key", "create", "www", "--type", "p256")
    backup = os.path.join(ws.dir, "backup.db")
    agent.ctl("store", "backup", backup)
    agent.ctl("key", "create", "later", "--type", "p256")
    error = error_of(agent.ctl("store", "restore", backup, ok=False))
    check("is running" in error and str(agent.role_pid("keeper")) in error, error)
    # Killed, it leaves changes in the log beside the store, which must not be taken for the backup's.
    agent.stop(signal.SIGKILL)
    check(os.path.getsize(store_of(agent) + "-wal") > 0, "there is no log to be careful with")
    broken = os.path.join(ws.dir, "broken.db")
    shutil.copy(backup, broken)
    sql(broken, "UPDATE keys SET usage = 127")
    error = error_of(agent.ctl("store", "restore", broken, ok=False))
    check("damaged" in error and "nothing was changed" in error, error)
    error = error_of(agent.ctl("store", "restore", agent.conf, ok=False))
    check("nothing was changed" in error, error)
    agent.ctl("store", "restore", backup)
    check(os.stat(store_of(agent)).st_uid == KEEPER, "the keeper's")
    aside = [name for name in os.listdir(os.path.dirname(store_of(agent))) if ".before-" in name]
    check(len(aside) == 2, "the store of before and its log are kept:", aside)
    agent.start()
    check([name for name, *_ in names(agent)] == ["www"], names(agent))
    check(agent.ctl("store", "fsck").stdout == "ok 1 keys\n", "the restored store")
    # And back: what was moved aside is a store with its log.
    agent.stop()
    old = os.path.join(os.path.dirname(store_of(agent)), min(aside, key=len))
    check("2 keys" in agent.ctl("store", "restore", old).stdout, "the store of before")


def test_the_lock_stays(ws):
    """What is asked with the live store as the file is refused before the agent would have it open once more: closing that would
    give up its lock."""
    agent = ws.agent(preset=PRESET)
    agent.ctl("key", "create", "www", "--type", "p256")
    error = error_of(agent.ctl("store", "import", store_of(agent), ok=False))
    check("is a store, and no export" in error, error)
    for command in ("backup", "export"):
        agent.ctl("store", command, store_of(agent), ok=False)
    error = error_of(agent.ctl("store", "fsck", "--store", store_of(agent), ok=False), 2)
    check("is in use by an agent" in error and str(agent.role_pid("keeper")) in error, error)
    agent.stop()


def test_backup_full_disk(ws):
    """No room: the backup of before stays, nothing is left lying about, and the agent serves on."""
    agent = agent_with(ws, 300)
    small = os.path.join(ws.dir, "small")
    os.mkdir(small)
    done = run("mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", small, ok=False)
    if done.returncode != 0:
        raise harness.Skip("cannot mount a small file system: " + done.stderr.strip())
    try:
        backup = os.path.join(small, "backup.db")
        first = os.path.join(ws.dir, "first.db")
        agent_small = ws.agent(preset=PRESET)
        agent_small.ctl("store", "backup", first)
        shutil.copy(first, backup)
        before = open(backup, "rb").read()
        for command in (("backup", backup), ("export", os.path.join(small, "keys.export"))):
            with open(os.path.join(small, "filler"), "wb") as filler:
                filler.truncate(0)
                os.posix_fallocate(filler.fileno(), 0, 90 * 1024)
            error = error_of(agent.ctl("store", *command, ok=False))
            check("cannot be written" in error and "no space left" in error and "stays" in error, error)
            check(open(backup, "rb").read() == before, "the backup of before is gone")
            check(sorted(os.listdir(small)) == ["backup.db", "filler"], os.listdir(small))
        check(signs(agent, "fill-000000"), "the agent serves on")
    finally:
        run("umount", small)


def test_full_disk(ws):
    """M14: on a full disk changes are refused by name, and signing goes on: also with keys that were not in memory, with a keeper
    and an agent that started there. With room again, changes are made again; nothing that was acknowledged is lost."""
    agent = ws.agent(preset=PRESET, start=False)
    folder, before = os.path.dirname(store_of(agent)), os.path.join(ws.dir, "store-before")
    os.rename(folder, before)
    shutil.copytree(before, folder)
    done = run("mount", "-t", "tmpfs", "-o", "size=320k,mode=0700", "tmpfs", folder, ok=False)
    if done.returncode != 0:
        raise harness.Skip("cannot mount a small file system: " + done.stderr.strip())
    try:
        shutil.copytree(before, folder, dirs_exist_ok=True)
        os.chown(folder, KEEPER, KEEPER)
        own(agent)
        agent.start()
        made, done = [], None
        while done is None or done.returncode == 0 and len(made) < 1000:
            done = agent.ctl("key", "create", f"full-{len(made)}", "--type", "p256", ok=False)
            made += [f"full-{len(made)}"] if done.returncode == 0 else []
        check(len(made) > 3 and "store" in error_of(done), len(made), done.stderr)
        for again in ("", "keeper", "agent"):
            if again == "keeper":
                os.kill(agent.role_pid("keeper"), signal.SIGKILL)
                agent.wait_ready()
            elif again == "agent":
                agent.stop()
                agent.start()
            check(all(signs(agent, name) for name in made), "a key does not sign", again)
            check("store" in error_of(agent.ctl("key", "create", "one-more", "--type", "p256", ok=False)), "it is stored", again)
            check([key[0] for key in names(agent)] == sorted(made), names(agent))
        run("mount", "-o", "remount,size=4m", folder)
        agent.ctl("key", "create", "one-more", "--type", "p256")
        agent.ctl("key", "disable", made[0])
        check(signs(agent, "one-more") and not signs(agent, made[0]), "changes after there is room")
        check("ok " in agent.ctl("store", "fsck").stdout, "the store is not whole")
        print(f"   full after {len(made)} keys: {error_of(done)}")
    finally:
        agent.stop()
        run("umount", folder)


def test_interrupted(ws):
    """^C and kill -9 of keyholdctl: the backup of before stays, and the agent has nothing of it left."""
    agent = agent_with(ws, KEYS)
    backup = os.path.join(ws.dir, "backup.db")
    agent.ctl("store", "backup", backup)
    before = open(backup, "rb").read()
    keeper = agent.role_pid("keeper")
    descriptors = len(os.listdir(f"/proc/{keeper}/fd"))
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL) * 2:
        process = subprocess.Popen([artefact("keyholdctl", PRESET), "--config", agent.conf, "store", "backup", backup],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: process.poll() is not None or [n for n in os.listdir(ws.dir) if "partial" in n], "it begins", every=0.0005)
        process.send_signal(signal_number)
        process.wait(READY_S)
        if signal_number != signal.SIGKILL and process.returncode != 0:
            check(not [n for n in os.listdir(ws.dir) if "partial" in n], "it leaves something behind")
        for name in os.listdir(ws.dir):
            if "partial" in name:
                os.unlink(os.path.join(ws.dir, name))
        if process.returncode != 0:
            check(open(backup, "rb").read() == before, "the backup of before is gone")
        before = open(backup, "rb").read()
    wait_until(lambda: len(os.listdir(f"/proc/{keeper}/fd")) <= descriptors, "the keeper gives up what was for nobody")
    check(signs(agent, "fill-000000"), "the agent serves on")


def test_names_that_are_no_backups(ws):
    agent = ws.agent(preset=PRESET)
    for path, word in ((agent.conf, "no earlier backup"), (store_of(agent), "running agent"), (ws.dir, "no earlier backup"),
                       (ws.dir + "/none/x", "check its directory")):
        check(word in error_of(agent.ctl("store", "backup", path, ok=False)), path)
    check("no earlier export" in error_of(agent.ctl("store", "export", agent.conf, ok=False)), "export")
    check("identity" in read(agent.conf), "the configuration is whole")


def test_backup_onto_a_store_that_is_not_locked_yet(ws):
    """The keeper has died and is not back, so nobody has the store's lock, and the configuration that is given names another store:
    the keeper's answer to come says that the lock is there, and then it is looked for once more."""
    agent = ws.agent(preset=PRESET)
    agent.ctl("key", "create", "www", "--type", "p256")
    other = agent.conf + ".other"
    with open(other, "w") as file:
        file.write(re.sub(r'(?m)^store\s*=.*$', 'store = "store/other.db"', read(agent.conf)))
    check("other.db" in read(other) and len(read(other).splitlines()) == len(read(agent.conf).splitlines()), read(other))
    before = os.stat(store_of(agent)).st_ino
    while agent.log().count(" crash_loop ") < 3: # the last one waits for 0.4 s
        keeper = agent.role_pid("keeper")
        if keeper:
            harness.kill_pid(keeper, signal.SIGKILL)
        time.sleep(0.005)
    error = error_of(run(harness.artefact("keyholdctl", PRESET), "--config", other, "store", "backup", store_of(agent), ok=False))
    check("running agent" in error, error)
    check(os.stat(store_of(agent)).st_ino == before, "the store was replaced")
    check(not [one for one in os.listdir(os.path.dirname(store_of(agent))) if "partial" in one], "something is left")
    wait_until(lambda: agent.ctl("key", "show", "www", ok=False).returncode == 0, "the key")


# ---- fsck ------------------------------------------------------------------------------------------------------------------

def stale_index(path, index, change):
    """Changes rows while the schema does not know of an index."""
    db = sqlite3.connect(path)
    row = db.execute("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE name = ?", (index,)).fetchone()
    db.execute("PRAGMA writable_schema = ON")
    db.execute("DELETE FROM sqlite_master WHERE name = ?", (index,))
    db.commit()
    db.close()
    sql(path, change)
    db = sqlite3.connect(path)
    db.execute("PRAGMA writable_schema = ON")
    db.execute("INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) VALUES (?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()


DAMAGES = {
    "usage": (lambda path: sql(path, "UPDATE keys SET usage = 127 WHERE name = 'victim'"), "victim/1 damaged"),
    "sealed": (lambda path: sql(path, "UPDATE keys SET sealed = zeroblob(length(sealed)) WHERE name = 'victim'"), "victim/1 damaged"),
    "state": (lambda path: sql(path, "UPDATE keys SET state = 2 WHERE name = 'victim'"), "victim/1 damaged"),
    "renamed": (lambda path: sql(path, "UPDATE keys SET name = 'stranger' WHERE name = 'victim'"), "stranger/1 damaged"),
    "index of ids": (lambda path: stale_index(path, "keys_id", "UPDATE keys SET id = zeroblob(32) WHERE name = 'victim'"),
                     "victim/1 is not found by its id"),
    "index of names": (lambda path: stale_index(path, "keys_name", "DELETE FROM keys WHERE name = 'victim'"),
                       "the index of names has 3 keys, the table 2"),
    "lost by name": (lambda path: stale_index(path, "keys_name", "UPDATE keys SET version = 9 WHERE name = 'victim'"),
                     "victim/9 is not found by its name"),
    "import key": (lambda path: sql(path, "UPDATE meta SET value = zeroblob(60) WHERE key = 'import key'"), "import key"),
    "purged": (lambda path: sql(path, "INSERT INTO purged VALUES ('not an id')"), "purged keys"),
    "numbering": (lambda path: sql(path, "UPDATE sqlite_sequence SET seq = 1"), "numbering"),
}


def test_fsck_finds(ws):
    """Each kind of damage is found and named in a file; what the agent still opens, it finds while it serves, too."""
    agent = ws.agent(preset=PRESET)
    for name in ("first", "victim", "whole"):
        agent.ctl("key", "create", name, "--type", "p256")
    check(agent.ctl("store", "fsck").stdout == "ok 3 keys\n", "a clean store")
    check(json.loads(agent.ctl("--json", "store", "fsck").stdout) == {"findings": [], "keys": 3}, "as JSON")
    locked = error_of(agent.ctl("store", "fsck", "--store", store_of(agent), ok=False), 2)
    check("in use" in locked and str(agent.role_pid("keeper")) in locked, locked)
    agent.stop()
    good = os.path.join(ws.dir, "good.db")
    shutil.copy(store_of(agent), good)
    for kind, (damage, words) in DAMAGES.items():
        bad = os.path.join(ws.dir, "bad.db")
        shutil.copy(good, bad)
        damage(bad)
        before = open(bad, "rb").read()
        done = agent.ctl("store", "fsck", "--store", bad, ok=False)
        error_of(done)
        check(words in done.stdout, kind, "is not named:", done.stdout)
        check("restore the store from a backup" in done.stdout, kind, "does not say what to do:", done.stdout)
        check(open(bad, "rb").read() == before and not os.path.exists(bad + "-wal"), "fsck changed what it checked")
        if kind in ("usage", "index of ids", "index of names", "purged"):
            shutil.copy(bad, store_of(agent))
            own(agent)
            agent.start()
            done = agent.ctl("store", "fsck", ok=False)
            error_of(done)
            check(words in done.stdout, kind, "is not named by the agent:", done.stdout)
            agent.stop()
    # A page that is no page: SQLite's own check.
    data = bytearray(open(good, "rb").read())
    data[-4096:-4000] = os.urandom(96)
    with open(os.path.join(ws.dir, "bad.db"), "wb") as file:
        file.write(data)
    done = agent.ctl("store", "fsck", "--store", os.path.join(ws.dir, "bad.db"), ok=False)
    check(done.returncode in (1, 2) and "ok " not in done.stdout, done.stdout, done.stderr)


def test_fsck_cannot(ws):
    """2: it could not be checked."""
    agent = ws.agent(preset=PRESET, start=False)
    other = ws.agent(preset=PRESET, start=False)
    check("not running" in error_of(agent.ctl("store", "fsck", ok=False), 2), "no agent")
    check("cannot check" in error_of(agent.ctl("store", "fsck", "--store", ws.dir + "/none", ok=False), 2), "no file")
    wrong = agent.ctl("store", "fsck", "--store", store_of(agent), "--kek-file", other.dir + "/kek", ok=False)
    check("does not open it" in error_of(wrong, 2), "the wrong KEK")
    check("ok 0 keys" in agent.ctl("store", "fsck", "--store", store_of(agent)).stdout, "the right one")
    check("ok 0 keys" in agent.ctl("store", "fsck", "--store", store_of(other), "--kek-file", other.dir + "/kek").stdout, "named")


# ---- Versions and a second agent -------------------------------------------------------------------------------------------

def test_old_store(ws):
    """A store that the first version made: opened, its keys sign, a copy is kept, and the log says so."""
    agent = ws.agent(preset=PRESET, start=False)
    shutil.copy(FIXTURE + "/keys.db", store_of(agent))
    shutil.copy(FIXTURE + "/kek", agent.dir + "/kek")
    os.chmod(agent.dir + "/kek", 0o600)
    own(agent)
    check("ok 6 keys" in agent.ctl("store", "fsck", "--store", store_of(agent)).stdout, "before it is migrated")
    agent.start()
    check([(name, version) for name, version, *_ in names(agent)] ==
          [("ed.example", 1), ("gone.example", 1), ("off.example", 1), ("rsa.example", 1), ("www.example", 1), ("www.example", 2)],
          names(agent))
    check(signs(agent, "www.example") and signs(agent, "rsa.example", "rsa2048"), "its keys sign")
    check("kept a copy of it" in agent.log() and "has version 3 now" in agent.log(), agent.log())
    copy = store_of(agent) + ".v1.bak"
    db = sqlite3.connect(f"file:{copy}?immutable=1", uri=True)
    check(db.execute("PRAGMA user_version").fetchone()[0] == 1, "the copy's version")
    db.close()
    check("ok 6 keys" in agent.ctl("store", "fsck", "--store", copy).stdout, "the copy")
    check("ok 6 keys" in agent.ctl("store", "fsck").stdout, "the migrated one")


def refused(agent, *words):
    agent.start(wait=False)
    check(agent.process.wait(READY_S) == 1, "it starts")
    for word in words:
        check(word in agent.log(), word, "is not in the log:", agent.log())


def test_newer_store(ws):
    agent = ws.agent(preset=PRESET, start=False)
    sql(store_of(agent), "PRAGMA user_version = 9")
    own(agent)
    refused(agent, "is of a newer Keyhold", "version 9, this program knows 1 to 3", store_of(agent))


def test_store_out_of_reach(ws):
    """No store, or one that its keeper may not read: the log says which it is, once, and what to do."""
    agent = ws.agent(preset=PRESET, start=False)
    os.rename(store_of(agent), agent.dir + "/aside")
    refused(agent, f"store: there is no {store_of(agent)}", "keyholdctl store restore", "the store is not there")
    check("crash_loop" not in agent.log() and "no such key" not in agent.log(), agent.log())
    os.rename(agent.dir + "/aside", store_of(agent))
    if os.geteuid() == 0:
        os.chown(store_of(agent), 0, 0)
        refused(agent, f"store: {store_of(agent)} cannot be read (Permission denied)", "keeper's user")
    own(agent)
    agent.start()
    agent.ctl("ping")


def test_second_agent(ws):
    agent = ws.agent(preset=PRESET)
    second = ws.agent(preset=PRESET, start=False)
    conf = read(second.conf).replace('"store/keys.db"', f'"{store_of(agent)}"')
    check(store_of(agent) in conf, conf)
    with open(second.conf, "w") as file:
        file.write(conf)
    shutil.copy(agent.dir + "/kek", second.dir + "/kek")
    refused(second, "is open in another agent", f"process {agent.role_pid('keeper')}", store_of(agent))
    agent.ctl("key", "create", "still", "--type", "p256")
    check(agent.ctl("store", "fsck").stdout == "ok 1 keys\n", "the first one does not notice")


# ---- Two agents with the same keys -----------------------------------------------------------------------------------------

def test_export_import(ws):
    """Keys of one agent sign at another with the same KEK, found by the id of the certificate; fronts notice at once."""
    first = ws.agent(preset=PRESET)
    second = agent_with(ws, 0, kek_of=first)
    key = ws.make_key("p256", "www")
    first.import_key(key)
    for name, kind in (("api.a", "ed25519"), ("api.b", "rsa2048"), ("off", "p256"), ("gone", "p256")):
        first.ctl("key", "create", name, "--type", kind)
    first.ctl("key", "disable", "off")
    first.ctl("key", "delete", "gone")
    nginx = ws.nginx(second, ws.server(key))
    check(ws.curl(key, ok=False).returncode != 0, "it has the key already")
    export = os.path.join(ws.dir, "keys.export")
    first.ctl("store", "export", export)
    check(os.stat(export).st_mode & 0o777 == 0o600, "the export's mode")
    scanned = ws.scan([key], files=[export])
    check(not scanned.get("found"), "the private key is in the export:", scanned)
    check("5 keys imported" in second.ctl("store", "import", export).stdout, "import")
    check(ws.curl(key).stdout == "www\n", "the key does not sign at the second agent")
    have = {key[0]: key for key in names(second)}
    for name in ("www", "api.a", "api.b", "off", "gone"):
        check(have[name] in names(first), name, "is not what it was:", have[name])
    check("0 keys imported" in (again := second.ctl("store", "import", export).stdout) and "5 were here" in again, again)
    check(second.ctl("store", "fsck").stdout.startswith("ok "), "fsck")
    # Some of them only; and what is refused, by name, with nothing changed.
    first.ctl("store", "export", "--keys", "api.*,off", export)
    for name in ("api.a", "off"):
        second.ctl("key", "delete", name)
        second.ctl("key", "purge", name, "--yes")
    error = error_of(second.ctl("store", "import", export, ok=False))
    check("api.a/1" in error and "purged" in error and "--allow-purged" in error, error)
    second.ctl("key", "create", "off", "--type", "p256")
    error = error_of(second.ctl("store", "import", "--allow-purged", export, ok=False))
    check("off/1 is here already with another key" in error, error)
    check("api.a" not in {name for name, *_ in names(second)}, "a part was imported")
    second.ctl("key", "delete", "off")
    second.ctl("key", "purge", "off", "--yes")
    check("2 keys imported" in second.ctl("store", "import", "--allow-purged", export).stdout, "with --allow-purged")
    check("no key has such a name" in error_of(first.ctl("store", "export", "--keys", "none", export, ok=False)), "none")
    nginx.stop()


def test_export_of_another_kek(ws):
    first, stranger = ws.agent(preset=PRESET), ws.agent(preset=PRESET)
    first.ctl("key", "create", "www", "--type", "p256")
    export = os.path.join(ws.dir, "keys.export")
    first.ctl("store", "export", export)
    error = error_of(stranger.ctl("store", "import", export, ok=False))
    check("another key-encryption key" in error and "--kek-file" in error, error)
    check(names(stranger) == [], "nothing is stored")
    error = error_of(stranger.ctl("store", "import", stranger.conf, ok=False))
    check("no export" in error, error)
    check("1 keys imported" in stranger.ctl("store", "import", "--kek-file", first.dir + "/kek", export).stdout, "with the KEK")
    check(signs(stranger, "www"), "it signs")


def test_export_under_a_passphrase(ws):
    """Each store makes a KEK of its own of the same passphrase; the export says how."""
    passphrase = os.path.join(ws.keys, "passphrase")
    with open(os.open(passphrase, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write("correct horse battery staple\n")
    agents = []
    for _ in range(2):
        agent = ws.agent(preset=PRESET, start=False)
        shutil.rmtree(agent.dir)
        run(artefact("keyholdctl", PRESET), "init", "--dir", agent.dir, "--passphrase-file", passphrase)
        agents.append(agent.start())
    agents[0].ctl("key", "create", "www", "--type", "p256")
    export = os.path.join(ws.dir, "keys.export")
    agents[0].ctl("store", "export", export)
    check("1 keys imported" in agents[1].ctl("store", "import", export).stdout, "the configuration has the passphrase")
    check(signs(agents[1], "www"), "it signs")
    keyfile = ws.agent(preset=PRESET)
    error = error_of(keyfile.ctl("store", "import", export, ok=False))
    check("passphrase" in error and "--passphrase-file" in error, error)
    check("1 keys imported" in keyfile.ctl("store", "import", "--passphrase-file", passphrase, export).stdout, "given")


def test_import_under_load(ws):
    """A large import while keys sign: no client's error. Killed in the middle, the keeper has each key whole or not at all."""
    first = agent_with(ws, KEYS)
    second = agent_with(ws, 0, kek_of=first)
    second.ctl("key", "create", "busy", "--type", "p256")
    export = os.path.join(ws.dir, "keys.export")
    first.ctl("store", "export", export, timeout=300)
    load = Load(second, "busy")
    load.start()
    wait_until(lambda: load.done > 3, "the load runs")
    # fill-000000 is there, with another key: refused, and nothing else came.
    error = error_of(second.ctl("store", "import", export, ok=False, timeout=300))
    check("fill-000000/1" in error, error)
    second.ctl("key", "delete", "fill-000000")
    second.ctl("key", "purge", "fill-000000", "--yes")
    process = subprocess.Popen([artefact("keyholdctl", PRESET), "--config", second.conf, "store", "import", export],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    db_wal = store_of(second) + "-wal"
    size = os.path.getsize(db_wal)
    wait_until(lambda: process.poll() is not None or os.path.getsize(db_wal) != size or os.path.getsize(store_of(second)) > 100000,
               "it stores keys", 120, every=0.001)
    load.stop()
    os.kill(second.role_pid("keeper"), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    second.wait_ready()
    wait_until(lambda: second.ctl("store", "fsck", ok=False, timeout=300).returncode == 0, "the store is whole", 120)
    count = len(names(second))
    check(process.returncode != 0 or count == KEYS + 1, "it was acknowledged and is not there:", count, out, err)
    load = Load(second, "busy")
    load.start()
    wait_until(lambda: load.done > 3, "the load runs")
    said = json.loads(second.ctl("--json", "store", "import", export, timeout=300).stdout)
    load.stop()
    check(said["keys"] == KEYS and said["imported"] + said["present"] == KEYS and said["present"] == count - 1, said, count)
    check(len(names(second)) == KEYS + 1, "keys are missing")


def test_front_may_not(ws):
    """None of it goes past the admin socket: with --socket or --token it is refused before anything is asked."""
    agent = ws.agent(preset=PRESET)
    for command in (("backup", ws.dir + "/x"), ("export", ws.dir + "/x"), ("import", agent.conf), ("fsck",)):
        done = agent.ctl("--socket", "unix:" + agent.socket, "--token", agent.token, "store", *command, ok=False)
        check("admin socket" in error_of(done, 2), done.stderr)
    check(os.stat(agent.dir + "/admin.sock").st_mode & 0o077 == 0, "the admin socket is root's")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    harness.main(globals())
