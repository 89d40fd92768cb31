"""What does `mlops-build verify` say about manifests that others keep well? Nothing, or something that they would agree with.

    .venv/bin/python benchmarks/verify_public.py FOLDER

Fetches the commits of REPOSITORIES from GitHub into FOLDER, unless they are there, and prints every finding with file and line, to be read
by a person (docs/reference/benchmarks.md has the result). Other repositories than these were used to write the rules.
"""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlops_build.finding import show_by_file
from mlops_build.verify import check

# (repository, commit, the folders that are checked; all if none are named)
REPOSITORIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("GoogleCloudPlatform/bank-of-anthos", "d0af04743a6d951665169ca6370d15725ec51252", ()),
    ("argoproj/argo-rollouts", "9f8d111d8f8e3e88b6d7f8bbdf62fd3cd863ef9d", ()),
    ("fluxcd/flagger", "15bd6ad555e6c935da55f0ab95977be74c149bd6", ("artifacts", "kustomize", "test", "charts")),
    ("kserve/kserve", "aaac4e294dae2c7b1aa1886447793f3aa1c30912", ()),
    ("kubeflow/manifests", "009c88084074904c7743384ff50d3bd70012ef55", ("applications", "common", "example")),
    ("kubernetes-sigs/aws-ebs-csi-driver", "429e202e589798e55c0f8ddcc81b2850b7f000d0", ()),
    ("kubernetes-sigs/descheduler", "7d2b28bf2b6a12810317936d909af0270ff38fa3", ()),
    ("kubernetes-sigs/external-dns", "2bf1bf8af2b70f23579f9147c1f7e9394f7f83d5", ()),
    ("kubernetes-sigs/kueue", "ff69552e79ad21652c36caa97038382e55625cf7", ()),
    ("kubernetes-sigs/node-feature-discovery", "76e6cc8cc0d54b8bce037098b72611ffdf66ef5a", ()),
    ("metallb/metallb", "7938d3f89b8bd808dae2e42d97d6ae7e18e9ed54", ()),
    ("prometheus-operator/kube-prometheus", "4d719f1dea8853540b3823ab1fbe6be74a9953b3", ()),
    ("ray-project/kuberay", "feeaf72facab4881ba2b179248bb67315634e229", ("ray-operator", "historyserver", "benchmark")),
    ("rook/rook", "d0c3b9ce6d64ff0c47074437aab7314b7adf7f2c", ("deploy", "tests")),
)
FETCH_SECONDS = 600


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    totals: Counter[str] = Counter()
    for repository, commit, parts in REPOSITORIES:
        folder = Path(sys.argv[1]) / repository.replace("/", "+")
        if not folder.is_dir():
            fetch(repository, commit, parts, folder)
        began = time.perf_counter()
        report = check(folder)
        seconds = time.perf_counter() - began
        rules = Counter(finding.rule for finding in report.findings)
        shown = ", ".join(f"{count} {rule}" for rule, count in rules.most_common()) or "none"
        print(f"{repository} {commit[:12]}: {report.files} files, {report.objects} objects, {seconds:.1f} s; findings: {shown}", flush=True)
        print("".join(f"    {line}\n" for line in [*report.notes, *show_by_file(report.findings).splitlines()]), end="", flush=True)
        totals.update(projects=1, files=report.files, objects=report.objects, findings=len(report.findings))
    print(", ".join(f"{count} {name}" for name, count in totals.items()))


def fetch(repository: str, commit: str, parts: tuple[str, ...], folder: Path) -> None:
    """Check out the parts of a commit, without its history."""
    folder.mkdir(parents=True)
    for command in (
        ["init", "--quiet"],
        ["fetch", "--quiet", "--depth=1", f"https://github.com/{repository}", commit],
        ["checkout", "--quiet", "FETCH_HEAD", "--", *(parts or ["."])],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True, timeout=FETCH_SECONDS)


if __name__ == "__main__":
    main()
