# SPDX-License-Identifier: Apache-2.0
# What `demo` and `check` share: the packages that Debian has to bring, and the build. To be sourced by bash.

KH_BUILD_PACKAGES="gcc libc6-dev cmake ninja-build pkg-config libssl-dev libmsgpack-dev libev-dev libsqlite3-dev
    libconfuse-dev libseccomp-dev libsystemd-dev libjansson-dev libp11-kit-dev nginx nginx-dev"
KH_DEMO_PACKAGES="openssl curl util-linux softhsm2"
KH_CHECK_PACKAGES="libcmocka-dev python3 valgrind openssl curl util-linux sqlite3 git
    libnginx-mod-stream libnginx-mod-mail iproute2 softhsm2 opensc libengine-pkcs11-openssl
    libnss3 libnss3-tools"
KH_FULL_PACKAGES="clang libclang-rt-14-dev"

# A directory for temporary files that the agent's and nginx's own users can get through, with room for a socket's path.
public_tmp() {
    local path above
    path=$(cd "${TMPDIR:-/tmp}" 2>/dev/null && pwd -P) || path=/tmp
    [ ${#path} -gt 45 ] && path=/tmp
    above=$path
    while [ "$above" != / ]; do
        case $(stat -c %A "$above") in *[xt]) ;; *) path=/tmp ;; esac
        above=$(dirname "$above")
    done
    echo "$path"
}

# Debian starts a service when it installs it; nginx shall not begin to listen because of us.
without_services() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    fi
    "$@"
)

# install_missing PACKAGE…: installs those that are missing. No question is asked and no service is started.
install_missing() {
    local package missing=() log install

    for package in "$@"; do
        if [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | cut -c1-2)" != "ii" ]; then
            missing+=("$package")
        fi
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    echo "installing from Debian: ${missing[*]}"
    if [ "$(id -u)" -ne 0 ]; then
        echo "please run as root, or: apt-get install ${missing[*]}" >&2
        return 1
    fi
    log=$(mktemp "${TMPDIR:-/tmp}/keyhold-apt.XXXXXX")
    install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends
        -o DPkg::Lock::Timeout=300 "${missing[@]}")
    if ! { without_services "${install[@]}" || { apt-get update -q && without_services "${install[@]}"; }; } \
        </dev/null >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# build_preset PRESET DIR [TARGET…]: configures if need be and builds; the compiler's words only if it fails.
# A directory that CMake refuses (made by another version, or the tree was moved) is made anew once.
build_preset() {
    local preset=$1 dir=$2 log status=0 launcher=() targets=()
    shift 2
    log=$(mktemp "${TMPDIR:-/tmp}/keyhold-build.XXXXXX")
    command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache)
    [ $# -gt 0 ] && targets=(--target "$@")
    (
        flock 9 # two runs in one tree take turns
        export CCACHE_BASEDIR="$KH_ROOT" CCACHE_NOHASHDIR=1 # what one clone has compiled serves the next
        configure() { cmake --preset "$preset" -S "$KH_ROOT" -B "$dir" "${launcher[@]}"; }
        { configure || { rm -rf "$dir" && configure; }; } && cmake --build "$dir" -j "$(nproc)" "${targets[@]}"
    ) 9<"$KH_ROOT" >"$log" 2>&1 </dev/null || status=1
    if [ $status -ne 0 ]; then
        grep -E -A12 'error|Error|FAILED' "$log" | head -n 120 >&2
        echo "--- the end of the log:" >&2
        tail -n 20 "$log" >&2
    fi
    rm -f "$log"
    return $status
}
