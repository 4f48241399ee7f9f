#!/usr/bin/env bash
# Prepare .venv: the first fitting Python, uv when it can be had (ten seconds instead of minutes), the package with all its
# extras.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "env: $*" >&2; }
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if command -v flock >/dev/null; then exec 9<settings.ini; flock 9; fi  # two makes at once: one installs, the other waits

if ! { [ -x .venv/bin/python ] && fits .venv/bin/python; }; then
    python=
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
        if fits "$candidate"; then python=$candidate; break; fi
    done
    [ -n "$python" ] || { say "no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python3.11 ..."; exit 1; }
    say "making .venv with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
    rm -rf .venv
    "$python" -m venv .venv || { rm -rf .venv; say "$python -m venv failed: on Debian, apt-get install python3-venv"; exit 1; }
fi

uv=
for candidate in .venv/bin/uv "$(command -v uv || true)"; do
    if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then uv=$candidate; break; fi
done
pip_works() { .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null 2>&1; }
if [ -z "$uv" ] && pip_works && .venv/bin/python -m pip install -q uv 2>/dev/null; then uv=.venv/bin/uv; fi

install() {
    if [ -n "$uv" ]; then
        if [ -f /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-true}; fi
        if UV_LINK_MODE=${UV_LINK_MODE:-copy} "$uv" pip install -q --python .venv/bin/python --compile-bytecode "$@"; then return; fi
        say "uv could not install this; trying pip"
    fi
    pip_works || { say "neither uv nor pip is at hand in .venv: remove .venv and try again"; exit 1; }
    .venv/bin/python -m pip install -q "$@"
}

say "installing deploy_assist[dev] with ${uv:-pip}"
install -e '.[dev]'
