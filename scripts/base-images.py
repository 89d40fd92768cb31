"""Resolve the base images of mlops_build/packaging/base_images.json to digests, before a release.

    python scripts/base-images.py [IMAGE:TAG …]

Requests the digest of the tag's index of platforms from each image's registry, and writes the file again. Images given as
arguments are added. If a registry does not respond, the image keeps its digest, and the exit code is 1.
"""

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "mlops_build/packaging/base_images.json"
# Docker's rule: a first part without a dot or a colon is not a host, and a name with one part is an official image.
OFFICIAL, HUB = "library", "registry-1.docker.io"
INDEXES = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
LOOPBACK = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]+)?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
SECONDS = 30


def digest_of(image: str) -> str:
    """The digest of IMAGE:TAG in its registry. Raises OSError if it does not respond, ValueError if the response has no digest."""
    name, _, tag = image.rpartition(":")
    host, _, path = name.partition("/")
    if not re.search(r"[.:]", host):
        host, path = HUB, name if "/" in name else f"{OFFICIAL}/{name}"
    address = f"{'http' if LOOPBACK.fullmatch(host) else 'https'}://{host}/v2/{path}/manifests/{tag}"
    try:
        digest = _head(address, None)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        digest = _head(address, _token(error.headers.get("WWW-Authenticate", ""), path))
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"{host} returned no digest for {image}")
    return digest


def _head(address: str, token: str | None) -> str:
    headers = {"Accept": f"{INDEXES}, {MANIFESTS}", **({"Authorization": f"Bearer {token}"} if token else {})}
    with urllib.request.urlopen(urllib.request.Request(address, method="HEAD", headers=headers), timeout=SECONDS) as response:
        return str(response.headers.get("Docker-Content-Digest", ""))


def _token(challenge: str, path: str) -> str:
    """A token that can read one repository, from the server that the registry's challenge names."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not fields.get("realm", "").startswith("https://"):
        raise ValueError(f"the registry requires an unsupported kind of login: {challenge[:100]!r}")
    query = urllib.parse.urlencode({"service": fields.get("service", ""), "scope": f"repository:{path}:pull"})
    with urllib.request.urlopen(f"{fields['realm']}?{query}", timeout=SECONDS) as response:
        document = json.load(response)
    return str(document.get("token") or document["access_token"])


def main() -> int:
    document = json.loads(FILE.read_text(encoding="utf-8"))
    images: dict[str, str | None] = {**document["images"], **{name: document["images"].get(name) for name in sys.argv[1:]}}
    failed = 0
    for image in sorted(images):
        try:
            images[image] = digest_of(image)
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
