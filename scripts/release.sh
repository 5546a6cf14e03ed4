#!/usr/bin/env bash
# Makes the files of a release in dist/VERSION: source archive, wheel, the files that the images are built from, and
# SHA256SUMS. Uploads nothing and sets no tag; the last lines say what is left to do.
#   scripts/release.sh VERSION [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?the version, as in pyproject.toml}
python=${2:-.venv/bin/python}
out=dist/$version
fail() { echo "error: $*" >&2; exit 2; }

[ "$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" = "$version" ] || fail "pyproject.toml has another version than $version; change it there first"
grep -qE "^## ${version//./\\.} \([0-9]{4}-[0-9]{2}-[0-9]{2}\)$" CHANGELOG.md || fail "CHANGELOG.md has no heading '## $version (YEAR-MONTH-DAY)'; give the section its date"
grep -qE "^version: \"?${version//./\\.}\"?$" CITATION.cff || fail "CITATION.cff has another version than $version; change it there first"
[ -z "$(git status --porcelain)" ] || fail "the checkout has changes; commit them first"
[ ! -e "$out" ] || fail "$out exists; choose another version, or move it away"

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m hatchling build -d "$place"
mapfile -t image_files < <(sed -n 's/^!//p' .dockerignore)
git archive --format=tar.gz --prefix="bert-pretrain-$version-images/" -o "$place/bert-pretrain-$version-images.tar.gz" HEAD \
    --add-virtual-file="bert-pretrain-$version-images/bert_pretrain/COMMIT:$(git rev-parse --short HEAD)" \
    "${image_files[@]}" .dockerignore
# The wheel has to come out of the source archive too, with the same commit in it.
mkdir "$place/from_source" && tar -xzf "$place/bert_pretrain-$version.tar.gz" -C "$place/from_source"
(cd "$place/from_source/bert_pretrain-$version" && "$OLDPWD/$python" -m hatchling build -t wheel -d "$place/again" > /dev/null)
commit=$(git rev-parse --short HEAD)
for wheel in "$place"/*.whl "$place"/again/*.whl; do
    [ "$(unzip -p "$wheel" bert_pretrain/COMMIT)" = "$commit" ] || fail "$wheel does not name the commit $commit"
done
rm -r "$place/from_source" "$place/again"
(cd "$place" && sha256sum -- *.gz *.whl > SHA256SUMS)
mkdir -p dist && cp -r "$place" "$out" && chmod 755 "$out"
ls -l "$out"
cat <<NEXT
next: scripts/try_wheel.sh                      the wheel in an empty environment
      git tag -a v$version && git push origin v$version
      twine upload $out/*.whl $out/bert_pretrain-$version.tar.gz
NEXT
