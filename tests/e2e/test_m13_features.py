#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M13: nginx's TLS features with the key in the agent, side by side with a stock nginx that has the key as a local file: SNI
with wildcard and regex names, several certificates per server, ALPN h2, early data, client certificates and their OCSP check,
OCSP stapling, proxy_protocol, certificates in variables with reference files, TLS 1.2 with each kind of key, stream. With
the test agent, and once more with the real one."""
import base64
import http.server
import os
import re
import socket
import ssl
import threading
import urllib.parse

import fake_agent
import harness
from fake_agent import FakeAgent
from harness import check, read, run, wait_until

fake_agent.use_build_dir()

DELAY_MS = 20  # each operation really parks


# ---- Two nginx that differ in where the key is ---------------------------------------------------------------------------------

def agent_with(ws, keys, delay_ms=DELAY_MS):
    """The test agent, or the real one in those tests that run a second time; it has the keys and answers."""
    if not ws.real:
        agent = FakeAgent(ws, "--delay-ms", delay_ms)
        for key in keys:
            agent.import_key(key)
        return agent.start()
    agent = ws.agent(delay_ms=delay_ms)
    for key in keys:
        agent.import_key(key, "--usage", "tls-server,tls-rsa-kx" if key.kind.startswith("rsa") else "tls-server")
    return agent


def operations(agent):
    """How many private-key operations an agent has done."""
    if isinstance(agent, FakeAgent):
        return agent.counters()[0]
    done = agent.status()["operations"]
    return sum(done.get(name, {}).get("results", {}).get("ok", 0) for name in ("sign", "tls-rsa-decrypt"))


class Pair:
    """The same configuration twice: `http_block(where, port)` gives the server blocks, where(key) says whose key it is."""

    def __init__(self, ws, keys, http_block, main=""):
        self.ws = ws
        self.agent = agent_with(ws, keys)
        self.ports = {}
        self.ours = ws.nginx(self.agent, self.configuration(http_block, "ours", lambda key: "keyhold on;"), main=main)
        self.local = ws.local_nginx(self.configuration(http_block, "local", lambda key: f"ssl_certificate_key {key.key};"), main=main)

    def configuration(self, http_block, side, where):
        return http_block(where, lambda name: self.ports.setdefault((side, name), harness.free_port()))

    def same(self, name, client, what):
        """Runs client(port) against both; the results must be equal, and the first one is returned."""
        results = [client(self.ports[(side, name)]) for side in ("ours", "local")]
        check(results[0] == results[1], f"{what}: with the agent {results[0]!r}, with a local key {results[1]!r}")
        return results[0]

    def operations(self):
        return operations(self.agent)

    def quiet(self):
        """Neither log has an alert."""
        for nginx in (self.ours, self.local):
            bad = [line for line in nginx.log().splitlines() if re.search(r"\[(alert|emerg|crit)\]|on signal", line)]
            check(not bad, "\n".join(bad[:10]))


def curl(ws, key, host, *args):
    def client(port):
        done = run("curl", "-sS", "--noproxy", "*", "--max-time", "30", "--cacert", key.crt, "--resolve",
                   f"{host}:{port}:127.0.0.1", *args, f"https://{host}:{port}/", ok=False)
        return done.returncode, done.stdout
    return client


def s_client(*args, input="", pick=r"."):
    """Those lines of s_client's output that match, each once (TLS 1.3 repeats some for each ticket that came in time)."""
    def client(port):
        done = run("openssl", "s_client", "-connect", f"127.0.0.1:{port}", *args, ok=False, input=input)
        return list(dict.fromkeys(line.strip() for line in done.stdout.splitlines() if re.search(pick, line)))
    return client


def certificate(ws, key, name, *alt, ca=None, extensions=()):
    """A certificate for a key, for several names, self-signed or by a CA (a harness.Key whose certificate is one)."""
    path = os.path.join(ws.dir, name + ".crt")
    alternatives = ",".join("DNS:" + one for one in alt)
    argv = ["openssl", "req", "-new", "-x509", "-key", key.key, "-subj", "/CN=" + name, "-days", "30", "-out", path]
    if alternatives:
        argv += ["-addext", "subjectAltName=" + alternatives]
    for extension in extensions:
        argv += ["-addext", extension]
    if ca:
        request = path + ".csr"
        run("openssl", "req", "-new", "-key", key.key, "-subj", "/CN=" + name, "-out", request,
            *(("-addext", "subjectAltName=" + alternatives) if alternatives else ()))
        run("openssl", "x509", "-req", "-in", request, "-CA", ca.crt, "-CAkey", ca.key, "-CAcreateserial", "-days", "30",
            "-copy_extensions", "copy", "-out", path)
    else:
        run(*argv)
    return path


# ---- Tests ----------------------------------------------------------------------------------------------------------------------

def test_m13_server_names(ws):
    """Exact, wildcard and regex names on one port, each with its own key; the regex's capture is used."""
    exact, wild, regex = ws.make_key("p256", "exact"), ws.make_key("rsa2048", "wild"), ws.make_key("p384", "regex")
    crts = {exact: certificate(ws, exact, "exact", "exact.test"), wild: certificate(ws, wild, "wild", "*.wild.test"),
            regex: certificate(ws, regex, "regex", "*.re.test")}
    names = {exact: "exact.test", wild: "*.wild.test", regex: "~^(?<who>.+)\\.re\\.test$"}

    def sites(where, port):
        return "".join(
            f"    server {{ listen 127.0.0.1:{port('sni')} ssl; server_name {names[key]}; ssl_certificate {crts[key]};\n"
            f"        {where(key)} location / {{ return 200 \"{key.name} {'$who' if key is regex else ''}"
            f" $ssl_server_name\\n\"; }} }}\n" for key in (exact, wild, regex))

    pair = Pair(ws, (exact, wild, regex), sites)
    for key, host, answer in ((exact, "exact.test", "exact  exact.test\n"), (wild, "a.wild.test", "wild  a.wild.test\n"),
                              (regex, "me.re.test", "regex me me.re.test\n")):
        key.crt = crts[key]
        for version in ("1.2", "1.3"):
            got = pair.same("sni", curl(ws, key, host, "--tlsv" + version, "--tls-max", version), host)
            check(got == (0, answer), got)
    check(pair.operations() == 6, "each handshake asked the agent once:", pair.operations())
    pair.quiet()


def test_m13_several_certificates(ws):
    """RSA and ECDSA in one server: the client's signature algorithms decide; the same cipher and group on both sides."""
    rsa, ec = ws.make_key("rsa2048"), ws.make_key("p256")
    both = [certificate(ws, key, key.name, "two.test") for key in (rsa, ec)]

    def sites(where, port):
        keys = where(rsa) if where(rsa) == "keyhold on;" else where(rsa) + " " + where(ec)
        return (f"    server {{ listen 127.0.0.1:{port('two')} ssl; ssl_certificate {both[0]}; ssl_certificate {both[1]};\n"
                f"        {keys} location / {{ return 200 \"$ssl_cipher\\n\"; }} }}\n")

    pair = Pair(ws, (rsa, ec), sites)
    pick = r"^(Peer sign|Peer signature type|Peer Temp|Server Temp Key|subject=|New, TLS)"
    for version in ("-tls1_2", "-tls1_3"):
        for algorithms in ("RSA-PSS+SHA256", "RSA-PSS+SHA384", "RSA-PSS+SHA512", "ECDSA+SHA256") + (
                ("RSA+SHA256", "RSA+SHA384", "RSA+SHA512", "ECDSA+SHA384") if version == "-tls1_2" else ()):
            lines = pair.same("two", s_client(version, "-sigalgs", algorithms, pick=pick), f"{version} {algorithms}")
            check(any("Peer signing digest" in line for line in lines), lines)
    pair.quiet()


def test_m13_key_types_and_ciphers(ws):
    """Each key type, TLS 1.2 and 1.3; the RSA key exchange of TLS 1.2 decrypts in the agent."""
    keys = [ws.make_key(kind) for kind in ("rsa2048", "rsa4096", "p256", "p384", "p521", "ed25519")]

    def sites(where, port):
        return "".join(f"    server {{ listen 127.0.0.1:{port(key.name)} ssl; ssl_certificate {key.crt}; {where(key)}\n"
                       f"        ssl_ciphers ALL; location / {{ return 200 \"$ssl_cipher\\n\"; }} }}\n" for key in keys)

    pair = Pair(ws, keys, sites)
    for key in keys:
        for version in ("1.2", "1.3"):
            got = pair.same(key.name, curl(ws, key, key.host, "--tlsv" + version, "--tls-max", version), key.name)
            check(got[0] == 0, key.name, version, got)
    for cipher in ("AES128-SHA", "AES256-GCM-SHA384", "DHE-RSA-AES128-GCM-SHA256"):
        got = pair.same("rsa2048", curl(ws, keys[0], keys[0].host, "--tls-max", "1.2", "--ciphers", cipher), cipher)
        check(cipher.startswith("DHE") or got == (0, cipher + "\n"), cipher, got)
    pair.quiet()


def test_m13_alpn_h2(ws):
    key = ws.make_key("p256")

    def sites(where, port):
        return (f"    server {{ listen 127.0.0.1:{port('h2')} ssl http2; ssl_certificate {key.crt}; {where(key)}\n"
                f"        location / {{ return 200 \"$server_protocol $ssl_protocol\\n\"; }} }}\n")

    pair = Pair(ws, (key,), sites)
    for args, answer in ((("--http2",), "HTTP/2.0"), (("--http1.1",), "HTTP/1.1")):
        for version in ("1.2", "1.3"):
            got = pair.same("h2", curl(ws, key, key.host, *args, "--tls-max", version, "--tlsv" + version), answer)
            check(got == (0, f"{answer} TLSv{version}\n"), got)
    pick = r"^(ALPN|No ALPN)"
    check(pair.same("h2", s_client("-alpn", "h2,http/1.1", pick=pick), "ALPN") == ["ALPN protocol: h2"])
    pair.same("h2", s_client("-alpn", "nonsense", pick=pick), "ALPN without a common protocol")
    pair.quiet()


def test_m13_early_data(ws):
    key = ws.make_key("p256")

    def sites(where, port):
        return ("    ssl_protocols TLSv1.3; ssl_session_tickets on; ssl_session_cache shared:early:1m; ssl_early_data on;\n"
                "    keepalive_timeout 0;\n"
                f"    server {{ listen 127.0.0.1:{port('early')} ssl; ssl_certificate {key.crt}; {where(key)}\n"
                f"        location / {{ return 200 \"early=$ssl_early_data reused=$ssl_session_reused\\n\"; }} }}\n")

    pair = Pair(ws, (key,), sites)
    request = os.path.join(ws.dir, "request")
    with open(request, "w") as file:
        file.write("GET / HTTP/1.0\r\n\r\n")

    def client(port):
        session = os.path.join(ws.dir, f"session.{port}")
        first = run("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-sess_out", session, "-ign_eof",
                    ok=False, input="GET / HTTP/1.0\r\n\r\n").stdout
        second = run("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-sess_in", session, "-early_data",
                     request, "-ign_eof", ok=False).stdout
        return [line for out in (first, second) for line in out.splitlines() if re.match(r"early=|Early data was acc", line)]

    # $ssl_early_data is 1 as long as the client's Finished is not there: on a busy machine it may come before the request is looked
    # at, with a local key just as well.
    wanted = ["early= reused=.", "Early data was accepted", "early=1 reused=r"]
    full = {"ours": 0, "local": 0}
    for side in full:
        def served_early(side=side):
            full[side] += 1
            got = client(pair.ports[(side, "early")])
            check(got[:2] == wanted[:2] and got[2:] in (wanted[2:], ["early= reused=r"]), side, got)
            return got == wanted
        wait_until(served_early, side + ": early data is served as early data")
    check(pair.operations() == full["ours"], "a resumed handshake needs no key:", pair.operations(), full)
    pair.quiet()


def test_m13_client_certificates(ws):
    key, ca, client_key, stranger = (ws.make_key("p256", name) for name in ("server", "ca", "client", "stranger"))
    client_crt = certificate(ws, client_key, "client", ca=ca)

    def sites(where, port):
        return (f"    server {{ listen 127.0.0.1:{port('client')} ssl; ssl_certificate {key.crt}; {where(key)}\n"
                f"        ssl_verify_client on; ssl_client_certificate {ca.crt};\n"
                f"        location / {{ return 200 \"$ssl_client_verify $ssl_client_s_dn\\n\"; }} }}\n")

    pair = Pair(ws, (key,), sites)
    for version in ("1.2", "1.3"):
        only = ("--tlsv" + version, "--tls-max", version)
        good = pair.same("client", curl(ws, key, key.host, *only, "--cert", client_crt, "--key", client_key.key), "good")
        check(good == (0, "SUCCESS CN=client\n"), good)
        bad = pair.same("client", curl(ws, key, key.host, *only, "--cert", stranger.crt, "--key", stranger.key), "bad")
        check("400 Bad Request" in bad[1], bad)
        check("400 No required" in pair.same("client", curl(ws, key, key.host, *only), "none")[1], "none")
    pair.quiet()


class Responder:
    """A small CA of OpenSSL's own with an OCSP responder."""

    def __init__(self, ws, ca, certificates):
        self.index, self.port = os.path.join(ws.dir, "index.txt"), harness.free_port()
        self.asked = 0
        with open(self.index, "w") as file:
            for path, state in certificates:
                serial = run("openssl", "x509", "-in", path, "-noout", "-serial").stdout.strip().split("=")[1]
                subject = run("openssl", "x509", "-in", path, "-noout", "-subject", "-nameopt", "compat").stdout
                revoked = "250101000000Z" if state == "R" else ""
                file.write(f"{state}\t491231235959Z\t{revoked}\t{serial}\tunknown\t{subject.strip().split('=', 1)[1]}\n")
        self.ca = ca
        self.base = ["-index", self.index, "-CA", ca.crt, "-rsigner", ca.crt, "-rkey", ca.key]

    def start(self, ws):
        """Answers on loopback alone, which `openssl ocsp -port` cannot do."""
        responder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                request = os.path.join(ws.dir, f"ocsp.{responder.asked}")
                responder.asked += 1
                with open(request, "wb") as file:
                    file.write(base64.b64decode(urllib.parse.unquote(self.path[1:])))
                run("openssl", "ocsp", *responder.base, "-ndays", "7", "-reqin", request, "-respout", request + ".der")
                with open(request + ".der", "rb") as file:
                    body = file.read()
                self.send_response(200)
                self.send_header("Content-Type", "application/ocsp-response")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def response(self, ws, path):
        """A DER response for a certificate, for ssl_stapling_file."""
        out = path + ".ocsp"
        run("openssl", "ocsp", "-issuer", self.ca.crt, "-cert", path, "-reqout", out + ".req")
        run("openssl", "ocsp", *self.base, "-ndays", "7", "-reqin", out + ".req", "-respout", out)
        return out


def test_m13_ocsp_stapling(ws):
    key, ca = ws.make_key("rsa2048", "server"), ws.make_key("p256", "ca")
    crt = certificate(ws, key, "server", key.host, ca=ca)
    response = Responder(ws, ca, [(crt, "V")]).response(ws, crt)
    chain = crt + ".chain"
    with open(chain, "w") as file:
        file.write(read(crt) + read(ca.crt))

    def sites(where, port):
        return (f"    server {{ listen 127.0.0.1:{port('staple')} ssl; ssl_certificate {chain}; {where(key)}\n"
                f"        ssl_stapling on; ssl_stapling_file {response}; location / {{ return 200 \"ok\\n\"; }} }}\n")

    pair = Pair(ws, (key,), sites)
    for version in ("-tls1_2", "-tls1_3"):
        lines = pair.same("staple", s_client(version, "-status", "-CAfile", ca.crt, pick=r"OCSP|Cert Status|Verify return code"),
                          "stapling")
        check("Cert Status: good" in lines and "Verify return code: 0 (ok)" in "".join(lines), lines)
    pair.quiet()


def test_m13_ocsp_stapling_fetched(ws):
    """nginx asks the responder itself: it begins to in a handshake that may be parked a moment later."""
    key, ca = ws.make_key("p256", "server"), ws.make_key("p256", "ca")
    crt = certificate(ws, key, "server", key.host, ca=ca)
    responder = Responder(ws, ca, [(crt, "V")]).start(ws)
    chain = crt + ".chain"
    with open(chain, "w") as file:
        file.write(read(crt) + read(ca.crt))

    def sites(where, port):
        return (f"    server {{ listen 127.0.0.1:{port('staple')} ssl; ssl_certificate {chain}; {where(key)}\n"
                f"        ssl_stapling on; ssl_stapling_responder http://127.0.0.1:{responder.port}/;\n"
                f"        location / {{ return 200 \"ok\\n\"; }} }}\n")

    pair = Pair(ws, (key,), sites)
    for version in ("-tls1_2", "-tls1_3"):
        stapled = s_client(version, "-status", "-CAfile", ca.crt, pick=r"Cert Status|Verify return code")
        for side in ("ours", "local"):
            wait_until(lambda side=side: "Cert Status: good" in stapled(pair.ports[(side, "staple")]), "a stapled answer")
        pair.same("staple", stapled, "stapling of what was fetched")
    pair.quiet()


def test_m13_client_certificates_by_ocsp(ws):
    """nginx asks a responder while the handshake waits: the end of it comes from elsewhere than the client."""
    key, ca, good_key, bad_key = (ws.make_key("p256", name) for name in ("server", "ca", "good", "bad"))
    good, bad = certificate(ws, good_key, "good", ca=ca), certificate(ws, bad_key, "bad", ca=ca)
    responder = Responder(ws, ca, [(good, "V"), (bad, "R")]).start(ws)

    def sites(where, port):
        return (f"    server {{ listen 127.0.0.1:{port('ocsp')} ssl; ssl_certificate {key.crt}; {where(key)}\n"
                f"        ssl_verify_client on; ssl_client_certificate {ca.crt};\n"
                f"        ssl_ocsp leaf; ssl_ocsp_responder http://127.0.0.1:{responder.port}/;\n"
                f"        location / {{ return 200 \"$ssl_client_verify $ssl_client_s_dn\\n\"; }} }}\n")

    pair = Pair(ws, (key,), sites)
    for version in ("1.2", "1.3"):
        only = ("--tlsv" + version, "--tls-max", version)
        got = pair.same("ocsp", curl(ws, key, key.host, *only, "--cert", good, "--key", good_key.key), "good by OCSP")
        check(got == (0, "SUCCESS CN=good\n"), got)
        got = pair.same("ocsp", curl(ws, key, key.host, *only, "--cert", bad, "--key", bad_key.key), "revoked by OCSP")
        check("400" in got[1] and "SUCCESS" not in got[1], got)
    pair.quiet()


def test_m13_proxy_protocol(ws):
    key = ws.make_key("p256")

    def sites(where, port):
        return (f"    server {{ listen 127.0.0.1:{port('proxy')} ssl proxy_protocol; ssl_certificate {key.crt}; {where(key)}\n"
                f"        location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port\\n\"; }} }}\n")

    pair = Pair(ws, (key,), sites)
    context = ssl.create_default_context(cafile=key.crt)

    def client(together):
        def body(port):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
                raw.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 443\r\n")
                if not together:
                    harness.time.sleep(0.1)
                with context.wrap_socket(raw, server_hostname=key.host) as sock:
                    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    answer = b""
                    while part := sock.recv(4096):
                        answer += part
                    return answer.split(b"\r\n\r\n", 1)[1]
        return body

    for together in (True, False):
        check(pair.same("proxy", client(together), "proxy_protocol") == b"192.0.2.7 4711\n")
    pair.quiet()


def test_m13_certificates_in_variables(ws):
    keys = [ws.make_key("p256", "one"), ws.make_key("rsa2048", "two")]
    folder = os.path.join(ws.dir, "sites")
    os.mkdir(folder)
    os.chmod(folder, 0o755)
    for key in keys:
        for path, text in ((f"{key.host}.crt", read(key.crt)), (f"{key.host}.ref.pem", fake_agent.key_reference(key)),
                           (f"{key.host}.key", read(key.key))):
            with open(os.path.join(folder, path), "w") as file:
                file.write(text)
            os.chmod(file.name, 0o644)

    def sites(where, port):
        suffix = "ref.pem" if where(keys[0]) == "keyhold on;" else "key"
        return (f"    server {{ listen 127.0.0.1:{port('variables')} ssl; ssl_certificate {folder}/$ssl_server_name.crt;\n"
                f"        ssl_certificate_key {folder}/$ssl_server_name.{suffix};\n"
                f"        location / {{ return 200 \"$ssl_server_name\\n\"; }} }}\n")

    pair = Pair(ws, keys, sites)
    for key in keys:
        for version in ("1.2", "1.3"):
            got = pair.same("variables", curl(ws, key, key.host, "--tlsv" + version, "--tls-max", version), key.host)
            check(got == (0, key.host + "\n"), got)
    check(pair.operations() == 4, "each handshake asked the agent:", pair.operations())
    pair.quiet()
    bad = ws.nginx(pair.agent, f"    server {{ listen 127.0.0.1:{harness.free_port()} ssl; keyhold on;\n"
                               f"        ssl_certificate {folder}/$ssl_server_name.crt; }}\n", start=False).test()
    check(bad.returncode != 0 and "reference" in bad.stderr, "keyhold on with variables is refused:", bad.stderr)


def test_m13_log_variables(ws):
    """$keyhold_status, $keyhold_time and $keyhold_agent; "-" where no key was needed."""
    key, local = ws.make_key("p256"), ws.make_key("p256", "local")
    agent = agent_with(ws, (key,))
    log = os.path.join(ws.dir, "access.txt")
    sites = (ws.PLAIN + f"    log_format k '$server_port $keyhold_status $keyhold_time $keyhold_agent';\n    access_log {log} k;\n"
            + ws.server(key) + ws.server(local, local=True))
    ws.nginx(agent, sites)
    for one in (key, local):
        check(ws.curl(one).returncode == 0)
    wait_until(lambda: len(read(log).splitlines()) == 2, "two lines of access log")
    ours, other = read(log).splitlines()
    words = ours.split()
    check(words[:2] == [str(key.port), "ok"] and words[3] == "unix:" + agent.socket, ours)
    check(DELAY_MS / 1000 - 0.001 < float(words[2]) < 5, "the time includes the wait:", ours)
    check(other == f"{local.port} - - -", other)


def test_m13_stream(ws):
    """A stream server with a key reference parks like an http one (test_f7_contexts.py has the rest of stream)."""
    module = "/usr/lib/nginx/modules/ngx_stream_module.so"
    if not os.path.exists(module):
        raise harness.Skip("no stream module")
    key = ws.make_key("p256")
    agent = agent_with(ws, (key,))
    port = harness.free_port()
    reference = fake_agent.write_reference(ws, key)
    nginx = ws.nginx(agent, "", start=False)
    with open(nginx.conf, "r+") as file:
        text = f"load_module {module};\n" + file.read()
        file.seek(0)
        file.write(text + f"stream {{ server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {key.crt};\n"
                          f"    ssl_certificate_key {reference}; return \"stream\\n\"; }} }}\n")
    nginx.start()
    done = run("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", "-CAfile", key.crt, ok=False)
    check("stream" in done.stdout, done.stdout, done.stderr)
    check("waits for the agent" not in nginx.log(), "it was parked")


# ---- Each of them twice -----------------------------------------------------------------------------------------------------------

def with_agent(test, real):
    def body(ws):
        ws.real = real
        test(ws)
    body.__doc__ = test.__doc__
    return body


for _name, _test in [item for item in globals().items() if item[0].startswith("test_m13_")]:
    globals()[_name] = with_agent(_test, False)
    globals()[_name + "_real_agent"] = with_agent(_test, True)


if __name__ == "__main__":
    harness.main(globals())
