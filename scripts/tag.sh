#!/bin/sh
# Create the tags in CHANGELOG.md's table of releases: a copy of a repository may lack tags. Copier and `mlops-build update` use the newest tag.
# A tag that is on another commit is not changed, but reported.
set -eu
cd "$(dirname "$0")/.."
say() { echo "tag: $*" >&2; }
failed=0
made=0
rows=$(awk -F '|' '$2 ~ /^ *[0-9]+(\.[0-9A-Za-z]+)+ *$/ && $4 ~ /^ *[0-9a-f]+ *$/ { gsub(/ /, "", $2); gsub(/ /, "", $4); print $2, $4 }' CHANGELOG.md)
[ -n "$rows" ] || { say "CHANGELOG.md has no table of releases"; exit 1; }
while read -r version commit; do
    if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
        say "$version: commit $commit is not in this clone; get the whole history first: git fetch --unshallow"
        failed=1
    elif is=$(git rev-parse --verify --quiet "refs/tags/$version^{commit}"); then
        [ "$is" = "$(git rev-parse "$commit^{commit}")" ] || { say "$version is on $is, not on $commit as CHANGELOG.md says; git tag -d $version, if the table is right"; failed=1; }
    else
        git tag "$version" "$commit"
        say "$version → $(git rev-parse --short "$commit")"
        made=$((made + 1))
    fi
done <<END
$rows
END
[ $failed = 0 ] || exit 1
[ $made != 0 ] || say "every release has its tag"
