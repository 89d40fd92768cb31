#!/bin/sh
# Puts everything into ./.venv: the hashed lock first, torch second, this package third. Runs again only when one of them changed.
#
# Settings, all optional: PYTHON (an interpreter ≥ 3.11), PIP_INDEX_URL, PIP_FIND_LINKS (folders with wheels; a torch wheel there is
# taken as it is), TORCH_BACKEND (cpu, cu128, auto …: instead of "cpu without an NVIDIA driver, else auto").
set -eu
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/.installed
say() { echo "install: $*" >&2; }

python=${PYTHON:-}
for candidate in python3.13 python3.12 python3.11 python3; do
    [ -n "$python" ] && break
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; fi
done
[ -n "$python" ] || { say "no Python ≥ 3.11 found; install one, or name it: make PYTHON=/path/to/python"; exit 1; }

wanted=$(cat pyproject.toml requirements.lock scripts/install.sh mlops_build/__init__.py | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
[ -f $stamp ] && [ "$(cat $stamp)" = "$wanted" ] && exit 0
rm -f $stamp

# Bytecode makes every later start three times faster, so it is wanted even where the machine says otherwise.
unset PYTHONDONTWRITEBYTECODE
# uv ignores pip's settings.
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$(echo "$PIP_FIND_LINKS" | tr ' ' ',')}"

uv=$(command -v uv || true)
if [ ! -x $venv/bin/python ]; then
    say "making $venv with $("$python" --version)"
    if [ -n "$uv" ]; then "$uv" venv --quiet --python "$python" $venv; else "$python" -m venv $venv; fi
fi
if [ -z "$uv" ]; then
    [ -x $venv/bin/uv ] || $venv/bin/python -m pip install --quiet uv || say "uv cannot be installed: pip does it, slower"
    [ -x $venv/bin/uv ] && uv=$venv/bin/uv
fi
export VIRTUAL_ENV="$PWD/$venv"
if [ -n "$uv" ]; then
    install() { "$uv" pip install --quiet --compile-bytecode --no-deps "$@"; }
else
    install() { $venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$@"; }
fi

say "the locked packages ($(grep -c '==' requirements.lock))"
install --require-hashes --requirement requirements.lock

wheels=
for folder in ${PIP_FIND_LINKS:-}; do
    if ls "$folder"/torch-*.whl >/dev/null 2>&1; then wheels=$folder; fi
done
if [ -n "${TORCH_BACKEND:-}" ]; then backend=$TORCH_BACKEND
elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then backend=auto
else backend=cpu; fi
if $venv/bin/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    say "torch is there"
elif [ -n "$wheels" ]; then
    say "torch from $wheels"
    install --no-index --find-links "$wheels" torch
elif [ -n "$uv" ]; then
    say "torch ($backend)"
    install --torch-backend="$backend" torch
else
    say "torch, as the package index has it: without uv this is the CUDA build, some gigabytes"
    install torch
fi

say "mlops-build itself, editable"
install --no-build-isolation --editable .
$venv/bin/python -m compileall -q mlops_build
echo "$wanted" >$stamp
say "done: . $venv/bin/activate"
