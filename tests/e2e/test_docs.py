#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the documents say is so: the files, tests, options and directives that they name exist, and the shell blocks of README
and docs/operations.md run, one after the other, on a machine that is one for the length of the test: namespaces of its own, with
copies of /etc, /run and /var, and the product installed over /usr."""
import os
import re
import shutil
import subprocess

import harness
from harness import ROOT, Skip, artefact, build_dir, check, read, run

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/operations.md", "docs/nginx.md",
             "docs/threat-model.md", "docs/metrics.md", "docs/logs.md", "docs/benchmarks.md", "protocol/SPEC.md"]
ROOMS = ("protocol", "keystore", "agent", "nginx-module", "bench", "tests", "docs", "packaging", "cmake", ".ci")


def document(name):
    text = read(os.path.join(ROOT, name))
    check(text, name, "is not there")
    return text


def blocks(name):
    """The fenced blocks of a document, in order: (language, text)."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", document(name), re.M | re.S)
    return [(language, re.sub("^" + indent, "", text, flags=re.M)) for indent, language, text in found]


def words(name):
    """What stands between backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", document(name), flags=re.M | re.S))


def tracked():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.split()
    if not names:
        for folder, _, files in os.walk(ROOT):
            names += [os.path.relpath(os.path.join(folder, one), ROOT) for one in files]
    return names


# ---- Names -----------------------------------------------------------------------------------------------------------------

def test_files_exist(_):
    """Every path and every source file that a document names."""
    files = tracked()
    count = 0
    for name in DOCUMENTS:
        for word in words(name):
            path = re.sub(r"/(TARGET|NAME)/?$", "", word.split(" ", 1)[0].rstrip("/"))
            if path.split("/")[0] in ROOMS and "/" in word:
                pattern = re.escape(path).replace(r"\*", "[^/]*")
                check([one for one in files if re.match(pattern + "($|/)", one)], f"{name} names {word}")
                count += 1
            elif re.fullmatch(r"[\w*]+\.(c|h|py|cmake)", path) and "FILE" not in path:
                pattern = re.escape(path).replace(r"\*", "[^/]*")
                check([one for one in files if re.search("(^|/)" + pattern + "$", one)], f"{name} names {word}")
                count += 1
        for target in re.findall(r"\]\(([^)#]+)\)", document(name)):
            if "://" not in target:
                path = os.path.join(ROOT, os.path.dirname(name), target)
                check(os.path.exists(path), f"{name} links to {target}")
                count += 1
    check(count > 70, "only", count, "names were found")


def test_architecture_names_bold_files(_):
    """The way of one signature: `**room/file.c**` is there; `**file.c**` is in some room."""
    files = tracked()
    names = re.findall(r"\*\*([\w/.-]+\*?[\w.]*(?:\.c|/))\*\*", document("ARCHITECTURE.md"))
    for name in names:
        pattern = "(^|/)" + re.escape(name).replace(r"\*", r"\w*")
        check([one for one in files if re.search(pattern + ("" if name.endswith("/") else "$"), one)],
              f"ARCHITECTURE.md names {name}")
    check(len(names) >= 30, names)


def test_tests_run_by_name(_):
    """Unit tests and fuzz targets that documents name are known to the build."""
    built = run("ctest", "--test-dir", build_dir(), "-N").stdout
    for path in re.findall(r"tests/(?:unit|ct)/(\w+)\.c", document("docs/threat-model.md")):
        check(f": {path}\n" in built, f"ctest does not know {path}")


# ---- Options, directives, presets --------------------------------------------------------------------------------------------

def test_directives_and_variables(_):
    """docs/nginx.md and ngx_http_keyhold_module(5) have what the module's tables have, and nothing else."""
    folder = os.path.join(ROOT, "nginx-module")
    code = "".join(read(os.path.join(folder, one)) for one in sorted(os.listdir(folder)) if one.endswith((".c", ".h")))
    directives = set(re.findall(r'\{ ngx_string\("(keyhold\w*)"\),[ \\]*\n +(?:NGX_HTTP|\(context\))', code))
    variables = set(re.findall(r'\{ ngx_string\("(keyhold\w*)"\), NULL', code))
    check(len(directives) >= 5 and len(variables) >= 3, directives, variables)
    page = document("docs/man/ngx_http_keyhold_module.5")
    table = document("docs/nginx.md")
    listed = {name for row in re.findall(r"^\| (`keyhold[^|]*(?:\\\|[^|]*)*)\|", table, re.M) for name in re.findall(r"`(keyhold\w*)", row)}
    check(listed == directives, "docs/nginx.md has other directives:", listed ^ directives)
    check(set(re.findall(r"^\| `\$(keyhold\w*)` ", table, re.M)) == variables, "docs/nginx.md has other variables")
    check(set(re.findall(r"^\.(?:BI|BR) \"?(keyhold(?:_\w+)?) ", page[page.index(".SH DIRECTIVES"):page.index(".SH VARIABLES")],
                         re.M)) == directives, "the manual has other directives")
    check(set(re.findall(r"^\.B \$(keyhold\w*)", page, re.M)) == variables, "the manual has other variables")
    for directive, value in re.findall(r"ngx_conf_init_(?:msec_)?value\(kcf->(\w+), (\d+)\)", code):
        shown = re.search(rf"^\| `keyhold_{directive} \w+` \| [^|]+ \| (\d+)(s?) \|", table, re.M)
        check(shown, f"docs/nginx.md has no default of keyhold_{directive}")
        check(int(value) == int(shown[1]) * (1000 if shown[2] else 1), f"the default of keyhold_{directive} is {value}")
        check(f"Default: {shown[1]}{shown[2]};" in page or f"Default: {shown[1]}{shown[2]}." in page, f"manual: {directive}")


def sources(room):
    """All code of a room, with its texts in one piece."""
    code = "".join(read(os.path.join(ROOT, one)) for one in tracked() if one.startswith(room + "/") and one.endswith((".c", ".h")))
    return re.sub(r'"\s*\n\s*"', "", code)


def test_words_of_the_logs(_):
    """What somebody will look for in a log or in the table of events is what the programs say."""
    module, guide = sources("nginx-module"), document("docs/operations.md")
    page = re.sub(r'" \w+ "', "%", document("docs/man/ngx_http_keyhold_module.5"))
    for text in ("keyhold: handshake failed: ", "which the configuration needs, can not be used at agent", "is out of reach: ",
                 ", trying again", " is back", "keyhold_max_inflight (", "it waits for the agent", "may block workers"):
        check(text in module, f"the module does not say {text!r}")
        check(text.replace("keyhold: ", "") in page, f"the manual does not say {text!r}")
    check("which the configuration needs, can not be used at agent" in guide)
    names = re.findall(r'^ +X\(KH_\w+, \d+, "(\w+)"', read(os.path.join(ROOT, "protocol/include/keyhold/types.h")), re.M)
    agent = sources("agent")
    events = re.search(r"^## What happens when\n(.*?)^## ", guide, re.M | re.S)[1]
    for word in re.findall(r"`([a-z]+(?:_[a-z]+)*)`", events):
        known = word in names or f'"{word}"' in agent or word in ("kek", "keyhold_timeout")
        check(known, f"operations.md: nothing says {word}")


def test_settings_of_the_agent(_):
    """keyhold.conf(5) has every option that the parser knows."""
    page = document("docs/man/keyhold.conf.5").replace("\\-", "-")
    options = set(re.findall(r'CFG_\w+\("(\w+)"', read(os.path.join(ROOT, "agent/config_syntax.c"))))
    check(len(options) > 20, options)
    for option in options:
        check(re.search(rf"\b{option}\b", page), f"{option} is not in keyhold.conf.5")


def test_options_of_the_bench(_):
    page = re.sub(r"\\f.", "", document("docs/man/keyhold-bench.1").replace("\\-", "-"))
    listed = run(artefact("keyhold-bench"), "--help").stdout
    commands = re.findall(r"^  (\w+)  ", listed, re.M)
    check(len(commands) >= 4, listed)
    options = set()
    for command in commands:
        check(f".SS {command}\n" in page, f"{command} is not in keyhold-bench.1")
        options |= set(re.findall(r"--[a-z][a-z-]+", run(artefact("keyhold-bench"), command, "--help", ok=False).stdout))
    for option in options:
        check(re.search(option + r"(?![\w-])", page), f"{option} is not in keyhold-bench.1")
    for option in set(re.findall(r"--[a-z][a-z-]+", page)) - {"--help", "--version", "--json"}:
        check(option in options, f"keyhold-bench.1 has {option}, which is not there")
    for command, rest in re.findall(r"keyhold-bench (\w+)((?:[^`\n]|\\\n)*)", document("docs/benchmarks.md")):
        check(command in commands, f"docs/benchmarks.md: {command}")
        for option in re.findall(r"--[a-z][a-z-]+", rest):
            check(option in options, f"docs/benchmarks.md: {option}")


def test_settings_of_the_provider(_):
    code, page = read(os.path.join(ROOT, "protocol/provider/module.c")), document("docs/man/keyhold-provider.7")
    known = set(re.findall(r'OSSL_PARAM_utf8_ptr\("(\w+)"', code)) | set(re.findall(r'"(KH_\w+)"', code))
    check(len(known) >= 6, known)
    for name in known:
        check(re.search(rf"\b{name}\b", page), f"{name} is not in keyhold-provider.7")
    check(re.search(r'DEFAULT_AGENT "(.*)"', code)[1] in page and re.search(r"DEFAULT_TIMEOUT_MS = (\d+)", code)[1] in page)


def test_presets_and_packages(_):
    presets = set(re.findall(r'"name": "(\w+)", "inherits"', document("CMakePresets.json")))
    text = document("CONTRIBUTING.md")
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.M))))
    check(presets == named, "CONTRIBUTING.md has other presets:", presets ^ named)
    for name in DOCUMENTS:
        for preset in re.findall(r"--preset (\w+)", document(name)):
            check(preset in presets, f"{name} names the preset {preset}")
    wanted = re.search(r'KH_BUILD_PACKAGES="(.*?)"', document(".ci/debian.sh"), re.S)[1].split()
    listed = re.search(r"apt-get install (.*?[^\\])\n", document("docs/operations.md"), re.S)[1].replace("\\\n", " ").split()
    check(wanted == listed, "operations.md lists other packages:", set(wanted) ^ set(listed))


def test_programs_of_contributing(_):
    """The tests and programs that its blocks name exist (they are run by ./check)."""
    for language, text in blocks("CONTRIBUTING.md"):
        for path in re.findall(r"(?:tests|\.)/[\w./]*\w", text if language == "sh" else ""):
            check(os.path.exists(os.path.join(ROOT, path)), f"CONTRIBUTING.md names {path}")
        for path in re.findall(r"build-release/([\w/-]+)", text):
            check(os.path.exists(os.path.join(build_dir(), path)), f"CONTRIBUTING.md: build-release/{path}")
        for path in re.findall(r"build-fuzz/([\w/]+)", text):
            check(os.path.exists(os.path.join(build_dir(), path)), f"CONTRIBUTING.md: build-fuzz/{path}")


def test_scripts_say_what_they_take(_):
    for script in ("demo", "check"):
        check(f"usage: ./{script}" in run(os.path.join(ROOT, script), "--help").stdout, script)
    usage = run(os.path.join(ROOT, "demo"), "--help").stdout
    for option in re.findall(r"\./demo[^`\n]*?(--\w+)", document("README.md")):
        check(option in usage, f"README: ./demo {option}")


def test_nothing_of_the_makers_machine(_):
    for name in DOCUMENTS + ["docs/man/" + one for one in os.listdir(os.path.join(ROOT, "docs/man"))]:
        check(ROOT + "/" not in document(name) and "/home/" not in document(name), name)


# ---- The blocks, run -----------------------------------------------------------------------------------------------------------

# A machine of one's own: nothing that follows is seen outside. systemctl has no systemd here, and does what the unit says; it and
# `nginx -s reload` return when what they began is done, which somebody at a keyboard would see to by being slow.
PROLOGUE = r"""
set -e
trap 'status=$?; { set +x; } 2>/dev/null; [ $status = 0 ] || tail -qn 8 /run/nginx.log /run/keyholdd.log' EXIT
mount --make-rprivate /
mkdir "$HOME_DIR/box" && mount -t tmpfs none "$HOME_DIR/box" && cd "$HOME_DIR/box" && mkdir usr usr-work bin
mount -t overlay overlay -o "lowerdir=/usr,upperdir=$PWD/usr,workdir=$PWD/usr-work" /usr
cp -a /etc . && mount --bind etc /etc
mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mount -t tmpfs none /var/backups
mkdir -p /var/lib/nginx
cat > bin/within <<'END'
#!/bin/bash
# within SECONDS COMMAND…: again and again until it succeeds
for ((until = $(date +%s) + $1; ; )); do
    "${@:2}" && exit
    [ "$(date +%s)" -lt $until ] || { echo "not within $1 s: ${*:2}" >&2; exit 1; }
    sleep 0.05
done
END
cat > bin/socket-unit <<'END'
#!/usr/bin/env python3
# socket-unit PATH: holds a listening socket, as systemd does, for one start of the service after the other
import os, socket, sys
sockets = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
for one, path in zip(sockets, (sys.argv[1], "\0keyhold.socket")):
    one.bind(path)
    one.listen(1024)
os.chmod(sys.argv[1], 0o666)
if os.fork() == 0:
    while True:
        socket.send_fds(sockets[1].accept()[0], [b"0"], [sockets[0].fileno()])
END
cat > bin/service-unit <<'END'
#!/usr/bin/env python3
# service-unit PROGRAM [WORD…]: Type=notify; with the socket, if there is one
import os, socket, sys
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind("\0keyhold.notify")
pid = os.fork()
if pid == 0:
    os.setsid()
    os.environ["NOTIFY_SOCKET"] = "@keyhold.notify"
    asking = socket.socket(socket.AF_UNIX)
    if asking.connect_ex("\0keyhold.socket") == 0:
        os.dup2(socket.recv_fds(asking, 1, 1)[1][0], 3)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    log = os.open("/run/keyholdd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, fd in enumerate((os.open("/dev/null", os.O_RDONLY), log, log)):
        os.dup2(fd, number)
    os.execv(sys.argv[1], sys.argv[1:])
with open("/run/keyholdd.pid", "w") as file:
    file.write(str(pid))
notify.settimeout(60)
while b"READY=1" not in notify.recv(4096).split(b"\n"):
    pass
END
cat > bin/systemctl <<'END'
#!/bin/bash
units=/usr/lib/systemd/system
reloads() { grep -c ' configuration_applied \| reload_failed ' /run/keyholdd.log; }
reloaded() { [ "$(reloads)" -gt "$1" ]; }
gone() { ! kill -0 "$1" 2>/dev/null; }
export -f reloads reloaded gone
case $* in
    daemon-reload) ;;
    "enable --now keyhold" | "start keyhold")
        [ -e /run/keyholdd.pid ] && exit
        $(sed -n 's/^ExecStartPre=//p' $units/keyhold.service) && service-unit $(sed -n 's/^ExecStart=//p' $units/keyhold.service) ;;
    "restart keyhold") "$0" stop keyhold && "$0" start keyhold ;;
    "reload nginx") nginx -s reload ;;
    "enable --now keyhold.socket") socket-unit "$(sed -n 's/^ListenStream=//p' $units/keyhold.socket)" >/run/socket.log 2>&1 </dev/null ;;
    "enable --now keyhold-renew@"*.timer) # what the timer does when its time has come
        name=${3#keyhold-renew@} && name=${name%.timer} && test -e $units/keyhold-renew@.timer
        $(sed -n "s/^ExecStart=//p" $units/keyhold-renew@.service | sed "s/%i/$name/") ;;
    "reload keyhold") before=$(reloads); kill -HUP "$(cat /run/keyholdd.pid)" && within 30 reloaded "$before" ;;
    "stop keyhold") pid=$(cat /run/keyholdd.pid) && kill "$pid" && within 60 gone "$pid" && rm /run/keyholdd.pid ;;
    *) echo "systemctl $*: not known here" >&2 && exit 1 ;;
esac
END
cat > bin/nginx <<'END'
#!/bin/bash
# After a reload: until the workers of before are gone, and nothing is answered by the configuration of before any more.
workers() { grep -l '^nginx: worker' /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3; }
gone() { ! kill -0 "$1" 2>/dev/null; }
export -f gone
[ "$*" != "-s reload" ] && exec /usr/sbin/nginx "$@"
before=$(workers)
/usr/sbin/nginx -s reload || exit
for pid in $before; do within 30 gone "$pid" || exit; done
END
chmod 755 bin/*
export PATH="$PWD/bin:/usr/sbin:/usr/bin:/sbin:/bin"
cmake() { # what it builds is built already
    case $* in
        --preset* | --build*) ;;
        "--install build-package") command cmake --install "$KH_BUILD" --prefix /usr >/run/install.log ;;
        *) echo "cmake $*: not known here" >&2 && return 1 ;;
    esac
}
not() { ! "$@"; } # `set -e` does not look at what begins with an exclamation mark
apt-get() { :; } # the list of packages has a test of its own
get() { curl -sS --noproxy '*' --max-time 20 --cacert "$2" --resolve "$1:443:127.0.0.1" "https://$1/"; }
python3 - <<'END' # the loopback device of this network
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 1))
END
set -x
"""


def take(remaining, language, part):
    """The next block that is not yet used, which must be of that language and have this part."""
    check(remaining, "no block is left for", part)
    kind, text = remaining.pop(0)
    check(kind == language and part in text, f"expected a block with {part}, found:\n{text}")
    return text


def nginx_conf(text):
    """A configuration of a document, with what an nginx.conf has besides."""
    return ("cat > /etc/nginx/nginx.conf <<'END'\n" + text.replace("server {", 'server { location / { return 200 "served\\n"; }', 1)
            + "worker_processes 1; pid /run/nginx.pid; error_log /run/nginx.log info; events {}\nEND\n")


def readme_story():
    """README.md, from the installation to a page, as one script."""
    left = blocks("README.md")
    scripts = take(left, "sh", "./demo")  # a test of its own (M0), and this one
    check("./check" in scripts)
    story = take(left, "sh", "cmake --install")
    story += nginx_conf(take(left, "nginx", "keyhold on;")) + "nginx\n"
    story += "mkdir site && cd site\n" + take(left, "sh", "check-nginx")
    story += "get site.example /etc/keyhold/site.crt | grep served\nkeyholdctl key reference site --out site.ref.pem\n"
    story += "sed -i 's,keyhold on;.*,ssl_certificate_key '$PWD'/site.ref.pem;,' /etc/nginx/nginx.conf\n"
    story += "keyholdctl check-nginx /etc/nginx/nginx.conf\nnginx -t && nginx -s reload\n"
    story += "get site.example /etc/keyhold/site.crt | grep served\nman -l " + ROOT + "/docs/man/keyholdctl.1 >/dev/null\n"
    check(not left, "README.md has blocks that are not tested:", left)
    return story


def operations_story():
    left = blocks("docs/operations.md")
    story = take(left, "sh", "cmake --install")
    story += "mkdir here && cd here\n"
    story += take(left, "sh", "cert csr www.example")
    story += ("openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 2 2>/dev/null\n"
              "openssl x509 -req -in www.example.csr -CA ca.crt -CAkey ca.key -CAcreateserial -copy_extensions copy -days 2 "
              "-out /etc/keyhold/www.example.crt\n")
    conf = take(left, "nginx", "server_name www.example")
    # A second site, which has a key file.
    story += ("openssl req -x509 -newkey rsa:2048 -nodes -keyout /etc/ssl/private/shop.example.key -out /etc/ssl/shop.example.crt "
              "-subj /CN=shop.example -addext subjectAltName=DNS:shop.example -days 2 2>/dev/null\n")
    last = conf.rstrip().rindex("}")
    story += nginx_conf(conf[:last] + "    server { listen 443 ssl; server_name shop.example;\n"
                        "        ssl_certificate /etc/ssl/shop.example.crt;\n"
                        "        ssl_certificate_key /etc/ssl/private/shop.example.key;\n"
                        '        location / { return 200 "shop\\n"; } }\n}\n')
    story += "nginx -t && nginx\nget www.example ca.crt | grep served\nget shop.example /etc/ssl/shop.example.crt | grep shop\n"
    story += migration(left)
    story += take(left, "sh", "token create edge1")
    identity = take(left, "", 'identity "edge1"')
    story += f"cat >> /etc/keyhold/keyhold.conf <<'END'\n{identity}END\n" + take(left, "sh", "systemctl reload keyhold")
    story += "keyholdctl --token /etc/keyhold/edge1.token ping | grep edge1\n"
    story += "keyholdctl --token /etc/keyhold/edge1.token key show www.example\n"
    story += "not keyholdctl --token /etc/keyhold/edge1.token key show shop.example\n"
    story += renewal(left)
    story += monitoring(left)
    story += far_away(left)
    story += tokens(left)
    story += life()
    story += everyday().replace("NAME", "OTHER")
    story += take(left, "sh", "keyholdctl store backup") + "test -s /var/backups/keyhold/keys.db\n"
    story += "keyholdctl key create since --type p256\n" + take(left, "sh", "keyholdctl store restore")
    story += "not keyholdctl key show since\n"
    story += take(left, "sh", "keyholdctl store export") + take(left, "sh", "keyholdctl store import")
    story += ("keyholdctl store fsck\nget www.example ca.crt | grep served\n"
              "stat -c '%a %U %n' /etc/keyhold/* /var/lib/keyhold /run/keyhold/*\n"
              # the table of events
              "systemctl stop keyhold\nnot get www.example ca.crt\ngrep 'keyhold: handshake failed: sign with key' /run/nginx.log\n"
              "mv /etc/keyhold/kek kek && head -c 32 /dev/urandom > /etc/keyhold/kek && chmod 600 /etc/keyhold/kek\n"
              "not timeout 20 keyholdd\nmv kek /etc/keyhold/kek\nsystemctl start keyhold\n"
              "sed -e 's,/run/keyhold/,/run/,' -e s,:7443,:7444, -e /^metrics/d /etc/keyhold/keyhold.conf > /etc/keyhold/second.conf\n"
              "not timeout 20 keyholdd --config /etc/keyhold/second.conf 2>second.log\ngrep -i 'lock\\|another agent' second.log\n"
              "keyholdctl key disable www.example && nginx -s reload\n"
              "within 20 grep 'keyhold: key id .*, which the configuration needs, can not be used at agent' /run/nginx.log\n"
              "get shop.example /etc/ssl/shop.example.crt | grep shop\n")
    check(not left, "operations.md has blocks that are not tested:", left)
    return story


# What nginx has done with keys so far, by the agent's own count; and that when nothing is under way any more.
COUNTER = r"""
signed() { keyholdctl status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["lanes"]["rsa2048"]["operations"])'; }
settled() { # who had enough of a handshake leaves an operation behind
    local - now before=
    set +x
    until now=$(signed); [ "$now" = "$before" ]; do before=$now; sleep 0.3; done
    echo "$now"
}
"""


def migration(left):
    """Canary, change, way back, and the change again: which key serves is seen at the agent's counter."""
    serves = "get shop.example /etc/ssl/shop.example.crt | grep shop\n"
    story = COUNTER + take(left, "sh", "key import shop.example")
    canary = take(left, "nginx", "listen 8443").replace("server {", 'server { location / { return 200 "canary\\n"; }', 1)
    story += f"cat > canary.conf <<'END'\n{canary}END\nsed -i -e '/^http {{/r canary.conf' /etc/nginx/nginx.conf\n"
    story += "{\n" + take(left, "sh", "--connect-to") + "} | tee canary.txt\ngrep canary canary.txt && grep -w '0 failed' canary.txt\n"
    story += "before=$(settled)\ntest $before -gt 10\n" + serves + "test $(settled) = $before # the site's own key file\n"
    story += take(left, "sh", "nginx.conf.before-keyhold\n") + serves + "test $(settled) -gt $before\n"
    story += take(left, "sh", "cp -p /etc/nginx/nginx.conf.before-keyhold")
    story += "before=$(settled)\n" + serves + "test $(settled) = $before # the way back\n"
    story += "sed -i 's,ssl_certificate_key .*,keyhold on;,' /etc/nginx/nginx.conf\nnginx -t && nginx -s reload\n"
    return story + serves + "rm /etc/ssl/private/shop.example.key\n"


# Plays certbot and the authority behind it: takes certbot's options, and signs with the test's own authority.
CERTBOT = r"""
cat > bin/certbot <<'END'
#!/usr/bin/env python3
import os, subprocess, sys
words = sys.argv[1:]
assert words[:2] == ["certonly", "--non-interactive"] and "--webroot" in words, words
option = lambda name: words[words.index(name) + 1]
box = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(box + "/asked", "a") as file:
    file.write(" ".join(words) + "\n")
days = open(box + "/days").read().strip()
request = option("--csr")
if os.path.exists(box + "/wrong"):
    subprocess.run(["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", box + "/o.key", "-subj", "/CN=www.example",
                    "-out", box + "/o.csr"], check=True, stderr=subprocess.DEVNULL)
    request = box + "/o.csr"
subprocess.run(["openssl", "x509", "-req", "-in", request, "-CA", box + "/here/ca.crt", "-CAkey", box + "/here/ca.key",
                "-CAcreateserial", "-copy_extensions", "copy", "-days", days, "-out", option("--cert-path")], check=True)
cert, ca = open(option("--cert-path")).read(), open(box + "/here/ca.crt").read()
open(option("--chain-path"), "w").write(ca)
open(option("--fullchain-path"), "w").write(cert + ca)
END
chmod 755 bin/certbot
"""


def renewal(left):
    """Due, not yet due, and what goes wrong: an authority's mistake and an nginx that would not start change nothing."""
    serial = "openssl x509 -in /etc/keyhold/www.example.crt -noout -serial"
    renew = "/usr/share/keyhold/keyhold-renew"
    story = "cd ..\n" + CERTBOT + "echo 90 >days\ncd here\n" + f"first=$({serial})\n" + take(left, "sh", "keyhold-renew --force")
    story += (f"second=$({serial})\ntest \"$first\" != \"$second\"\ntest $(wc -l <../asked) = 1 # the timer: not yet due\n"
              "get www.example ca.crt | grep served\n"
              "openssl s_client -connect 127.0.0.1:443 -servername www.example </dev/null 2>/dev/null | openssl x509 -noout -serial "
              "| grep \"$second\"\n"
              f"echo 'DAYS=100' >>/etc/keyhold/renew/www.example.conf\n{renew} www.example\n"
              f"third=$({serial})\ntest \"$third\" != \"$second\" # now it was due\n"
              # the authority is wrong
              f"touch ../wrong\nnot {renew} --force www.example\nrm ../wrong\ntest \"$({serial})\" = \"$third\"\n"
              f"echo 0 >../days\nnot {renew} --force www.example\necho 90 >../days\ntest \"$({serial})\" = \"$third\"\n"
              # nginx would not like it: the old one is put back
              "cp -p /etc/nginx/nginx.conf kept.conf\necho nonsense >>/etc/nginx/nginx.conf\n"
              f"not {renew} --force www.example\ncp -p kept.conf /etc/nginx/nginx.conf\ntest \"$({serial})\" = \"$third\"\n"
              "get www.example ca.crt | grep served\n"
              # as certbot's deploy hook
              "mkdir -p lineage/www.example\nkeyholdctl cert csr www.example --subject /CN=www.example --out hook.csr\n"
              "openssl x509 -req -in hook.csr -CA ca.crt -CAkey ca.key -CAcreateserial -copy_extensions copy -days 60 "
              "-out lineage/www.example/fullchain.pem\n"
              f"RENEWED_LINEAGE=$PWD/lineage/www.example RENEWED_DOMAINS=www.example {renew}\n"
              "cmp lineage/www.example/fullchain.pem /etc/keyhold/www.example.crt\nget www.example ca.crt | grep served\n")
    return story


def far_away(left):
    """Certificates, a TCP listener, and a caller who is known by his."""
    issue = take(left, "sh", "openssl req -x509")
    agent = "\n".join(line.replace("edge2", "agent") for line in issue.splitlines()[1:]) + "\n"
    story = "mkdir tcp\ncd tcp\n" + issue + agent + "cp agent.crt agent.key ca.crt /etc/keyhold/\nchmod 600 /etc/keyhold/agent.key *.key\n"
    listen = take(left, "", 'listen "tcp:')
    story += f"cat >> /etc/keyhold/keyhold.conf <<'END'\n{listen}END\n"
    story += "systemctl restart keyhold\necho 127.0.0.1 agent.example >>/etc/hosts\n"
    ping = take(left, "sh", "--agent tcp:")
    story += "{\n" + ping + "} | grep edge2\nnot " + ping.replace("edge2.crt", "agent.crt").replace("edge2.key", "agent.key")
    return story + "cd ..\nget www.example ca.crt | grep served\n"


def tokens(left):
    """A token of SoftHSM's, and a pool of three; a wrong PIN and a right one; the keys sign."""
    story = take(left, "sh", "softhsm2-util --init-token")
    block = take(left, "", 'token "one"')
    story += f"cat >> /etc/keyhold/keyhold.conf <<'END'\n{block}END\n" + take(left, "sh", "create vault.example")
    story += "keyholdctl key show vault.example --json | grep '\"hsm\"'\n"
    story += "cp /etc/keyhold/one.pin kept.pin\necho 000000 >/etc/keyhold/one.pin\n" + take(left, "sh", "systemctl reload keyhold")
    story += "within 30 grep 'pin_refused' /run/keyholdd.log\n"
    story += "cat kept.pin >/etc/keyhold/one.pin\nsystemctl reload keyhold\n"
    story += take(left, "sh", "key move fleet.example")
    story += "keyholdctl key show fleet.example --json | grep '\"hsm\"'\n"
    story += take(left, "sh", "keyholdctl pool init vault")
    for name in ("vault.example", "fleet.example", "pooled.example"):
        story += (f"within 30 keyholdctl cert self-signed {name} --subject /CN={name} --out {name}.crt\n"
                  f"openssl verify -CAfile {name}.crt {name}.crt\n")
    return story


def life():
    """The commands of the table of a key's life."""
    table = re.search(r"^## The life of a key\n(.*?)^## ", document("docs/operations.md"), re.M | re.S)[1]
    story = "keyholdctl key create NAME --type p256\n"
    commands = [one.replace("FILE", "NAME.backup") for one in re.findall(r"`(keyholdctl [^`]*)`", table)]
    check(len(commands) >= 6, commands)
    for command in commands:
        if "restore" in command: # the key is there already: nothing is stored twice
            story += command + " || true\n"
        elif "--not-before" not in command:
            story += command + "\n"
    return story + "keyholdctl key delete NAME\nnot keyholdctl key purge NAME --yes\n"


def monitoring(left):
    metrics = take(left, "", "metrics ")
    story = f"cat >> /etc/keyhold/keyhold.conf <<'END'\n{metrics}END\n"
    story += "{\n" + take(left, "sh", "keyhold-tcp.conf") + "} >metrics.txt\n"
    # a moment after its start the agent may not have its keeper yet
    story += ("test $(grep -c '^keyhold_keeper_up [01]$' metrics.txt) = 2\n"
              "keeper_up() { curl -s http://127.0.0.1:9464/metrics | grep '^keyhold_keeper_up 1$'; }\nexport -f keeper_up\n"
              "within 30 keeper_up\ngrep -q '^keyhold_operations_total{op=\"ping\"' metrics.txt\n"
              "get www.example ca.crt | grep served\n")
    story += take(left, "sh", "keyhold.socket")
    return story + "get www.example ca.crt | grep served\ntest -S /run/keyhold/agent.sock\n"


def everyday():
    """The commands of the table, in its order, with a key that may come to harm."""
    table = re.search(r"^## Everyday\n(.*?)^## ", document("docs/operations.md"), re.M | re.S)[1]
    story = "keyholdctl key create NAME --type p256\n"
    for command in re.findall(r"`((?:keyholdctl|keyholdd|systemctl) [^`]*)`", table):
        if "--watch" in command:
            story += f"{command} >watch.txt & within 30 test -s watch.txt\nkill $!\n"
        elif command == "systemctl stop keyhold":
            story += command + "\nsystemctl start keyhold\n"
        elif "purge" in command:
            story += "keyholdctl key delete NAME\n" + command + "\n"
        else:
            story += command + "\n"
    return story


def end_of(text, lines):
    return "\n".join(line[:300] for line in text.splitlines()[-lines:])


def play(ws, story):
    """Runs it in namespaces of its own (processes, files, network) and returns its output."""
    home = os.path.join(ws.dir, "machine")
    os.mkdir(home)
    try:
        done = run("unshare", "-m", "-n", "-p", "-f", "--kill-child", "--mount-proc", "bash", "-c", PROLOGUE + story, ok=False, timeout=300,
                   env={**os.environ, "HOME_DIR": home, "KH_BUILD": build_dir()})
    except subprocess.TimeoutExpired as late: # its outputs are bytes
        done = subprocess.CompletedProcess([], "none after 300 s", *((text or b"").decode(errors="replace")
                                                                       for text in (late.stdout, late.stderr)))
    check(done.returncode == 0, f"exit status {done.returncode}; the last of its output, and its last commands:\n"
          + end_of(done.stdout, 24) + "\n---\n" + end_of(done.stderr, 16))
    check(not os.path.exists("/etc/keyhold/second.conf"), "it escaped")
    return done.stdout


def needs_namespaces():
    for needed in ("unshare", "systemd-sysusers", "systemd-tmpfiles", "nginx", "curl"):
        if shutil.which(needed) is None:
            raise Skip(f"no {needed}")
    if run("unshare", "-m", "-n", "-p", "-f", "--mount-proc", "true", ok=False).returncode != 0:
        raise Skip("no namespaces here")
    if os.path.exists("/etc/keyhold"):
        raise Skip("this machine has an agent of its own")


def test_readme_runs(ws):
    needs_namespaces()
    play(ws, readme_story())


def test_operations_run(ws):
    needs_namespaces()
    out = play(ws, operations_story())
    table = re.search(r"^## Files\n(.*)", document("docs/operations.md"), re.M | re.S)[1]
    modes = {path: mode for mode, _, path in (line.split() for line in out.splitlines() if re.match(r"\d+ \S+ /", line))}
    for path, who in re.findall(r"^\| `(\S+)` \| ([^|]*) \|", table, re.M):
        path = path.rstrip("/").replace("*", "nginx")
        check(path in modes, f"{path} of the table of files is not there:", modes)
        others = int(modes[path], 8) & 0o007
        check((others != 0) == who.startswith("everybody"), f"{path}: {who}, but its mode is {modes[path]}")


if __name__ == "__main__":
    harness.main(globals())
