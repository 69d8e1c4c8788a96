#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""K8: with `kernels = "openssl"` every type of key works as with `auto`. K3: the counters say which way was taken.

Handshakes with each type of key in TLS 1.2 and 1.3, one by one and under load, so that there are batches. Without AVX-512 IFMA
`auto` is OpenSSL too.
"""
import harness
from harness import check

KINDS = ["rsa2048", "rsa3072", "rsa4096", "p256", "p384", "p521", "ed25519"]
WITHOUT_KERNEL = ["p521", "store"]
LOAD = ["--clients", 16, "--seconds", 1]


def serve(ws, config):
    """An agent with that setting, handshakes with each key; returns the keeper's part of its status and its lanes."""
    agent = ws.agent(config=config)
    keys = {kind: ws.make_key(kind, f"{kind}-{ws.count}") for kind in KINDS}
    for key in keys.values():
        agent.import_key(key)
    nginx = ws.nginx(agent, "".join(ws.server(key) for key in keys.values()))
    for kind, key in keys.items():
        for version in ("-tls1_2", "-tls1_3"):
            ws.s_client(key, version)
        if kind != "p521":
            report = ws.load(key, *LOAD).wait()
            check(report["failed"] == 0 and report["done"] > 0, kind, report)
    status = agent.status()
    nginx.stop()
    agent.stop()
    lanes = status["lanes"]
    for name, lane in lanes.items():
        check(lane["errors"] == 0 and lane["kernel_faults"] == 0, name, lane)
        if name != "store":
            check(lane["by_openssl"] + lane["by_kernel"] == lane["operations"] >= 2, "each operation has its way:", name, lane)
    return status["keeper"], lanes


def test_k8_kernels_off(ws):
    keeper, lanes = serve(ws, 'kernels = "openssl"')
    check(keeper["kernels"] == "openssl", keeper)
    for name, lane in lanes.items():
        check(lane["by_kernel"] == 0, "the kernels are off:", name, lane)


def test_k3_kernels_auto(ws):
    keeper, lanes = serve(ws, 'kernels = "auto"')
    for name, lane in lanes.items():
        if name in WITHOUT_KERNEL or keeper["kernels"] == "openssl":
            check(lane["by_kernel"] == 0, "nothing there to be fast:", name, lane)
        else:
            check(lane["by_kernel"] > 0, "under load there are batches that a kernel does faster:", name, lane)
    print("K3: kernels", keeper["kernels"], {name: [lane["by_openssl"], lane["by_kernel"]] for name, lane in lanes.items()})


if __name__ == "__main__":
    harness.main(globals())
