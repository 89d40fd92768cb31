"""What DVC's files say, read as text: the hashes of a commit's data, those that a folder lists, and where a remote keeps them."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from mlops_build.errors import Refused

LOCK, PIPELINE = "dvc.lock", "dvc.yaml"
# A file's MD5, or that of the list of a folder's files.
HASH = re.compile(r"([0-9a-f]{32})(\.dir)?")
# DVC 2 and older have no files/md5/.
STORED = re.compile(r"(?:files/md5/)?([0-9a-f]{2})/([0-9a-f]{30})(\.dir)?")
ENTRY = re.compile(rb'"md5"\s*:\s*"([0-9a-f]{32})"')
MENTIONED = re.compile(rb"(?<![0-9A-Za-z])[0-9a-f]{32}(?:\.dir)?(?![0-9A-Za-z])")
MOST_BYTES = 16 << 20
SECTIONS = ("outs", "metrics", "plots")


def is_read(path: str) -> bool:
    """Whether `hashes` reads a file of a repository."""
    name = path.rpartition("/")[2]
    return name in (LOCK, PIPELINE) or (name.endswith(".dvc") and name != ".dvc")


def parse(content: bytes) -> Any:
    """The document of one of these files. Raises Refused."""
    import yaml

    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        # dvc.lock is long, and there are thousands of them: the pure parser would need minutes. Aliases are shared, not copied.
        return yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise Refused(f"a file of DVC is not valid: {str(error).splitlines()[0][:200]}", remedy="restore it from Git") from None


def mentioned(content: bytes) -> set[str]:
    """Every MD5 in a file's text: also of outputs that stay here, go to a remote of their own, or come from another repository."""
    return {match[0].decode() for match in MENTIONED.finditer(content)}


def hashes(documents: Mapping[str, Any]) -> dict[str, str]:
    """Path → MD5 (with .dir for a folder) of everything that the remote must have. Raises Refused.

    documents: those of a commit, by path.
    """
    needed: dict[str, str] = {}
    try:
        for path, document in documents.items():
            folder, _, name = path.rpartition("/")
            if name == PIPELINE or not document:
                continue
            if name == LOCK:
                elsewhere = _not_pushed(documents.get(str(PurePosixPath(folder) / PIPELINE)) or {})
                outputs = [out for stage in (document.get("stages") or {}).values() for out in stage.get("outs") or []]
            else:
                # `dvc import` takes its data from another repository; push: false keeps it on the machine.
                elsewhere = []
                is_import = any("repo" in dep for dep in document.get("deps") or [])
                outputs = [] if is_import else document.get("outs") or []
            for out in outputs:
                is_elsewhere = _stays(out) or any(each.fullmatch(out["path"]) for each in elsewhere)
                if not is_elsewhere and HASH.fullmatch(str(out.get("md5", ""))):
                    needed[f"{folder}/{out['path']}".lstrip("/")] = out["md5"]
    except (AttributeError, TypeError, KeyError) as error:
        raise Refused(f"a file of DVC is not valid: {error}", remedy="restore it from Git") from None
    return needed


def _not_pushed(pipeline: Mapping[str, Any]) -> "list[re.Pattern[str]]":
    """The outputs that the default remote does not get. A ${…} in a path can be anything."""
    stages = (each.get("do", each) for each in (pipeline.get("stages") or {}).values())
    listed = [out for stage in stages for section in SECTIONS for out in stage.get(section) or []]
    paths = [path for out in listed if isinstance(out, dict) for path, options in out.items() if _stays(options or {})]
    return [re.compile(".*".join(map(re.escape, re.split(r"\$\{[^}]*\}", path)))) for path in paths]


def _stays(options: Mapping[str, Any]) -> bool:
    """Whether an output is not cached, not pushed, or has a remote of its own."""
    return not (options.get("cache", True) and options.get("push", True)) or bool(options.get("remote"))


def listed(content: bytes) -> Iterator[bytes]:
    """The MD5s (16 bytes each) of the files that a folder's list has. It is not parsed: a million files would need a gigabyte.

    Raises Refused.
    """
    if not content.startswith(b"[") or not content.rstrip().endswith(b"]"):
        raise Refused("the list of a folder's files is not valid", remedy="dvc push again, where the data is")
    return (bytes.fromhex(match[1].decode()) for match in ENTRY.finditer(content))


def places(md5: str) -> tuple[str, str]:
    """Where a remote keeps an MD5 (with .dir for a folder): of DVC 3, and of older ones."""
    below = f"{md5[:2]}/{md5[2:]}"
    return f"files/md5/{below}", below
