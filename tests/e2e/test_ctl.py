#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""keyholdctl: every command against the real agent, and every error that has an answer of its own.

KH_BUILD_DIR names the build whose keyholdctl and keyholdd are used (default: build-release).
"""
import json
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import stat
import subprocess
import time

if os.environ.get("KH_BUILD_DIR"):
    os.environ["KH_BUILD_RELEASE"] = os.path.abspath(os.environ["KH_BUILD_DIR"])

import harness
from harness import Skip, artefact, check, kill_pid, popen, read, run, status_of, wait_until

KINDS = ["rsa2048", "rsa3072", "rsa4096", "p256", "p384", "p521", "ed25519"]
PASSPHRASE = "correct horse battery"
NOBODY = 65534

agent = None


def setup(ws):
    global agent
    agent = ws.agent()


def tool():
    return artefact("keyholdctl")


def ctl(*args, **more):
    return agent.ctl(*args, **more)


def refuse(*args, code=1, says=(), **more):
    """Runs a command that must fail: the exit status, one line on stderr, and what is in it. Returns that line."""
    done = ctl(*args, ok=False, **more)
    one_error(done, code, says)
    return done


def one_error(done, code, says=()):
    check(done.returncode == code, f"exit status {done.returncode}, not {code}:", done.args, done.stdout, done.stderr)
    check(done.stderr.startswith("keyholdctl: ") and done.stderr.count("\n") == 1, "not one line:", repr(done.stderr))
    for text in [says] if isinstance(says, str) else says:
        check(text in done.stderr, f"{text!r} is not in", repr(done.stderr))


def write(path, text, mode=0o600):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def keys():
    return {(entry["name"], entry["version"]): entry for entry in json.loads(ctl("key", "list", "--json").stdout)}


def as_nobody(*argv, **more):
    return run(*argv, ok=False, user=NOBODY, group=NOBODY, extra_groups=[], **more)


def sanitized():
    return bool(re.search(r"^KH_SANITIZE:[A-Z]+=.", read(os.path.join(harness.build_dir(), "CMakeCache.txt")), re.M))


def fresh(ws, kind="p256"):
    """A key pair that no other test has."""
    return ws.make_key(kind, ws.new_name("ctl-" + kind + "-"))


def owner_and_mode(path):
    status = os.stat(path)
    return status.st_uid, stat.S_IMODE(status.st_mode)


# ---- init --------------------------------------------------------------------------------------------------------------------

def snapshot(folder):
    return {name: (os.stat(path).st_mtime_ns, os.stat(path).st_mode, os.stat(path).st_uid, read(path))
            for base, _, names in os.walk(folder) for name in names for path in [os.path.join(base, name)]}


def test_init_layout_and_twice(ws):
    home = os.path.join(ws.dir, "layout")
    first = run(tool(), "init", "--dir", home).stdout
    check(owner_and_mode(home)[1] & 0o011 == 0o011, "others cannot get through", home)
    check(owner_and_mode(home + "/kek") == (0, 0o600), "kek")
    check(owner_and_mode(home + "/nginx.token") == (0, 0o600), "token")
    check(owner_and_mode(home + "/store") == (64802, 0o700), "store")
    check(owner_and_mode(home + "/store/keys.db") == (64802, 0o600), "keys.db")
    fingerprint = re.search(r"SHA256:[A-Za-z0-9+/]{43}", first)
    check(fingerprint, "no fingerprint:", first)
    check(run(artefact("keyholdd"), "--config", home + "/keyhold.conf", "--check").returncode == 0)
    before = snapshot(home)
    second = run(tool(), "init", "--dir", home).stdout
    check("nothing was changed" in second and "made  " not in second, "a second run:", second)
    check(fingerprint.group() in second, "another fingerprint")
    check(snapshot(home) == before, "a second run changed something")
    told = json.loads(run(tool(), "--json", "init", "--dir", home).stdout)
    check(told["made"] == [] and told["import_fingerprint"] == fingerprint.group(), told)


def test_init_makes_only_what_is_missing(ws):
    home = os.path.join(ws.dir, "partly")
    run(tool(), "init", "--dir", home)
    old = read(home + "/nginx.token")
    os.remove(home + "/nginx.token")
    check("made" in run(tool(), "init", "--dir", home).stdout, "the token is made again")
    check(read(home + "/nginx.token") != old, "a fresh secret")
    os.rename(home + "/kek", home + "/elsewhere")
    one_error(run(tool(), "init", "--dir", home, ok=False), 1, ["key-encryption key", "backup"])
    check(not os.path.exists(home + "/kek"), "no fresh key beside an old store")
    os.rename(home + "/elsewhere", home + "/kek")
    os.rename(home + "/store/keys.db", home + "/keys.db")
    one_error(run(tool(), "init", "--dir", home, ok=False), 1, ["pins the import key", "backup"])
    os.rename(home + "/keys.db", home + "/store/keys.db")
    os.remove(home + "/import.pub")
    one_error(run(tool(), "init", "--dir", home, ok=False), 1, ["pin", "start the agent"])


def test_init_socket(ws):
    home, socket = os.path.join(ws.dir, "socket"), os.path.join(ws.dir, "elsewhere.sock")
    run(tool(), "init", "--dir", home, "--socket", socket)
    check(f'listen "unix:{socket}"' in read(home + "/keyhold.conf"), read(home + "/keyhold.conf"))
    run(tool(), "init", "--dir", home + "2", "--socket", "unix:" + socket)
    check(f'listen "unix:{socket}"' in read(home + "2/keyhold.conf"))
    one_error(run(tool(), "init", "--dir", home + "3", "--socket", "tcp:1.2.3.4:5", ok=False), 2, "unix:/path")
    check(not os.path.exists(home + "3"), "something was made before it was refused")


def test_init_takes_the_pin_from_the_keeper(ws):
    old = read(agent.dir + "/import.pub")
    os.remove(agent.dir + "/import.pub")
    refuse("key", "import", "nopin", fresh(ws).key, says=["pin", "missing", "import.pub"])
    run(tool(), "init", "--dir", agent.dir)
    check(read(agent.dir + "/import.pub") == old, "the pin is another one")


def test_init_passphrase(ws):
    home = os.path.join(ws.dir, "passphrase")
    file = write(os.path.join(ws.keys, "store.pass"), PASSPHRASE + "\n", 0o644)
    one_error(run(tool(), "init", "--dir", home, "--passphrase-file", file, ok=False), 1, ["read by others", "0600"])
    os.chmod(file, 0o600)
    run(tool(), "init", "--dir", home, "--passphrase-file", file)
    check(not os.path.exists(home + "/kek"), "a key file beside a passphrase")
    check(PASSPHRASE not in read(home + "/keyhold.conf"))
    daemon = popen([artefact("keyholdd"), "--config", home + "/keyhold.conf"], home + ".log")
    wait_until(lambda: run(tool(), "--config", home + "/keyhold.conf", "ping", ok=False).returncode == 0,
               "the agent with a passphrase answers")
    kill_pid(daemon.pid, signal.SIGTERM)
    daemon.wait(20)


def test_init_refused(ws):
    one_error(run(tool(), "init", "--dir", os.path.join(ws.dir, "no/such"), ok=False), 1, "make the directory above")
    one_error(run(tool(), "init", "--dir", os.path.join(ws.dir, "u"), "--user-front", "no-such-user", ok=False), 1,
              ["no user", "--user-front"])
    one_error(run(tool(), "init", "--dir", os.path.join(ws.dir, "u"), "--user-front", "5:5", "--user-keeper", "5:5", ok=False),
              1, "two different users")
    os.mkdir(os.path.join(ws.dir, "closed"), 0o700)
    one_error(run(tool(), "init", "--dir", os.path.join(ws.dir, "closed/agent"), ok=False), 1, ["cannot get through", "chmod o+x"])
    one_error(as_nobody(tool(), "init"), 1, ["root", "--dir"])
    if run("getent", "passwd", "keyhold-front", ok=False).returncode != 0 and not os.path.exists("/etc/keyhold"):
        one_error(run(tool(), "init", ok=False), 1, ["keyhold-front", "systemd-sysusers"])
        check(not os.path.exists("/etc/keyhold"), "init made something before it refused")


SYSTEM = r"""
set -e
mount --make-rprivate /
mkdir "$HOME_DIR/etc" && cp -a /etc/. "$HOME_DIR/etc" && mount --bind "$HOME_DIR/etc" /etc
mount -t tmpfs none /run && mount -t tmpfs none /var/lib
systemd-sysusers "$PACKAGING/keyhold.sysusers"
systemd-tmpfiles --create "$PACKAGING/keyhold.tmpfiles"
"$CTL" init
"$CTL" init | grep "nothing was changed"
stat -c "%U %a %n" /etc/keyhold /etc/keyhold/kek /etc/keyhold/nginx.token /var/lib/keyhold /var/lib/keyhold/keys.db /run/keyhold
"$D" --check
"$D" & agent=$!
trap 'kill $agent; wait $agent' EXIT
for _ in $(seq 100); do "$CTL" ping && break; sleep 0.1; done
"$CTL" key create www --type p256
"$CTL" --token /etc/keyhold/nginx.token key show www
"$CTL" cert self-signed www --subject /CN=www.example > /run/www.crt
"$CTL" token create edge
echo "uids: $(ps -o user:32= --ppid $agent | sort | xargs)"
"""


def test_init_system(ws):
    """init without --dir, with the packaged users and directories, in a file system of its own."""
    for needed in ("unshare", "systemd-sysusers", "systemd-tmpfiles", "ps"):
        if shutil.which(needed) is None:
            raise Skip(f"no {needed}")
    if run("unshare", "-m", "true", ok=False).returncode != 0:
        raise Skip("no mount namespaces here")
    if os.path.exists("/etc/keyhold"):
        raise Skip("this machine has an agent of its own")
    home = os.path.join(ws.dir, "system")
    os.mkdir(home)
    bin_dir = os.path.join(home, "bin")
    os.mkdir(bin_dir)
    for name in ("keyholdctl", "keyholdd"):
        shutil.copy(artefact(name), bin_dir)
    done = run("unshare", "-m", "sh", "-c", SYSTEM, ok=False, timeout=120,
               env={**os.environ, "HOME_DIR": home, "PACKAGING": os.path.join(harness.ROOT, "packaging"),
                    "CTL": bin_dir + "/keyholdctl", "D": bin_dir + "/keyholdd"})
    check(done.returncode == 0, done.stdout, done.stderr)
    for line in ("root 755 /etc/keyhold", "root 600 /etc/keyhold/kek", "root 600 /etc/keyhold/nginx.token",
                 "keyhold-keeper 700 /var/lib/keyhold", "keyhold-keeper 600 /var/lib/keyhold/keys.db",
                 "root 755 /run/keyhold", "uids: keyhold-front keyhold-keeper"):
        check(line + "\n" in done.stdout, f"{line!r} is not in", done.stdout)
    check(not os.path.exists("/etc/keyhold"), "it escaped")


def test_init_without_root(ws):
    home = os.path.join(ws.dir, "own")
    os.mkdir(home)
    os.chown(home, NOBODY, NOBODY)
    copies = {name: os.path.join(home, name) for name in ("keyholdctl", "keyholdd")}
    for name, path in copies.items():
        shutil.copy(artefact(name), path)
        os.chmod(path, 0o755)
    done = as_nobody(copies["keyholdctl"], "init", "--dir", home + "/agent")
    check(done.returncode == 0, done.stderr)
    conf = home + "/agent/keyhold.conf"
    check("_user" not in read(conf), "an agent of one's own has no other users")
    log = open(home + "/log", "ab")
    daemon = subprocess.Popen([copies["keyholdd"], "--config", conf], user=NOBODY, group=NOBODY, extra_groups=[],
                              stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    harness._popen_pids.add(daemon.pid)
    try:
        wait_until(lambda: as_nobody(copies["keyholdctl"], "--config", conf, "ping").returncode == 0, "an agent without root")
        for argv in (["key", "create", "mine", "--type", "p256"], ["cert", "self-signed", "mine", "--subject", "/CN=mine"],
                     ["status"], ["--socket", home + "/agent/agent.sock", "key", "list"]):
            done = as_nobody(copies["keyholdctl"], "--config", conf, *argv)
            check(done.returncode == 0, argv, done.stderr)
    except harness.Failure as failure:
        raise harness.Failure(f"{failure}\n{read(home + '/log')}") from failure
    finally:
        kill_pid(daemon.pid, signal.SIGTERM)
        daemon.wait(20)


# ---- The command line ----------------------------------------------------------------------------------------------------------

def test_usage(ws):
    check("usage: keyholdctl" in ctl("help").stdout)
    check("--type" in ctl("help", "key", "create").stdout)
    check("--type" in ctl("key", "create", "--help").stdout)
    check(ctl("version").stdout == ctl("--version").stdout and "keyholdctl 0." in ctl("version").stdout)
    refuse("pnig", code=2, says='did you mean "ping"?')
    refuse("key", "lst", code=2, says='did you mean "key list"?')
    refuse("key", "create", "x", "--tpye", "p256", code=2, says="did you mean --type?")
    refuse("ping", "--soket", "x", code=2, says="did you mean --socket?")
    refuse("key", "create", code=2, says="too few operands")
    refuse("ping", "--count", "zero", code=2, says="whole number")
    refuse("completion", "fish", code=2, says="bash")
    refuse("key", "import", "x", "y", "--passphrase=" + PASSPHRASE, code=2, says="did you mean --passphrase-")
    check(PASSPHRASE not in ctl("key", "import", "x", "y", "--passphrase=" + PASSPHRASE, ok=False).stderr)
    one_error(run(tool(), "ping", "--config", ws.dir + "/none.conf", ok=False), 1, ["none.conf", "--config"])
    bad = write(ws.dir + "/bad.conf", "store = \"x\"\nfrobnicate = 1\n")
    one_error(run(tool(), "ping", "--config", bad, ok=False), 1, ["bad.conf:2", "frobnicate"])


def test_manual_has_every_option(ws):
    page = os.path.join(harness.ROOT, "docs/man/keyholdctl.1")
    text = read(page).replace("\\-", "-")
    listed = ctl("help").stdout
    commands = re.findall(r"^  ((?:(?:key|cert|token|store) )?[a-z-]+)", listed[listed.index("Commands:"):listed.index("Options")], re.M)
    check(len(commands) > 20, commands)
    options = set(re.findall(r"^  (--[a-z-]+)", "".join(ctl("help", *name.split()).stdout for name in commands) + listed, re.M))
    check(len(options) > 20, options)
    for word in [*options, *commands]:
        check(word in text.replace("\\fB", "").replace("\\fR", ""), f"{word} is not in keyholdctl.1")
    if shutil.which("man") is None:
        return
    for name in sorted(os.listdir(os.path.join(harness.ROOT, "docs/man"))):
        if read(os.path.join(harness.ROOT, "docs/man", name)).startswith(".so "):
            continue  # another page, which man finds where pages are installed
        done = run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", os.path.join(harness.ROOT, "docs/man", name),
                   env={**os.environ, "LC_ALL": "C.UTF-8", "MANPAGER": "cat"})
        check(done.stderr == "", name, done.stderr)


def complete(script, *words):
    quoted = " ".join(f"'{word}'" for word in words)
    text = (f". {script}; COMP_WORDS=(keyholdctl {quoted}); COMP_CWORD={len(words)}; _keyholdctl; "
            "printf '%s\\n' \"${COMPREPLY[@]}\"")
    path = os.path.dirname(tool()) + ":" + os.environ["PATH"]
    return run("bash", "-c", text, env={**os.environ, "PATH": path}).stdout.split()


def test_completion(ws):
    script = write(ws.dir + "/completion", ctl("completion", "bash").stdout)
    run("bash", "-n", script)
    check({"key", "cert", "init", "check-nginx"} <= set(complete(script, "")))
    check(complete(script, "key", "imp") == ["import"])
    check("--new-version" in complete(script, "key", "create", "x", "--"))
    check(complete(script, "key", "create", "x", "--type", "ed") == ["ed25519"])
    ctl("key", "create", "completed", "--type", "ed25519")
    check(complete(script, "--config", agent.conf, "key", "show", "comp") == ["completed"])
    ctl("key", "delete", "completed")


# ---- Keys ------------------------------------------------------------------------------------------------------------------------

def test_key_create_every_type(ws):
    for kind in KINDS:
        made = json.loads(ctl("--json", "key", "create", "made-" + kind, "--type", kind).stdout)
        check((made["type"], made["usage"], made["state"], made["version"]) == (kind, ["tls-server"], "enabled", 1), made)
        pem = ctl("key", "public", "made-" + kind).stdout
        run("openssl", "pkey", "-pubin", "-noout", input=pem)
    check({name for name, _ in keys()} >= {"made-" + kind for kind in KINDS})
    listed = ctl("key", "list", "made-p*").stdout
    check("made-p256" in listed and "made-rsa2048" not in listed, listed)
    check(json.loads(ctl("key", "list", "nothing*", "--json").stdout) == [])


def test_key_create_refused(ws):
    refuse("key", "create", "x y", "--type", "p256", code=2, says="not a key name")
    refuse("key", "create", "-x", code=2)
    refuse("key", "create", "x" * 128, "--type", "p256", code=2, says="127")
    refuse("key", "create", "x", code=2, says="--type")
    refuse("key", "create", "x", "--type", "rsa1024", code=2, says="weak")
    refuse("key", "create", "x", "--type", "rsa8192", code=2, says="2048 to 4096")
    refuse("key", "create", "x", "--type", "secp256k1", code=2, says="not known")
    refuse("key", "create", "x", "--type", "p256", "--usage", "everything", code=2, says="tls-server")
    refuse("key", "create", "x", "--type", "p256", "--usage", "tls-server,tls-rsa-kx", code=2, says=["tls-rsa-kx", "RSA"])
    refuse("key", "create", "none", "--type", "p256", "--new-version", says="no such key")
    ctl("key", "create", "once", "--type", "p256")
    refuse("key", "create", "once", "--type", "p256", says=["exists already", "--new-version"])


def test_key_versions(ws):
    ctl("key", "create", "turned", "--type", "p256", "--usage", "tls-server,sign")
    second = json.loads(ctl("--json", "key", "create", "turned", "--type", "p256", "--new-version").stdout)
    check(second["version"] == 2 and second["usage"] == ["tls-server", "sign"], second)
    refuse("key", "create", "turned", "--type", "p256", "--new-version", "--usage", "sign", code=2, says="leave out --usage")
    third = json.loads(ctl("--socket", agent.socket, "--json", "key", "create", "turned", "--type", "ed25519",
                           "--new-version").stdout)
    check(third["version"] == 3 and third["usage"] == ["tls-server", "sign"], third)
    versions = json.loads(ctl("--json", "key", "show", "turned").stdout)
    check([entry["version"] for entry in versions] == [3, 2, 1], versions)
    ctl("key", "disable", "turned/1")
    check((keys()[("turned", 1)]["state"], keys()[("turned", 2)]["state"]) == ("disabled", "enabled"))
    check("turned/1" in ctl("key", "show", "turned/1").stdout)


def test_key_life(ws):
    ctl("key", "create", "life", "--type", "ed25519")
    for command, state in (("disable", "disabled"), ("enable", "enabled"), ("delete", "deleted")):
        ctl("key", command, "life")
        check(keys()[("life", 1)]["state"] == state, command)
    refuse("key", "enable", "life")
    ctl("key", "recover", "life")
    check(keys()[("life", 1)]["state"] != "deleted")
    ctl("key", "enable", "life")
    refuse("key", "purge", "life", code=2, says="--yes")
    for tag in ("x=\udcff", "===", "k=" + "x" * 2000):
        refuse("key", "create", "half", "--type", "p256", "--tag", tag, code=2, says="--tag needs KEY=VALUE")
    refuse("key", "show", "half", says="no key")
    ctl("key", "create", "half", "--type", "p256", "--tag", "x=für uns")
    check(json.loads(ctl("--json", "key", "show", "half").stdout)[0]["tags"] == {"x": "für uns"})
    refuse("key", "purge", "half", "--yes", says=["not deleted", "key delete half"])
    ctl("key", "delete", "half")
    ctl("key", "purge", "half", "--yes")
    ctl("key", "delete", "life")
    ctl("key", "purge", "life", "--yes")
    check(("life", 1) not in keys())
    for command in ("show", "enable", "disable", "delete", "recover", "public", "reference"):
        refuse("key", command, "life", says="key list")
    refuse("key", "purge", "life", "--yes", says="no deleted key")


def test_key_reference(ws):
    ctl("key", "create", "referred", "--type", "p256")
    pem = ctl("key", "reference", "referred").stdout
    check(pem.startswith("-----BEGIN KEYHOLD KEY REFERENCE-----\n"), pem)
    path = os.path.join(ws.dir, "referred.ref.pem")
    ctl("key", "reference", "referred", "--out", path)
    check(read(path) == pem)
    refuse("key", "reference", "referred", "--out", path, says=["exists already", "not overwritten"])
    refuse("key", "reference", "referred", "--out", ws.dir + "/none/x", says="directory first")


# ---- Import ----------------------------------------------------------------------------------------------------------------------

def forms(ws, key):
    """The same key in every form: name, file, whether it has a passphrase."""
    base = os.path.join(ws.keys, key.name + ".")
    sealed = ["-passout", "pass:" + PASSPHRASE]
    old = [] if key.kind == "ed25519" else ["-traditional"]
    made = [("pem", ["pkey", "-in", key.key], False),
            ("pem-sealed", ["pkcs8", "-topk8", "-in", key.key, *sealed], True),
            ("der", ["pkey", "-in", key.key, "-outform", "DER"], False),
            ("der-sealed", ["pkcs8", "-topk8", "-in", key.key, "-outform", "DER", *sealed], True),
            ("p12", ["pkcs12", "-export", "-inkey", key.key, "-in", key.crt, *sealed], True),
            ("p12-empty", ["pkcs12", "-export", "-inkey", key.key, "-in", key.crt, "-passout", "pass:"], False)]
    if old:
        made += [("old", ["pkey", "-in", key.key, *old], False),
                 ("old-sealed", ["pkey", "-in", key.key, *old, "-aes128", *sealed], True)]
    for name, argv, has_passphrase in made:
        run("openssl", *argv, "-out", base + name)
        yield name, base + name, has_passphrase


def test_import_every_form(ws):
    secret = write(os.path.join(ws.keys, "pass"), PASSPHRASE + "\n")
    wrong = write(os.path.join(ws.keys, "wrong"), "wrong\n")
    for kind in ("rsa2048", "p384", "ed25519"):
        key = fresh(ws, kind)
        for form, path, has_passphrase in forms(ws, key):
            name = f"{key.name}-{form}"
            args = ["key", "import", name, path, "--cert", key.crt, "--allow-duplicate"]
            if has_passphrase:
                refuse(*args, "--passphrase-file", wrong, says=["passphrase", "is wrong"])
                refuse(*args, says=["Passphrase of", "no terminal", "--passphrase-file"], start_new_session=True)
                args += ["--passphrase-file", secret]
            made = json.loads(ctl("--json", *args).stdout)
            check(made["type"] == kind, form, made)
            check("belongs to" in ctl("cert", "match", name, key.crt).stdout)
            ctl("key", "delete", name)


def test_import_passphrase_from_environment(ws):
    key = fresh(ws)
    sealed = os.path.join(ws.keys, "env.key")
    run("openssl", "pkcs8", "-topk8", "-in", key.key, "-out", sealed, "-passout", "pass:" + PASSPHRASE)
    refuse("key", "import", "env", sealed, "--passphrase-env", "KH_TEST_NONE", says="KH_TEST_NONE")
    ctl("key", "import", "env", sealed, "--passphrase-env", "KH_TEST_PASS", env={**os.environ, "KH_TEST_PASS": PASSPHRASE})


def on_terminal(argv, answer, look=lambda pid: None):
    """Runs a program on a terminal of its own, answers its first prompt, returns exit status and all that it showed."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(argv[0], argv)
    shown, answered = b"", False
    while select.select([master], [], [], 30)[0]:
        try:
            data = os.read(master, 4096)
        except OSError:
            break
        shown += data
        if not data:
            break
        if not answered and b": " in shown:
            time.sleep(0.2)  # the echo is off before the prompt is shown; this only lets look() find it waiting
            look(pid)
            os.write(master, answer.encode() + b"\n")
            answered = True
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="replace")


def test_import_passphrase_at_the_terminal(ws):
    key = fresh(ws)
    sealed = os.path.join(ws.keys, "tty.key")
    run("openssl", "pkcs8", "-topk8", "-in", key.key, "-out", sealed, "-passout", "pass:" + PASSPHRASE)
    argv = [tool(), "--config", agent.conf, "key", "import", "tty", sealed]
    seen = {}

    def look(pid):
        seen.update(status_of(pid), limits=read(f"/proc/{pid}/limits"))

    status, shown = on_terminal(argv, PASSPHRASE, look)
    check(status == 0 and "tty/1" in shown, status, shown)
    check(PASSPHRASE not in shown, "the passphrase was echoed")
    if not sanitized():  # sanitizers make mlock do nothing
        check(int(seen["VmLck"].split()[0]) > 0, "no locked memory")
    check(re.search(r"Max core file size +0 +0", seen["limits"]), seen["limits"])
    status, shown = on_terminal([*argv[:-2], "tty2", sealed], "wrong")
    check(status == 1 and "is wrong" in shown, status, shown)


def test_import_refused(ws):
    key, other = fresh(ws), fresh(ws)
    refuse("key", "import", "bad", key.key, "--cert", other.crt, says=["does not belong", "public keys differ"])
    refuse("key", "import", "bad", key.key, "--cert", key.key, says="no certificate")
    refuse("key", "import", "bad", key.crt, says=["no private key", "right file"])
    refuse("key", "import", "bad", ws.dir + "/none", says="No such file")
    refuse("key", "import", "bad name", key.key, code=2, says="not a key name")
    ctl("key", "import", "first", key.key)
    refuse("key", "import", "second", key.key, says=["same key", "first/1", "--allow-duplicate"])
    refuse("key", "import", "first", other.key, says=["exists already", "--new-version"])
    ctl("key", "import", "first", other.key, "--new-version")
    check(("first", 2) in keys())
    ctl("key", "import", "second", key.key, "--allow-duplicate")
    for name, argv, text in (("weak", ["RSA", "-pkeyopt", "rsa_keygen_bits:1024"], "weak"),
                             ("curve", ["EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"], "not supported"),
                             ("ed448", ["ED448"], "not supported")):
        path = os.path.join(ws.keys, name)
        run("openssl", "genpkey", "-algorithm", *argv, "-out", path)
        refuse("key", "import", name, path, says=[text, "rsa2048"] if text != "weak" else [text, "2048"])
    damaged = run("openssl", "pkey", "-in", key.key, "-outform", "DER", "-out", os.path.join(ws.keys, "cut"))
    with open(os.path.join(ws.keys, "cut"), "r+b") as file:
        file.truncate(60)
    refuse("key", "import", "cut", os.path.join(ws.keys, "cut"), says="no private key")
    check(damaged.returncode == 0)


def test_import_pin(ws):
    key = fresh(ws)
    fingerprint = json.loads(run(tool(), "--json", "init", "--dir", agent.dir).stdout)["import_fingerprint"]
    wrong = "SHA256:" + "A" * 43
    refuse("key", "import", "pinned", key.key, "--pin", wrong, says=["import key", "pinned", "nothing was sent"])
    bad = write(ws.dir + "/bad.pub", "keyhold-import-1 zz\n")
    refuse("key", "import", "pinned", key.key, "--pin", bad, says="not a pin")
    stranger = write(ws.dir + "/other.pub", "keyhold-import-1 " + "ab" * 32 + "\n")
    refuse("key", "import", "pinned", key.key, "--pin", stranger, says="nothing was sent")
    refuse("key", "import", "pinned", key.key, "--pin", ws.dir + "/none.pub", says="missing")
    ctl("key", "import", "pinned", key.key, "--pin", fingerprint)


# ---- Certificates ------------------------------------------------------------------------------------------------------------------

def test_certificates(ws):
    for kind in KINDS:
        name = "cert-" + kind
        crt, csr = os.path.join(ws.dir, name + ".crt"), os.path.join(ws.dir, name + ".csr")
        ctl("key", "create", name, "--type", kind)
        ctl("cert", "self-signed", name, "--subject", f"/O=Test/CN={name}.example", "--days", "3", "--out", crt)
        run("openssl", "verify", "-CAfile", crt, "-verify_hostname", name + ".example", "-purpose", "sslserver", crt)
        run("openssl", "x509", "-in", crt, "-noout", "-checkend", "172800")
        check(run("openssl", "x509", "-in", crt, "-noout", "-checkend", "345600", ok=False).returncode == 1, "days")
        check("belongs to" in ctl("cert", "match", name, crt).stdout)
        with open(csr, "w") as file:
            file.write(ctl("cert", "csr", name, "--subject", "/CN=x", "--san", "DNS:a.example,IP:192.0.2.7").stdout)
        shown = run("openssl", "req", "-in", csr, "-noout", "-verify", "-text").stdout
        check("a.example" in shown and "192.0.2.7" in shown, shown)
    refuse("cert", "match", "cert-p256", os.path.join(ws.dir, "cert-p384.crt"), says=["does not belong", "differ"])
    one = os.path.join(ws.dir, "cert-p256.crt")
    refuse("cert", "self-signed", "cert-p256", "--subject", "/CN=x", "--out", one, says="not overwritten")
    refuse("cert", "self-signed", "cert-p256", code=2, says="--subject")
    refuse("cert", "self-signed", "cert-p256", "--subject", "CN=x", code=2, says="does not begin")
    refuse("cert", "self-signed", "cert-p256", "--subject", "/CN=x", "--san", "a.example", code=2, says="DNS:")
    refuse("cert", "self-signed", "cert-p256", "--subject", "/CN=x", "--days", "0", code=2, says="--days")
    refuse("cert", "csr", "nobody", "--subject", "/CN=x", says=["no key", "key list"])
    refuse("--socket", agent.socket, "cert", "csr", "cert-p256", "--subject", "/CN=x", code=2, says="admin socket")


# ---- Callers -----------------------------------------------------------------------------------------------------------------------

def test_tokens(ws):
    token = os.path.join(agent.dir, "edge.token")
    told = ctl("token", "create", "edge").stdout  # beside the configuration, where the running agent may read it
    check(owner_and_mode(token) == (0, 0o600), "mode")
    check(re.fullmatch(r"keyhold-token-1 edge [0-9a-f]{64}\n", read(token)), "its line")
    check(read(token).split()[2] not in told, "the secret was printed")
    check(f"keyhold_agent unix:{agent.socket} token={token};" in told, told)
    check('identity "edge"' in told and "SIGHUP" in told, told)
    refuse("token", "create", "edge", "--out", token, says="not overwritten")
    refuse("token", "create", "root", "--out", ws.dir + "/r", code=2, says="root")
    refuse("token", "create", "a b", "--out", ws.dir + "/r", code=2, says="not a name")
    refuse("--token", token, "ping", says=["does not accept", "SIGHUP"])
    agent.configure(told[told.index('identity "edge"'):told.index("}\n\n") + 2])
    agent.reload()
    wait_until(lambda: ctl("--token", token, "ping", ok=False).returncode == 0, "the new token is accepted")
    check('"edge"' in ctl("--token", token, "ping").stdout)
    os.chmod(token, 0o644)
    refuse("--token", token, "ping", says=["read by others", "chmod 0600"])
    os.chmod(token, 0o600)
    refuse("--token", ws.dir + "/none", "ping", says="cannot read the token")
    refuse("--token", agent.conf, "ping")
    refuse("--token", write(ws.dir + "/not.token", "hello\n"), "ping", says=["not a token", "token create"])
    check(json.loads(ctl("--json", "token", "create", "other", "--out", ws.dir + "/other.token").stdout)["identity"] == "other")


def test_both_ways_say_the_same(ws):
    ctl("key", "create", "ways", "--type", "p256")
    wire = ["--socket", "unix:" + agent.socket]
    lists = [json.loads(ctl(*way, "--json", "key", "list").stdout) for way in (wire, [])]
    for far, near in zip(*lists):
        check(far == near or (near["state"] == "deleted" and far == near | {"tier": "unknown"}), "list", far, near)
    check(len(lists[0]) == len(lists[1]), "list", lists)
    check(ctl(*wire, "key", "show", "ways").stdout == ctl("key", "show", "ways").stdout, "show")
    check(ctl(*wire, "key", "public", "ways").stdout == ctl("key", "public", "ways").stdout, "public")
    ctl(*wire, "key", "disable", "ways")
    check(keys()[("ways", 1)]["state"] == "disabled")
    ctl(*wire, "key", "enable", "ways")
    ctl(*wire, "key", "create", "ways-wire", "--type", "ed25519")
    key = fresh(ws)
    ctl(*wire, "key", "import", "ways-import", key.key, "--cert", key.crt)
    refuse(*wire, "key", "import", "ways-twice", key.key, says=["same key", "ways-import/1"])
    refuse(*wire, "key", "create", "ways", "--type", "p256", says="exists already")
    refuse(*wire, "key", "show", "no-such", says=["no key", "key list"])
    refuse(*wire, "key", "delete", "no-such", says="key list")


def test_not_permitted(ws):
    conf = ["--config", agent.conf]
    shutil.copy(tool(), ws.dir + "/keyholdctl")
    os.chmod(ws.dir + "/keyholdctl", 0o755)
    mine = ws.dir + "/keyholdctl"
    one_error(as_nobody(mine, *conf, "ping"), 1, ["65534", "--token"])
    one_error(as_nobody(mine, *conf, "key", "purge", "x", "--yes"), 1, ["permission", "root"])
    one_error(as_nobody(mine, *conf, "cert", "csr", "x", "--subject", "/CN=x"), 1, ["permission", "root"])
    one_error(as_nobody(mine, *conf, "--token", agent.token, "ping"), 1, ["cannot read the token", "root"])
    token = shutil.copy(agent.token, ws.dir + "/nobody.token")
    os.chmod(token, 0o600)
    os.chown(token, NOBODY, NOBODY)
    check(as_nobody(mine, *conf, "--token", token, "ping").returncode == 0)
    one_error(as_nobody(mine, *conf, "--token", token, "key", "create", "x", "--type", "p256"), 1)
    one_error(as_nobody(mine, *conf, "--token", token, "key", "list"), 1, "may not")
    one_error(as_nobody(mine, *conf, "--token", token, "status"), 1, "may not")


def test_not_running(ws):
    home = os.path.join(ws.dir, "still")
    run(tool(), "init", "--dir", home)
    conf = ["--config", home + "/keyhold.conf"]
    for argv in (["ping"], ["status"], ["key", "list"], ["key", "create", "x", "--type", "p256"],
                 ["cert", "csr", "x", "--subject", "/CN=x"], ["key", "recover", "x"]):
        one_error(run(tool(), *conf, *argv, ok=False), 3, ["not running", "start"])
    one_error(run(tool(), *conf, "store", "check", ok=False), 2, ["not running", "start"])  # it could not be checked
    one_error(run(tool(), "--socket", "unix:" + ws.dir + "/none.sock", "ping", ok=False), 3, "not running")
    one_error(run(tool(), "--socket", "tcp:1.2.3.4", "ping", ok=False), 2, "unix:/path")


# ---- Watching ------------------------------------------------------------------------------------------------------------------------

def test_ping_and_status(ws):
    check('"root"' in ctl("ping").stdout)
    many = json.loads(ctl("--json", "ping", "--count", "50").stdout)
    check(many["count"] == 50 and many["min_us"] <= many["p50_us"] <= many["max_us"], many)
    document = json.loads(ctl("status", "--json").stdout)
    check({"uptime_s", "processes", "lanes", "identities", "queues"} <= set(document), list(document))
    shown = ctl("status").stdout
    for word in ("up ", "supervisor", "front", "keeper", "OPERATION", "CALLER", "nginx", "queues:", "connections:"):
        check(word in shown, word, shown)
    check(ctl("ping", "--timeout", "2000").returncode == 0)


def test_status_watch(ws):
    out = os.path.join(ws.dir, "watch")
    watching = popen([tool(), "--config", agent.conf, "status", "--json", "--watch=1"], out)
    wait_until(lambda: read(out).count("\n") >= 3, "three documents")
    check(watching.poll() is None)
    kill_pid(watching.pid, signal.SIGTERM)
    watching.wait(5)
    documents = [json.loads(line) for line in read(out).splitlines()]
    check(documents[-1]["operations"]["status"]["results"]["ok"] > documents[0]["operations"].get(
        "status", {}).get("results", {}).get("ok", 0))
    refuse("status", "--watch=x", code=2, says="--watch")


def sites(nginx_conf, *args, code=0):
    done = ctl("--json", "check-nginx", nginx_conf, *args, ok=False)
    check(done.returncode == code, f"exit status {done.returncode}, not {code}", done.stdout, done.stderr)
    return {os.path.basename(site["certificate"]): site for site in json.loads(done.stdout)}


def test_check_nginx(ws):
    here, local, gone = (fresh(ws) for _ in range(3))
    folder = os.path.join(ws.dir, "nginx-check")
    os.makedirs(folder + "/sites")
    for key in (here, local, gone):
        shutil.copy(key.crt, folder)
    ctl("key", "import", "nginx-here", here.key)
    name = {key: os.path.basename(key.crt) for key in (here, local, gone)}
    write(folder + "/here.ref", ctl("key", "reference", "nginx-here").stdout)
    write(folder + "/nginx.conf", f"""
events {{ }}
http {{
    include sites/*.conf; # relative to this file
    ssl_certificate {name[here]};
    keyhold on;
    server {{ listen 443 ssl; server_name inherited.example www.inherited.example; }}
    server {{ listen 80; server_name plain.example; }}
}}
""")
    found = sites(folder + "/nginx.conf")
    check(list(found) == [name[here]] and found[name[here]]["verdict"] == "ok", found)
    check(found[name[here]]["server_name"] == "inherited.example" and found[name[here]]["line"] == 5, found)
    write(folder + "/sites/a.conf", f"""
server {{ listen 443 ssl; server_name "local.example"; keyhold off;
         ssl_certificate '{name[local]}'; ssl_certificate_key {local.key}; }}
""")
    found = sites(folder + "/nginx.conf")
    check(found[name[local]]["verdict"] == "local key, not in the agent" and found[name[local]]["ok"], found)
    sites(folder + "/nginx.conf", "--all", code=1)
    ctl("key", "import", "nginx-local", local.key)
    check(sites(folder + "/nginx.conf")[name[local]]["verdict"] == "in the agent, local key in use")
    write(folder + "/sites/b.conf", f"server {{ listen 443 ssl; server_name gone.example; ssl_certificate {name[gone]}; }}\n")
    found = sites(folder + "/nginx.conf", code=1)
    check(found[name[gone]]["verdict"] == "MISSING" and found[name[gone]]["file"].endswith("sites/b.conf"), found)
    table = ctl("check-nginx", folder + "/nginx.conf", ok=False)
    one_error(table, 1, ["1 of 3", "key import"])
    check("sites/b.conf:1" in table.stdout and "MISSING" in table.stdout and "gone.example" in table.stdout, table.stdout)
    check("inherited.example (+1)" in table.stdout, table.stdout)

    for text, expected, code in (
            (f"keyhold off; ssl_certificate {name[here]}; ssl_certificate_key here.ref;", "ok", 0),
            (f"keyhold off; ssl_certificate {name[local]}; ssl_certificate_key here.ref;", "REFERENCE IS TO ANOTHER KEY", 1),
            (f"keyhold off; ssl_certificate {name[here]};", "NO KEY: neither keyhold on nor ssl_certificate_key", 1),
            ("keyhold off; ssl_certificate $ssl_server_name.crt; ssl_certificate_key x;", "not checkable: has variables", 0),
            ("ssl_certificate $ssl_server_name.crt;", "VARIABLES with keyhold on: use a key reference", 1),
            ("ssl_certificate none.crt;", "CERTIFICATE NOT READABLE", 1)):
        write(folder + "/sites/b.conf", f"server {{ listen 443 ssl; {text} }}\n")
        found = json.loads(ctl("--json", "check-nginx", folder + "/nginx.conf", ok=False).stdout)
        verdict = [site["verdict"] for site in found if site["file"].endswith("b.conf")]
        check(verdict == [expected], text, verdict)
        check(ctl("check-nginx", folder + "/nginx.conf", ok=False).returncode == code, text)
    os.remove(folder + "/sites/b.conf")

    ctl("key", "disable", "nginx-here")
    check(sites(folder + "/nginx.conf", code=1)[name[here]]["verdict"] == "DISABLED")
    ctl("key", "enable", "nginx-here")
    for change, verdict in (("--expires=2020-01-01", "EXPIRED"), ("--not-before=+9d", "NOT YET VALID")):
        ctl("key", "set", "nginx-here", "--expires=never", "--not-before=never")
        ctl("key", "set", "nginx-here", change)
        check(sites(folder + "/nginx.conf", code=1)[name[here]]["verdict"] == verdict, verdict)
        check(verdict.lower() in ctl("key", "list", "nginx-here").stdout, "the list does not call it enabled")
    ctl("key", "set", "nginx-here", "--expires=never", "--not-before=never")
    ctl("key", "create", "nginx-sign", "--type", "p256", "--usage", "tls-client")
    ctl("cert", "self-signed", "nginx-sign", "--subject", "/CN=x", "--out", folder + "/sign.crt")
    write(folder + "/one.conf", "http { server { listen 443 ssl; keyhold on; ssl_certificate sign.crt; } }")
    check(sites(folder + "/one.conf", code=1)["sign.crt"]["verdict"].startswith("WRONG USAGE"))
    write(folder + "/client.ref", ctl("key", "reference", "nginx-sign").stdout)
    write(folder + "/stream.conf", f"""
http {{ server {{ listen 80; location / {{ proxy_ssl_certificate sign.crt; proxy_ssl_certificate_key client.ref; }}
    location /b {{ grpc_ssl_certificate {name[here]}; grpc_ssl_certificate_key here.ref; }} }} }}
stream {{ server {{ listen 443 ssl; ssl_certificate {name[local]}; keyhold on; }} }}
""")
    found = sites(folder + "/stream.conf", code=1)
    check(found["sign.crt"]["verdict"] == "ok" and found["sign.crt"]["directive"] == "proxy_ssl_certificate", found)
    check(found[name[here]]["verdict"] == "WRONG USAGE: not for tls-client", found)
    check(found[name[local]]["verdict"] == "ok" and found[name[local]]["keyhold"], found)
    refuse("check-nginx", folder + "/none.conf", says="No such file")
    write(folder + "/bad.conf", "http {\n  server {\n    listen 443 ssl\n  }\n}\n")
    refuse("check-nginx", folder + "/bad.conf", says=["bad.conf:4", '";"'])
    write(folder + "/elsewhere.conf", f"http {{ server {{ listen 443 ssl; keyhold on; ssl_certificate sub/{name[here]}; }} }}")
    os.mkdir(folder + "/pre")
    os.mkdir(folder + "/pre/sub")
    shutil.copy(here.crt, folder + "/pre/sub")
    sites(folder + "/elsewhere.conf", code=1)
    sites(folder + "/elsewhere.conf", "--prefix", folder + "/pre")


def test_check_nginx_asks_as_nginx(ws):
    """Without options of its own it asks where nginx would, with nginx's token: a key that the token may not use is missing."""
    may, may_not = fresh(ws), fresh(ws)
    ctl("key", "import", "asnginx-may", may.key)
    ctl("key", "import", "other-maynot", may_not.key)
    token = os.path.join(agent.dir, "as.token")
    agent.add_identity("asnginx", token, keys="asnginx-*")
    agent.reload()
    wait_until(lambda: ctl("--token", token, "ping", ok=False).returncode == 0, "the token is known")
    conf = write(os.path.join(ws.dir, "as-nginx.conf"), f"""
http {{
    keyhold_agent unix:{agent.socket} token={token};
    keyhold on;
    server {{ listen 443 ssl; ssl_certificate {may.crt}; }}
    server {{ listen 443 ssl; ssl_certificate {may_not.crt}; }}
}}
""")
    done = run(tool(), "--json", "check-nginx", conf, ok=False)
    check([site["verdict"] for site in json.loads(done.stdout)] == ["ok", "MISSING"], done.stdout, done.stderr)
    check(done.returncode == 1)
    sites(conf)  # the operator's way sees both
    write(conf, f"http {{ keyhold_agent unix:{ws.dir}/none.sock; keyhold on; server {{ listen 443 ssl; ssl_certificate {may.crt}; }} }}")
    one_error(run(tool(), "check-nginx", conf, ok=False), 3, "not running")


# ---- The store -----------------------------------------------------------------------------------------------------------------------

def test_store_check(ws):
    own = ws.agent()
    own.ctl("key", "create", "whole", "--type", "p256")
    own.ctl("key", "create", "broken", "--type", "p256")
    check("ok 2 keys" in own.ctl("store", "check").stdout)
    check(json.loads(own.ctl("--json", "store", "check").stdout)["findings"] == [])
    own.stop()
    with sqlite3.connect(own.dir + "/store/keys.db") as store:
        sealed = bytearray(store.execute("SELECT sealed FROM keys WHERE name = 'broken'").fetchone()[0])
        sealed[len(sealed) // 2] ^= 1
        store.execute("UPDATE keys SET sealed = ? WHERE name = 'broken'", (bytes(sealed),))
    store.close()
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(own.dir + "/store/keys.db" + suffix):
            os.chown(own.dir + "/store/keys.db" + suffix, 64802, 64802)
    own.start()
    done = own.ctl("store", "check", ok=False)
    one_error(done, 1, ["damaged", "backup"])
    check("broken" in done.stdout, done.stdout)


def test_no_secret_in_the_logs(ws):
    """Nothing that this file made or imported is in the agent's log, and no passphrase is."""
    log = agent.log()
    for word in (PASSPHRASE, "PRIVATE KEY", read(agent.token).split()[2], read(agent.dir + "/kek").split()[1]):
        check(word not in log, "a secret is in the log")


if __name__ == "__main__":
    harness.main(globals())
