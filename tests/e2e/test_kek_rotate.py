#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""keyholdctl kek rotate: the store gets another key-encryption key, or passphrase, while it serves, and at whatever point somebody is
killed it opens."""
import fcntl
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import time

import harness
import hsm
from harness import artefact, check, command_line, descendants, kill_pid, read, run, wait_until

ROUNDS = 20
PHRASE_ROUNDS = 2
FIRST = "correct horse battery staple"


def keeper(agent):
    return [pid for pid in descendants(agent.pid) if command_line(pid).startswith("keyholdd: keeper")]


def serves(agent):
    wait_until(lambda: hsm.signs(agent, "site"), "the store is used")


def test_rotates(ws):
    agent = ws.agent()
    agent.ctl("key", "create", "site", "--type", "p256")
    kek = os.path.join(os.path.dirname(agent.conf), "kek")
    seen = {read(kek)}
    os.close(os.open(kek + ".next", os.O_CREAT, 0o600))  # by a run that was killed before it wrote the key
    for _ in range(3):
        out = agent.ctl("kek", "rotate").stdout
        check(kek in out, "it says where:", out)
        check(os.stat(kek).st_mode & 0o777 == 0o600, "others may read it")
        check(read(kek) not in seen, "it is another key")
        seen.add(read(kek))
        check(hsm.signs(agent, "site"), "signs on")
        for pid in keeper(agent):  # the one that comes needs the new key
            kill_pid(pid, signal.SIGKILL)
        serves(agent)
    old = [name for name in os.listdir(os.path.dirname(kek)) if ".until-" in name]
    check(len(old) == 3, "the ones before are kept:", old)
    check("ok 1 keys" in agent.ctl("store", "fsck").stdout, "clean")
    agent.stop()
    agent.start()
    serves(agent)


def test_t6_kek_rotation(ws):
    """T6: whoever is killed, whenever: one of the two keys that were in the file opens the store, and the next rotation ends it."""
    agent = ws.agent()
    agent.ctl("key", "create", "site", "--type", "p256")
    chance = random.Random(6)
    for _ in range(ROUNDS):
        ctl = subprocess.Popen([artefact("keyholdctl"), "--config", agent.conf, "kek", "rotate"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 0.04))
        if chance.random() < 0.5:
            ctl.kill()
        else:
            for pid in keeper(agent):
                kill_pid(pid, signal.SIGKILL)
        ctl.wait()
        agent.stop()  # a supervisor that starts anew has read the file anew, and knows of no deaths before
        agent.start()
        serves(agent)
    agent.ctl("kek", "rotate")
    check("ok 1 keys" in agent.ctl("store", "fsck").stdout, "clean")
    agent.stop()
    agent.start()
    serves(agent)


def test_refuses(ws):
    agent = ws.agent()
    kek = os.path.join(os.path.dirname(agent.conf), "kek")
    with open(kek, "w", encoding="ascii") as file:
        file.write("keyhold-kek-1 " + "00" * 32 + "\n")
    done = agent.ctl("kek", "rotate", ok=False)
    check(done.returncode == 1 and "00" * 32 in read(kek), "a key that does not open the store changes nothing:", done.stderr)
    check(not os.path.exists(kek + ".next"), "and no key that nobody needs is left")
    with open(kek + ".next", "w", encoding="ascii") as file:  # perhaps of an interrupted run, and in use
        file.write("keyhold-kek-1 " + "11" * 32 + "\n")
    os.chmod(kek + ".next", 0o600)
    done = agent.ctl("kek", "rotate", ok=False)
    check(done.returncode == 1 and os.path.exists(kek + ".next"), "one that was there before stays:", done.stderr)


# ---- Passphrases -----------------------------------------------------------------------------------------------------------------

def write_phrase(path, phrase, mode=0o600):
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(phrase + "\n")
    os.chmod(path, mode)
    return path


def agent_under(ws, phrase, credential=False):
    """An agent whose store is sealed under a passphrase, in a file or in a credential; and that file."""
    agent = ws.agent(start=False)
    shutil.rmtree(agent.dir)
    folder = os.path.join(ws.dir, ws.new_name("secret"))
    os.mkdir(folder, 0o700)
    file = write_phrase(os.path.join(folder, "phrase"), phrase)
    run(artefact("keyholdctl"), "init", "--dir", agent.dir, "--passphrase-file", file)
    if credential:
        text = re.sub(r'kek_passphrase_file *= *"[^"]*"', 'kek_passphrase_file = "credential:phrase"', read(agent.conf))
        with open(agent.conf, "w", encoding="utf-8") as conf:
            conf.write(text)
        agent.env = {**os.environ, "CREDENTIALS_DIRECTORY": folder}
    agent.start()
    agent.ctl("key", "create", "site", "--type", "p256")
    return agent, file


def new_phrase(ws, phrase):
    return write_phrase(os.path.join(ws.dir, ws.new_name("new")), phrase)


def opens(ws, agent, phrase):
    """Whether the phrase opens a copy of the store as it is now."""
    copy = os.path.join(ws.dir, ws.new_name("copy"))
    agent.ctl("store", "backup", copy)
    return copy_opens(ws, agent, copy, phrase)


def copy_opens(ws, agent, copy, phrase):
    done = agent.ctl("store", "fsck", "--store", copy, "--passphrase-file", new_phrase(ws, phrase), ok=False)
    return done.returncode == 0 and "ok 1 keys" in done.stdout


def at_terminal(agent, args, answers):
    """The exit status of keyholdctl on a terminal of its own, and what it showed."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(artefact("keyholdctl"), [artefact("keyholdctl"), "--config", agent.conf, *args])
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
        if answers and data.rstrip(b" ").endswith(b":"):
            os.write(master, answers.pop(0).encode() + b"\n")
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="replace")


def refuses(ws, agent, file):
    def refused(words, *args, code=1):
        done = agent.ctl("kek", "rotate", *args, ok=False, start_new_session=True)
        check(done.returncode == code and all(word in done.stderr for word in words), words, "in:", done.stderr)
        check(os.listdir(os.path.dirname(file)) == ["phrase"] and read(file) == before, "nothing was changed")

    before, good = read(file), new_phrase(ws, "a good one but it does not get there")
    for phrase, words in ((FIRST, ["the one of now"]), ("short one", ["shorter than 12"]), ("secretsecretsecret", ["again"]),
                          ("", ["empty", "--new-passphrase-file"]), ("x" * 400 + "yz" * 312, ["longer than 1023"])):
        refused(words, "--new-passphrase-file", new_phrase(ws, phrase))
    refused(["read by others"], "--new-passphrase-file", write_phrase(os.path.join(ws.dir, "open"), "an umbrella for cats", 0o644))
    refused(["no terminal", "--new-passphrase-file"])
    refused([file], "--passphrase-file", file, code=2)
    refused(["--in-token"], "--in-token", "safe", code=2)
    status, shown = at_terminal(agent, ["kek", "rotate"], ["one umbrella and two", "two umbrellas and one"])
    check(status == 1 and "differ" in shown, "not the same twice:", shown)
    other = os.open(os.path.join(agent.dir, "store"), os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(other, fcntl.LOCK_EX)
    refused(["another kek rotate"], "--new-passphrase-file", good)
    os.close(other)
    before = write_phrase(file, "somebody else's umbrella") and read(file)
    refused([file, "does not open"], "--new-passphrase-file", good)
    write_phrase(file, FIRST)
    os.mkdir(file + ".next")  # so that it cannot be written
    done = agent.ctl("kek", "rotate", "--new-passphrase-file", good, ok=False)
    check(done.returncode == 1 and "nothing was changed" in done.stderr, "what cannot be written is taken back:", done.stderr)
    check(not opens(ws, agent, read(good).rstrip()), "also in the store")
    os.rmdir(file + ".next")


def test_passphrase(ws):
    agent, file = agent_under(ws, FIRST)
    refuses(ws, agent, file)
    backup, second, third = os.path.join(ws.dir, "backup"), "an umbrella for seven cats", "third time is a charm"
    agent.ctl("store", "backup", backup)
    out = agent.ctl("kek", "rotate", "--new-passphrase-file", new_phrase(ws, second)).stdout
    check(file in out and second not in out, "it says where:", out)
    check(read(file) == second + "\n" and os.stat(file).st_mode & 0o777 == 0o600, "the file has it, and others may not read it")
    kept = [name for name in os.listdir(os.path.dirname(file)) if ".until-" in name]
    check(len(kept) == 1 and read(os.path.join(os.path.dirname(file), kept[0])) == FIRST + "\n", "the one before is kept:", kept)
    check(hsm.signs(agent, "site"), "signs on")
    for pid in keeper(agent):  # the one that comes needs the new one
        kill_pid(pid, signal.SIGKILL)
    serves(agent)
    check(not opens(ws, agent, FIRST) and copy_opens(ws, agent, backup, FIRST), "the one before opens nothing but the backup")
    status, shown = at_terminal(agent, ["kek", "rotate"], [third, third])
    check(status == 0 and read(file) == third + "\n" and third not in shown, "asked for twice, and not shown:", shown)
    agent.stop()
    agent.start()
    serves(agent)
    log = read(agent.log_path)
    check(not [phrase for phrase in (FIRST, second, third) if phrase in log], "no passphrase is in the log")


def test_passphrase_from_elsewhere(ws):
    """Only the next start can give the agent the new one: both open the store until then, and none but the new one from then on."""
    agent, file = agent_under(ws, FIRST, credential=True)
    second, third = "an umbrella for seven cats", "third time is a charm"
    status, shown = at_terminal(agent, ["kek", "rotate"], [FIRST, second, second])
    check(status == 0 and "both passphrases open" in shown and "credential:phrase" in shown, "says what to do:", shown)
    for pid in keeper(agent):  # the one that comes gets what the agent was started with
        kill_pid(pid, signal.SIGKILL)
    serves(agent)
    done = agent.ctl("kek", "rotate", "--passphrase-file", new_phrase(ws, second), "--new-passphrase-file", new_phrase(ws, third),
                     ok=False)
    check(done.returncode == 1 and "waits for a start" in done.stderr, "what the agent has is not given up:", done.stderr)
    agent.stop()
    write_phrase(file, second)
    agent.start()
    serves(agent)
    check("opened by its new passphrase" in read(agent.log_path), "it is in the log")
    check(not opens(ws, agent, FIRST), "only the new one opens the store")


def test_t6_passphrase(ws):
    """T6: whoever is killed, whenever: the passphrase that is in the file opens the store, and the next change ends it."""
    agent, file = agent_under(ws, FIRST)
    chance, folder = random.Random(6), os.path.dirname(file)
    look = lambda: sorted((entry.name, entry.inode()) for entry in os.scandir(folder))  # noqa: E731
    for turn in range(PHRASE_ROUNDS):
        before, after = read(file), f"umbrella number {turn} of many\n"
        phrase, seen = new_phrase(ws, after.rstrip()), look()
        ctl = subprocess.Popen([artefact("keyholdctl"), "--config", agent.conf, "kek", "rotate", "--new-passphrase-file", phrase],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while look() == seen and ctl.poll() is None:  # scrypt; the store is being changed from then on
            pass
        time.sleep(chance.uniform(0, 0.004))
        if turn % 2 == 0:
            ctl.kill()
        else:
            for pid in keeper(agent):
                kill_pid(pid, signal.SIGKILL)
        ctl.wait()
        check(read(file) in (before, after), "the file has one of the two:", read(file))
        agent.stop()
        agent.start()
        serves(agent)
    before, last = read(file).rstrip(), "and this is the end of it"
    agent.ctl("kek", "rotate", "--new-passphrase-file", new_phrase(ws, last))
    check(read(file) == last + "\n" and not opens(ws, agent, before), "only the new one opens the store")


if __name__ == "__main__":
    harness.main(globals())
