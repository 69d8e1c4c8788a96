#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The nginx module's directives: what `nginx -t` refuses and how it says so, what a worker says of missing keys at its start,
where an explicit key wins, and nginx without a master process."""
import json
import os
import shutil
import signal

import fake_agent
import harness
from fake_agent import FakeAgent, write_reference
from harness import check, popen, read, wait_until

fake_agent.use_build_dir()


def setup(ws):
    ws.key, ws.other = ws.make_key("p256"), ws.make_key("rsa2048")
    ws.fake = FakeAgent(ws)
    ws.fake.import_key(ws.key)
    ws.fake.start()
    ws.token = os.path.join(ws.dir, "nginx.token")
    with open(ws.token, "w") as file:
        file.write("keyhold-token-1 edge " + "5a" * 32 + "\n")
    os.chmod(ws.token, 0o600)


def refused(ws, http, *words):
    """nginx -t must fail, with one [emerg] line that has all these words."""
    nginx = ws.nginx(None, ws.PLAIN + http, start=False)
    done = nginx.test()
    lines = [line for line in done.stderr.splitlines() if "[emerg]" in line]
    check(done.returncode != 0 and len(lines) == 1 and all(word in lines[0] for word in words), http, done.stderr)


def accepted(ws, http):
    done = ws.nginx(None, ws.PLAIN + http, start=False).test()
    check(done.returncode == 0, http, done.stderr)


def test_agent(ws):
    site = ws.server(ws.key)
    agent = f"    keyhold_agent unix:{ws.fake.socket};\n"
    accepted(ws, agent + site)
    accepted(ws, agent)
    accepted(ws, "")
    refused(ws, site, "keyhold_agent")
    refused(ws, agent + agent + site, "duplicate agent", ws.fake.socket)
    refused(ws, "    keyhold_agent 127.0.0.1:4711;\n" + site, "127.0.0.1:4711", "unix:PATH")
    refused(ws, f"    keyhold_agent unix:/{'x' * 120};\n" + site, "too long")
    refused(ws, f"    keyhold_agent unix:{ws.fake.socket} wait=2;\n" + site, "wait=2")


def test_token(ws):
    def agent(token):
        return f"    keyhold_agent unix:{ws.fake.socket} token={token};\n" + ws.server(ws.key)

    accepted(ws, agent(ws.token))
    refused(ws, agent("/nonexistent"), "/nonexistent", "No such file")
    refused(ws, agent(ws.key.crt), ws.key.crt)
    os.chmod(ws.token, 0o644)
    refused(ws, agent(ws.token), ws.token, "0600")
    os.chmod(ws.token, 0o600)
    os.chown(ws.token, 65534, 65534)
    refused(ws, agent(ws.token), ws.token, "root")
    os.chown(ws.token, 0, 0)
    bad = ws.token + ".bad"
    for text in ("", "keyhold-token-1 edge 5a5a\n", "something else\n"):
        with open(bad, "w") as file:
            file.write(text)
        os.chmod(bad, 0o600)
        refused(ws, agent(bad), bad, "no token")


def test_values(ws):
    agent = f"    keyhold_agent unix:{ws.fake.socket};\n" + ws.server(ws.key)
    accepted(ws, agent + "    keyhold_timeout 60s; keyhold_connect_timeout 20ms; keyhold_max_inflight 1;\n")
    refused(ws, agent + "    keyhold_timeout 0;\n", "keyhold_timeout")
    refused(ws, agent + "    keyhold_timeout 61s;\n", "keyhold_timeout")
    refused(ws, agent + "    keyhold_connect_timeout 0;\n", "keyhold_connect_timeout")
    refused(ws, agent + "    keyhold_try_timeout 0;\n", "keyhold_try_timeout")
    refused(ws, agent + "    keyhold_max_inflight 0;\n", "must be between 1 and")
    refused(ws, agent + "    keyhold maybe;\n", "keyhold")


def test_which_key_wins(ws):
    """The server's own key over an inherited "keyhold on"; "keyhold on" in the server over an inherited key."""
    agent = f"    keyhold_agent unix:{ws.fake.socket};\n"
    refused(ws, agent + ws.server(ws.key, extra=f"ssl_certificate_key {ws.key.key};"), "ssl_certificate_key", "keyhold on")
    log = os.path.join(ws.dir, "which.log")
    ours, local = ws.key, ws.other
    inherited = ws.make_key("p256", "inherited")
    inherited.crt = ours.crt
    inherited.host = ours.host
    http = (agent + f"    log_format w '$server_port $keyhold_status';\n    access_log {log} w;\n    keyhold on;\n"
            f"    ssl_certificate {ours.crt};\n    ssl_certificate_key {ours.key};\n" + ws.server(local, local=True)
            + f"    server {{ listen 127.0.0.1:{inherited.port} ssl; keyhold on; return 200 \"ok\\n\"; }}\n")
    nginx = ws.nginx(None, ws.PLAIN + http)
    ws.curl(local)
    ws.curl(inherited)
    wait_until(lambda: len(read(log).splitlines()) == 2, "the access log")
    check(sorted(read(log).splitlines()) == sorted([f"{local.port} -", f"{inherited.port} ok"]), read(log))
    nginx.stop()


def test_reference_without_agent(ws):
    """A key reference as a key, and no agent: refused when the configuration is read, not at the first client."""
    reference = write_reference(ws, ws.key)
    site = (f"    server {{ listen 127.0.0.1:{ws.key.port} ssl; ssl_certificate {ws.key.crt}; "
            f"ssl_certificate_key {reference}; }}\n")
    refused(ws, site, "key reference", "keyhold_agent")
    accepted(ws, f"    keyhold_agent unix:{ws.fake.socket};\n" + site)


def test_module_from_another_file(ws):
    """A reload that names the module in another file is refused: its keys would belong to the copy that is there already."""
    nginx = ws.nginx(ws.fake, ws.PLAIN + ws.server(ws.key))
    check(ws.curl(ws.key).returncode == 0)
    module = harness.artefact("ngx_http_keyhold_module.so")
    copy = os.path.join(ws.dir, "copy.so")
    shutil.copy(module, copy)
    text = read(nginx.conf)
    with open(nginx.conf, "w") as file:
        file.write(text.replace(module, copy))
    nginx.reload(wait=False)
    wait_until(lambda: "[emerg]" in nginx.log(), "the reload is refused")
    check("from another file" in nginx.log(), nginx.log())
    check(ws.curl(ws.key).returncode == 0, "the old configuration goes on")
    nginx.stop()


def test_missing_keys_are_said_at_start(ws):
    """Once per worker, for keys by certificate and by reference; also a name whose key is another one."""
    stranger = ws.make_key("p256", "stranger")
    wrong = ws.make_key("p256", "wrong")
    ws.fake.keys.append(ws.key.key)
    wrong_reference = write_reference(ws, wrong, ws.key.name)
    http = (ws.server(ws.key) + ws.server(stranger) +
            f"    server {{ listen 127.0.0.1:{wrong.port} ssl; ssl_certificate {wrong.crt}; "
            f"ssl_certificate_key {wrong_reference}; }}\n")
    nginx = ws.nginx(ws.fake, ws.PLAIN + http, main="worker_processes 2;")

    def said():
        return [line for line in nginx.log().splitlines() if "which the configuration needs" in line]

    wait_until(lambda: len(said()) >= 4, "two workers say two things each")
    check(len(said()) == 4 and all("[error]" in line and ws.fake.socket in line for line in said()), said())
    check(sum("another public key" in line and f'"{ws.key.name}"' in line for line in said()) == 2, said())
    check(sum("no such key" in line for line in said()) == 2, said())
    check(ws.curl(ws.key).returncode == 0, "the others are served")
    nginx.stop()


def test_useless_keys_are_said_at_start(ws):
    """Keys that the agent has, and that no handshake can use: of each the worker says why."""
    agent = ws.agent()
    whys = {"good": None, "off": "not enabled", "old": "has expired", "early": "not valid yet", "plain": "usage"}
    keys = {name: ws.make_key("rsa2048", name) for name in whys}
    for name, key in keys.items():
        agent.import_key(key, "--usage", "decrypt" if name == "plain" else "tls-server")
    agent.ctl("key", "disable", "off")
    agent.ctl("key", "set", "old", "--expires", "2026-01-01")
    agent.ctl("key", "set", "early", "--not-before", "+1d")
    ids = {key["name"]: key["id"] for key in json.loads(agent.ctl("--json", "key", "list").stdout)}
    nginx = ws.nginx(agent, ws.PLAIN + "".join(ws.server(key) for key in keys.values()))

    def said():
        return [line for line in nginx.log().splitlines() if "which the configuration needs" in line]

    wait_until(lambda: len(said()) >= len(keys) - 1, "what is wrong with each key")
    check(len(said()) == len(keys) - 1, said())
    for name, why in whys.items():
        found = [line for line in said() if ids[name] in line]
        check(len(found) == (why is not None) and all("[error]" in line and why in line for line in found), name, said())
        check((ws.curl(keys[name], ok=False).returncode == 0) == (why is None), name)
    nginx.stop()


def test_without_a_master(ws):
    """master_process off: the one process reads the configuration and serves."""
    nginx = ws.nginx(ws.fake, ws.PLAIN + ws.server(ws.key), main="master_process off; daemon off;", start=False)
    process = popen(nginx.argv(), nginx.error_log + ".out")
    wait_until(lambda: harness.port_open(ws.key.port), "nginx listens")
    check(ws.curl(ws.key).stdout == ws.key.name + "\n")
    process.send_signal(signal.SIGQUIT)
    check(process.wait(20) == 0, nginx.log())
    check("[alert]" not in nginx.log(), nginx.log())


if __name__ == "__main__":
    harness.main(globals())
