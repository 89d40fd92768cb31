#!/bin/sh
set -eu
usage() {
    cat <<'END'
Usage: scripts/install.sh

Install mlops-build and everything it needs into .venv: first the packages of requirements.lock, then torch, then this package, editable.
Does nothing if none of them changed since the last time. Takes no arguments; these environment variables change what it does:

  PYTHON          the interpreter, 3.11 or later (default: the first of python3.14, python3.13, python3.12, python3.11 and python3 that works)
  PIP_INDEX_URL   the package index; PIP_EXTRA_INDEX_URL: more of them, which are asked first
  PIP_FIND_LINKS  folders with wheels, separated by spaces; a torch wheel there that fits the interpreter is preferred
  TORCH_BACKEND   which build of torch: cpu, cu128, auto, … (default: cpu without an NVIDIA driver, otherwise auto)
END
}
say() { echo "install: $*" >&2; }
case ${1:-} in
"") ;;
-h | --help) usage; exit ;;
*) say "unknown argument $1"; usage >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/.installed

python=${PYTHON:-}
for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
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
[ -z "${PIP_EXTRA_INDEX_URL:-}" ] || export UV_INDEX="${UV_INDEX:-$PIP_EXTRA_INDEX_URL}"
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
    install_all() { "$uv" pip install --quiet --compile-bytecode "$@"; }
    no_config=--no-config
else
    no_config=
    install_all() { $venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
fi
install() { install_all --no-deps "$@"; }

say "the locked packages ($(grep -c '==' requirements.lock))"
install --require-hashes --requirement requirements.lock

# With its dependencies, of which the lock has those of the CPU build: a CUDA build also needs NVIDIA's packages. pyproject.toml has the
# metadata of the CPU build (for `make lock`), so uv must not read it here.
torch_from() { install_all $no_config "$@" torch; }

install_torch() {
    for folder in ${PIP_FIND_LINKS:-}; do
        ls "$folder"/torch-*.whl >/dev/null 2>&1 || continue
        if torch_from --no-index --find-links "$folder" 2>/dev/null; then
            say "torch from $folder"
            return
        fi
        say "no torch wheel in $folder fits $($venv/bin/python --version): the next source is used"
    done
    if [ -n "${TORCH_BACKEND:-}" ]; then backend=$TORCH_BACKEND
    elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then backend=auto
    else backend=cpu; fi
    if [ -n "$uv" ]; then
        say "torch ($backend)"
        if torch_from --torch-backend="$backend"; then return; fi
        [ -z "${TORCH_BACKEND:-}" ] || return 1
    fi
    say "torch from the package index: usually the CUDA build, some gigabytes"
    torch_from
}
if $venv/bin/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    say "torch is already installed"
else
    install_torch || { say "torch cannot be installed: put a wheel that fits $($venv/bin/python --version) into a folder and name it in PIP_FIND_LINKS"; exit 1; }
fi

say "mlops-build itself, editable"
install --no-build-isolation --editable .
$venv/bin/python -m compileall -q mlops_build
echo "$wanted" >$stamp
say "done: . $venv/bin/activate"
