#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""M4: nginx does not need the agent to start, reload, serve plain HTTP, resumed sessions and local keys. A new handshake then
fails within keyhold_timeout with one log line that says why, and works within 1 s of the agent's return."""
import os
import time

import harness
from harness import check, run, wait_until

TIMEOUT_S = 1.0
SLACK_S = 0.6  # for the client's own start and a busy machine


def site(ws):
    """A configuration with plain HTTP, a local key, a key in the agent, and one with sessions."""
    key, local, sessions = ws.make_key("p256"), ws.make_key("rsa2048", "local"), ws.make_key("p256", "sessions")
    plain = harness.free_port()
    http = ("    ssl_protocols TLSv1.2 TLSv1.3;\n    keepalive_timeout 0;\n    keyhold_timeout 1s;\n"
            "    keyhold_connect_timeout 500ms;\n"
            f"    server {{ listen 127.0.0.1:{plain}; location / {{ return 200 \"plain\\n\"; }} }}\n")
    http += ws.server(key) + ws.server(local, local=True)
    tickets = os.path.join(ws.keys, "ticket.key")  # of our own, so that tickets survive a reload
    with open(tickets, "wb") as file:
        file.write(os.urandom(80))
    http += ws.server(sessions, extra=f"ssl_session_cache shared:s:1m; ssl_session_tickets on; ssl_session_ticket_key {tickets};")
    return key, local, sessions, plain, http


def failing_handshake(ws, nginx, agent, key, why):
    """How long a handshake takes to fail; it leaves one line in the error log, that names the agent and says why."""
    before = len(nginx.log().splitlines())
    begun = time.monotonic()
    done = ws.s_client(key, "-tls1_3", ok=False)
    took = time.monotonic() - begun
    check(done.returncode != 0, "without the agent a handshake must fail")
    wait_until(lambda: len(nginx.log().splitlines()) > before, "a line in the error log", 5)
    lines = nginx.log().splitlines()[before:]
    lines = [line for line in lines if any(f"[{level}]" in line for level in ("error", "crit", "alert", "emerg"))]
    check(len(lines) == 1 and agent.socket in lines[0] and why in lines[0], "one line that names the agent and says why:", lines)
    return took


def test_m4_start_and_serve_without_agent(ws):
    agent = ws.agent(start=False)
    key, local, sessions, plain, http = site(ws)
    nginx = ws.nginx(agent, http)
    check(nginx.test().returncode == 0, "nginx -t without the agent")
    for _ in range(2):
        check(run("curl", "-sS", "--noproxy", "*", f"http://127.0.0.1:{plain}/").stdout == "plain\n", "plain HTTP")
        check(ws.curl(local).stdout == "local\n", "a local key")
        took = failing_handshake(ws, nginx, agent, key, "connect() failed")
        check(took < TIMEOUT_S + SLACK_S, f"failed after {took:.2f} s")
        nginx.reload()
    agent.start()
    agent.import_key(key)
    agent.import_key(sessions)
    wait_until(lambda: ws.curl(key, ok=False).returncode == 0, "a handshake after the agent's start", 1 + SLACK_S)


def test_m4_agent_goes_and_returns(ws):
    agent = ws.agent()
    key, local, sessions, plain, http = site(ws)
    for one in (key, sessions):
        agent.import_key(one)
    nginx = ws.nginx(agent, http)
    check(ws.curl(key).stdout == "p256\n")
    session = os.path.join(ws.dir, "session.pem")
    # A request keeps the connection until the ticket of TLS 1.3 has come.
    ws.s_client(sessions, "-tls1_2", "-sess_out", session)
    out = ws.s_client(sessions, "-tls1_3", "-sess_out", session + ".13", "-ign_eof",
                      input="GET / HTTP/1.0\r\n\r\n").stdout
    check("sessions\n" in out, out[-1000:])
    for round_number in range(3):
        agent.stop()
        check(ws.curl(local).stdout == "local\n", "a local key")
        check(run("curl", "-sS", "--noproxy", "*", f"http://127.0.0.1:{plain}/").stdout == "plain\n", "plain HTTP")
        for version, suffix in (("-tls1_2", ""), ("-tls1_3", ".13")):
            out = ws.s_client(sessions, version, "-sess_in", session + suffix, ok=False).stdout
            check("\nReused, TLSv" in out, "a resumed session", version, out[-1500:])
        took = failing_handshake(ws, nginx, agent, key, "connect() failed")
        check(took < TIMEOUT_S + SLACK_S, f"failed after {took:.2f} s")
        if round_number == 1:
            nginx.reload()
        agent.start()
        begun = time.monotonic()
        wait_until(lambda: ws.curl(key, ok=False).returncode == 0, "a handshake after the agent's return", 1.0)
        print(f"M4: works {time.monotonic() - begun:.2f} s after the agent's return")


def test_m4_stalled_agent(ws):
    """An agent that takes everything and answers nothing is as good as none: the time-out counts, and only for that key."""
    agent = ws.agent(args=["--delay-ms", "20000"])
    key, local, sessions, plain, http = site(ws)
    for one in (key, sessions):  # both: a worker says at its start which keys are missing
        agent.import_key(one)
    nginx = ws.nginx(agent, http)
    took = failing_handshake(ws, nginx, agent, key, "no reply from the agent")
    check(TIMEOUT_S * 0.9 < took < TIMEOUT_S + SLACK_S, f"failed after {took:.2f} s")
    check(ws.curl(local).stdout == "local\n", "a local key")


if __name__ == "__main__":
    harness.main(globals())
