"""Run the pages about sharing cards on a simulated node, and check the files that they show."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mlops_build.gpu import testing
from mlops_build.service import Gpu
from tests.e2e import console
from tests.gpu.conftest import MakeNode, node, simulation

__all__ = ["node", "simulation"]  # fixtures of tests/gpu
ROOT = Path(__file__).parents[2]
MANY = ROOT / "docs/how-to/many-services-on-one-node.md"
LIVE = ROOT / "docs/how-to/live-with-services-that-hold-no-lease.md"
# A program that hardcodes cuda:0, with the page's name for it.
PROGRAM = "#!/bin/sh\nexec {python} {service} --memory {amount} --name $0\n"


def reader(made: testing.Node, folder: Path, *programs: str) -> dict[str, str]:
    """A shell on the node, with these programs in its folder."""
    for name in programs:
        text = PROGRAM.format(python=sys.executable, service=Path(testing.__file__).parent / "service.py", amount=5 << 30)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **made.environment, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks of a language, including those inside lists."""
    matches = re.findall(rf"^( *)```{language}(?: title=\"[^\"]+\")?\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return ["".join(line[len(indent) :] for line in body.splitlines(keepends=True)) for indent, body in matches]


def check(page: Path, folder: Path, made: testing.Node, environment: dict[str, str]) -> None:
    try:
        console.check(page.read_text(), folder, environment)
    finally:  # processes that the page did not end because it failed
        for pid in {pid for card in range(len(made.cards)) for pid in made.processes(card)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def test_many_services_on_one_node(node: MakeNode, tmp_path: Path) -> None:
    made = node(testing.SimulatedCard(used="14GiB"), "24GiB", "24GiB")
    check(MANY, tmp_path, made, reader(made, tmp_path, "first", "second"))


def test_live_with_services_that_hold_no_lease(node: MakeNode, tmp_path: Path) -> None:
    made = node("24GiB", "24GiB")
    environment = reader(made, tmp_path, "billing")
    check(LIVE, tmp_path, made, environment)

    # Jupyter puts the connection file's path into the command of the kernel spec that the page writes.
    spec = json.loads((tmp_path / "kernel.json").read_text())
    (tmp_path / "ipykernel_launcher.py").write_text("import os, sys\nprint(os.environ['CUDA_VISIBLE_DEVICES'], *sys.argv[1:])\n")
    command = [part.replace("{connection_file}", "/run/kernel.json") for part in spec["argv"]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    mask, *arguments = done.stdout.split()
    assert mask in {card.uuid for card in made.cards}
    assert arguments == ["-f", "/run/kernel.json"]


def test_the_manifests_of_the_page_are_valid_and_its_gpu_section_too() -> None:
    import kubernetes_validate

    documents = [document for text in blocks(MANY, "yaml") for document in YAML(typ="safe").load_all(text)]
    kinds = [document.get("kind") for document in documents]
    assert kinds == [None, "PersistentVolume", "PersistentVolumeClaim"]
    assert Gpu.model_validate(documents[0]["gpu"]).mode == "shared"
    for document in documents[1:]:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("text", blocks(LIVE, "toml"))
def test_the_declarations_of_the_page_are_understood(text: str) -> None:
    from mlops_build.gpu.declared import parse

    names = [table["name"] for table in tomllib.loads(text)["neighbour"]]
    assert [neighbour.name for neighbour in parse(text.encode()).neighbours] == names
