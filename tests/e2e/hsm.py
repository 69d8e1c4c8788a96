# SPDX-License-Identifier: Apache-2.0
"""PKCS#11 tokens for tests: SoftHSM's, each with a configuration and a directory of its own; NSS's softokn as the second token
software; and the module that misbehaves on order (tests/shim) between the agent and either.

    token = hsm.SoftToken(ws, "one", shim=True)          # initialised; belongs to the keeper's user
    agent = ws.agent(start=False, config=token.block())
    agent.start()
    key = hsm.create(ws, agent, "site", "p256")          # made in the token, with a certificate: for ws.server(key), ws.curl(key)
    token.order("C_Sign delay 5")                        # the shim obeys at once; token.order() ends it
"""
import glob
import os
import re
import shutil
import signal
import threading
import time

import harness
import wire
from harness import Skip, alive, artefact, check, command_line, descendants, free_port, read, run, wait_until

KEEPER = 64802  # keeper_user of `keyholdctl init --dir`
SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
NSS = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
PIN, SO_PIN = "493817", "71940625"
ROLE = "keyholdd: token"
BACK_S = 2.0  # a token that is there again is used again within (T3)


def give(path):
    """To the keeper's user, with all that is in it."""
    for folder, _, files in os.walk(path):
        os.chown(folder, KEEPER, KEEPER)
        for name in files:
            os.chown(os.path.join(folder, name), KEEPER, KEEPER)


class Token:
    """What every kind of token has: its block in keyhold.conf, its PIN file, and the shim's file of orders."""

    def __init__(self, ws, name, module, env, shim, preset="release"):
        self.ws, self.name, self.label, self.module, self.env = ws, name, name, module, dict(env)
        self.dir = os.path.join(ws.memory(), "token-" + name)  # SoftHSM writes its files a hundred times for a key
        os.makedirs(self.dir)
        self.pin_file = os.path.join(self.dir, "pin")
        self.write_pin(PIN)
        self.orders = os.path.join(self.dir, "orders")
        self.logins = os.path.join(self.dir, "logins")
        self.loaded = module
        if shim:
            self.loaded = artefact("libkeyhold-misbehave.so", preset)
            self.env |= {"KH_SHIM_MODULE": module, "KH_SHIM_CONTROL": self.orders}
        self.order()

    def write_pin(self, pin):
        old = os.umask(0o077)
        try:
            with open(self.pin_file, "w") as file:
                file.write(pin + "\n")
        finally:
            os.umask(old)

    def order(self, *lines):
        """What the shim is to do from now on; nothing: behave."""
        new = self.orders + ".new"
        with open(new, "w") as file:
            file.write("".join(line + "\n" for line in lines))
        os.chmod(new, 0o644)
        os.rename(new, self.orders)

    def block(self, **more):
        values = {"module": self.loaded, "label": self.label, "pin_file": self.pin_file} | more
        lines = [f"    {name} = " + (str(value) if isinstance(value, int) else f'"{value}"') for name, value in values.items()
                 if value is not None]
        listed = ", ".join(f'"{name}={value}"' for name, value in self.env.items())
        return f'token "{self.name}" {{\n' + "\n".join(lines) + f"\n    env = {{{listed}}}\n}}"

    def tool(self, *args, ok=True):
        """pkcs11-tool on the token itself, without the shim."""
        return run("pkcs11-tool", "--module", self.module, "--token-label", self.name, *args, ok=ok,
                   env={**os.environ, **self.env})

    def objects(self, kind="privkey"):
        """CKA_IDs (hex) of the token's private or public keys."""
        return re.findall(r"^  ID: +([0-9a-f]+)", self.tool("--login", "--pin", PIN, "-O", "--type", kind).stdout, re.M)

    def count(self):
        """How many private and public keys it has. One without a CKA_ID is nobody's: SoftHSM makes an object in several steps, gives it its
        names in the last, and leaves what it has when it is killed between them."""
        objects = re.split(r"^(?=\w+ Key Object)", self.tool("--login", "--pin", PIN, "-O").stdout, flags=re.M)
        return tuple(sum(one.startswith(kind) and "\n  ID:" in one for one in objects) for kind in ("Private", "Public"))

    def keeper(self, agent):
        """The id of its keeper's process; None while there is none."""
        for pid in descendants(agent.pid):
            words = command_line(pid)
            if words.startswith(ROLE) and words.split()[2:3] == [self.name] and alive(pid):
                return pid
        return None


class SoftToken(Token):
    def __init__(self, ws, name, shim=False):
        if not os.path.exists(SOFTHSM):
            raise Skip("no softhsm2")
        super().__init__(ws, name, SOFTHSM, {}, shim)
        self.store = os.path.join(self.dir, "tokens")
        self.conf = os.path.join(self.dir, "softhsm2.conf")
        with open(self.conf, "w") as file:
            file.write(f"directories.tokendir = {self.store}\nobjectstore.backend = file\nlog.level = ERROR\n")
        self.env["SOFTHSM2_CONF"] = self.conf
        self.init()

    def init(self):
        os.makedirs(self.store, exist_ok=True)
        run("softhsm2-util", "--init-token", "--free", "--label", self.name, "--pin", PIN, "--so-pin", SO_PIN,
            env={**os.environ, "SOFTHSM2_CONF": self.conf})
        give(self.store)

    def hide(self):
        """The device is pulled out …"""
        os.rename(self.store, self.store + ".away")

    def bring_back(self):
        """… and put back in, by rename: there is no moment at which half of it is there."""
        os.rename(self.store + ".away", self.store)

    def save(self):
        """Keeps a copy of what is in it now, for go_back."""
        shutil.rmtree(self.store + ".saved", ignore_errors=True)
        shutil.copytree(self.store, self.store + ".saved")

    def go_back(self):
        """The token is again what it was at save(): emptied, or stale."""
        shutil.copytree(self.store + ".saved", self.store + ".next")
        give(self.store + ".next")
        os.rename(self.store, self.store + ".old")
        os.rename(self.store + ".next", self.store)
        shutil.rmtree(self.store + ".old")


class NssToken(Token):
    """The key database of NSS's softokn, which mozilla's programs use. Its C_Initialize wants parameters, which the shim passes on; its label
    is its own. It makes RSA and EC keys; no EdDSA."""

    def __init__(self, ws, name):
        if not os.path.exists(NSS) or not shutil.which("certutil"):
            raise Skip("no libnss3 or libnss3-tools")
        super().__init__(ws, name, NSS, {"NSS_MAX_MP_PBE_ITERATION_COUNT": "1"}, True)
        self.label = "NSS Certificate DB"
        self.store = os.path.join(self.dir, "db")
        os.makedirs(self.store)
        run("certutil", "-N", "-d", "sql:" + self.store, "-f", self.pin_file, env={**os.environ, **self.env})
        give(self.store)
        self.env["KH_SHIM_RESERVED"] = f"configdir='sql:{self.store}' certPrefix='' keyPrefix='' secmod='' flags="


# ---- Keys in them --------------------------------------------------------------------------------------------------------------

class HsmKey:
    """As harness.Key, of a key that exists as no file: `key` is None."""

    def __init__(self, ws, name, kind):
        self.name, self.kind, self.key, self.port = name, kind, None, free_port()
        self.host = name + ".keyhold.test"
        self.crt = os.path.join(ws.dir, name + ".crt")

    def certify(self, agent):
        agent.ctl("cert", "self-signed", self.name, "--subject", "/CN=" + self.host, "--san", "DNS:" + self.host, "--out", self.crt)
        os.chmod(self.crt, 0o644)
        return self


def create(ws, agent, name, kind, *args, tier="hsm"):
    agent.ctl("key", "create", name, "--type", kind, "--tier", tier, *args)
    return HsmKey(ws, name, kind).certify(agent)


def pool(name, tokens, quorum=None):
    """The pool's block, after the tokens' ones."""
    listed = ", ".join(f'"{token.name}"' for token in tokens)
    return f'pool "{name}" {{\n    partitions = {{{listed}}}\n' + (f"    quorum = {quorum}\n" if quorum else "") + "}"


def agent_with(ws, tokens, pools=(), start=True, **more):
    """An agent with these tokens; `more` is for each token's block."""
    agent = ws.agent(start=False, config="\n".join([token.block(**more) for token in tokens] + list(pools)))
    return start_all(agent, tokens) if start else agent


def start_all(agent, tokens):
    """Starts it, and waits until the store's keeper has all tokens: before, keys can be used, not made."""
    before = len(agent.log())
    agent.start()
    for token in tokens:
        wait_until(lambda: f"token {token.name} is there" in agent.log()[before:], f"the store's keeper has {token.name}")
    return agent


def agent_with_pool(ws, names=("p1", "p2", "p3"), name="pool", shim=False, quorum=None, **more):
    """(agent, tokens): a pool that is set up, of SoftHSM tokens."""
    tokens = [SoftToken(ws, one, shim=shim) for one in names]
    agent = agent_with(ws, tokens, [pool(name, tokens, quorum)], **more)
    agent.ctl("pool", "init", name)
    return agent, tokens


def signs(agent, key, kind="p256", deadline_ms=3000):
    """Whether a new caller gets a signature."""
    try:
        with wire.connect(agent.socket, agent.token, timeout=5) as caller:
            return caller.call(wire.SIGN, *wire.sign_fields(key, kind), deadline_ms=deadline_ms)[0] == wire.OK
    except (OSError, wire.Closed):
        return False


def back(agent, key, kind="p256", seconds=BACK_S, what="the token is used again"):
    """Waits until the key signs again and returns after how many seconds."""
    begun = time.monotonic()
    wait_until(lambda: signs(agent, key, kind), what, harness.READY_S, every=0.005)
    took = time.monotonic() - begun
    check(took <= seconds, f"{what} after {took:.2f} s")
    return took


def stop(pid):
    wire.freeze(pid)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def memory_kb(pid):
    return int(harness.status_of(pid).get("VmRSS", "0").split()[0])


def open_files(pid):
    return len(glob.glob(f"/proc/{pid}/fd/*"))


# ---- Load that keeps account -----------------------------------------------------------------------------------------------------

class Load(threading.Thread):
    """A caller that keeps requests outstanding, looks at each signature's form, and remembers what became of each request."""

    def __init__(self, agent, key, kind="p256", outstanding=16, deadline_ms=3000, gap_s=0.0):
        super().__init__(daemon=True)
        self.agent, self.key, self.kind = agent, key, kind
        self.outstanding, self.deadline_ms, self.gap_s = outstanding, deadline_ms, gap_s
        self.ending = False
        self.done = self.retryable = self.lost = self.malformed = 0
        self.odd, self.latencies = {}, []
        self.error = None
        self.start()

    def run(self):
        try:
            while not self.ending:
                try:
                    self.one_connection()
                except (OSError, wire.Closed):
                    time.sleep(0.01)
        except Exception as error:  # noqa: BLE001 - reported by finish
            self.error = error

    def one_connection(self):
        waiting = {}
        with wire.connect_until(self.agent.socket, self.agent.token) as caller:
            try:
                while not self.ending or waiting:
                    while not self.ending and len(waiting) < self.outstanding:
                        waiting[caller.submit(wire.SIGN, *wire.sign_fields(self.key, self.kind),
                                              deadline_ms=self.deadline_ms)] = time.monotonic()
                    reply = caller.reply()
                    self.account(reply, time.monotonic() - waiting.pop(reply[1]))
                    if self.gap_s:
                        time.sleep(self.gap_s)
            finally:
                self.lost += len(waiting)

    def account(self, reply, took):
        if reply[2] == wire.OK:
            self.done += 1
            self.latencies.append(took)
            self.malformed += not well_formed(self.kind, reply[3])
        elif reply[2] in wire.RETRYABLE:
            self.retryable += 1
            time.sleep(0.002)  # nobody asks again at once
        else:
            self.odd[reply[2]] = self.odd.get(reply[2], 0) + 1

    def more(self, count=20, seconds=harness.READY_S):
        before = self.done
        wait_until(lambda: self.done >= before + count or self.error, f"{count} more signatures", seconds)

    def finish(self):
        self.ending = True
        self.join(30)
        check(not self.is_alive(), "a request was never answered")
        check(self.error is None, "the caller:", repr(self.error))
        check(not self.odd, "errors that are not retryable, by number:", self.odd)
        check(self.malformed == 0, self.malformed, "signatures have a wrong form")


def well_formed(kind, signature):
    if kind.startswith("rsa"):
        return len(signature) == int(kind[3:]) // 8
    if kind == "ed25519":
        return len(signature) == 64
    return signature[0] == 0x30 and signature[1] == len(signature) - 2


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
