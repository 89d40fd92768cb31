"""What does `mlops-build verify` say about manifests that others keep well? Nothing, or something that they would agree with.

    .venv/bin/python benchmarks/verify_public.py DIR…

Each DIR is a checkout, or a part of one, of a public project. Prints a line for each (its commit where it is a Git checkout), and every
finding with file and line, to be read by a person.
"""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlops_build.finding import show_by_file
from mlops_build.verify import check


def main() -> None:
    totals: Counter[str] = Counter()
    for name in sys.argv[1:]:
        folder = Path(name)
        began = time.perf_counter()
        report = check(folder)
        seconds = time.perf_counter() - began
        git = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "no commit"
        rules = Counter(finding.rule for finding in report.findings)
        said = ", ".join(f"{count} {rule}" for rule, count in rules.most_common()) or "none"
        print(f"{folder.name} {commit}: {report.files} files, {report.objects} objects, {seconds:.1f} s; findings: {said}")
        for note in report.notes:
            print(f"    {note}")
        if report.findings:
            print("\n".join(f"    {line}" for line in show_by_file(report.findings).splitlines()))
        totals.update(projects=1, files=report.files, objects=report.objects, findings=len(report.findings))
    print(", ".join(f"{count} {what}" for what, count in totals.items()))


if __name__ == "__main__":
    main()
