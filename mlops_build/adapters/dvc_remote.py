"""DVC's default remote, and whether the data that the pipeline reads is on this machine. Reads files only."""

import configparser
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlops_build.adapters import dvc

# How to make data available to others. name: of the remote.
SHARE = (
    "To share it: dvc remote modify {name} url s3://BUCKET/PATH (or a folder that all machines mount), then dvc push, "
    "then commit .dvc/config"
)


@dataclass(frozen=True)
class Remote:
    """DVC's default remote. endpoint: of an S3 gateway. folder: its absolute path if it is a folder on this machine.

    keeps_names: the files have their own names there (`version_aware`, `worktree`), not those of their hashes.
    """

    name: str
    url: str
    endpoint: str | None
    folder: Path | None
    keeps_names: bool = False

    def is_inside(self, root: Path) -> bool:
        """Whether it is a folder of the checkout at `root`."""
        return self.folder is not None and self.folder.is_relative_to(root.resolve())

    def shown(self, root: Path) -> str:
        """Its address; a folder in the checkout relative to `root`, while DVC's url is relative to .dvc."""
        return f"./{self.folder.relative_to(root.resolve())}" if self.folder and self.is_inside(root) else self.url

    def in_checkout(self, root: Path) -> str:
        """A description of a remote inside the checkout."""
        assert self.folder is not None  # noqa: S101  (is_inside checked it)
        return f"the DVC remote {self.name!r} is the folder {self.folder.relative_to(root.resolve())} in this checkout"


def default_remote(root: Path) -> Remote | None:
    """Read it from .dvc/config and .dvc/config.local, because DVC's command takes half a second. None if there is none."""
    texts = []
    for name in ("config", "config.local"):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # DVC itself reports a file that it cannot read
            texts.append((root / ".dvc" / name).read_text(encoding="utf-8"))
    return parsed(texts, root)


def parsed(texts: Iterable[str], root: Path) -> Remote | None:
    """The default remote of these configuration files, of which later ones override earlier ones."""
    # As DVC reads them, with ConfigObj: comments behind a value, and quotes around values and names of sections.
    config = configparser.ConfigParser(interpolation=None, strict=False, inline_comment_prefixes=("#",))
    for text in texts:
        with contextlib.suppress(configparser.Error):
            config.read_string(text)
    sections = {name.strip("'"): {key: value.strip("'\"") for key, value in config[name].items()} for name in config.sections()}
    name = sections.get("core", {}).get("remote", "")
    remote = sections.get(f'remote "{name}"', {})
    url = remote.get("url", "")
    if not url or not url.isprintable():
        return None
    url = str(Path(url).expanduser()) if url.startswith("~/") else url
    folder = None if "://" in url else (root / ".dvc" / url).resolve()
    is_cloud = any(remote.get(key, "").lower() == "true" for key in ("version_aware", "worktree"))
    return Remote(name, url, remote.get("endpointurl"), folder, is_cloud)


def check_present(root: Path) -> None:
    """Check that the pipeline's input data is in the working tree. Raises dvc.DataMissing.

    Imports are not checked, because the pipeline fetches them from their source.
    """
    imported = set(dvc.imports(root))
    if missing := [path for path in dvc.tracked(root) if f"{path}.dvc" not in imported and not (root / path).exists()]:
        raise dvc.DataMissing(f"{', '.join(missing)} is tracked by DVC, but it is not on this machine", remedy=how_to_get(root))
    if missing := [path for path in _sources(root) if path.startswith("data/") and not _is_there(root, path)]:
        raise dvc.DataMissing(
            f"{', '.join(missing)} does not exist, and a stage of {dvc.PIPELINE} reads it",
            remedy="`make data` fetches it; then commit its .dvc file and run this again",
        )


def _sources(root: Path) -> list[str]:
    """The inputs of the stages that no stage writes."""
    stages = [stage for stage in dvc.pipeline(root).get("stages", {}).values() if "wdir" not in stage]
    written = [path for stage in stages for section in ("outs", "metrics", "plots") for path, _ in dvc.outputs(stage, section)]
    read = {path for stage in stages for path in stage.get("deps", []) if isinstance(path, str) and "${" not in path}
    return sorted(path for path in read if not any(_overlap(path, output) for output in written))


def _overlap(path: str, other: str) -> bool:
    return PurePosixPath(path).is_relative_to(other) or PurePosixPath(other).is_relative_to(path)


def _is_there(root: Path, path: str) -> bool:
    """Whether a path exists, or a .dvc file for it or for a parent folder exists."""
    return (root / path).exists() or any((root / f"{around}.dvc").exists() for around in (path, *PurePosixPath(path).parents))


def how_to_get(root: Path) -> str:
    """The remedy for tracked data that is not on this machine."""
    remote = default_remote(root)
    if remote is None:
        return (
            "`make data` fetches it from its source. No DVC remote is configured: `dvc remote add --default NAME URL` and `dvc push` "
            "where the data is let `dvc pull` fetch it here"
        )
    if remote.folder is None or remote.folder.exists():
        return f"`dvc pull` fetches it from the DVC remote, {remote.url}; or `make data` fetches it from its source"
    return (
        f"`make data` fetches it from its source. The DVC remote is the folder {remote.folder}, which does not exist here. "
        f"Where the data is: `dvc remote modify {remote.name} url URL` with a place that both machines reach, `dvc push`, and commit "
        ".dvc/config; then here: `git pull`, `dvc pull`"
    )
