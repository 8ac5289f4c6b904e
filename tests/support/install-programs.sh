#!/usr/bin/env bash
# Make the programs that the tests, the demo and the benchmarks talk to available: those named as arguments,
# or all of docker-registry, containerd (with ctr, its shim and runc), kubectl (with the OpenAPI document of a
# Kubernetes API server), skopeo, strace, openssl and faketime.
#
# docker-registry and containerd are unpacked into .tools/ instead of being installed, because their
# packages would start system services; the tests start their own, on free ports, in temporary places.
# kubectl and the document are unpacked too: nothing outside the tests wants them.
# A program that is already on PATH is left alone. Running this again when all is there does nothing.
set -euo pipefail

cd "$(dirname "$0")/../.."
tools="$PWD/.tools"
programs=("$@")

# Tests look in .tools first and then on PATH; so does this.
have() {
    [ -x "$tools/usr/bin/$1" ] || [ -x "$tools/usr/sbin/$1" ] || command -v "$1" >/dev/null 2>&1
}

have_all() {
    local program
    for program in "$@"; do
        have "$program" || return 1
    done
}

wanted() {
    [ "${#programs[@]}" -eq 0 ] || [[ " ${programs[*]} " == *" $1 "* ]]
}

fail() {
    echo "install-programs: $*" >&2
    exit 1
}

to_unpack=()
to_install=()
if wanted docker-registry; then
    have docker-registry || to_unpack+=(docker-registry)
fi
if wanted containerd; then
    have_all containerd ctr containerd-shim-runc-v2 || to_unpack+=(containerd)
    have runc || to_unpack+=(runc)
fi
openapi="$tools/usr/share/gocode/src/k8s.io/kube-openapi/test/integration/testdata/aggregator/openapi.json"
if wanted kubectl; then
    have kubectl || to_unpack+=(kubernetes-client)
    [ -e "$openapi" ] || to_unpack+=(golang-k8s-kube-openapi-dev)
fi
if wanted skopeo; then
    # skopeo needs shared libraries, and refuses to copy anything without a trust policy.
    have skopeo || to_install+=(skopeo)
    [ -e /etc/containers/policy.json ] || to_install+=(golang-github-containers-common)
fi
for program in strace openssl faketime; do
    if wanted "$program" && ! have "$program"; then
        to_install+=("$program")
    fi
done

if [ "${#to_unpack[@]}" -eq 0 ] && [ "${#to_install[@]}" -eq 0 ]; then
    exit 0
fi

missing="${to_unpack[*]}${to_install[*]:+ ${to_install[*]}}"
if ! [ -e /etc/debian_version ] || ! command -v apt-get >/dev/null 2>&1; then
    fail "needs Debian's apt-get; provide these by other means: $missing"
fi
[ "$(id -u)" -eq 0 ] || fail "must run as root to get: $missing"

export DEBIAN_FRONTEND=noninteractive
echo "install-programs: getting $missing"
apt-get update -qq

if [ "${#to_unpack[@]}" -gt 0 ]; then
    downloads="$(mktemp -d)"
    trap 'rm -rf "$downloads"' EXIT
    # apt downloads as its own unprivileged user where there is one, which must be able to write here.
    if id _apt >/dev/null 2>&1; then
        chown _apt "$downloads"
    fi
    (cd "$downloads" && apt-get download -qq "${to_unpack[@]}")
    mkdir -p "$tools"
    for package in "$downloads"/*.deb; do
        dpkg-deb -x "$package" "$tools"
    done
fi

if [ "${#to_install[@]}" -gt 0 ]; then
    apt-get install -qq -y --no-install-recommends "${to_install[@]}"
fi

for program in docker-registry containerd kubectl skopeo strace openssl faketime; do
    ! wanted "$program" || have "$program" || fail "$program is still missing"
done
! wanted kubectl || [ -e "$openapi" ] || fail "the OpenAPI document of Kubernetes is still missing"
echo "install-programs: done"
