#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""T1: every signature scheme that a token can do works through the real nginx, over TLS 1.2 and 1.3, with keys that were made in the
token and with keys that were brought into it, on both tiers; with SoftHSM, and with NSS's softokn."""
import re

import hsm
import harness
from harness import check, run

# For each type of key: what a client may ask for over TLS 1.3, over TLS 1.2, and what it then sees.
RSA_PSS = [(f"rsa_pss_rsae_sha{bits}", f"SHA{bits}", "RSA-PSS") for bits in (256, 384, 512)]
RSA_PKCS1 = [(f"RSA+SHA{bits}", f"SHA{bits}", "RSA") for bits in (256, 384, 512)]
EC_12 = [(f"ECDSA+SHA{bits}", f"SHA{bits}", "ECDSA") for bits in (256, 384, 512)]
SCHEMES = {
    "rsa2048": (RSA_PSS, RSA_PSS + RSA_PKCS1),
    "rsa3072": (RSA_PSS, RSA_PSS + RSA_PKCS1),
    "rsa4096": (RSA_PSS, RSA_PSS + RSA_PKCS1),
    "p256": ([("ecdsa_secp256r1_sha256", "SHA256", "ECDSA")], EC_12),
    "p384": ([("ecdsa_secp384r1_sha384", "SHA384", "ECDSA")], EC_12),
    "p521": ([("ecdsa_secp521r1_sha512", "SHA512", "ECDSA")], EC_12),
    "ed25519": ([("ed25519", None, "ED25519")], [("ed25519", None, "ED25519")]),
}
SOFT = list(SCHEMES)
POOLED = [kind for kind in SCHEMES if kind != "ed25519"]  # which no token wraps
NSS = ["p256", "p384", "p521", "rsa2048", "rsa3072"]


def handshake(ws, key, version, scheme, digest, kind):
    """One full handshake with the client's list of schemes reduced to this one; the client verifies it."""
    done = ws.s_client(key, "-" + version, "-sigalgs", scheme, ok=False)
    seen = re.search(r"^Peer signature type: (\S+)", done.stdout, re.M)
    check("Verify return code: 0 (ok)" in done.stdout and seen and seen[1] in (kind, kind.lower()), key.name, version, scheme,
          done.stdout[-600:], done.stderr[-600:])
    if digest:
        check(re.search(rf"^Peer signing digest: {digest}$", done.stdout, re.M), key.name, version, scheme, done.stdout[-600:])


def try_all(ws, keys):
    count = 0
    for key in keys:
        check(ws.curl(key).stdout == key.name + "\n", key.name)
        for version, schemes in zip(("tls1_3", "tls1_2"), SCHEMES[key.kind]):
            for scheme, digest, kind in schemes:
                handshake(ws, key, version, scheme, digest, kind)
                count += 1
    print(f"   T1: {len(keys)} keys, {count} handshakes", flush=True)


def imported(ws, agent, kind, name, *args, tier="hsm"):
    key = ws.make_key(kind, name)
    agent.import_key(key, "--tier", tier, *args)
    return key


def test_t1_hsm_softhsm(ws):
    token = hsm.SoftToken(ws, "soft")
    agent = hsm.agent_with(ws, [token])
    keys = [hsm.create(ws, agent, "made-" + kind, kind) for kind in SOFT]
    keys += [imported(ws, agent, kind, "brought-" + kind) for kind in SOFT]
    ws.nginx(agent, "".join(ws.server(key) for key in keys))
    try_all(ws, keys)
    check(len(token.objects()) == len(keys), "the keys are in the token:", token.objects())
    listing = token.tool("--login", "--pin", hsm.PIN, "-O", "--type", "privkey").stdout
    check(listing.count("sensitive") >= len(keys) and "extractable" not in listing.replace("never extractable", ""), listing)


def test_t1_hsm_pool_softhsm(ws):
    agent, tokens = hsm.agent_with_pool(ws)
    keys = [hsm.create(ws, agent, "made-" + kind, kind, tier="hsm-pool") for kind in POOLED]
    keys += [imported(ws, agent, kind, "brought-" + kind, tier="hsm-pool") for kind in POOLED]
    ws.nginx(agent, "".join(ws.server(key) for key in keys))
    try_all(ws, keys)
    for token in tokens:
        harness.wait_until(lambda: len(token.objects()) == len(keys), "the keys are in each partition")
    refused = agent.ctl("key", "create", "ed", "--type", "ed25519", "--tier", "hsm-pool", ok=False)
    check(refused.returncode == 1 and refused.stderr.count("\n") == 1, "what cannot be wrapped is refused:", refused.stderr)


def test_t1_hsm_nss(ws):
    token = hsm.NssToken(ws, "nss")
    agent = hsm.agent_with(ws, [token], sessions=2)
    keys = [hsm.create(ws, agent, "nss-" + kind, kind) for kind in NSS]
    ws.nginx(agent, "".join(ws.server(key) for key in keys))
    try_all(ws, keys)
    refused = agent.ctl("key", "create", "ed", "--type", "ed25519", "--tier", "hsm", ok=False)
    check(refused.returncode == 1 and refused.stderr.count("\n") == 1, "what the token cannot do is refused:", refused.stderr)


def test_t1_rsa_key_exchange(ws):
    """TLS 1.2 with RSA key exchange: the token does raw RSA, the padding is looked at outside."""
    token = hsm.SoftToken(ws, "soft")
    agent = hsm.agent_with(ws, [token])
    key = hsm.create(ws, agent, "kx", "rsa2048", "--usage", "tls-server,tls-rsa-kx")
    other = hsm.create(ws, agent, "nokx", "rsa2048")
    ciphers = "ssl_ciphers AES128-GCM-SHA256;"
    ws.nginx(agent, ws.server(key, extra=ciphers) + ws.server(other, extra=ciphers))
    ws.s_client(key, "-tls1_2", "-cipher", "AES128-GCM-SHA256")
    check(ws.s_client(other, "-tls1_2", "-cipher", "AES128-GCM-SHA256", ok=False).returncode != 0, "a key that is not for it")


def test_t1_key_made_elsewhere(ws):
    """A key that somebody else put into the token is taken over by its pkcs11: URI."""
    token = hsm.SoftToken(ws, "soft")
    token.tool("--login", "--pin", hsm.PIN, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "elsewhere", "--id", "c0ffee")
    hsm.give(token.store)
    agent = hsm.agent_with(ws, [token])
    agent.ctl("key", "adopt", "adopted", "pkcs11:token=soft;id=%c0%ff%ee")
    key = hsm.HsmKey(ws, "adopted", "p256").certify(agent)
    ws.nginx(agent, ws.server(key))
    try_all(ws, [key])
    run("openssl", "x509", "-in", key.crt, "-noout")


if __name__ == "__main__":
    harness.main(globals())
