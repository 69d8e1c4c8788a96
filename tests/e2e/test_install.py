#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`cmake --install`: everything is there, and what is there works from where it was put: programs, manual pages, libraries
through pkg-config and CMake, nginx's module, OpenSSL's provider."""
import os
import re
import shutil

import harness
from harness import ROOT, Skip, build_dir, check, read, run

# Directories that depend on the machine: where the libraries, nginx's modules and OpenSSL's providers are.
EXPECTED = """
bin/keyhold-bench
include/keyhold/client.h
include/keyhold/import.h
include/keyhold/keystore.h
include/keyhold/protocol.h
include/keyhold/storefile.h
include/keyhold/types.h
lib/systemd/system/keyhold-renew@.service
lib/systemd/system/keyhold-renew@.timer
lib/systemd/system/keyhold.service
lib/systemd/system/keyhold.socket
lib/sysusers.d/keyhold.conf
lib/tmpfiles.d/keyhold.conf
sbin/keyholdctl
sbin/keyholdd
share/bash-completion/completions/keyholdctl
share/keyhold/keyhold-alerts.yml
share/keyhold/keyhold-hsm.conf
share/keyhold/keyhold-renew
share/keyhold/keyhold-tcp.conf
share/keyhold/scrape.yml
share/man/man1/keyhold-bench.1
share/man/man1/keyholdctl.1
share/man/man3/libkeyhold-protocol.3
share/man/man5/keyhold.conf.5
share/man/man5/ngx_http_keyhold_module.5
share/man/man5/ngx_stream_keyhold_module.5
share/man/man7/keyhold-provider.7
share/man/man8/keyholdd.8
{lib}/cmake/Keyhold/KeyholdConfig.cmake
{lib}/cmake/Keyhold/KeyholdConfigVersion.cmake
{lib}/cmake/Keyhold/KeyholdTargets-{config}.cmake
{lib}/cmake/Keyhold/KeyholdTargets.cmake
{lib}/libkeyhold-keystore.a
{lib}/libkeyhold-protocol.a
{lib}/pkgconfig/libkeyhold-keystore.pc
{lib}/pkgconfig/libkeyhold-protocol.pc
{nginx}/ngx_http_keyhold_module.so
{nginx}/ngx_stream_keyhold_module.so
{openssl}/keyhold.so
"""


def cached(name):
    """A variable of the build's CMake cache."""
    found = re.search(rf"^{name}:\w+=(.*)$", read(os.path.join(build_dir(), "CMakeCache.txt")), re.M)
    check(found, f"{name} is not in the CMake cache")
    return found[1]


def example(page, number=0):
    """The text of an indented example of a manual page, as a reader sees it."""
    text = read(os.path.join(ROOT, "docs/man", page))
    blocks = re.findall(r"^\.nf\n\.RS\n(.*?)^\.RE\n\.fi", text, re.M | re.S)
    return blocks[number].replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\")


def setup(ws):
    ws.root = os.path.join(ws.dir, "root")
    run("cmake", "--install", build_dir(), "--prefix", "/usr", env={**os.environ, "DESTDIR": ws.root}, timeout=300)
    ws.usr = os.path.join(ws.root, "usr")
    ws.lib = cached("CMAKE_INSTALL_LIBDIR")
    ws.openssl, ws.nginx_modules = cached("KH_OSSL_MODULES_DIR"), cached("KH_NGINX_MODULES_DIR")
    ws.pkg_env = {**os.environ, "PKG_CONFIG_PATH": os.path.join(ws.usr, ws.lib, "pkgconfig")}
    key = ws.key = ws.make_key("p256")
    ws.conf = os.path.join(ws.dir, "agent", "keyhold.conf")
    ctl(ws, "init", "--dir", os.path.dirname(ws.conf), config=False)
    ws.token = os.path.join(ws.dir, "agent", "nginx.token")
    ws.socket = "unix:" + os.path.join(ws.dir, "agent", "agent.sock")
    ws.daemon = harness.popen([program(ws, "keyholdd"), "--config", ws.conf], os.path.join(ws.dir, "keyholdd.log"))
    harness.wait_until(lambda: ctl(ws, "ping", ok=False).returncode == 0, "the installed agent answers")
    ctl(ws, "key", "import", "site", key.key, "--cert", key.crt)


def program(ws, name):
    return os.path.join(ws.usr, "sbin", name)


def ctl(ws, *args, config=True, ok=True):
    return run(program(ws, "keyholdctl"), *(["--config", ws.conf] if config else []), *args, ok=ok)


def test_the_files(ws):
    found = sorted(os.path.relpath(os.path.join(folder, name), ws.usr)
                   for folder, _, names in os.walk(ws.root) for name in names)
    expected = sorted(EXPECTED.format(lib=ws.lib, nginx=ws.nginx_modules, openssl=ws.openssl,
                                      config=cached("CMAKE_BUILD_TYPE").lower()).split())
    check(found == expected, "missing:", set(expected) - set(found), "not expected:", set(found) - set(expected))
    for name in found:
        mode = os.stat(os.path.join(ws.usr, name)).st_mode & 0o777
        check(mode == (0o755 if name.startswith(("bin/", "sbin/")) else mode) and not mode & 0o022, name, oct(mode))


def test_nothing_names_the_build(ws):
    """What is text must be true on the machine it comes to."""
    for folder, _, names in os.walk(ws.usr):
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith((".pc", ".cmake", ".service", ".conf", ".h")) or "man" in path:
                text = read(path)
                for place in (build_dir(), ROOT + "/", ws.dir):
                    check(place not in text, f"{path} names {place}")
    unit = read(os.path.join(ws.usr, "lib/systemd/system/keyhold.service"))
    check("ExecStart=/usr/sbin/keyholdd " in unit and "@" not in re.sub(r"^#.*|@system-service", "", unit, flags=re.M), unit)


def test_modules_lie_where_they_are_looked_for(ws):
    done = run("nginx", "-V")
    modules = re.search(r"--modules-path=(\S+)", done.stderr)
    if modules:
        check("/usr/" + ws.nginx_modules == modules[1], ws.nginx_modules, modules[1])
    modules = re.search(r'"(.*)"', run("openssl", "version", "-m").stdout)[1]
    check("/usr/" + ws.openssl == modules, ws.openssl, modules)


def test_units_are_what_systemd_takes(ws):
    """systemd-analyze verify has nothing to say; the hardening that matters is there; the exposure is low."""
    if shutil.which("systemd-analyze") is None:
        raise Skip("no systemd-analyze")
    folder = os.path.join(ws.dir, "units")
    os.mkdir(folder)
    for name in ("keyhold.service", "keyhold.socket", "keyhold-renew@.service", "keyhold-renew@.timer"):
        text = read(os.path.join(ws.usr, "lib/systemd/system", name))
        with open(os.path.join(folder, name), "w") as file:  # the programs are not in /usr here
            file.write(text.replace("/usr/sbin/", ws.usr + "/sbin/").replace("/usr/share/keyhold/", ws.usr + "/share/keyhold/"))
    env = {**os.environ, "SYSTEMD_UNIT_PATH": folder + ":/usr/lib/systemd/system:/lib/systemd/system"}
    for name in ("keyhold.service", "keyhold.socket", "keyhold-renew@www.service", "keyhold-renew@www.timer"):
        done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", os.path.join(folder, name), ok=False, env=env)
        said = [line for line in (done.stdout + done.stderr).splitlines() if "keyhold" in line]
        check(done.returncode == 0 and not said, name, done.stdout, done.stderr)
    unit = read(os.path.join(ws.usr, "lib/systemd/system/keyhold.service"))
    for line in ("Type=notify", "WatchdogSec=30s", "Restart=always", "ExecReload=/bin/kill -HUP $MAINPID", "LimitMEMLOCK=infinity",
                 "LimitCORE=0", "NoNewPrivileges=yes", "PrivateNetwork=yes", "ProtectSystem=strict", "MemoryDenyWriteExecute=yes",
                 "RuntimeDirectoryPreserve=yes"):
        check(f"\n{line}\n" in unit, "keyhold.service lacks", line)
    done = run("systemd-analyze", "security", "--offline=yes", "--threshold=40", os.path.join(folder, "keyhold.service"), ok=False,
               env=env)
    check(done.returncode == 0, "systemd-analyze security:", done.stdout[-600:], done.stderr)


def test_prometheus_examples(ws):
    """Alerts name metrics that there are, and each is in the guide; promtool has a look where it is installed."""
    alerts = read(os.path.join(ws.usr, "share/keyhold/keyhold-alerts.yml"))
    metrics = set(re.findall(r"^\| `(\w+)` \| \w+ \|", read(os.path.join(ROOT, "docs/metrics.md")), re.M))
    used = {re.sub("_bucket$", "", name) for name in re.findall(r"\bkeyhold_\w+", "\n".join(re.findall(r"expr: (.*)", alerts)))}
    check(len(used) >= 8 and used <= metrics, "alerts use unknown metrics:", used - metrics)
    guide = read(os.path.join(ROOT, "docs/operations.md"))
    names = re.findall(r"alert: (\w+)", alerts)
    for name in names:
        check(re.search(rf"^\| `{name}` \|", guide, re.M), "the guide does not say what to do for", name)
    check(set(re.findall(r"^\| `(Keyhold\w+)` \|", guide, re.M)) == set(names), "the guide has other alerts")
    if shutil.which("promtool"):
        run("promtool", "check", "rules", os.path.join(ws.usr, "share/keyhold/keyhold-alerts.yml"))


def test_versions_and_manual(ws):
    for path in ("sbin/keyholdd", "sbin/keyholdctl", "bin/keyhold-bench"):
        check(run(os.path.join(ws.usr, path), "--version").stdout.startswith(os.path.basename(path) + " "), path)
    if shutil.which("man"):
        for page in ("keyholdctl", "keyholdd", "keyhold.conf", "keyhold-bench", "keyhold-provider",
                     "ngx_http_keyhold_module", "libkeyhold-protocol"):
            run("man", "-M", os.path.join(ws.usr, "share/man"), "-w", page)


def test_client_with_pkg_config(ws):
    """The example of libkeyhold-protocol(3), compiled with what pkg-config says, pings the agent."""
    source, client = os.path.join(ws.dir, "client.c"), os.path.join(ws.dir, "client")
    with open(source, "w") as file:
        file.write(example("libkeyhold-protocol.3"))
    flags = run("pkg-config", "--cflags", "--libs", "libkeyhold-protocol", env=ws.pkg_env).stdout.split()
    run("cc", "-Wall", "-Wextra", "-Werror", source, "-o", client, *flags)
    check(run(client, ws.socket, ws.token).stdout == "the agent takes us for nginx\n")
    check(run(client, ws.socket + "x", ws.token, ok=False).returncode == 1)
    check(run(client, ok=False).returncode == 2)


def test_keystore_with_pkg_config(ws):
    """Everything that the keystore's archive needs comes with it."""
    source = os.path.join(ws.dir, "keeper.c")
    declared = read(os.path.join(ws.usr, "include/keyhold/keystore.h"))
    name = re.search(r"^\w[\w ]*[ *](kh_keeper_\w+)\(", declared, re.M)[1]
    with open(source, "w") as file:
        file.write(f"#include <keyhold/keystore.h>\n#include <keyhold/import.h>\n"
                   f"int main(void) {{ return (void (*)(void)){name} == 0; }}\n")
    flags = run("pkg-config", "--cflags", "--libs", "libkeyhold-keystore", env=ws.pkg_env).stdout.split()
    run("cc", "-Wall", source, "-o", source[:-2], *flags)
    run(source[:-2])


def test_client_with_cmake(ws):
    project, client = os.path.join(ws.dir, "project"), os.path.join(ws.dir, "project", "build", "client")
    os.mkdir(project)
    with open(os.path.join(project, "client.c"), "w") as file:
        file.write(example("libkeyhold-protocol.3"))
    with open(os.path.join(project, "CMakeLists.txt"), "w") as file:
        file.write("cmake_minimum_required(VERSION 3.25)\nproject(client C)\nfind_package(Keyhold 0.1 REQUIRED)\n"
                   "add_executable(client client.c)\ntarget_link_libraries(client Keyhold::protocol)\n"
                   "add_library(keeper SHARED keeper.c)\ntarget_link_libraries(keeper Keyhold::keystore)\n")
    with open(os.path.join(project, "keeper.c"), "w") as file:
        file.write("#include <keyhold/keystore.h>\n")
    run("cmake", "-S", project, "-B", project + "/build", "-DCMAKE_PREFIX_PATH=" + ws.usr)
    run("cmake", "--build", project + "/build")
    check(run(client, ws.socket, ws.token).stdout == "the agent takes us for nginx\n")


def test_nginx_with_the_installed_module(ws):
    nginx = harness.Nginx(ws, "nginx", ws.PLAIN + ws.server(ws.key), "", False, None, None, "release", None)
    text = read(nginx.conf).replace("http {", f"http {{ keyhold_agent {ws.socket} token={ws.token};", 1)
    with open(nginx.conf, "w") as file:
        file.write(f"load_module {ws.usr}/{ws.nginx_modules}/ngx_http_keyhold_module.so;\n" + text)
    nginx.start()
    check(ws.curl(ws.key).stdout == ws.key.name + "\n")
    nginx.stop()


def test_provider_as_its_manual_says(ws):
    """openssl.cnf of keyhold-provider(7), with our agent, token and place of keyhold.so; then all from the environment."""
    conf, reference = os.path.join(ws.dir, "openssl.cnf"), os.path.join(ws.dir, "site.ref.pem")
    ctl(ws, "key", "create", "app", "--type", "p256", "--usage", "sign")
    ctl(ws, "key", "reference", "app", "--out", reference)
    text = example("keyhold-provider.7")
    check("agent      = unix:/run/keyhold/agent.sock" in text and "/etc/keyhold/app.token" in text)
    text = text.replace("[keyhold_section]", f"[keyhold_section]\nmodule = {ws.usr}/{ws.openssl}/keyhold.so")
    ours = text.replace("unix:/run/keyhold/agent.sock", ws.socket).replace("/etc/keyhold/app.token", ws.token)
    bare = re.sub(r"^(agent|token|timeout_ms) .*\n", "", text, flags=re.M)
    for content, env in ((ours, {}), (bare, {"KH_AGENT": ws.socket, "KH_TOKEN": ws.token, "KH_TIMEOUT_MS": "3000"})):
        with open(conf, "w") as file:
            file.write(content + "[req]\ndistinguished_name = name\n[name]\n")
        env = {**os.environ, "OPENSSL_CONF": conf, **env}
        done = run("openssl", "req", "-new", "-key", reference, "-subj", "/CN=app", env=env)
        run("openssl", "req", "-verify", "-noout", input=done.stdout)
    ctl(ws, "key", "reference", "site", "--out", reference + ".site")
    done = run("openssl", "req", "-new", "-key", reference + ".site", "-subj", "/CN=site", env=env, ok=False)
    check(done.returncode != 0 and "usage" in done.stderr, "a tls-server key makes no request:", done.stderr)


def test_module_refuses_another_nginx(ws):
    """Configured for an nginx of another version than the sources: refused, with both versions and what to do."""
    other = os.path.join(ws.dir, "nginx-other")
    for says, complaint in (("nginx version: nginx/1.9.99", "is nginx 1.9.99, but the sources"), ("something", "does not say which version")):
        with open(other, "w") as file:
            file.write(f"#!/bin/sh\necho '{says}' >&2\n")
        os.chmod(other, 0o755)
        done = run("cmake", "-S", ROOT, "-B", os.path.join(ws.dir, "other"), f"-DKH_NGINX_BIN={other}", ok=False, timeout=300)
        text = " ".join(done.stderr.split())
        check(done.returncode != 0 and complaint in text, text)


if __name__ == "__main__":
    harness.main(globals())
