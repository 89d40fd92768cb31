"""The modules beside a script come along, and their imports of each other get the package's name; nothing else changes."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlops_build.errors import Refused
from mlops_build.scaffold.existing import imports, script
from mlops_build.scaffold.existing.copied import copy

BESIDE = {
    "net.py": "import layers.conv\nfrom layers import conv as other\nWIDTH = layers.conv.SIZE + other.SIZE\n",
    "layers/__init__.py": "",
    "layers/conv.py": "from . import sizes\nfrom .sizes import SIZE\n",
    "layers/sizes.py": "SIZE = 3\n",
    "names/space.py": "SIZE = 4\n",
    "metrics.py": "NAME = 'accuracy'\n",
    "unused.py": "raise SystemExit('never imported')\n",
}


def written(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def moved(folder: Path) -> Path:
    """The script and its modules as the package `service` in another folder."""
    target = folder.parent / "moved"
    copy(imports.collect(script.read(folder / "train.py")), [], target, "service")
    return target / "src"


def run(where: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=where, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("train.py", "train.py"),
        ("my-train.py", "my_train.py"),
        ("2train.py", "_2train.py"),
        ("обучение.py", "train_2.py"),
        ("модель_v3.py", "_v3.py"),
        ("net-.py", "net_.py"),
        ("layers-1.py", "layers_1_2.py"),
    ],
)
def test_the_scripts_own_name_can_be_imported_and_is_free(tmp_path: Path, name: str, inside: str) -> None:
    work = written(tmp_path / "work", {"train.py": "", "layers_1.py": "", name: "import layers_1\n"})
    assert imports.collect(script.read(work / name))[0].inside == inside


@pytest.mark.parametrize(
    "text",
    [
        "from net import WIDTH\nprint(WIDTH)\n",
        "import net\nprint(net.WIDTH)\n",
        "import net as n, os\nprint(n.WIDTH, os.sep)\n",
        "import metrics, net; print(metrics.NAME, net.WIDTH)\n",
        "import layers.conv\nprint(layers.conv.SIZE)\n",
        "import layers.conv as conv\nprint(conv.SIZE)\n",
        "def f():\n    import net\n    from layers.sizes import (\n        SIZE,\n    )\n    return net.WIDTH, SIZE\nprint(f())\n",
        "if True:  # ü\n    import json, layers.sizes\n    print(json.dumps(layers.sizes.SIZE))\n",
        "from names import space\nprint(space.SIZE)\n",
        "from layers import *\nfrom net import *\nprint(WIDTH)\n",
    ],
)
def test_a_script_does_the_same_as_a_module_of_a_package(tmp_path: Path, text: str) -> None:
    folder = written(tmp_path / "work", {**BESIDE, "train.py": text})
    before = run(folder, "train.py")
    target = moved(folder)
    assert run(target, "-m", "service.train") == before
    assert not (target / "service/unused.py").exists()


def test_a_script_in_a_package_of_its_own_keeps_its_relative_imports(tmp_path: Path) -> None:
    files = {**BESIDE, "__init__.py": "", "net.py": "WIDTH = 6\n"}
    text = "from . import metrics\nfrom .net import WIDTH\nfrom work.layers.sizes import SIZE\nimport work.metrics as m\n"
    text += "print(WIDTH, SIZE, m.NAME)\n"
    folder = written(tmp_path / "work", {**files, "train.py": text})
    before = run(tmp_path, "-m", "work.train")
    target = moved(folder)
    changed = (target / "service/train.py").read_text().splitlines()
    assert changed[:2] == text.splitlines()[:2]
    assert changed[2:4] == ["from service.layers.sizes import SIZE", "from service import metrics as m"]
    assert run(target, "-m", "service.train") == before


def test_a_project_is_not_a_script(tmp_path: Path) -> None:
    files = {f"m{number}.py": "" for number in range(250)}
    folder = written(tmp_path / "work", {**files, "train.py": "\n".join(f"import m{number}" for number in range(250))})
    with pytest.raises(Refused, match="more than 200 local modules"):
        imports.collect(script.read(folder / "train.py"))


def test_a_syntax_error_in_a_module_beside_it_names_that_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "work", {"train.py": "import net\n", "net.py": "\nclass Net(\n"})
    with pytest.raises(script.BadScript, match=r"net\.py:2: "):
        imports.collect(script.read(folder / "train.py"))


def test_packages_are_named_by_their_distribution_and_never_guessed() -> None:
    installed = {"yaml": ["PyYAML"], "google": ["protobuf", "google-auth"]}
    assert (imports.distribution("yaml", installed) or ("",))[0] == "pyyaml"
    assert imports.distribution("cv2", installed) == ("opencv-python-headless", None)
    assert imports.distribution("sentence_transformers", installed) == ("sentence-transformers", None)
    assert imports.distribution("google", installed) is None
    assert imports.distribution("torchh", installed) is None
