#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The main road: every type of key, TLS 1.2 and 1.3, curl and openssl s_client, reference files, the operator's commands.

KH_PRESET=asan or tsan runs the same with that build of the agent and its tools (claim M16); with asan the module too.
"""
import os

import harness
from harness import check, read, run, wait_until

PRESET = os.environ.get("KH_PRESET", "release")
KINDS = ["rsa2048", "rsa3072", "rsa4096", "p256", "p384", "p521", "ed25519"]
SIGNATURES = {"rsa": "RSA-PSS", "p": "ECDSA", "ed25519": "ed25519"}

agent = None
nginx = None
keys = {}
dual = plain = referred = None


def nginx_build():
    """The build of the module and what nginx needs in its environment to load it."""
    if PRESET != "asan":
        return {"preset": "release"}
    runtime = run("gcc", "-print-file-name=libasan.so").stdout.strip()
    return {"preset": "asan", "env": {**os.environ, "LD_PRELOAD": os.path.realpath(runtime),
                                      "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1"}}


def setup(ws):
    global agent, nginx, dual, plain, referred
    agent = ws.agent(preset=PRESET)
    for kind in KINDS:
        keys[kind] = ws.make_key(kind)
        agent.import_key(keys[kind])
    dual = ws.make_key("p256", "dual")
    agent.import_key(dual)
    second = ws.make_key("rsa2048", "dual-rsa")
    agent.import_key(second)
    plain = ws.make_key("rsa2048", "plain")
    referred = ws.make_key("p256", "referred")
    agent.import_key(referred)
    reference = os.path.join(ws.dir, "referred.ref.pem")
    with open(reference, "w") as file:
        file.write(agent.ctl("key", "reference", "referred").stdout)
    http = ("    log_format key '$server_port $ssl_protocol $keyhold_status $keyhold_time $keyhold_agent';\n"
            f"    access_log {ws.dir}/access.log key;\n")
    http += "".join(ws.server(key) for key in keys.values())
    http += ws.server(dual, extra=f"ssl_certificate {second.crt};")
    http += ws.server(plain, local=True)
    http += ws.server(referred).replace("keyhold on;", f"ssl_certificate_key {reference};")
    nginx = ws.nginx(agent, http, **nginx_build())


def test_curl_each_key_and_version(ws):
    for kind, key in keys.items():
        for version in ("1.2", "1.3"):
            if kind == "p521":
                continue  # curl's OpenSSL offers P-521 signatures, but see s_client for it
            answer = ws.curl(key, "--tlsv" + version, "--tls-max", version).stdout
            check(answer == key.name + "\n", kind, version, answer)


def test_s_client_each_key_and_version(ws):
    for kind, key in keys.items():
        wanted = next(value for prefix, value in SIGNATURES.items() if kind.startswith(prefix))
        for version in ("-tls1_2", "-tls1_3"):
            out = ws.s_client(key, version).stdout
            check(f"Peer signature type: {wanted}" in out, kind, version, out[-1500:])


def test_rsa_pkcs1_in_tls12(ws):
    for hash_name in ("SHA256", "SHA384", "SHA512"):
        out = ws.s_client(keys["rsa2048"], "-tls1_2", "-sigalgs", "RSA+" + hash_name).stdout
        check("Peer signature type: RSA\n" in out, hash_name, out[-1500:])


def test_two_certificates_of_one_server(ws):
    check("ECDSA" in ws.s_client(dual, "-tls1_3", "-sigalgs", "ecdsa_secp256r1_sha256").stdout, "the EC one")
    done = run("openssl", "s_client", "-connect", f"127.0.0.1:{dual.port}", "-servername", dual.host, "-tls1_3",
               "-sigalgs", "rsa_pss_rsae_sha256")
    check("Peer signature type: RSA-PSS" in done.stdout, "the RSA one", done.stdout[-1500:])


def test_reference_file(ws):
    for version in ("1.2", "1.3"):
        check(ws.curl(referred, "--tlsv" + version, "--tls-max", version).stdout == "referred\n", version)
    out = run("openssl", "x509", "-in", referred.crt, "-noout", "-pubkey").stdout
    check("BEGIN PUBLIC KEY" in out)


def test_local_key_beside(ws):
    check(ws.curl(plain).stdout == "plain\n")


def test_access_log_variables(ws):
    ws.curl(keys["p256"], "--tls-max", "1.2")
    ws.curl(plain)
    log = os.path.join(ws.dir, "access.log")
    line = wait_until(lambda: [entry for entry in read(log).splitlines() if entry.startswith(f"{plain.port} ")],
                      "the access log's line")[-1].split()
    check(line[2] == "-", "a local key needs no operation:", line)
    line = [entry.split() for entry in read(log).splitlines() if entry.startswith(f"{keys['p256'].port} ")][-1]
    check(line[2] == "ok" and 0 < float(line[3]) < 10 and agent.socket in line[4], line)


def test_wrong_client_does_not_matter(ws):
    """A client that offers nothing in common, and one that speaks no TLS, fail for themselves alone."""
    done = ws.s_client(keys["p256"], "-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256", ok=False)
    check(done.returncode != 0, "no common signature algorithm must fail")
    ws.curl(keys["p256"])


def test_operator(ws):
    agent.ctl("ping")
    status = agent.status()
    roles = {process["role"] for process in status["processes"]}
    check({"front", "keeper"} <= {role.split()[0] for role in roles}, roles)
    listed = agent.ctl("key", "list").stdout
    for name in [key.name for key in keys.values()]:
        check(name in listed, name, listed)
    agent.ctl("check-nginx", nginx.conf)
    agent.ctl("key", "create", "fresh", "--type", "p-256")
    certificate = os.path.join(ws.dir, "fresh.crt")
    agent.ctl("cert", "self-signed", "fresh", "--subject", "/CN=fresh.keyhold.test", "--san", "DNS:fresh.keyhold.test",
              "--days", "9", "--out", certificate)
    run("openssl", "verify", "-CAfile", certificate, certificate)


def test_load_without_a_failure(ws):
    reports = [ws.load(keys[kind], "--clients", 20, "--seconds", 2, "--request", "/").wait()
               for kind in ("p256", "rsa2048")]
    for report in reports:
        check(report["failed"] == 0 and report["done"] > 20, report)


def test_zz_stops_cleanly(ws):
    """Last: both end by themselves, and nothing bad is in their logs."""
    nginx.stop(harness.signal.SIGQUIT)
    check(agent.stop() == 0, "exit status of keyholdd")
    for log in (nginx.log(), agent.log()):
        for bad in ("[alert]", "[crit]", "[emerg]", "Sanitizer", "runtime error"):
            check(bad not in log, bad, log[-3000:])


if __name__ == "__main__":
    harness.main(globals())
