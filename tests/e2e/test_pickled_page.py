"""Run docs/how-to/use-a-pickled-model.md like a reader."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e import console


@pytest.mark.slow
def test_an_existing_pickle_becomes_a_service_that_answers(tmp_path: Path, environment: dict[str, str]) -> None:
    console.check((ROOT / "docs/how-to/use-a-pickled-model.md").read_text(), tmp_path, environment, at_least=15)
