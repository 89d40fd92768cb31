"""Files that a model's code reads beside its weights: named, logged, scanned, covered by the digest, and carried to the next version."""

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mlops_build import training
from mlops_build.errors import MlopsBuildError
from mlops_build.model import files
from mlops_build.training import rebuild

MODULE = '''
"""A predictor that reads three things besides its weights."""

import json
from pathlib import Path

import mlflow
import pandas as pd
import torch


class Predictor(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.weights = torch.load(context.artifacts["weights"], weights_only=True)["weights"]
        self.vocabulary = json.loads(Path(context.artifacts["vocabulary"]).read_text())
        self.merges = (Path(context.artifacts["tokenizer"]) / "bpe" / "merges.txt").read_text().split()

    def predict(self, context, model_input, params=None):
        known = [self.vocabulary.get(word, 0) for word in model_input["word"]]
        return pd.DataFrame({"score": [float(self.weights[number]) + len(self.merges) for number in known]})
'''
EXAMPLE = pd.DataFrame({"word": ["spam", "ham"]})
MODEL = Path("models/words")


@pytest.fixture
def service(piped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A service whose code has such a predictor, and the files that its training would write."""
    folder = Path(shutil.copytree(piped, tmp_path / "points", symlinks=True))
    (folder / "src/worded").mkdir()
    (folder / "src/worded/model.py").write_text(MODULE)
    (folder / "work/tokenizer/bpe").mkdir(parents=True)
    (folder / "work/vocabulary.json").write_text(json.dumps({"spam": 1}))
    (folder / "work/tokenizer/bpe/merges.txt").write_text("s p\na m\n")
    torch.save({"weights": torch.tensor([0.5, 2.0])}, folder / "work/weights.pt")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder / "src"))
    yield folder
    for name in ("worded", "worded.model"):
        sys.modules.pop(name, None)


def logged(**artifacts: Path | str) -> str:
    from worded.model import Predictor  # type: ignore[import-not-found]

    with training.resume_run(Path("models/points")):
        return training.log_model(Predictor, weights=Path("work/weights.pt"), artifacts=artifacts, example=EXAMPLE, folder=MODEL)


def test_files_and_folders_come_by_name_and_are_part_of_the_version(
    service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"vocabulary": Path("work/vocabulary.json"), "tokenizer": "work/tokenizer"}
    digest = logged(**given)
    assert "log_model: requests are predicted in batches, since 2 rows of the example" in capsys.readouterr().err
    assert json.loads((service / MODEL / "examples/recorded.json").read_text())["predictions"] == [{"score": 6.0}, {"score": 4.5}]
    assert (service / MODEL / "artifacts/tokenizer/bpe/merges.txt").read_text() == "s p\na m\n"
    assert str(service) not in (service / MODEL / "MLmodel").read_text()
    assert logged(**given) == digest, "the same files are the same bytes"
    (service / "work/vocabulary.json").write_text(json.dumps({"spam": 1, "eggs": 0}))
    assert logged(**given) != digest
    (service / "work/vocabulary.json").write_text(json.dumps({"spam": 1}))
    assert logged(**given) == digest

    # `register --weights-from` builds the next version from the files of this one, wherever those of the service are by then.
    version = shutil.copytree(service / MODEL, tmp_path / "version")
    shutil.rmtree(service / "work")
    made = rebuild.rebuild(version, service, Path(shutil.copytree(version, tmp_path / "scratch")))
    assert files.digest(made) == digest

    # A version comes from a registry, so what its MLmodel names is not trusted.
    for old, new, says in (
        ("artifacts/vocabulary.json", "../outside.json", "vocabulary is not among its files"),
        ("      vocabulary:", "      Vocabulary/../x:", "which log_model does not write"),
    ):
        (tmp_path / "outside.json").write_text("{}")
        text = (service / MODEL / "MLmodel").read_text()
        assert old in text
        (version / "MLmodel").write_text(text.replace(old, new))
        with pytest.raises(MlopsBuildError, match=says):
            rebuild.rebuild(version, service, tmp_path / "scratch")


REFUSED: list[tuple[dict[str, Path | str], int, str]] = [
    ({"Vocabulary": "work/vocabulary.json"}, 2, "'Vocabulary' is not a valid name of an artifact"),
    ({"a-b": "work/vocabulary.json"}, 2, "'a-b' is not a valid name of an artifact"),
    ({"../a": "work/vocabulary.json"}, 2, "is not a valid name of an artifact"),
    ({"a\n": "work/vocabulary.json"}, 2, "is not a valid name of an artifact"),
    ({"a" * 64: "work/vocabulary.json"}, 2, "is not a valid name of an artifact"),
    ({"weights": "work/vocabulary.json"}, 2, "the artifact weights is given by weights="),
    ({"vocabulary": "work/absent.json"}, 3, "work/absent.json, the artifact vocabulary, does not exist"),
    ({"empty": "work/empty"}, 2, "is not a file and not a folder with files"),
    ({"broken": "work/broken"}, 2, "is not a file and not a folder with files"),
    ({"one": "work/vocabulary.json", "two": "work/other/Vocabulary.json"}, 2, "one and two both have the file name Vocabulary.json"),
    ({"scaler": "work/scaler.joblib"}, 4, "work/scaler.joblib: a .joblib file runs code when it is loaded"),
    ({"tokenizer": "work/pickled"}, 4, "work/pickled/words: the file is a pickle"),
]


def test_what_cannot_be_part_of_a_model_is_refused_and_what_was_logged_stays(service: Path) -> None:
    before = logged(vocabulary="work/vocabulary.json", tokenizer="work/tokenizer")
    for folder in ("empty", "broken", "other", "pickled"):
        (service / "work" / folder).mkdir()
    (service / "work/broken/link").symlink_to("nowhere")
    (service / "work/other/Vocabulary.json").write_text("{}")
    (service / "work/scaler.joblib").write_bytes(pickle.dumps({"mean": 1}))
    (service / "work/pickled/words").write_bytes(pickle.dumps(["a"]))
    for artifacts, code, says in REFUSED:
        with pytest.raises(MlopsBuildError) as refused:
            logged(**artifacts)
        assert refused.value.exit_code == code
        assert says in refused.value.message
    assert files.digest(service / MODEL) == before


def test_a_pickle_is_part_of_a_model_if_service_yaml_says_why(service: Path) -> None:
    (service / "work/scaler.joblib").write_bytes(pickle.dumps({"mean": 1}))
    (service / "work/broken.pt").write_bytes(b"PK and no zip file")
    path = service / "service.yaml"
    path.write_text(path.read_text().replace("serving:\n", "serving:\n  unsafe_pickle: the team made it\n"))
    logged(vocabulary="work/vocabulary.json", tokenizer="work/tokenizer", scaler="work/scaler.joblib")
    assert (service / MODEL / "artifacts/scaler.joblib").is_file()
    with pytest.raises(MlopsBuildError, match="cannot be read"):
        logged(vocabulary="work/vocabulary.json", tokenizer="work/tokenizer", scaler="work/broken.pt")
