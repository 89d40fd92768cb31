"""The audit of many versions and files: seconds, and the most memory of its process.

    .venv/bin/python benchmarks/audit.py [--versions 2000] [--objects 100000] [--endpoint http://127.0.0.1:7480]

The registry is a real `mlflow server` on sqlite, the repository a bare one, in which each version has a commit with data in DVC. The
artifact store and the DVC remote have half of the files each, in folders, or in a bucket of an S3 gateway (--endpoint, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY). All but three files of each version belong to nothing. The files have one byte: the audit reads only their list.
"""

import argparse
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mlops_build.adapters.registry import Registry  # noqa: E402 # a script's own folder is what Python finds by itself
from tests.adapters.registry.server import mlflow_server  # noqa: E402
from tests.release.world import SERVICE, service_files  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")
NOW = int(time.time())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--versions", type=int, default=2000)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--endpoint")
    options = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_CONFIG_GLOBAL": os.devnull}
    with tempfile.TemporaryDirectory(prefix="mlops-build-bench-") as scratch:
        folder = Path(scratch)
        store, remote = (f"{folder}/artifacts", f"{folder}/dvc")
        if options.endpoint:
            os.environ |= {"MLFLOW_S3_ENDPOINT_URL": options.endpoint, "AWS_ENDPOINT_URL": options.endpoint}
            store, remote = f"s3://bench-{NOW}/artifacts", f"s3://bench-{NOW}/dvc"
        commits = repository(folder, options.versions, remote, options.endpoint)
        runs = registry(folder, commits, store)
        put(store, [f"7/{run}/artifacts/v/{name}" for run in runs for name in ("MLmodel", "weights.pt")], options)
        put(store, [f"7/{number:032x}/artifacts/{index}" for number, index in spread(options.objects // 2 - 2 * len(runs))], options)
        put(remote, [stored(f"data {number}") for number in range(len(commits))], options)
        put(remote, [stored(f"other {number}") for number in range(options.objects // 2 - len(commits))], options)
        backend = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--default-artifact-root", store, "--no-serve-artifacts")
        with mlflow_server(folder, *backend) as uri:
            figures = measure(folder, uri)
    result = {"versions": options.versions, "objects": options.objects, "store": "S3" if options.endpoint else "folder", "figures": figures}
    print(json.dumps(result, indent=1))
    known = json.loads(RESULT.read_text()) if RESULT.exists() else []
    kept = [each for each in known if any(each[key] != result[key] for key in ("versions", "objects", "store"))]
    RESULT.write_text(json.dumps([*kept, result], indent=1) + "\n")


def spread(count: int) -> list[tuple[int, int]]:
    """Files of runs that do not exist, ten in each."""
    return [(number // 10, number % 10) for number in range(max(0, count))]


def stored(text: str) -> str:
    md5 = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def put(base: str, paths: list[str], options: Any) -> None:
    if not options.endpoint:
        for path in paths:
            (Path(base) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(base) / path).write_bytes(b"x")
            os.utime(Path(base) / path, (1_700_000_000, 1_700_000_000))  # old enough for the script
        return
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", endpoint_url=options.endpoint, config=Config(max_pool_connections=16), region_name="default")
    bucket, prefix = base.removeprefix("s3://").split("/", 1)
    client.create_bucket(Bucket=bucket)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda path: client.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=b"x"), paths))


def repository(folder: Path, versions: int, remote: str, endpoint: str | None) -> list[str]:
    """A bare repository with a commit for each version; returns them."""
    bare = folder / "digits.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
    gateway = f"    endpointurl = {endpoint}\n" if endpoint else ""
    files = {**service_files(SERVICE), ".dvc/config": f"[core]\n    remote = s\n['remote \"s\"']\n    url = {remote}\n{gateway}"}
    stream = []
    for number in range(versions):
        md5 = hashlib.md5(f"data {number}".encode(), usedforsecurity=False).hexdigest()
        files["dvc.lock"] = (
            f"schema: '2.0'\nstages:\n  train:\n    cmd: x\n    outs:\n    - path: data\n      hash: md5\n      md5: {md5}\n"
        )
        stream.append(f"commit refs/heads/main\nmark :{number + 1}\ncommitter x <x@x> {NOW + number} +0000\ndata 1\nx\n")
        stream += [f"M 100644 inline {path}\ndata {len(text.encode())}\n{text}\n" for path, text in files.items()]
        files = {}
    subprocess.run(["git", "-C", str(bare), "fast-import", "--quiet"], input="".join(stream).encode(), check=True)
    listed = subprocess.run(["git", "-C", str(bare), "rev-list", "--reverse", "main"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def registry(folder: Path, commits: list[str], store: str) -> list[str]:
    """A registry with a version for each commit; returns their runs. Rows are written into MLflow's tables, which is faster."""
    file = folder / "mlflow.db"
    uri = f"sqlite:///{file}"
    from mlflow import MlflowClient

    Registry(uri, create=True).alias_map()
    client = MlflowClient(uri, registry_uri=uri)
    client.create_registered_model("digits")
    address = store if "://" in store else Path(store).as_uri()
    experiment = client.create_experiment("bench", artifact_location=f"{address}/7")
    runs = [f"{number:032x}" for number in range(1 << 100, (1 << 100) + len(commits))]
    tags = {"service": "digits", "repository": f"file://{folder}/digits.git"}
    with sqlite3.connect(file) as database:
        for number, (run, commit) in enumerate(zip(runs, commits, strict=True), start=1):
            root = f"{address}/7/{run}/artifacts"
            database.execute(
                "insert into runs (run_uuid, name, status, start_time, lifecycle_stage, artifact_uri, experiment_id, source_type, user_id) "
                "values (?, 'r', 'FINISHED', ?, 'active', ?, ?, 'LOCAL', 'x')",
                (run, NOW * 1000, root, int(experiment)),
            )
            database.execute(
                "insert into model_versions (name, version, creation_time, last_updated_time, current_stage, source, run_id, status) "
                "values ('digits', ?, ?, ?, 'None', ?, ?, 'READY')",
                (number, NOW * 1000, NOW * 1000, f"{root}/v", run),
            )
            for key, value in {**tags, "commit": commit, "digest": f"sha256:{number:064x}"}.items():
                row = ("digits", number, f"mlops_build.{key}", value)
                database.execute("insert into model_version_tags (name, version, key, value) values (?, ?, ?, ?)", row)
    return runs


def measure(folder: Path, uri: str) -> dict[str, float]:
    command = [sys.executable, "-m", "mlops_build", "audit", "--json", "--tracking-uri", uri]
    command += ["--repo", f"file://{folder}/digits.git", "--propose", str(folder / "delete.sh")]
    figures = measured(command, folder)
    rules = {each["rule"] for each in json.loads((folder / "out").read_text())["findings"]}
    assert rules <= {"files-orphaned", "data-orphaned", "single-copy-files", "single-copy-data"}, rules
    return figures


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Time and memory of a command, whose stdout is then in `folder`/out."""
    start = time.perf_counter()
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder)
        # Not ru_maxrss: it contains the memory of this process, until the program is executed.
        most, ended = 0, (0, 0, None)
        while not ended[0]:
            peak = re.search(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{process.pid}/status").read_text())
            most = max(most, int(peak[1])) if peak else most
            time.sleep(0.02)
            ended = os.wait4(process.pid, os.WNOHANG)
    seconds = time.perf_counter() - start
    _, status, used = ended
    assert os.waitstatus_to_exitcode(status) == 0, (folder / "err").read_text()
    return {"seconds": seconds, "CPU seconds": used.ru_utime + used.ru_stime, "MiB": most / 1024}


if __name__ == "__main__":
    main()
