#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""F7: nginx's other contexts with the key in the agent, beside the same configuration with local keys, under load, with the same
results: stream servers, client certificates towards proxied servers (proxy, grpc, uwsgi, stream), mail. Which keys are where a
key may stand, the order of the blocks, and what is said when the stream module's other half is missing."""
import imaplib
import os
import poplib
import re
import smtplib
import ssl

import harness
from contexts import EVENTS, Clients, UwsgiServer, first_line, get, getters, load_modules, quiet, readable, upstream_servers
from harness import check, read, wait_until

DELAY_MS = 20  # each operation really parks
STREAM = ("ngx_stream_module.so",)
OURS = ("ngx_stream_keyhold_module.so",)
BOTH = "ssl_protocols TLSv1.2 TLSv1.3;"  # the defaults of this nginx's stream and mail have no TLS 1.3


# ---- The same configuration twice ----------------------------------------------------------------------------------------------

class Side:
    """One of the two nginx: how it names a key, and its ports."""

    def __init__(self, ws, ours):
        self.ws, self.ours, self.ports = ws, ours, {}

    def port(self, name):
        return self.ports.setdefault(name, harness.free_port())

    def server_key(self, key):
        return "keyhold on;" if self.ours else f"ssl_certificate_key {key.key};"

    def key_file(self, key):
        """What can stand where nginx wants a key's file, also when its workers look for it."""
        if self.ours:
            return readable(self.ws, reference(self.ws, key))
        return readable(self.ws, key.key)


def reference(ws, key):
    path = os.path.join(ws.dir, key.name + ".ref.pem")
    if not os.path.exists(path):
        ws.the_agent.ctl("key", "reference", key.name, "--out", path)
    return path


def two_sides(ws, blocks, http="", modules=STREAM):
    """Two nginx of one configuration: blocks(side) stands beside http{}, http(side) in it. Our side and the local one."""
    sides = []
    for ours in (True, False):
        side = Side(ws, ours)
        main = load_modules(*modules, *(OURS if ours and "ngx_stream_module.so" in modules else ())) + EVENTS + blocks(side)
        inside = ws.PLAIN + (http(side) if http else "")
        side.nginx = ws.nginx(ws.the_agent, inside, main=main) if ours else ws.local_nginx(inside, main=main)
        sides.append(side)
    return sides


def setup(ws):
    ws.the_agent = ws.agent(delay_ms=DELAY_MS)
    ws.servers = [ws.make_key("p256", "ec"), ws.make_key("rsa2048", "rsa")]
    ws.clients = [ws.make_key("p256", "client-ec"), ws.make_key("rsa2048", "client-rsa")]
    ws.other = ws.make_key("p256", "local")
    for key in ws.servers:
        ws.the_agent.import_key(key)
    for key in ws.clients:
        ws.the_agent.import_key(key, "--usage", "tls-client")


def operations(ws):
    return ws.the_agent.status()["operations"].get("sign", {}).get("results", {}).get("ok", 0)


def loads_at_a_time(ws, pairs, *args, seconds=3):
    """The load client against several ports at the same time; none may fail. How many handshakes each did."""
    loads = [ws.load(key, "--clients", 15, "--seconds", seconds, *args, port=port) for key, port in pairs]
    reports = [load.wait() for load in loads]
    for report in reports:
        check(report["failed"] == 0 and report["done"] > 20, report)
    return [report["done"] for report in reports]


# ---- stream{} ----------------------------------------------------------------------------------------------------------------------

def test_f7_stream(ws):
    """listen ssl and proxy_pass, EC and RSA, TLS 1.2 and 1.3; the log's variables."""
    log = os.path.join(ws.dir, "stream.txt")

    def blocks(side):
        variables = "$keyhold_status $keyhold_time $keyhold_agent" if side.ours else "- - -"
        servers = "".join(
            f"    server {{ listen 127.0.0.1:{side.port(key.name)} ssl backlog=1024; ssl_certificate {key.crt}; "
            f"{side.server_key(key)} proxy_pass 127.0.0.1:{side.port('plain')}; }}\n" for key in ws.servers)
        return (f"stream {{\n    log_format k '$server_port {variables}';\n    access_log {log}.{side.ours} k;\n"
                f"    {BOTH} ssl_session_tickets off; ssl_session_cache off;\n{servers}}}\n")

    def http(side):
        return f"    server {{ listen 127.0.0.1:{side.port('plain')} backlog=1024; return 200 \"behind $remote_addr\\n\"; }}\n"

    ours, local = two_sides(ws, blocks, http)
    before = operations(ws)
    for key in ws.servers:
        for version in ("1.2", "1.3"):
            answers = [ws.curl(key, "--tlsv" + version, "--tls-max", version, port=side.port(key.name)).stdout
                       for side in (ours, local)]
            check(answers == ["behind 127.0.0.1\n"] * 2, key.name, version, answers)
    check(operations(ws) - before == 4, "each handshake asked the agent once:", operations(ws) - before)
    for key in ws.servers:
        pairs = [(key, side.port(key.name)) for side in (ours, local)]
        done = loads_at_a_time(ws, pairs, "--request", "/", "--expect", "behind")
        print(f"F7: stream {key.kind}: {done[0]} handshakes with the agent, {done[1]} with a local key, 0 failed")
    line = read(log + ".True").splitlines()[0].split()
    check(line[0] == str(ours.port("ec")) and line[1] == "ok" and float(line[2]) >= DELAY_MS / 1000 - 0.001, line)
    check(line[3] == "unix:" + ws.the_agent.socket, line)
    quiet(ours.nginx)


def test_f7_stream_names_and_inheritance(ws):
    """A certificate for each name by variables, with reference files; "keyhold on" for all of stream{} and a local key in one."""
    folder = os.path.join(ws.dir, "names")
    os.mkdir(folder)
    os.chmod(folder, 0o755)
    for key in ws.servers:
        for suffix, text in (("crt", read(key.crt)), ("ref.pem", read(reference(ws, key))), ("key", read(key.key))):
            with open(f"{folder}/{key.host}.{suffix}", "w") as file:
                file.write(text)
            os.chmod(file.name, 0o644)

    def blocks(side):
        suffix = "ref.pem" if side.ours else "key"
        ec = ws.servers[0]
        outside = "keyhold on;" if side.ours else f"ssl_certificate_key {ec.key};"
        return (f"stream {{\n    {BOTH} ssl_certificate {ec.crt}; {outside}\n"
                f"    server {{ listen 127.0.0.1:{side.port('inherits')} ssl; return \"inherits\\n\"; }}\n"
                f"    server {{ listen 127.0.0.1:{side.port('own')} ssl; ssl_certificate {ws.other.crt};\n"
                f"        ssl_certificate_key {ws.other.key}; return \"own\\n\"; }}\n"
                f"    server {{ listen 127.0.0.1:{side.port('plain')}; return \"plain\\n\"; }}\n"
                f"    server {{ listen 127.0.0.1:{side.port('names')} ssl; ssl_certificate {folder}/$ssl_server_name.crt;\n"
                f"        ssl_certificate_key {folder}/$ssl_server_name.{suffix}; return \"$ssl_server_name\\n\"; }}\n}}\n")

    for side in two_sides(ws, blocks):
        for key in ws.servers:
            for version in ("-tls1_2", "-tls1_3"):
                check(first_line(side.port("names"), key, "-servername", key.host, version) == key.host + "\n", key.host, version)
        check(first_line(side.port("inherits"), ws.servers[0]) == "inherits\n", side.ours)
        check(first_line(side.port("own"), ws.other) == "own\n", side.ours)
        quiet(side.nginx)


def only_stream(ws, text, preset="release"):
    """An nginx whose configuration has no http{} at all."""
    main = load_modules(*STREAM, *OURS, preset=preset) + EVENTS + text
    nginx = ws.nginx(None, "", main=main, start=False, preset=preset)
    config = read(nginx.conf)
    with open(nginx.conf, "w") as file:
        file.write(config[:config.index("http {")])
    return nginx


def agent_line(ws):
    return f"keyhold_agent unix:{ws.the_agent.socket} token={ws.the_agent.token};"


def test_f7_stream_without_http(ws):
    key, port = ws.servers[0], harness.free_port()
    server = f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {key.crt}; keyhold on; return \"alone\\n\"; }}"
    nginx = only_stream(ws, f"stream {{ {agent_line(ws)} keyhold_timeout 3s; keyhold_max_inflight 50; {server} }}\n").start()
    check(first_line(port, key) == "alone\n")
    quiet(nginx)
    nginx.reload()
    check(first_line(port, key) == "alone\n", "after a reload")
    done = only_stream(ws, f"stream {{ {server} }}\n").test()
    check(done.returncode != 0 and 'needs a "keyhold_agent"' in done.stderr, done.stderr)
    done = only_stream(ws, f"stream {{ {agent_line(ws)} {server.replace('keyhold on;', f'keyhold on; ssl_certificate_key {key.key};')} }}\n").test()
    check(done.returncode != 0 and "use one of them" in done.stderr, done.stderr)
    nginx.stop()


def test_f7_settings_in_one_of_both(ws):
    """The agent may be named in http{} or in stream{}, before or after those who use it; a setting in both is refused."""
    key, ports = ws.servers[0], [harness.free_port() for _ in range(2)]
    stream = f"server {{ listen 127.0.0.1:{ports[0]} ssl; ssl_certificate {key.crt}; keyhold on; return \"s\\n\"; }}"
    http = f"server {{ listen 127.0.0.1:{ports[1]} ssl; server_name {key.host}; ssl_certificate {key.crt}; keyhold on; return 200 \"h\\n\"; }}"

    def nginx(in_stream, in_http, stream_first):
        made = ws.nginx(None, ws.PLAIN + in_http + http, start=False,
                        main=load_modules(*STREAM, *OURS) + EVENTS + (f"stream {{ {in_stream} {stream} }}\n" if stream_first else ""))
        if not stream_first:
            with open(made.conf, "a") as file:
                file.write(f"stream {{ {in_stream} {stream} }}\n")
        return made

    for in_stream, in_http in ((agent_line(ws), "keyhold_timeout 3s;"), ("keyhold_timeout 3s;", agent_line(ws))):
        for stream_first in (True, False):
            one = nginx(in_stream, in_http, stream_first).start()
            check(first_line(ports[0], key) == "s\n" and ws.curl(key, port=ports[1]).stdout == "h\n", in_stream, stream_first)
            quiet(one)
            one.stop()
    twice = nginx("keyhold_timeout 2s;" + agent_line(ws), "keyhold_timeout 3s;", True).test()
    check(twice.returncode != 0 and '"keyhold_timeout" directive is duplicate' in twice.stderr, twice.stderr)


def test_f7_half_of_the_module(ws):
    """The stream file without the other one: said by name. The other one without nginx's stream: all is well."""
    nginx = ws.nginx(None, "", start=False, module=False, main=load_modules(*STREAM, *OURS) + EVENTS + "stream { }\n")
    done = nginx.test()
    check(done.returncode != 0 and "needs ngx_http_keyhold_module.so" in done.stderr, done.stderr)
    nginx = ws.nginx(ws.the_agent, ws.PLAIN + ws.server(ws.servers[0]))
    check(ws.curl(ws.servers[0]).stdout == "ec\n")
    nginx.stop()


def test_f7_ssl_preread(ws):
    """A stream server that only looks at the name and passes the bytes on, to servers whose keys are in the agent."""
    def blocks(side):
        names = " ".join(f"{key.host} 127.0.0.1:{side.port(key.name)};" for key in ws.servers)
        return (f"stream {{ map $ssl_preread_server_name $where {{ {names} }}\n"
                f"    server {{ listen 127.0.0.1:{side.port('preread')}; ssl_preread on; proxy_pass $where; }} }}\n")

    def http(side):
        return "".join(f"    server {{ listen 127.0.0.1:{side.port(key.name)} ssl backlog=1024; ssl_certificate {key.crt};\n"
                       f"        {side.server_key(key)} return 200 \"{key.name}\\n\"; }}\n" for key in ws.servers)

    sides = two_sides(ws, blocks, http)
    for side in sides:
        for key in ws.servers:
            check(ws.curl(key, port=side.port("preread")).stdout == key.name + "\n", key.name)
    loads_at_a_time(ws, [(key, sides[0].port("preread")) for key in ws.servers], "--request", "/", seconds=2)
    quiet(sides[0].nginx)


# ---- Towards proxied servers -----------------------------------------------------------------------------------------------------

def upstream_locations(ws, side, back, h2, uwsgi):
    """A location for each protocol, client key, version and session reuse; {path: what must come back}."""
    locations, paths = "", {}
    for client in ws.clients:
        for version in ("TLSv1.2", "TLSv1.3"):
            for reuse in ("on", "off"):
                for protocol, where in (("proxy", f"proxy_pass https://127.0.0.1:{back.port}"),
                                        ("grpc", f"grpc_pass grpcs://127.0.0.1:{h2}"),
                                        ("uwsgi", f"uwsgi_pass suwsgi://127.0.0.1:{uwsgi.port}")):
                    path = f"/{protocol}/{client.name}/{version}/{reuse}"
                    names = ((f"{protocol}_ssl_certificate", client.crt), (f"{protocol}_ssl_certificate_key", side.key_file(client)),
                             (f"{protocol}_ssl_protocols", version), (f"{protocol}_ssl_session_reuse", reuse))
                    settings = " ".join(f"{name} {value};" for name, value in names)
                    locations += f"        location {path} {{ {where}; {settings} }}\n"
                    paths[path] = f"{version} CN={client.host}"
    return f"    server {{ listen 127.0.0.1:{side.port('front')} backlog=1024;\n{locations}    }}\n", paths


def test_f7_upstreams(ws):
    """proxy, grpc and uwsgi with a client certificate: EC and RSA, TLS 1.2 and 1.3, with session reuse and without."""
    back = ws.make_key("p256", "back")
    h2 = upstream_servers(ws, back, ws.clients)
    uwsgi = UwsgiServer(ws, back, ws.clients)
    ours, local = two_sides(ws, lambda side: "", lambda side: upstream_locations(ws, side, back, h2, uwsgi)[0], modules=())
    paths = upstream_locations(ws, local, back, h2, uwsgi)[1]
    for path, expected in paths.items():
        before = operations(ws)
        reused = "." if path.endswith("off") else "r"
        for side in (ours, local):
            got = [get(side.port("front"), path) for _ in range(3)]
            check(got[0] == expected + " .\n", path, got)
            check(got[1:] == [f"{expected} {reused}\n"] * 2 or path.startswith("/uwsgi"), path, got)
        signed = operations(ws) - before
        check(signed == (3 if path.endswith("off") else 1) or path.startswith("/uwsgi"), path, "signatures:", signed)
    for ending in sorted({path.split("/", 2)[2] for path in paths if path.endswith("off")}):
        asked = [f"/{protocol}/{ending}" for protocol in ("proxy", "grpc", "uwsgi")]
        asking = {(path, side): getters(side.port("front"), path, 4) for path in asked for side in (ours, local)}
        wait_until(lambda: all(one.count() >= 40 for one in asking.values()), ending)
        found = {key: one.stop() for key, one in asking.items()}
        check(all(list(one) == [paths[path] + " .\n"] for (path, _), one in found.items()), found)
        print(f"F7: proxy, grpc, uwsgi {ending}: {sum(found[path, ours][paths[path] + ' .' + chr(10)] for path in asked)} requests with "
              f"the agent, {sum(found[path, local][paths[path] + ' .' + chr(10)] for path in asked)} with a local key, 0 failed")
    quiet(ours.nginx)


def test_f7_upstream_variables(ws):
    """proxy_ssl_certificate_key with variables: the worker finds the reference when it needs it."""
    back = ws.make_key("p256", "back-variables")
    upstream_servers(ws, back, ws.clients)

    def http(side):
        folder = os.path.join(ws.dir, f"variables.{side.ours}")
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o755)
        for client in ws.clients:
            os.rename(side.key_file(client), f"{folder}/{client.name}.key")
            os.rename(readable(ws, client.crt), f"{folder}/{client.name}.crt")
        return (f"    server {{ listen 127.0.0.1:{side.port('front')};\n"
                f"        location / {{ proxy_pass https://127.0.0.1:{back.port}; proxy_ssl_session_reuse off;\n"
                f"            proxy_ssl_certificate {folder}/$arg_who.crt; proxy_ssl_certificate_key {folder}/$arg_who.key; }} }}\n")

    ours, local = two_sides(ws, lambda side: "", http, modules=())
    for side in (ours, local):
        for client in ws.clients:
            check(f" CN={client.host} " in get(side.port("front"), f"/?who={client.name}"), client.name, side.ours)
        check(get(side.port("front"), "/?who=nobody").startswith("status 50"), side.ours)
    before = operations(ws)
    asking = [getters(ours.port("front"), f"/?who={client.name}") for client in ws.clients]
    wait_until(lambda: all(one.count() >= 40 for one in asking), "requests with variables")
    for client, one in zip(ws.clients, asking):
        found = one.stop()
        check(len(found) == 1 and f" CN={client.host} " in list(found)[0], found)
    check(operations(ws) - before >= 80, "the agent signed")
    log = ours.nginx.log().replace("[emerg] cannot load certificate", "")
    check("waits for the agent" not in log, "suspended")


def test_f7_stream_upstream(ws):
    """stream's proxy_ssl with a client certificate."""
    back = ws.make_key("p256", "back-stream")
    upstream_servers(ws, back, ws.clients)

    def blocks(side):
        servers = "".join(
            f"    server {{ listen 127.0.0.1:{side.port(client.name + version)} backlog=1024; proxy_pass 127.0.0.1:{back.port};\n"
            f"        proxy_ssl on; proxy_ssl_certificate {client.crt}; proxy_ssl_certificate_key {side.key_file(client)};\n"
            f"        proxy_ssl_protocols {version}; proxy_ssl_session_reuse off; }}\n"
            for client in ws.clients for version in ("TLSv1.2", "TLSv1.3"))
        return f"stream {{\n{servers}}}\n"

    ours, local = two_sides(ws, blocks)
    for client in ws.clients:
        for version in ("TLSv1.2", "TLSv1.3"):
            both = [getters(side.port(client.name + version), "/") for side in (ours, local)]
            wait_until(lambda: all(one.count() >= 60 for one in both), client.name)
            found = [one.stop() for one in both]
            check([list(one) for one in found] == [[f"{version} CN={client.host} .\n"]] * 2, client.name, version, found)
            print(f"F7: stream upstream {client.kind} {version}: {sum(found[0].values())} with the agent, "
                  f"{sum(found[1].values())} with a local key, 0 failed")
    quiet(ours.nginx)


# ---- mail{} ----------------------------------------------------------------------------------------------------------------------

def mail_session(protocol, how, port, key, version):
    """Greets, speaks TLS and leaves; what the server said, and how it was encrypted."""
    context = ssl.create_default_context(cafile=key.crt)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    if protocol == "smtp":
        mail = smtplib.SMTP_SSL("127.0.0.1", port, context=context) if how == "ssl" else smtplib.SMTP("127.0.0.1", port)
        first = mail.ehlo()
        return first, how == "ssl" or mail.starttls(context=context), mail.sock.version(), mail.quit()
    if protocol == "imap":
        mail = imaplib.IMAP4_SSL("127.0.0.1", port, ssl_context=context) if how == "ssl" else imaplib.IMAP4("127.0.0.1", port)
        return mail.welcome, how == "ssl" or mail.starttls(context), mail.sock.version(), mail.logout()
    mail = poplib.POP3_SSL("127.0.0.1", port, context=context) if how == "ssl" else poplib.POP3("127.0.0.1", port)
    return mail.welcome, how == "ssl" or mail.stls(context), mail.sock.version(), mail.quit()


def test_f7_mail(ws):
    """SMTP, IMAP and POP3, over TLS and with STARTTLS, with reference files."""
    def blocks(side):
        servers = ""
        for protocol in ("smtp", "imap", "pop3"):
            for how in ("ssl", "starttls"):
                for key in ws.servers:
                    tls = "starttls on;" if how == "starttls" else ""
                    listen = "ssl" if how == "ssl" else ""
                    servers += (f"    server {{ listen 127.0.0.1:{side.port((protocol, how, key.name))} {listen} backlog=1024; {tls}\n"
                                f"        protocol {protocol}; ssl_certificate {key.crt}; ssl_certificate_key {side.key_file(key)}; }}\n")
        return f"mail {{\n    server_name mail.test; auth_http 127.0.0.1:1/; {BOTH} ssl_session_cache off;\n{servers}}}\n"

    ours, local = two_sides(ws, blocks, modules=("ngx_mail_module.so",))
    before = operations(ws)
    for protocol in ("smtp", "imap", "pop3"):
        for how in ("ssl", "starttls"):
            for key in ws.servers:
                for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                    said = [mail_session(protocol, how, side.port((protocol, how, key.name)), key, version) for side in (ours, local)]
                    check(said[0] == said[1], protocol, how, key.name, version, said)
    check(operations(ws) - before == 24, "each handshake asked the agent once:", operations(ws) - before)
    for key in ws.servers:
        both = [Clients(lambda side=side, key=key: mail_session("pop3", "ssl", side.port(("pop3", "ssl", key.name)), key,
                                                                ssl.TLSVersion.TLSv1_3)) for side in (ours, local)]
        wait_until(lambda: all(one.count() >= 60 for one in both), "mail sessions")
        found = [one.stop() for one in both]
        check(len(found[0]) == 1 and list(found[0]) == list(found[1]) and "TLSv1.3" in list(found[0])[0], found)
        print(f"F7: mail {key.kind}: {sum(found[0].values())} sessions with the agent, {sum(found[1].values())} with a local key, "
              "0 failed")
    quiet(ours.nginx)


def test_f7_mail_before_http(ws):
    """mail{} alone: nothing but a reference, and the agent in http{}, which comes later."""
    key, port = ws.servers[0], harness.free_port()
    main = (load_modules("ngx_mail_module.so") + EVENTS + "mail { auth_http 127.0.0.1:1/; server_name m.test;\n"
            f"server {{ listen 127.0.0.1:{port} ssl; protocol imap; ssl_certificate {key.crt};\n"
            f"ssl_certificate_key {reference(ws, key)}; }} }}\n")
    nginx = ws.nginx(ws.the_agent, ws.PLAIN, main=main)
    check(b"IMAP4 ready" in mail_session("imap", "ssl", port, key, ssl.TLSVersion.TLSv1_2)[0])
    quiet(nginx)
    done = ws.nginx(None, ws.PLAIN, main=main, start=False).test()
    check(done.returncode != 0 and re.search(r"key reference is used.*keyhold_agent", done.stderr), done.stderr)


if __name__ == "__main__":
    harness.main(globals())
