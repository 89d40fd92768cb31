"""The template's output has no finding: before and after a release, for all answers and settings of service.yaml."""

import itertools
import shutil
from pathlib import Path

import pytest

from mlops_build import service as service_file
from mlops_build.ci import systems
from mlops_build.cli.parser import problem_of
from mlops_build.verify import check
from tests.conftest import Render
from tests.verify.faults import GPUS, release

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")
MONITORING, EXAMPLES = (
    ("annotations", "prometheus-operator", "none"),
    ("image", "tabular", "text", "none"),
)


def assert_no_finding(root: Path) -> None:
    report = check(root, specs=systems.spec_checkers(problem_of))
    assert [(finding.file, finding.line, finding.rule, finding.why) for finding in report.findings] == []
    assert report.notes == report.ignored == []
    assert report.objects >= 8


@pytest.mark.parametrize(("gpu", "monitoring"), itertools.product(GPUS, MONITORING))
def test_before_and_after_a_release(render: Render, tmp_path: Path, gpu: str, monitoring: str) -> None:
    root = Path(shutil.copytree(render(gpu=gpu, monitoring=monitoring, example="none"), tmp_path / "service"))
    assert_no_finding(root)
    release(root)
    assert_no_finding(root)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example(render: Render, example: str) -> None:
    assert_no_finding(render(example=example))


# (mode, lines added to gpu:, replicas of production, lines added to production)
SETTINGS = (
    ("none", "", 1, ""),
    ("none", "", 3, "    priority_class: high\n"),
    ("none", "", 2, "    autoscale: {max_replicas: 4, metric: cpu, target: 80}\n"),
    ("shared", "", 1, ""),
    ("shared", "", 3, "    autoscale: {max_replicas: 5, target: 4}\n"),
    ("shared", "  spare_memory: 4GiB\n  runtime_class: null\n", 3, ""),
    ("shared", '  node_selector: {"example.com/card": l4}\n  tolerations: [{key: nvidia.com/gpu}]\n', 2, ""),
    ("exclusive", "", 1, ""),
    ("exclusive", "", 3, ""),
    ("exclusive", "  spare_cards: 1\n", 3, "    autoscale: {max_replicas: 5, target: 4}\n"),
)


@pytest.mark.parametrize(("gpu", "settings", "replicas", "place"), SETTINGS)
def test_what_service_yaml_may_say(render: Render, tmp_path: Path, gpu: str, settings: str, replicas: int, place: str) -> None:
    root = Path(shutil.copytree(render(gpu=gpu, example="none"), tmp_path / "service"))
    path = root / "service.yaml"
    text = path.read_text()
    head, production, rest = text.partition("  production:\n")
    body, gpu_key, tail = rest.partition("gpu:\n")
    body = body.replace("replicas: 2", f"replicas: {replicas}") + place
    # Replace keys that the template already sets.
    lines = [
        line
        for line in tail.splitlines(keepends=True)
        if not any(line.startswith(setting.split(":")[0] + ":") for setting in settings.splitlines())
    ]
    path.write_text(head + production + body + gpu_key + settings + "".join(lines))
    assert service_file.load(root).environments["production"].replicas == replicas
    release(root)
    assert_no_finding(root)
