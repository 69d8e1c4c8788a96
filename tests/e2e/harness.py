#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: a real agent, real nginx, real clients, each in a directory of its own.

A test file ends with `harness.main(globals())`. Its functions test_*(ws) get a Workspace each; if the file has setup(ws), all
of them get the one that setup has prepared. The last line is `N passed, N failed` (`, N skipped` may follow).

    agent = ws.agent()                                   # initialised, started, answers
    key = ws.make_key("p256")                            # a key pair and a certificate, as files
    agent.import_key(key)
    nginx = ws.nginx(agent, ws.server(key))              # one https server on key.port, key in the agent
    ws.curl(key)                                         # GET /, verified

Builds: KH_BUILD_RELEASE, KH_BUILD_DEV, KH_BUILD_ASAN, KH_BUILD_TSAN, or build-release and so on in the source tree.
Everything that is started is a descendant of the test (which is a subreaper) and is ended with it, by process id.
"""
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
os.environ["LC_ALL"] = "C"
READY_S = 30  # a deadline for what takes well under a second: machines can be busy

PR_SET_CHILD_SUBREAPER = 36
KEY_TYPES = {
    "rsa2048": ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "rsa3072": ["RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
    "rsa4096": ["RSA", "-pkeyopt", "rsa_keygen_bits:4096"],
    "p256": ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "p521": ["EC", "-pkeyopt", "ec_paramgen_curve:P-521"],
    "ed25519": ["ed25519"],
}


class Skip(Exception):
    """Raised by a test that cannot run here; the text says why."""


class Failure(AssertionError):
    pass


# ---- Small helpers ---------------------------------------------------------------------------------------------------------

def check(condition, text="", *details):
    """An assertion that also holds under python -O, with its reason."""
    if not condition:
        raise Failure(" ".join(str(part) for part in (text, *details)))


def wait_until(condition, what, seconds=READY_S, every=0.02):
    """Polls until condition() is true and returns its value; fails with `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"not within {seconds} s: {what}")
        time.sleep(every)


def run(*argv, timeout=60, ok=True, **more):
    """Runs a program to its end. CompletedProcess with text output; fails on a bad exit status unless ok=False."""
    more.setdefault("stdin", subprocess.DEVNULL) if "input" not in more else None
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          errors="replace", timeout=timeout, **more)
    if ok and done.returncode != 0:
        raise Failure(f"{' '.join(map(str, argv))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def read(path, default=""):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return default


_taken = []


def free_port():
    """A port that nobody listens on, outside the range from which the kernel takes ports for outgoing connections, and that no
    other test file that runs meanwhile is given: an abstract socket reserves it as long as this process lives."""
    while True:
        port = random.randint(10000, 32000)
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mark.bind(f"\0keyhold-e2e-port-{port}")
        except OSError:
            mark.close()
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _taken.append(mark)
        return port


def port_open(port):
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def build_dir(preset="release"):
    path = os.environ.get("KH_BUILD_" + preset.upper()) or os.path.join(ROOT, "build-" + preset)
    if not os.path.isdir(path):
        raise Skip(f"no {preset} build in {path}")
    return path


def public_tmp():
    """Where the agent's and nginx's own users can get through, with room for a socket's path: TMPDIR if it is so, else /tmp."""
    path = os.path.realpath(tempfile.gettempdir())
    above = path
    while above != "/":
        if not os.stat(above).st_mode & 0o001:
            return "/tmp"
        above = os.path.dirname(above)
    return path if len(path) <= 45 else "/tmp"


def artefact(name, preset="release"):
    """The path of something that was built."""
    for folder, _, files in os.walk(build_dir(preset)):
        if name in files and not os.path.basename(folder).endswith(".dir"):
            return os.path.join(folder, name)
    raise Failure(f"{name} is not in {build_dir(preset)}")


# ---- Processes -------------------------------------------------------------------------------------------------------------

def status_of(pid):
    """The fields of /proc/PID/status, or {} when there is no such process."""
    return dict(line.split(":\t", 1) for line in read(f"/proc/{pid}/status").splitlines() if ":\t" in line)


def alive(pid):
    state = status_of(pid).get("State", "X")
    return state[0] not in "XZ"


def parents():
    """Who is whose child now: process to parent, by one look at each process."""
    found = {}
    for entry in os.listdir("/proc"):
        stat = read(f"/proc/{entry}/stat") if entry.isdigit() else ""
        if stat:
            found[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    return found


def children(pid):
    return [child for child, parent in parents().items() if parent == pid]


def descendants(pid):
    of, found = {}, []
    for child, parent in parents().items():
        of.setdefault(parent, []).append(child)
    left = of.get(pid, [])[::-1]
    while left:
        found.append(left.pop())
        left += of.get(found[-1], [])[::-1]
    return found


def command_line(pid):
    return read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def kill_pid(pid, signal_number):
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        pass


def reap():
    """Takes leave of orphans that have become our children; leaves those alone that Popen waits for."""
    for pid in children(os.getpid()):
        if status_of(pid).get("State", "X")[0] == "Z" and pid not in _popen_pids:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


_popen_pids = set()


def popen(argv, log, env=None):
    with open(log, "ab") as out:
        process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
    _popen_pids.add(process.pid)
    return process


def become_subreaper():
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise Failure("prctl(PR_SET_CHILD_SUBREAPER)")


def end_everything():
    """Ends all that descends from this process, however it was started."""
    for signal_number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        for pid in descendants(os.getpid()):
            kill_pid(pid, signal_number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            reap()
            if not [pid for pid in descendants(os.getpid()) if alive(pid)]:
                return
            time.sleep(0.02)


# ---- The agent -------------------------------------------------------------------------------------------------------------

class Agent:
    """keyholdd with a directory of its own, as `keyholdctl init --dir` makes it."""

    def __init__(self, ws, name, preset, delay_ms, config, args, env, daemon, wrap):
        self.ws, self.preset, self.delay_ms, self.args, self.env = ws, preset, delay_ms, list(args), env
        self.daemon = daemon
        self.exe, self.prefix = None, list(wrap)  # another place of the program; what its command line begins with
        self.dir = os.path.join(ws.dir, name)
        self.socket = os.path.join(self.dir, "agent.sock")
        self.conf = os.path.join(self.dir, "keyhold.conf")
        self.log_path = os.path.join(ws.dir, name + ".log")
        self.process = None
        run(artefact("keyholdctl", preset), "init", "--dir", self.dir)
        self.token = os.path.join(self.dir, "nginx.token")
        if config:
            self.configure(config)

    def configure(self, text):
        with open(self.conf, "a") as file:
            file.write("\n" + text + "\n")

    def add_identity(self, name, token, keys="*", operations=("sign", "public-key")):
        """Makes a token, and an identity that may use the keys for the operations. Takes effect at start or reload."""
        self.ctl("token", "create", name, "--out", token)
        listed = ", ".join(f'"{operation}"' for operation in operations)
        self.configure(f'identity "{name}" {{\n    token = "{token}"\n    allow {{\n        keys = {{"{keys}"}}\n'
                       f'        operations = {{{listed}}}\n    }}\n}}')

    def start(self, wait=True):
        argv = [*self.prefix, self.exe or artefact(self.daemon, self.preset), "--config", self.conf, "--foreground", *self.args]
        if self.delay_ms:
            argv += ["--delay-ms", str(self.delay_ms)]
        self.process = popen(argv, self.log_path, self.env)
        if wait:
            self.wait_ready()
        return self

    def ready(self):
        if self.process.poll() is not None:
            raise Failure(f"keyholdd ended with {self.process.returncode}:\n{read(self.log_path)[-3000:]}")
        return self.ctl("ping", ok=False).returncode == 0

    def wait_ready(self, seconds=READY_S):
        wait_until(self.ready, "the agent answers", seconds)

    def ctl(self, *args, ok=True, **more):
        return run(artefact("keyholdctl", self.preset), "--config", self.conf, *args, ok=ok, **more)

    def status(self):
        return json.loads(self.ctl("status", "--json").stdout)

    def import_key(self, key, *args):
        return self.ctl("key", "import", key.name, key.key, *args)

    @property
    def pid(self):
        return self.process.pid

    def pids(self):
        """Supervisor first, then its children."""
        return [self.pid] + descendants(self.pid)

    def role_pid(self, role):
        """The id of the `front` or a `keeper`; None while there is none."""
        for pid in descendants(self.pid):
            if role in command_line(pid) and alive(pid):
                return pid
        return None

    def reload(self):
        os.kill(self.pid, signal.SIGHUP)

    def stop(self, signal_number=signal.SIGTERM, seconds=20):
        """Ends it and returns its exit status (negative: the signal). kill -9 of the supervisor ends the others too."""
        members = self.pids()
        kill_pid(self.pid, signal_number)
        status = self.process.wait(seconds)
        wait_until(lambda: not [pid for pid in members if alive(pid)], "the agent's processes end", seconds)
        return status

    def log(self):
        return read(self.log_path)


# ---- nginx -----------------------------------------------------------------------------------------------------------------

class Nginx:
    """Debian's nginx with a directory of its own, as a daemon (else it ignores USR2)."""

    def __init__(self, ws, name, http, main, module, token, agent_socket, preset, env):
        self.ws, self.env = ws, env
        self.dir = os.path.join(ws.dir, name)
        self.conf = os.path.join(self.dir, "nginx.conf")
        self.error_log = os.path.join(self.dir, "error.log")
        self.pid_file = os.path.join(self.dir, "nginx.pid")
        self.preset = preset
        os.makedirs(os.path.join(self.dir, "tmp"))
        self.write(http, main, module, token, agent_socket)

    def write(self, http, main="", module=True, token=None, agent_socket=None):
        """Writes the configuration anew; `main` goes to the top level, `http` into the http block."""
        lines = [f"load_module {artefact('ngx_http_keyhold_module.so', self.preset)};"] if module else []
        if "worker_processes" not in main:
            lines.append("worker_processes 1;")
        if "events" not in main:
            lines.append("events { worker_connections 4096; }")
        lines += ["user www-data;", "worker_rlimit_nofile 8192;", f"pid {self.pid_file};",
                  f"error_log {self.error_log} info;", main, "http {"]
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            lines.append(f"    {kind}_temp_path {self.dir}/tmp/{kind};")
        lines.append("    default_type text/plain;")
        if "access_log" not in http:
            lines.append("    access_log off;")
        if agent_socket:
            lines.append(f"    keyhold_agent unix:{agent_socket}" + (f" token={token};" if token else ";"))
        lines += [http, "}"]
        with open(self.conf, "w") as file:
            file.write("\n".join(lines) + "\n")

    def argv(self, *more):
        return [shutil.which("nginx"), "-p", self.dir, "-e", self.error_log, "-c", self.conf, *more]

    def test(self):
        """nginx -t: CompletedProcess."""
        return run(*self.argv("-t"), ok=False, env=self.env)

    def start(self):
        """Starts it; a worker of its own must be there at the end."""
        done = run(*self.argv(), ok=False, env=self.env)
        check(done.returncode == 0, "nginx does not start:", done.stderr, self.log()[-2000:])
        wait_until(lambda: read(self.pid_file).strip(), "nginx's pid file")
        wait_until(self.workers, "an nginx worker")
        return self

    @property
    def pid(self):
        return int(read(self.pid_file).strip() or 0)

    def workers(self):
        """Ids of the workers that are not shutting down."""
        return [pid for pid in children(self.pid) if "worker process" in command_line(pid)
                and "shutting down" not in command_line(pid)] if self.pid else []

    def pids(self):
        return [self.pid] + descendants(self.pid)

    def reload(self, wait=True):
        """SIGHUP; with wait until new workers have taken over (old ones may still finish their connections)."""
        old = set(self.workers())
        os.kill(self.pid, signal.SIGHUP)
        if wait:
            wait_until(lambda: (new := set(self.workers())) and not new & old, "nginx's new workers")

    def stop(self, signal_number=signal.SIGTERM, seconds=20):
        """Ends it (SIGQUIT: gracefully) and waits for all of it."""
        members = self.pids() if self.pid else []
        if members:
            kill_pid(members[0], signal_number)
        wait_until(lambda: reap() or not [pid for pid in members if alive(pid)], "nginx ends", seconds)

    def log(self):
        return read(self.error_log)


# ---- Keys, clients, workspace ------------------------------------------------------------------------------------------------

class Key:
    """A key pair as files: .key (PEM), .crt (self-signed), a host name, and a port for its https server."""

    def __init__(self, ws, kind, name):
        self.kind, self.name, self.port = kind, name, free_port()
        self.host = name + ".keyhold.test"
        self.key = os.path.join(ws.keys, name + ".key")
        self.crt = os.path.join(ws.dir, name + ".crt")
        old = os.umask(0o077)
        try:
            run("openssl", "genpkey", "-algorithm", *KEY_TYPES[kind], "-out", self.key)
        finally:
            os.umask(old)
        run("openssl", "req", "-new", "-x509", "-key", self.key, "-subj", "/CN=" + self.host, "-days", "30",
            "-addext", "subjectAltName=DNS:" + self.host, "-out", self.crt)


class Load:
    """keyhold-bench load in the background."""

    def __init__(self, ws, port, args):
        self.out = os.path.join(ws.dir, f"load-{port}-{len(_popen_pids)}.json")
        self.process = popen([artefact("keyhold-bench"), "load", "--json", "--connect", f"127.0.0.1:{port}", *args],
                             self.out)

    def window(self):
        """What happened since the window before this one: {"seconds", "measured", "failed", "latency_ms"}."""
        before = self.windows()
        kill_pid(self.process.pid, signal.SIGUSR1)
        wait_until(lambda: len(self.windows()) > len(before) or self.process.poll() is not None, "the load client's window")
        check(self.process.poll() is None, "the load client has ended:", read(self.out))
        return json.loads(self.windows()[-1])["window"]

    def more(self, count):
        """Waits until so many more handshakes are done; fails when one failed meanwhile."""
        left = count
        deadline = time.monotonic() + 2 * READY_S
        while left > 0:
            check(time.monotonic() < deadline, left, "handshakes of", count, "are not done")
            time.sleep(0.05)
            window = self.window()
            check(window["failed"] == 0, window)
            left -= window["measured"]

    def windows(self):
        return [line for line in read(self.out).split("\n")[:-1] if line.startswith('{"window"')]

    def stop(self, seconds=60):
        """Asks it to finish what it has begun, and returns its report."""
        kill_pid(self.process.pid, signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds=300):
        status = self.process.wait(seconds)
        check(status in (0, 1), "the load client could not run:", read(self.out))
        return json.loads(read(self.out).split("".join(line + "\n" for line in self.windows()), 1)[-1]
                          if self.windows() else read(self.out))


class Workspace:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="keyhold-e2e.", dir=public_tmp())
        os.chmod(self.dir, 0o711)  # nginx's workers must get at the sockets
        self.keys = os.path.join(self.dir, "keys")
        os.mkdir(self.keys, 0o700)
        self.count = 0
        self.memory_dir = None

    def memory(self):
        """A directory that is no disk's, where there is such a one, for what is written often."""
        if self.memory_dir is None:
            self.memory_dir = tempfile.mkdtemp(prefix="keyhold-e2e.", dir="/dev/shm") if os.access("/dev/shm", os.W_OK) else self.dir
            os.chmod(self.memory_dir, 0o711)
        return self.memory_dir

    def new_name(self, kind):
        self.count += 1
        return f"{kind}{self.count}"

    def agent(self, preset="release", delay_ms=0, config="", args=(), env=None, start=True,
              daemon="keyholdd", wrap=()):
        """wrap: a program with its options that becomes the daemon (setpriv, prlimit)."""
        agent = Agent(self, self.new_name("agent"), preset, delay_ms, config, args, env, daemon, wrap)
        return agent.start() if start else agent

    def make_key(self, kind, name=None):
        return Key(self, kind, name or kind)

    def server(self, key, extra="", local=False, listen=""):
        """One https server block for a key."""
        where = f"ssl_certificate_key {key.key};" if local else "keyhold on;"
        return (f"    server {{\n        listen 127.0.0.1:{key.port} ssl backlog=1024 {listen};\n"
                f"        server_name {key.host};\n        ssl_certificate {key.crt};\n        {where}\n"
                f"        {extra}\n        location / {{ return 200 \"{key.name}\\n\"; }}\n    }}\n")

    PLAIN = ("    ssl_protocols TLSv1.2 TLSv1.3;\n    ssl_session_tickets off;\n    ssl_session_cache off;\n"
             "    keepalive_timeout 0;\n")

    def nginx(self, agent, http, main="", preset="release", env=None, start=True, module=True):
        """nginx with the module and that agent (None: only the module; module=False: stock nginx)."""
        nginx = Nginx(self, self.new_name("nginx"), self.PLAIN + http if "ssl_protocols" not in http else http, main, module,
                      agent.token if agent else None, agent.socket if agent else None, preset, env)
        return nginx.start() if start else nginx

    def local_nginx(self, http, **more):
        return self.nginx(None, http, module=False, **more)

    def curl(self, key, *args, port=None, path="/", ok=True):
        """GET with the key's certificate as the only authority. CompletedProcess."""
        port = port or key.port
        return run("curl", "-sS", "--noproxy", "*", "--max-time", "30", "--cacert", key.crt, "--resolve",
                   f"{key.host}:{port}:127.0.0.1", *args, f"https://{key.host}:{port}{path}", ok=ok)

    def s_client(self, key, *args, port=None, ok=True, input=""):
        """openssl s_client that verifies; CompletedProcess."""
        done = run("openssl", "s_client", "-connect", f"127.0.0.1:{port or key.port}", "-servername", key.host,
                   "-verify_hostname", key.host, "-CAfile", key.crt, "-verify_return_error", *args, ok=ok, input=input)
        if ok:
            check("Verify return code: 0 (ok)" in done.stdout, "s_client:", done.stdout[-2000:], done.stderr)
        return done

    def load(self, key, *args, port=None):
        """The load client in the background, verified against the key's certificate."""
        return Load(self, port or key.port, ["--sni", key.host, "--cafile", key.crt, *map(str, args)])

    def scan(self, keys, pids=(), files=()):
        """keyhold-bench scan: its JSON report; fails if anything could not be read."""
        argv = [artefact("keyhold-bench"), "scan", "--json"]
        for key in keys:
            argv += ["--key", key.key]
        if pids:
            argv += ["--pid", ",".join(map(str, pids))]
        done = run(*argv, *files, ok=False, timeout=300)
        check(done.returncode in (0, 1), "scan:", done.stdout, done.stderr)
        return json.loads(done.stdout)

    def logs(self):
        """The ends of all logs, for a test that failed."""
        text = ""
        for folder, _, files in sorted(os.walk(self.dir)):
            for name in sorted(files):
                if name.endswith(".log"):
                    path = os.path.join(folder, name)
                    text += f"--- {os.path.relpath(path, self.dir)}\n" + read(path)[-4000:]
        return text

    def close(self):
        end_everything()
        for path in {self.dir, self.memory_dir or self.dir}:
            shutil.rmtree(path, ignore_errors=True)


# ---- The runner --------------------------------------------------------------------------------------------------------------

def run_one(name, function, ws):
    begun = time.monotonic()
    try:
        function(ws)
        word = "ok"
    except Skip as why:
        word = f"skipped ({why})"
    except Exception:  # noqa: BLE001 - whatever it is, the other tests shall still run
        word = "FAILED"
        print(ws.logs())
        traceback.print_exc(file=sys.stdout)  # last, for `check` repeats the end of what a test says
    print(f"{word:8} {name} ({time.monotonic() - begun:.1f} s)", flush=True)
    return word.split(" ", 1)[0]


def prepare_shared(setup):
    """The workspace that setup has prepared; None and the outcome when it could not."""
    ws = Workspace()
    outcome = run_one("setup", setup, ws)
    if outcome == "ok":
        return ws, outcome
    ws.close()
    return None, outcome


def main(scope):
    """Runs the tests of a file; arguments choose some by part of their names. Does not return."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    become_subreaper()
    wanted = sys.argv[1:]
    tests = [(name, function) for name, function in scope.items() if name.startswith("test_") and callable(function)
             and (not wanted or any(part in name for part in wanted))]
    outcomes = []
    shared = None
    try:
        if "setup" in scope:
            shared, outcome = prepare_shared(scope["setup"])
            if shared is None:
                outcomes, tests = [outcome] * len(tests), []
        for name, function in tests:
            ws = shared or Workspace()
            try:
                outcomes.append(run_one(name, function, ws))
            finally:
                if ws is not shared:
                    ws.close()
    finally:
        if shared:
            shared.close()
        end_everything()
    skipped = outcomes.count("skipped")
    print(f"{outcomes.count('ok')} passed, {outcomes.count('FAILED')} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if "FAILED" in outcomes or not outcomes else 0)
