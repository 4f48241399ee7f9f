#!/usr/bin/env bash
# What the tests need beside Python: Chromium with a font for the pages, PostgreSQL for the log. Installed from Debian's packages when
# missing, when root and when there is apt-get (APT=no leaves it); else the tests that need them skip and say why. Never fails.
set -uo pipefail

missing=()
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing+=(chromium fonts-dejavu-core)
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing+=(postgresql)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "${APT:-yes}" = no ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "debian: without ${missing[*]} some tests will skip (as root: apt-get install ${missing[*]})" >&2
    exit 0
fi
echo "debian: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# RUNLEVEL=1: a fresh PostgreSQL package would start a server of its own, which the tests do not use
apt() { RUNLEVEL=1 apt-get -qq -o Dpkg::Use-Pty=0 -o Acquire::Retries=2 "$@" </dev/null >"$log" 2>&1; }
apt update || { echo "debian: apt-get update failed:" >&2; tail -3 "$log" >&2; }
for package in "${missing[@]}"; do
    apt install -y --no-install-recommends "$package" && continue
    echo "debian: $package could not be installed, so the tests that need it will skip:" >&2
    tail -3 "$log" >&2
done
rm -f "$log"
exit 0
