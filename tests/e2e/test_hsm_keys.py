#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keys in tokens, as their owner has to do with them: what they may be used for is decided by the token's keeper, what is taken away is
gone when that is acknowledged, a purged key is gone from the token too; and who sees the vendor's library and the PIN."""
import os
import time

import hsm
import harness
import wire
from harness import check, read, wait_until

agent = token = None


def setup(ws):
    global agent, token
    token = hsm.SoftToken(ws, "soft")
    agent = hsm.agent_with(ws, [token])


def call(*fields, op=wire.SIGN):
    with wire.connect(agent.socket, agent.token) as caller:
        return caller.call(op, *fields)


def make(name, kind="p256", *args):
    agent.ctl("key", "create", name, "--type", kind, "--tier", "hsm", *args)


def test_the_library_is_in_one_process(_):
    """Neither supervisor nor front nor the store's keeper loads what a vendor wrote."""
    make("one")
    wait_until(lambda: hsm.signs(agent, "one"), "it signs")
    with_library = [harness.command_line(pid) for pid in agent.pids() if "softhsm" in read(f"/proc/{pid}/maps")]
    check(with_library == ["keyholdd: token soft"], with_library)


def test_the_pin_is_nowhere(_):
    """Not in a log, an argument, the environment."""
    make("pin")
    texts = {agent.log_path: agent.log()}
    for pid in agent.pids():
        texts[f"command line of {pid}"] = harness.command_line(pid)
        texts[f"environment of {pid}"] = read(f"/proc/{pid}/environ")
    for where, text in texts.items():
        check(hsm.PIN not in text, where)
    check(f"pin = {hsm.PIN}" not in agent.ctl("status", "--json").stdout)


def test_usage_is_the_keepers_to_decide(_):
    """What is no TLS handshake is not signed, whoever asks."""
    make("strict")
    for message in (b"anything", bytes(64), b"0" * 100, wire.tls13_message()[:-1], wire.tls13_message() + b"x"):
        check(call("strict", 0x0403, 0, message)[0] == wire.USAGE, message)
    make("client", "p256", "--usage", "tls-client")
    check(call("client", 0x0403, 0, wire.tls13_message())[0] == wire.USAGE, "a client's key signs for a server")
    check(call(*wire.sign_fields("strict", "p256"))[0] == wire.OK)


def test_rsa_decryption_is_no_oracle(_):
    """A ciphertext of rubbish is answered with 48 bytes, the same ones each time."""
    make("kx", "rsa2048", "--usage", "tls-server,tls-rsa-kx")
    make("nokx", "rsa2048")
    for _ in range(10):
        rubbish = b"\x00" + os.urandom(255)
        one, two = (call("kx", 0x0303, rubbish, op=wire.TLS_RSA) for _ in range(2))
        check(one[0] == wire.OK and len(one[1][0]) == 48 and one == two, one, two)
    check(call("nokx", 0x0303, rubbish, op=wire.TLS_RSA)[0] == wire.USAGE, "a key that is not for it")


def test_what_is_disabled_is_disabled(_):
    """Under load: not one signature after the acknowledgement, and again after it is enabled."""
    make("switch")
    load = hsm.Load(agent, "switch")
    load.more()
    for command in (("disable", "enable"), ("delete", "recover")):
        agent.ctl("key", command[0], "switch")
        with wire.connect(agent.socket, agent.token) as caller:
            for _ in range(50):
                check(caller.call(wire.SIGN, *wire.sign_fields("switch", "p256"))[0] in (wire.DISABLED, wire.NOT_FOUND), command[0])
        agent.ctl("key", command[1], "switch")
        wait_until(lambda: hsm.signs(agent, "switch"), f"it signs after {command[1]}")
    load.ending = True
    load.join(10)
    check(set(load.odd) <= {wire.DISABLED, wire.NOT_FOUND}, load.odd)


def test_a_purged_key_is_gone_from_the_token(_):
    before = token.objects("privkey"), token.objects("pubkey")
    make("passing")
    check(len(token.objects()) == len(before[0]) + 1)
    agent.ctl("key", "delete", "passing")
    check(len(token.objects()) == len(before[0]) + 1, "a deleted key can be recovered")
    agent.ctl("key", "purge", "passing", "--yes")
    wait_until(lambda: (token.objects("privkey"), token.objects("pubkey")) == before, "its objects are gone", 5)


def test_rotation(ws):
    """The new version serves at once under the name; a certificate still names its own version."""
    old = hsm.create(ws, agent, "turn", "p256")
    agent.ctl("key", "rotate", "turn")
    new = hsm.HsmKey(ws, "turn", "p256")
    new.crt = os.path.join(ws.dir, "turn2.crt")
    agent.ctl("cert", "self-signed", "turn", "--subject", "/CN=" + new.host, "--san", "DNS:" + new.host, "--out", new.crt)
    os.chmod(new.crt, 0o644)
    check(read(old.crt) != read(new.crt))
    ws.nginx(agent, ws.server(old) + ws.server(new))
    ws.curl(old)
    ws.curl(new)


def test_a_key_is_moved_into_the_token(ws):
    """From software; certificate, name and id stay, and the software tier has it no more."""
    key = ws.make_key("rsa2048", "mover")
    agent.import_key(key)
    nginx = ws.nginx(agent, ws.server(key))
    ws.curl(key)
    before = len(token.objects())
    agent.ctl("key", "move", "mover", "--tier", "hsm")
    check(len(token.objects()) == before + 1)
    ws.curl(key)
    check('"hsm"' in agent.ctl("key", "show", "mover", "--json").stdout)
    time.sleep(0.1)
    report = ws.scan([key], pids=agent.pids(), files=[os.path.join(agent.dir, "store", name)
                                                       for name in os.listdir(os.path.join(agent.dir, "store"))])
    check(report["found"] == 0 if "found" in report else not report.get("hits"), report)
    nginx.stop()


if __name__ == "__main__":
    harness.main(globals())
