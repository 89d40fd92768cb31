"""DVC: the pipeline, its lock file and the remote. This is the only module that uses DVC.

DVC is run as a program (`python -m dvc`), because its Python API is not stable between releases.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build.adapters import program
from mlops_build.adapters.program import Ended
from mlops_build.errors import Failed, NotFound, Refused, Unreachable

LOCK = "dvc.lock"
# Written by training next to dvc.lock: the inputs and outputs of the service's models.
CONTRACT = "openapi.json"
PIPELINE = "dvc.yaml"
RWLOCK = ".dvc/tmp/rwlock"
COMMAND_SECONDS = 24 * 3600
DYING_SECONDS = 2
# Lines of DVC's output that are not printed, because mlops-build train does these steps.
ADVICE = {
    "To track the changes with git, run:",
    "git add dvc.lock",
    "To enable auto staging, run:",
    "dvc config core.autostage true",
    "Use `dvc push` to send your updates to remote storage.",
}
SHORT_SECONDS = 120


class PipelineFailed(Failed):
    """A stage of the pipeline failed; its output is above."""


class NoRemote(NotFound):
    """No DVC remote is configured."""


class RemoteUnreachable(Unreachable):
    """The DVC remote does not answer, or refuses access."""


class DataMissing(Refused):
    """Tracked data is in neither the cache nor the remote."""


@dataclass(frozen=True)
class Stage:
    """A stage in dvc.lock: hashes of its inputs and outputs, and its parameters."""

    name: str
    deps: Mapping[str, str]
    outs: Mapping[str, str]
    params: Mapping[str, Any]


def environment(root: Path) -> dict[str, str]:
    """The environment of DVC and its stages: this interpreter's programs come first, and the service's package is importable."""
    paths = [str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(paths),
        "DVC_NO_ANALYTICS": "1",
        "DVC_CHECK_UPDATE": "false",
        "PYTHONUNBUFFERED": "1",
    }


def repro(root: Path, *, force: bool = False, pull: bool = False) -> None:
    """Run the stages whose inputs changed (all with `force`); their output goes to stderr, without DVC's advice. Raises PipelineFailed.

    pull: fetch missing data from the remote, for a CI agent with a fresh clone. Then also raises RemoteUnreachable or DataMissing.
    """
    _forget_dead_holders(root / RWLOCK)
    if pull:
        _pull_tracked(root)
    command = [sys.executable, "-m", "dvc", "repro", *(["--force"] if force else []), *(["--pull"] if pull else [])]
    with subprocess.Popen(command, cwd=root, env=environment(root), stdout=subprocess.PIPE, text=True, errors="replace") as running:
        assert running.stdout is not None  # noqa: S101  (it is a pipe)
        for line in running.stdout:
            if line.strip() and line.strip() not in ADVICE:
                sys.stderr.write(line)
                sys.stderr.flush()
    if running.returncode:
        raise PipelineFailed(
            "the pipeline failed (dvc repro)",
            remedy="fix what the failed stage reports above, then run this again; finished stages are kept",
        )


def _pull_tracked(root: Path) -> None:
    """Pull the raw data before the stages need it, so that missing data is reported clearly; a forced run does not pull by itself.

    Imports are fetched by the run: before the first run no remote has a copy.
    """
    known = (file.relative_to(root).as_posix() for file in sorted(root.glob("data/**/*.dvc")))
    files = [name for name in known if name not in imports(root)]
    if not files or not remotes(root):
        return
    done = _short(root, ["pull", *files], seconds=COMMAND_SECONDS)
    if done.code and "Checkout failed" in done.message:
        raise DataMissing(
            f"the DVC remote does not have the data of {', '.join(files)}",
            remedy="run `dvc push` where the data is (mlops-build train does that), then run this again",
        )
    if done.code:
        raise RemoteUnreachable(
            f"dvc pull failed: {_message(done)}",
            remedy="check the remote (dvc remote list), its address and your credentials, then run this again",
        )


def _forget_dead_holders(rwlock: Path) -> None:
    """Remove DVC's lock file if all of its processes have ended; a killed run leaves it behind.

    DVC only checks whether the process id exists, so a zombie that its parent has not collected (in a container, perhaps never) counts as
    running. A process that was just killed has DYING_SECONDS to end.
    """
    import psutil

    deadline = time.monotonic() + DYING_SECONDS
    while True:
        try:
            holders = set(re.findall(r'"pid": *([0-9]+)', rwlock.read_text()))
        except FileNotFoundError:
            return
        alive = False
        for pid in map(int, holders):
            with contextlib.suppress(psutil.NoSuchProcess):
                alive = alive or psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        if not alive:
            if holders:
                rwlock.unlink(missing_ok=True)
            return
        if time.monotonic() > deadline:
            return  # another run is active: DVC reports this
        time.sleep(0.1)


def stages(root: Path) -> list[Stage]:
    """dvc.lock's stages in order; empty if it does not exist. Raises Refused for an invalid file."""
    return parse_lock((root / LOCK).read_text() if (root / LOCK).exists() else "")


def parse_lock(text: str) -> list[Stage]:
    """The stages in dvc.lock's text."""
    document = _yaml(text, LOCK) or {}
    return [
        Stage(
            name=name,
            deps=_hashes(stage.get("deps", [])),
            outs=_hashes(stage.get("outs", [])),
            params={key: value for file in stage.get("params", {}).values() for key, value in file.items()},
        )
        for name, stage in document.get("stages", {}).items()
    ]


def tracked(root: Path) -> dict[str, str]:
    """Path → hash of everything under `data/` that a .dvc file tracks: the raw data's revision."""
    hashes: dict[str, str] = {}
    for file in sorted(root.glob("data/**/*.dvc")):
        for out in (_yaml(file.read_text(), str(file)) or {}).get("outs", []):
            hashes[(file.parent / out["path"]).relative_to(root).as_posix()] = f"md5:{out.get('md5', '')}"
    return hashes


def data_hash(tracked_data: Mapping[str, str]) -> str:
    """A hash of the raw data: "sha256:<64 hex>" of path and hash of each tracked entry."""
    return f"sha256:{hashlib.sha256(json.dumps(dict(tracked_data), sort_keys=True).encode()).hexdigest()}"


def add(root: Path, path: str) -> None:
    """Track a file or folder of the service with DVC: the content goes into the cache, `path`.dvc has its hash. Raises Failed."""
    done = _short(root, ["add", "--quiet", path], seconds=COMMAND_SECONDS)
    if done.code:
        raise Failed(f"{path} cannot be tracked with DVC: {_message(done)}", remedy="see DVC's message, and check the free disk space")


def import_reference(root: Path, source: str, path: str, *, endpoint: str | None = None) -> None:
    """Track `source` (an absolute path, or s3://BUCKET/PATH) as `path` without copying it: `path`.dvc has its address and hash.

    The pipeline's first run fetches it, and the following push copies it to the remote; from then on it is like other data.
    endpoint: the S3 gateway's address. Raises Unreachable for a source on S3, Failed for another.
    """
    # The option takes any number of values, so it must be last.
    settings = ["--fs-config", f"endpointurl={endpoint}"] if endpoint and source.startswith("s3://") else []
    # Hashing a large folder takes minutes: on a terminal DVC shows the progress.
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    done = _short(root, ["import-url", *quiet, "--no-download", source, path, *settings], seconds=COMMAND_SECONDS, is_shown=not quiet)
    if done.code and source.startswith("s3://"):
        raise RemoteUnreachable(
            f"{source} cannot be imported: {_message(done)}",
            remedy="check the address, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the gateway (--answer s3_endpoint_url=https://…)",
        )
    if done.code:
        raise Failed(f"{source} cannot be imported: {_message(done)}", remedy="check that you have permission to read all of it")


def imports(root: Path) -> list[str]:
    """The .dvc files under `data/` of imports by reference. Relative paths."""
    return sorted(
        file.relative_to(root).as_posix() for file in root.glob("data/**/*.dvc") if (_yaml(file.read_text(), str(file)) or {}).get("deps")
    )


def machine_files(root: Path) -> list[str]:
    """The files in Git that the pipeline writes. Relative paths.

    dvc.lock and openapi.json; metrics, plots and other outputs that DVC does not cache; the .dvc files of imports, which DVC updates.
    """
    stages = pipeline(root).get("stages", {}).values()
    listed = [output for stage in stages for section in ("outs", "metrics", "plots") for output in outputs(stage, section)]
    return sorted({LOCK, CONTRACT, *imports(root), *(path for path, is_cached in listed if not is_cached)})


def metric_files(root: Path) -> list[str]:
    """The metrics files in dvc.yaml. Relative paths."""
    return [path for stage in pipeline(root).get("stages", {}).values() for path, _ in outputs(stage, "metrics")]


def remotes(root: Path) -> dict[str, str]:
    """Name → URL of the configured remotes. (`dvc remote list` wraps long lines, so this reads the configuration.)"""
    done = _short(root, ["config", "--list"])
    settings = dict(line.partition("=")[::2] for line in done.text.splitlines())
    return {
        key.split(".", 1)[1].removesuffix(".url"): url
        for key, url in settings.items()
        if key.startswith("remote.") and key.endswith(".url")
    }


def cached_outputs(root: Path) -> list[str]:
    """The cached outputs in dvc.yaml, without those whose path is a template, or is relative to another folder."""
    stages = [stage for stage in pipeline(root).get("stages", {}).values() if "wdir" not in stage]
    listed = [output for stage in stages for section in ("outs", "metrics", "plots") for output in outputs(stage, section)]
    return sorted({path for path, is_cached in listed if is_cached and "${" not in path and not path.startswith(("/", ".."))})


def pipeline(root: Path) -> Any:
    return _yaml((root / PIPELINE).read_text(), PIPELINE) or {}


def outputs(stage: Mapping[str, Any], section: str) -> Iterator[tuple[str, bool]]:
    """Each output of a section, and whether DVC caches it."""
    for entry in stage.get(section, []):
        for path, options in (entry if isinstance(entry, dict) else {entry: None}).items():
            yield path, (options or {}).get("cache", True)


def push(root: Path) -> None:
    """Push the pipeline's and the tracked data to the default remote, and check that the remote has all of it.

    `dvc push` of data that is missing everywhere prints a warning and exits with 0 (dvc#1677), so the remote is checked afterwards.
    Raises NoRemote, RemoteUnreachable or DataMissing.
    """
    done = _short(root, ["push"], seconds=COMMAND_SECONDS)
    if done.code and not remotes(root):
        raise NoRemote(
            f"no DVC remote is configured in {root / '.dvc/config'}",
            remedy="dvc remote add --default NAME s3://BUCKET/PATH, then run this again",
        )
    if done.code:
        raise RemoteUnreachable(
            f"dvc push failed: {_message(done)}",
            remedy="check the remote (dvc remote list), its address and your credentials, then run this again",
        )
    status = _short(root, ["data", "status", "--not-in-remote", "--granular", "--json"], seconds=COMMAND_SECONDS)
    if status.code:
        raise RemoteUnreachable(
            f"dvc data status failed: {_message(status)}", remedy="check the remote and your credentials, then run this again"
        )
    missing = json.loads(status.text or "{}").get("not_in_remote", [])
    if missing:
        raise DataMissing(
            f"after the push the DVC remote does not have {', '.join(sorted(missing)[:5])}{' and more' if len(missing) > 5 else ''}",
            remedy="this machine does not have the data either: restore it (dvc pull, or `make data`), then run this again",
        )


def check_remote(root: Path) -> str | None:
    """The reason why the default remote cannot be used; None if it answers."""
    if not remotes(root):
        return "no remote is configured"
    done = _short(root, ["status", "--cloud", "--json"])
    return None if done.code == 0 else _message(done)


def _short(root: Path, arguments: Sequence[str], *, seconds: int = SHORT_SECONDS, is_shown: bool = False) -> Ended:
    """Run DVC. is_shown: its output is not captured but shown. Raises program.DoesNotEnd."""
    command = [sys.executable, "-m", "dvc", *arguments]
    remedy = "check the remote (dvc remote list) and the network, then run this again"
    done = program.run(command, folder=root, environment=environment(root), seconds=seconds, shown=is_shown, remedy=remedy)
    if done.code and done.message.endswith("No module named dvc"):
        raise ModuleNotFoundError("No module named 'dvc'", name="dvc")
    return done


def _message(done: Ended) -> str:
    lines = [line for line in done.message.splitlines() if line.strip() and not line.startswith(("Traceback", " "))]
    return next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")), lines[-1] if lines else "see above")[:400]


def _hashes(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {entry["path"]: f"{entry.get('hash', 'md5')}:{entry.get('md5', '')}" for entry in entries}


def _yaml(text: str, where: str) -> Any:
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise Refused(
            f"{where} is not valid YAML: {str(error).splitlines()[0]}", remedy="restore it from Git, or run `dvc repro`"
        ) from None
