#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""keyhold.so in programs that know nothing of it: `openssl` makes requests, certificates, signatures; decrypts; serves TLS.
The key is in the agent; what they have is a key reference and an openssl.cnf."""
import os
import subprocess

import fake_agent
import harness
from fake_agent import FakeAgent, write_reference
from harness import artefact, check, popen, port_open, read, run, wait_until

fake_agent.use_build_dir()

CONF = """openssl_conf = init
[init]
providers = providers
alg_section = algorithms
[algorithms]
default_properties = ?provider!=keyhold
[providers]
{order}
[default_section]
activate = 1
[keyhold_section]
module = {module}
activate = 1
agent = unix:{socket}
timeout_ms = 2000
[req]
distinguished_name = name
[name]
"""


def setup(ws):
    ws.all = {kind: ws.make_key(kind) for kind in ("rsa2048", "p256", "p384", "p521", "ed25519")}
    ws.fake = FakeAgent(ws)
    for key in ws.all.values():
        ws.fake.import_key(key)
        key.reference = write_reference(ws, key)
        key.public = key.crt + ".pub"
        run("openssl", "pkey", "-in", key.key, "-pubout", "-out", key.public)
    ws.fake.start()
    ws.message = os.path.join(ws.dir, "message")
    with open(ws.message, "w") as file:
        file.write("hello\n")
    ws.env = {}
    for order in ("default = default_section\nkeyhold = keyhold_section", "keyhold = keyhold_section\ndefault = default_section"):
        conf = os.path.join(ws.dir, f"openssl{len(ws.env)}.cnf")
        with open(conf, "w") as file:
            file.write(CONF.format(order=order, module=artefact("keyhold.so"), socket=ws.fake.socket))
        ws.env[conf] = dict(os.environ, OPENSSL_CONF=conf)


def tool(ws, *argv, ok=True, **more):
    """openssl with the provider, in either order of loading; the last result."""
    for env in ws.env.values():
        done = run("openssl", *argv, env=env, ok=ok, **more)
    return done


def out(ws, name):
    return os.path.join(ws.dir, ws.new_name(name))


def test_public_half(ws):
    for key in ws.all.values():
        check(tool(ws, "pkey", "-in", key.reference, "-pubout").stdout == read(key.public), key.name)
        done = tool(ws, "pkey", "-in", key.reference, ok=False)
        check(done.returncode != 0 and "PRIVATE" not in done.stdout, "no private key comes out:", done.stdout)


def test_requests_and_certificates(ws):
    for key in ws.all.values():
        request, certificate = out(ws, "csr"), out(ws, "crt")
        tool(ws, "req", "-new", "-key", key.reference, "-subj", "/CN=x", "-out", request)
        run("openssl", "req", "-in", request, "-verify", "-noout")
        tool(ws, "req", "-new", "-x509", "-key", key.reference, "-subj", "/CN=x", "-out", certificate)
        run("openssl", "verify", "-CAfile", certificate, certificate)


def test_signatures(ws):
    big = os.path.join(ws.dir, "big")
    with open(big, "wb") as file:
        file.write(bytes(100000))  # more than one request holds: its digest goes to the agent
    for kind in ("rsa2048", "p256", "p384", "p521"):
        key, signature = ws.all[kind], out(ws, "sig")
        for digest in ("-sha256", "-sha384", "-sha512"):
            for message in (ws.message, big):
                tool(ws, "dgst", digest, "-sign", key.reference, "-out", signature, message)
                run("openssl", "dgst", digest, "-verify", key.public, "-signature", signature, message)
    key, signature = ws.all["rsa2048"], out(ws, "sig")
    pss = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest")
    tool(ws, "dgst", "-sha384", "-sign", key.reference, *pss, "-out", signature, ws.message)
    run("openssl", "dgst", "-sha384", "-verify", key.public, *pss, "-signature", signature, ws.message)
    key = ws.all["ed25519"]
    tool(ws, "pkeyutl", "-sign", "-rawin", "-inkey", key.reference, "-in", ws.message, "-out", signature)
    run("openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", key.public, "-in", ws.message, "-sigfile", signature)
    done = tool(ws, "dgst", "-sha1", "-sign", ws.all["p256"].reference, "-out", signature, ws.message, ok=False)
    check(done.returncode != 0 and "keyhold" in done.stderr, "SHA-1 is refused by name:", done.stderr)


def test_decryption(ws):
    key, cipher = ws.all["rsa2048"], out(ws, "cipher")
    for options in ((), ("-pkeyopt", "rsa_padding_mode:oaep"),
                    ("-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256")):
        run("openssl", "pkeyutl", "-encrypt", "-pubin", "-inkey", key.public, "-in", ws.message, "-out", cipher, *options)
        check(tool(ws, "pkeyutl", "-decrypt", "-inkey", key.reference, "-in", cipher, *options).stdout == "hello\n", options)


def test_server(ws):
    """A TLS server that was never told about Keyhold."""
    for key in ws.all.values():
        port = harness.free_port()
        env = next(iter(ws.env.values()))
        server = popen(["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", key.crt, "-key", key.reference,
                        "-www"], out(ws, "server") + ".log", env=env)
        wait_until(lambda port=port: port_open(port), "s_server")
        for version in ("-tls1_2", "-tls1_3"):
            ws.s_client(key, version, port=port)
        server.terminate()
        server.wait(10)


def test_agent_comes_back(ws):
    """One process, many signatures, the agent restarted in between; and a fork in between."""
    script = os.path.join(ws.dir, "serve.py")
    key, port = ws.all["p256"], harness.free_port()
    with open(script, "w") as file:
        file.write(f"""
import os, socket, ssl
listener = socket.create_server(("127.0.0.1", {port}))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({key.crt!r}, {key.reference!r})
def serve():
    sock, _ = listener.accept()
    try:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(b"served by %d" % os.getpid())
    except OSError:
        pass
serve()
child = os.fork()  # both have what the first handshake left behind
while True:
    serve()
""")
    if "3." not in subprocess.run(["python3", "-c", "import ssl; print(ssl.OPENSSL_VERSION.split()[1])"], check=True,
                                  stdout=subprocess.PIPE, text=True).stdout:
        raise harness.Skip("Python without OpenSSL 3")
    server = popen(["python3", script], script + ".log", env=next(iter(ws.env.values())))
    wait_until(lambda: port_listens(port), "the server")
    seen = set()
    for round_number in range(20):
        if round_number == 10:
            ws.fake.stop()
            ws.fake.start()
        done = run("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", ok=False)
        check("served by" in done.stdout, round_number, done.stdout, done.stderr, read(script + ".log"))
        seen.add(done.stdout)
    check(len(seen) == 2, "both processes serve:", seen)
    server.terminate()
    server.wait(10)


def test_several_library_contexts(ws):
    """A program loads the provider into more library contexts, with other settings, while threads use a key."""
    key, other = ws.all["p256"], ws.fake.socket + ".2"
    os.symlink(ws.fake.socket, other)
    confs = [next(iter(ws.env))]
    confs.append(confs[0] + ".2")
    with open(confs[1], "w") as file:
        file.write(read(confs[0]).replace("unix:" + ws.fake.socket, "unix:" + other))
    script = os.path.join(ws.dir, "contexts.py")
    with open(script, "w") as file:
        file.write(f"""
import ctypes, ssl, threading
crypto = ctypes.CDLL("libcrypto.so.3")
crypto.OSSL_LIB_CTX_new.restype = ctypes.c_void_p
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain({key.crt!r}, {key.reference!r})
client = ssl.create_default_context(cafile={key.crt!r})
done = threading.Event()
failed = []
def handshake():
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server, server_hostname={key.host!r}), server.wrap_bio(to_server, to_client, True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert ends[0].version() and ends[1].version()
def use():
    try:
        while not done.is_set():
            handshake()
    except Exception as why:
        failed.append(repr(why))
threads = [threading.Thread(target=use) for _ in range(3)]
for thread in threads:
    thread.start()
for i in range(150):
    context = ctypes.c_void_p(crypto.OSSL_LIB_CTX_new())
    assert crypto.OSSL_LIB_CTX_load_config(context, ({confs!r}[i % 2]).encode()) == 1
    crypto.OSSL_LIB_CTX_free(context)
done.set()
for thread in threads:
    thread.join()
print("failed", failed)
""")
    done = run("python3", script, env=dict(ws.env[confs[0]], MALLOC_PERTURB_="165"), ok=False)
    check(done.returncode == 0 and done.stdout == "failed []\n", done.returncode, done.stdout, done.stderr)


def port_listens(port):
    """Without connecting: the server takes each connection for a client."""
    wanted = f"0100007F:{port:04X}"
    return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in read("/proc/net/tcp").splitlines()[1:])


def test_without_the_agent(ws):
    ws.fake.stop()
    done = tool(ws, "dgst", "-sha256", "-sign", ws.all["p256"].reference, "-out", out(ws, "sig"), ws.message, ok=False)
    check(done.returncode != 0 and "keyhold" in done.stderr, done.stderr)
    ws.fake.start()


if __name__ == "__main__":
    harness.main(globals())
