#!/bin/sh
# Install checkov, which tests run on manifests, into .venv/checkov: it needs another version of tabulate than DVC, so they cannot share an environment.
# Run it after scripts/install.sh, which uses the same settings. It does nothing if the lock has not changed. Without checkov, these tests are skipped.
set -eu
cd "$(dirname "$0")/.."
venv=.venv/checkov
stamp=$venv/.installed
say() { echo "install: $*" >&2; }

wanted=$(cat requirements-checkov.lock scripts/install-checkov.sh | .venv/bin/python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
[ -f $stamp ] && [ "$(cat $stamp)" = "$wanted" ] && exit 0
rm -f $stamp
unset PYTHONDONTWRITEBYTECODE
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
[ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$(echo "$PIP_FIND_LINKS" | tr ' ' ',')}"

say "checkov, in an environment of its own ($(grep -c '==' requirements-checkov.lock) packages)"
uv=.venv/bin/uv
if $uv venv --quiet --clear --python .venv/bin/python $venv &&
    VIRTUAL_ENV="$PWD/$venv" $uv pip install --quiet --compile-bytecode --no-deps --require-hashes --requirement requirements-checkov.lock; then
    echo "$wanted" >$stamp
else
    rm -rf $venv
    say "checkov cannot be installed: the tests that use it are skipped"
fi
