"""Resolve the base images of mlops_build/packaging/base_images.json to digests, before a release.

    python scripts/base-images.py [IMAGE:TAG …]

Asks each image's registry for the digest of the tag's index of platforms, and writes the file anew; names are added to it. An image
whose registry does not answer keeps what stands there, and makes the exit code 1.
"""

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "mlops_build/packaging/base_images.json"
# Docker's rule: a first part without a dot or a colon is no host, and a name of one part is an official image.
OFFICIAL, HUB = "library", "registry-1.docker.io"
INDEXES = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]+)?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
SECONDS = 30


def digest(image: str) -> str:
    """The digest of IMAGE:TAG in its registry. Raises OSError where it does not answer, ValueError where it answers with no digest."""
    name, _, tag = image.rpartition(":")
    host, _, path = name.partition("/")
    if not re.search(r"[.:]", host):
        host, path = HUB, name if "/" in name else f"{OFFICIAL}/{name}"
    address = f"{'http' if LOOPBACK.fullmatch(host) else 'https'}://{host}/v2/{path}/manifests/{tag}"
    try:
        found = _head(address, None)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        found = _head(address, _token(error.headers.get("WWW-Authenticate", ""), path))
    if not DIGEST.fullmatch(found):
        raise ValueError(f"{host} says no digest for {image}")
    return found


def _head(address: str, token: str | None) -> str:
    headers = {"Accept": f"{INDEXES}, {MANIFESTS}", **({"Authorization": f"Bearer {token}"} if token else {})}
    with urllib.request.urlopen(urllib.request.Request(address, method="HEAD", headers=headers), timeout=SECONDS) as answer:
        return str(answer.headers.get("Docker-Content-Digest", ""))


def _token(challenge: str, path: str) -> str:
    """A token to read one repository with, from where the registry sends us."""
    said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not said.get("realm", "").startswith("https://"):
        raise ValueError(f"the registry wants a login of another kind: {challenge[:100]!r}")
    query = urllib.parse.urlencode({"service": said.get("service", ""), "scope": f"repository:{path}:pull"})
    with urllib.request.urlopen(f"{said['realm']}?{query}", timeout=SECONDS) as answer:
        found = json.load(answer)
    return str(found.get("token") or found["access_token"])


def main() -> int:
    document = json.loads(FILE.read_text(encoding="utf-8"))
    images: dict[str, str | None] = {**document["images"], **{name: document["images"].get(name) for name in sys.argv[1:]}}
    failed = 0
    for image in sorted(images):
        try:
            images[image] = digest(image)
        except (OSError, ValueError, KeyError) as error:
            failed += 1
            print(f"{image}: {error}", file=sys.stderr)
        print(f"{image}  {images[image] or 'unknown'}")
    part = FILE.with_suffix(".part")
    part.write_text(json.dumps({**document, "images": dict(sorted(images.items()))}, indent=1) + "\n", encoding="utf-8")
    part.replace(FILE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
