#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A key in a token is the one that the store names: one that somebody has put in its place is not used."""
import hsm
import harness
from harness import check, wait_until

OTHER = "is another key: it is not used"


def test_another_key_under_its_label(ws):
    token = hsm.SoftToken(ws, "soft")
    agent = hsm.agent_with(ws, [token], start=False)

    def make():
        token.tool("--login", "--pin", hsm.PIN, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "theirs", "--id", "a1", "--usage-sign")
        hsm.give(token.store)

    make()
    agent.start()
    agent.ctl("key", "adopt", "site", "--label", "theirs")
    check(hsm.signs(agent, "site"), "an adopted key does not sign")
    agent.stop()
    for kind in ("privkey", "pubkey"):
        token.tool("--login", "--pin", hsm.PIN, "--delete-object", "--type", kind, "--id", "a1")
    make()
    agent.start()

    def refused():
        check(not hsm.signs(agent, "site"), "another key signs under its name")
        return OTHER in agent.log()

    wait_until(refused, "the log says that it is another key")


if __name__ == "__main__":
    harness.main(globals())
