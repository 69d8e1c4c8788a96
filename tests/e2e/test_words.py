#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Documents and programs name the same things: every event of the logs, every option of every program, every directive and
variable, every claim of the threat model and its test. Looks at the source, at --help, and at the documents; starts no server."""
import os
import re

import harness
from harness import ROOT, artefact, build_dir, check, read, run

PAGES = os.path.join(ROOT, "docs/man")


def source(room):
    """The C code of a room, by file: without comments, string constants in one piece, quotes in them as they are written."""
    found = {}
    for folder, _, names in os.walk(os.path.join(ROOT, room)):
        for name in names:
            if name.endswith((".c", ".h")):
                text = re.sub(r"/\*.*?\*/", "", read(os.path.join(folder, name)), flags=re.S)
                found[os.path.relpath(os.path.join(folder, name), ROOT)] = re.sub(r'"\s*\n\s*"', "", text)
    check(found, room, "has no code")
    return found


def page(name):
    """A manual page as plain text: no font changes, no escapes."""
    text = read(os.path.join(PAGES, name))
    check(text, name, "is not there")
    text = re.sub(r"\\f[A-Z]", "", text).replace("\\-", "-").replace("\\(dq", '"').replace("\\e", "\\").replace("\\&", "")
    text = re.sub(r"^\.(?:B|I|BR|BI|IR|RB|IB|RI|SM) ", "", text, flags=re.M).replace('"', "")
    return re.sub(r"[ \t]+", " ", text)


def section(path, title):
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", read(os.path.join(ROOT, path)), re.M | re.S)
    check(match, path, "has no section", title)
    return match[1]


def first_cells(path, title):
    cells = re.findall(r"^\| `(.*?)` \|", section(path, title), re.M)
    check(len(cells) == len(set(cells)), "twice in", path, [cell for cell in cells if cells.count(cell) > 1])
    return set(cells)


# ---- Logs ------------------------------------------------------------------------------------------------------------------------

def test_events_of_the_agent(_):
    """docs/logs.md has every event with its levels, and no other."""
    levels = {}
    for path, code in source("agent").items():
        if path.endswith(("probe.c", "log.h")):
            continue
        for call in re.findall(r"\bkh_log\((.*?)\);", code, re.S):
            event = re.search(r'"(\w+)"', call)
            check(event, path, "logs an event without a name:", call)
            levels.setdefault(event[1], set()).update(re.findall(r"KH_LOG_(\w+)", call) or {"any"})
    check(len(levels) > 40, levels)
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section("docs/logs.md", "Agent"), re.M))
    check(listed.keys() == levels.keys(), "docs/logs.md and the source differ:", listed.keys() ^ levels.keys())
    for event, words in listed.items():
        check(words == "any" or words.upper() in levels[event], event, "is written as", levels[event])
    for event, rest in re.findall(r"^\| `(\w+)` \| (?:error|warn) \| (.*) \|$", section("docs/logs.md", "Agent"), re.M):
        check(rest.split(" | ")[1].strip(), event, "has nothing to do")


def stable(text):
    """A format as docs/logs.md writes it: what changes is …"""
    text = text.replace('\\"', '"').replace("%%", "%")
    text = re.sub(r"%(?:\*s|[0-9.]*(?:ll|l|z|uA|u)?[dsuVilxAM])", "…", text)
    return re.sub("…(\\.?…)+", "…", text)


def test_texts_of_the_keystore(_):
    texts = set()
    for code in source("keystore").values():
        texts |= {stable(text) for text in re.findall(r'kh_(?:logf|p11_log)\([^;]*?KH_LOG_(?!DEBUG)\w+,\s*"((?:[^"\\]|\\.)*)"', code)}
    check(len(texts) > 10, texts)
    listed = first_cells("docs/logs.md", "Keystore")
    check(listed == texts, "docs/logs.md and the source differ:", listed ^ texts)


def test_texts_of_the_module(_):
    """Those of a running nginx. Mistakes in the configuration explain themselves, at the line where they are."""
    texts = set()
    for code in source("nginx-module").values():
        texts |= {stable(text) for level, text in
                  re.findall(r'ngx_log_error\((\w+),[^;"]*?"(keyhold: (?:[^"\\]|\\.)*)"', code) if level != "NGX_LOG_EMERG"}
    check(len(texts) > 8, texts)
    listed = first_cells("docs/logs.md", "nginx")
    check(listed == texts, "docs/logs.md and the source differ:", listed ^ texts)


def test_what_a_caller_can_cause_is_limited(_):
    """Warnings of the front come after kh_log_allowed, but those that the supervisor or the keeper cause."""
    free = {"keeper_lost", "drain_incomplete", "memory_not_locked", "supervisor_gone"}
    for path in ("admit", "auth", "conn", "listener", "manage", "operation", "room", "control", "dispatch", "front"):
        code = source("agent")[f"agent/{path}.c"]
        for match in re.finditer(r'\bkh_log\(KH_LOG_(?:WARN|NOTICE), "(\w+)"', code):
            if match[1] in free or match[1].startswith(("drain", "configuration_")):
                continue
            before = code[max(0, match.start() - 200):match.start()]
            check("kh_log_allowed(" in before, path, match[1], "is not limited")


# ---- Manual pages ------------------------------------------------------------------------------------------------------------------

def options_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def test_manual_of_keyholdd(_):
    wanted, text = options_of(run(artefact("keyholdd"), "--help").stdout), page("keyholdd.8")
    check(len(wanted) >= 4 and wanted <= options_of(text), "keyholdd.8 lacks", wanted - options_of(text))
    check(options_of(text) - {"--now"} <= wanted | options_of(read(os.path.join(ROOT, "agent/ctl/help.c"))),
          "keyholdd.8 has", options_of(text) - wanted)


def test_manual_of_keyholdctl(_):
    ctl, text = artefact("keyholdctl"), page("keyholdctl.1")
    help_text = run(ctl, "--help").stdout
    commands = re.findall(r"^  ([a-z][a-z-]*(?: [a-z][a-z-]*)?)(?:  |\s+[A-Z\[<])", help_text, re.M)
    check(len(commands) > 10, help_text)
    wanted = options_of(help_text)
    for command in commands:
        check(re.search(r"\b" + command.replace(" ", r"\s+") + r"\b", text), "keyholdctl.1 lacks", command)
        wanted |= options_of(run(ctl, *command.split(), "--help", ok=False).stdout)
    check(wanted <= options_of(text), "keyholdctl.1 lacks", wanted - options_of(text))


def test_manual_of_the_configuration(_):
    code = "".join(source("agent").values())
    tables = set(re.findall(r'CFG_(?:STR|INT|BOOL|SEC|STR_LIST)\("(\w+)"', code))
    tables |= set(re.findall(r"^ +X\((\w+), [\w<( ]+", code, re.M)) - {"field"}
    text = page("keyhold.conf.5")
    check(len(tables) > 35, tables)
    for option in tables:
        check(re.search(rf"\b{option}\b", text), "keyhold.conf.5 lacks", option)
    shown = set(re.findall(r"^\.(?:BI?|TP\n\.BI?) \"?([a-z_]+)\"? (?:\"? = |\{)", read(os.path.join(PAGES, "keyhold.conf.5")), re.M))
    check(shown <= tables, "keyhold.conf.5 has", shown - tables)
    for option, default in re.findall(r"X\((\w+), (\d+), \d", code):
        match = re.search(rf"\b{option} = ([\d,]+)", text)
        check(match and match[1].replace(",", "") == default, option, "has another default than", default)


def test_manual_of_the_bench(_):
    bench, text = artefact("keyhold-bench"), page("keyhold-bench.1")
    for command in re.findall(r"^  (\w+)  ", run(bench, "--help").stdout, re.M):
        check(re.search(rf"^\.SS {command}$", read(os.path.join(PAGES, "keyhold-bench.1")), re.M), "keyhold-bench.1 lacks", command)
        wanted = options_of(run(bench, command, "--help", ok=False).stdout)
        check(wanted <= options_of(text), "keyhold-bench.1 lacks", wanted - options_of(text))


def test_manual_of_the_module(_):
    code = "".join(source("nginx-module").values())
    text = page("ngx_http_keyhold_module.5")
    for name in set(re.findall(r'ngx_string\("(keyhold\w*)"\)', code)):
        check(re.search(rf"(\$|\b){name}\b", text), "ngx_http_keyhold_module.5 lacks", name)
    for parameter in set(re.findall(r'ngx_strncmp\([^,]+, "(\w+=)"', code)):
        check(parameter in text, "ngx_http_keyhold_module.5 lacks", parameter)


def test_manual_of_the_library(_):
    declared = read(os.path.join(ROOT, "protocol/include/keyhold/client.h"))
    names = set(re.findall(r"^(?:KH_MUST_USE )?\w[\w ]*[ *](kh_\w+)\(", declared, re.M))
    text = page("libkeyhold-protocol.3")
    check(len(names) > 8, names)
    for name in names:
        check(re.search(rf"\b{name}\b", text), "libkeyhold-protocol.3 lacks", name)


def test_manual_of_the_provider(_):
    code, text = "".join(source("protocol/provider").values()), page("keyhold-provider.7")
    for name in set(re.findall(r'OSSL_PARAM_utf8_ptr\("(\w+)"', code)) | set(re.findall(r'getenv\("(KH_\w+)"', code)):
        check(re.search(rf"\b{name}\b", text), "keyhold-provider.7 lacks", name)


def test_pages_are_well_formed(_):
    """man finds nothing to complain about, and every other page that is named exists."""
    pages = sorted(os.listdir(PAGES))
    for name in pages:
        elsewhere = re.fullmatch(r"\.so man\d/(\S+)\s*", re.sub(r'^\.\\".*\n', "", read(os.path.join(PAGES, name)), flags=re.M))
        if elsewhere:
            check(elsewhere[1] in pages, name, "stands for", elsewhere[1])
            continue
        done = run("man", "--warnings", "-l", os.path.join(PAGES, name), ok=False, env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8"})
        if done.returncode == 127:
            raise harness.Skip("no man")
        check(done.returncode == 0 and not done.stderr.strip(), name, done.stderr[:1000])
        text = read(os.path.join(PAGES, name))
        for other, number in re.findall(r"\.BR ((?:lib|ngx_)?\w*keyhold[\w.-]*) \((\d)\)", text.replace("\\-", "-")):
            check(f"{other}.{number}" in pages, name, "names", f"{other}({number})")


# ---- The threat model ----------------------------------------------------------------------------------------------------------------

def threat_lines():
    """Each claim of docs/threat-model.md: bullets, rows of tables, paragraphs, each with what follows in its own lines."""
    text = re.split(r"^## Where the tests are", read(os.path.join(ROOT, "docs/threat-model.md")), flags=re.M)[0]
    for heading, body in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        for block in re.split(r"\n(?=\n|[*|])", body):
            line = " ".join(block.split())
            if line and not re.fullmatch(r"[|\- ]+", line) and not line.startswith("| process | attacker"):
                yield heading, line


def functions_of(path):
    code = read(os.path.join(ROOT, path))
    return set(re.findall(r"^def (test_\w+)\(", code, re.M)) | set(re.findall(r"\b(test_\w+)\(void", code)) \
        | set(re.findall(r"\bcmocka_unit_test\w*\((\w+)", code))


def test_every_line_of_the_threat_model_names_its_test(_):
    """Each claim ends with [id] or [tests/…], or with [no test: why], of which there are few; what is named exists and runs."""
    listed = dict(re.findall(r"^\| ([A-Z]\d+) \|[^|]*\| (.*) \|$", section("docs/threat-model.md", "Where the tests are"), re.M))
    built = run("ctest", "--test-dir", build_dir(), "-N").stdout
    count, without = 0, []
    for heading, line in threat_lines():
        match = re.search(r"\[([^\[\]]+)\]( \|)?$", line)
        check(match, heading, "- this claim names no test:", line)
        count += 1
        if match[1].startswith("no test: "):
            without.append(line)
            continue
        for reference in re.split(r", ", match[1]):
            if re.fullmatch(r"[A-Z]\d+", reference):
                check(reference in listed, reference, "is not in the table of tests")
                continue
            path, _, function = reference.strip("`").partition(":")
            check(os.path.isfile(os.path.join(ROOT, path)) and path.startswith("tests/"), line, "names", reference)
            check(not function or function in functions_of(path), path, "has no", function)
            if path.endswith(".c") and not path.startswith("tests/fuzz/"):
                check(f": {os.path.basename(path)[:-2]}\n" in built, "ctest does not know", path)
    check(count > 40, "only", count, "claims were found")
    print(f"threat model: {count} claims, {len(without)} without a test", flush=True)
    check(len(without) <= 8, "too many without a test:", without)
    for claim, where in listed.items():
        for path in re.findall(r"`(tests/[^`]+)`", where):
            check(os.path.isfile(os.path.join(ROOT, path)), claim, "names", path)


if __name__ == "__main__":
    harness.main(globals())
