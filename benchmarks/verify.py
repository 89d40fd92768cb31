"""Which single faults in a service's manifests do tools find? `mlops-build verify` beside kubernetes-validate, checkov and kubectl.

    .venv/bin/python benchmarks/verify.py [--checkov .venv/checkov/bin/checkov]

The faults are those of tests/verify/faults.yaml, in services from the template: one edit each. Every tool sees the same: the production
overlay as `kubectl kustomize` renders it. Left out is what does not render, since kustomize itself finds it, and what is not in the
manifests but about them. A tool finds a fault if it says something that it does not say of the service without it; `mlops-build verify`
only if it names the right rule, file and line.
kubectl is asked as far as it goes without a cluster, `kubectl set image --local`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlops_build.adapters import kubectl
from mlops_build.verify import check
from tests.verify import faults

RESULT = Path(__file__).resolve().with_suffix(".json")
PYTHON = sys.executable
CUSTOM = ("monitoring.coreos.com", "bitnami.com")
Said = dict[str, set[str]]  # by the fault's name, or that of a service without one


@dataclass(frozen=True)
class Fault:
    """A row of the table. gpu: the GPU mode of its service. listed: one of the 29 faults on which the tools were first compared."""

    name: str
    gpu: str
    listed: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkov", type=Path, default=Path(".venv/checkov/bin/checkov"), help="checkov's program, in its own environment")
    checkov = parser.parse_args().checkov
    with tempfile.TemporaryDirectory() as scratch:
        services = {gpu: faults.build(rendered(gpu, Path(scratch)), Path(scratch) / gpu, gpu) for gpu in faults.GPUS}
        ours: dict[str, bool] = {}
        files: dict[str, Path] = {}
        made: list[Fault] = []
        for number, row in enumerate([{"rule": "", "gpu": gpu} for gpu in faults.GPUS] + faults.TABLE):
            if row["rule"] in ("overlay-remote", "overlay-missing", "bad-ignore", "same-host"):
                continue
            gpu = row.get("gpu", "none")
            root = Path(shutil.copytree(services[gpu], Path(scratch) / f"service{number}"))
            # A service without a fault is named like its GPU mode.
            expected = faults.apply(row, root) if row["rule"] else None
            fault = Fault(f"{number} {row['rule']}" if row["rule"] else gpu, gpu, row.get("listed", False))
            done = kubectl.kustomize(root / faults.OVERLAY)
            if done.code:
                continue
            file = files[fault.name] = Path(scratch) / "rendered" / str(number) / "app.yaml"
            file.parent.mkdir(parents=True)
            file.write_text(done.text)
            if expected:
                made.append(fault)
                ours[fault.name] = expected in [(one.rule, one.file, one.line) for one in check(root, environments=["production"]).findings]
        tools: dict[str, Said | None] = {
            "kubernetes-validate --strict": {name: kubernetes_validate(file) for name, file in files.items()},
            "checkov": checkov_says(checkov, files) if checkov.is_file() else None,
            "kubectl set image --local": {name: set_image(file) for name, file in files.items()},
        }
    report(made, ours, tools)


def rendered(gpu: str, scratch: Path) -> Path:
    """A service from this template."""
    from copier import run_copy

    folder = scratch / f"rendered-{gpu}"
    run_copy(str(RESULT.parent.parent), folder, data={**faults.ANSWERS, "gpu": gpu}, defaults=True, quiet=True, vcs_ref="HEAD")
    return folder


def kubernetes_validate(file: Path) -> set[str]:
    done = subprocess.run([PYTHON, "-m", "kubernetes_validate", "--strict", str(file)], capture_output=True, text=True, check=False)
    return {line.partition(" for resource ")[2] for line in done.stdout.splitlines() if line.startswith(("ERROR", "FATAL"))}


def checkov_says(program: Path, files: dict[str, Path]) -> Said:
    """Every failed check of every file, from one run over the folder that holds them all: a run of its own for each takes minutes."""
    folder = files["none"].parent.parent
    command = [str(program), "-d", str(folder), "--framework", "kubernetes", "-o", "json", "--compact", "--quiet", "--skip-download"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    failed = json.loads(done.stdout)["results"]["failed_checks"]
    said: Said = {name: set() for name in files}
    names = {file.resolve(): name for name, file in files.items()}
    for failure in failed:
        said[names[Path(failure["file_abs_path"]).resolve()]].add(f"{failure['check_id']} {failure['resource']}")
    return said


def set_image(file: Path) -> set[str]:
    """What `kubectl set image --local` refuses. It knows no custom resources, so those are left out."""
    documents = [one for one in yaml.safe_load_all(file.read_text()) if one and not one["apiVersion"].startswith(CUSTOM)]
    known = file.with_name("known.yaml")
    known.write_text(yaml.safe_dump_all(documents))
    command = ["kubectl", "set", "image", "--local", "-f", str(known), "*=registry.example.com/other:1", "-o", "name"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # A Service without a pod template is not a fault.
    return {error.strip() for error in done.stderr.split("error: ") if error.strip() and "does not have a pod template" not in error}


def report(made: list[Fault], ours: dict[str, bool], tools: dict[str, Said | None]) -> None:
    found = {"mlops-build verify": ours}
    for tool, said in tools.items():
        if said is not None:
            found[tool] = {fault.name: bool(said[fault.name] - said[fault.gpu]) for fault in made}
    others = [by for tool, by in found.items() if tool != "mlops-build verify"]
    found["the others together"] = {fault.name: any(by[fault.name] for by in others) for fault in made}
    listed = [fault.name for fault in made if fault.listed]
    print(f"{'':<32}{'of the ' + str(len(listed)) + ' listed':>16}{'of all ' + str(len(made)):>12}")
    for tool, by in found.items():
        print(f"{tool:<32}{sum(by[name] for name in listed):>16}{sum(by.values()):>12}")
    for name in [name for name, there in ours.items() if not there]:
        print(f"not found by mlops-build verify: {name}")
    for tool, said in tools.items():
        if said is None:
            print(f"{tool} was not asked: it is not installed")
    document = {
        "listed": len(listed),
        "faults": len(made),
        "found_of_listed": {tool: sum(by[name] for name in listed) for tool, by in found.items()},
        "found": {tool: sum(by.values()) for tool, by in found.items()},
        "each": {
            fault.name: sorted(tool for tool, by in found.items() if by[fault.name] and tool != "the others together") for fault in made
        },
    }
    RESULT.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
