#!/bin/sh
# Puts checkov, which tests look at manifests with, into .venv/checkov: it wants another tabulate than DVC does, so no one environment holds
# both. After scripts/install.sh, whose settings it shares; runs again only when the lock changed. Without it those tests are skipped.
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
