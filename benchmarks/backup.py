"""A first and a second backup of many files: seconds, the most memory of the process, and bytes sent.

    .venv/bin/python benchmarks/backup.py [--files 10000] [--bytes 1000000000] [--bucket s3://BUCKET]

A registry on sqlite, with 1,000 versions and their files in a folder, is copied to another folder of the same disk, or with --bucket (of
AWS_ENDPOINT_URL) from and to a bucket. Then one more version is registered, and it is copied again; then checked with --verify --all, and
restored.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mlops_build.adapters.storage.address import place  # noqa: E402 # a script's own folder is what Python finds by itself
from mlops_build.adapters.storage.place import Place  # noqa: E402
from mlops_build.model import identity  # noqa: E402
from mlops_build.model.files import digest  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")
VERSIONS = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--bucket")
    options = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryDirectory(prefix="mlops-build-bench-", dir="/var/tmp") as scratch:
        folder = Path(scratch)
        os.environ["TMPDIR"] = scratch
        base = f"{options.bucket}/{int(time.time())}" if options.bucket else scratch
        client, uri = registry(folder, base)
        at = place(base)
        each = options.files // VERSIONS
        for number in range(VERSIONS):
            add(client, folder, at, number, each, options.bytes // options.files)
        figures = {"first": measured(folder, uri, "backup", f"{base}/backups")}
        add(client, folder, at, VERSIONS, each, options.bytes // options.files)
        figures["second"] = measured(folder, uri, "backup", f"{base}/backups")
        figures["verify all"] = measured(folder, uri, "backup", f"{base}/backups", "--verify", "--all")
        into = ("--database", f"sqlite:///{folder}/new.db", "--artifacts", f"{base}/new")
        figures["restore"] = measured(folder, uri, "restore", f"{base}/backups", *into)
    result = {"files": options.files, "bytes": options.bytes, "store": "S3" if options.bucket else "folder", "figures": figures}
    print(json.dumps(result, indent=1))
    known = json.loads(RESULT.read_text()) if RESULT.exists() else []
    kept = [entry for entry in known if any(entry[key] != result[key] for key in ("files", "bytes", "store"))]
    RESULT.write_text(json.dumps([*kept, result], indent=1) + "\n")


def registry(folder: Path, base: str) -> tuple[Any, str]:
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder}/mlflow.db"
    os.chdir(folder)
    client = MlflowClient(uri, registry_uri=uri)
    client.create_registered_model("digits")
    assert client.create_experiment("old", f"{base}/mlruns/1") == "1"
    return client, uri


def add(client: Any, folder: Path, at: Place, number: int, files: int, size: int) -> None:
    run = client.create_run("1").info.run_id
    model = folder / "model" / str(number)
    model.mkdir(parents=True)
    for index in range(files):
        (model / f"{index}.bin").write_bytes(os.urandom(size))
    source = f"mlruns/1/{run}/artifacts/model"
    for index in range(files):
        at.put(f"{source}/{index}.bin", model / f"{index}.bin")
    client.create_model_version("digits", at.shown(source), run, tags={identity.DIGEST_TAG: digest(model)})
    for file in model.iterdir():
        file.unlink()


def measured(folder: Path, uri: str, *words: str) -> dict[str, Any]:
    """words: of the command. Its seconds, memory in MiB, and what it says."""
    command = [sys.executable, "-m", "mlops_build", *words, "--json"]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    most = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        if match := re.search(r"VmHWM:\s*(\d+) kB", status.read_text()):
            most = max(most, int(match[1]))
        time.sleep(0.1)
    seconds = time.monotonic() - began
    assert process.stdout
    document = json.loads(process.stdout.read())
    assert process.returncode == 0, document
    kept = {key: document[key] for key in ("files", "new_objects", "sent_bytes", "not_read_again", "read") if key in document}
    return {"seconds": round(seconds, 1), "memory_mib": round(most / 1024), **kept}


if __name__ == "__main__":
    main()
