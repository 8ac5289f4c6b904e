#!/bin/sh
# Debian splits venv from Python; without it no virtual environment can be made.
set -eu
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Python has no venv module here: install it (Debian: apt-get install python3-venv), then run make again" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
