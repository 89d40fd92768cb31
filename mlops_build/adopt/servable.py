"""Make a version that answers requests, from weights, the code that loads them, and rows that prove it.

It runs the code, in a child process with a time limit and without the credentials of this process. The code is not confined: it is that
of the people who run this command.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build import __version__
from mlops_build.adapters import program
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adopt import kind
from mlops_build.adopt.kind import Examined
from mlops_build.adopt.table import Row
from mlops_build.errors import NotFound, Refused
from mlops_build.model import environment, openapi

SERVABLE = (kind.STATE_DICT, kind.LEGACY, kind.NUMPY, kind.SAFETENSORS, kind.ONNX, kind.OTHER)
MOST_TEXT = 1000  # characters of an error
# What the child receives of the environment: nothing with credentials.
PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


class NotServable(Refused):
    """The code does not load the weights or does not answer the example, or the weights are not safe to load."""


@dataclass(frozen=True)
class Code:
    """path: a Python file, or the folder of a package. example: a file with rows, JSON or CSV. seconds: the time limit of a version."""

    path: Path
    example: Path
    seconds: int

    def __post_init__(self) -> None:
        for path in (self.path, self.example):
            if not path.exists():
                raise NotFound(f"{path} does not exist", remedy="give --code a Python file or package, and --example a JSON or CSV file")


def make(code: Code, file: Path, examined: Examined, row: Row, excepted: bool, scratch: Path) -> Path:
    """The version's folder: MLmodel, code, weights, recorded answers and contract. Raises NotServable.

    excepted: somebody accepts a file that may run code when it is loaded.
    """
    if not excepted and (examined.unsafe or examined.kind not in SERVABLE):
        raise NotServable(
            f"a file of the kind {examined.kind} cannot be served: {examined.details}; save a state_dict, or give an exception"
        )
    if examined.kind == kind.LEGACY and not examined.unsafe:
        import torch

        content = torch.load(file, map_location="cpu", weights_only=True)
        torch.save(content, file.with_name("weights.pt"))
        file = file.with_name("weights.pt")
    elif examined.kind == kind.STATE_DICT:
        file = file.rename(file.with_name("weights.pt"))
    command = [sys.executable, "-m", "mlops_build.adopt.build", *map(str, (code.path.absolute(), file, code.example.absolute(), scratch))]
    variables = {name: os.environ[name] for name in PASSED if name in os.environ}
    try:
        done = program.run(command, seconds=code.seconds, folder=scratch, environment=variables)
    except program.DoesNotEnd as error:
        raise NotServable(f"{code.path}: no prediction within {code.seconds} s: raise --timeout") from error
    made = scratch / "model"
    if done.code or not (made / "MLmodel").is_file():
        raise NotServable(f"{code.path}: {(done.message.splitlines() or ['it ended without an error'])[-1][:MOST_TEXT]}")
    contract = openapi.openapi(row.service or row.model, [openapi.describe(row.model, None, made)], 1)
    (made / openapi.FILE).write_text(openapi.as_text(contract), encoding="utf-8")
    return made


def lineage(code: Code, service: str, about: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """As of a trained version, with what is not known left empty, and `adopted`."""
    checkout = Checkout.find(code.path.absolute().parent)
    head = checkout.head() if checkout else None
    return {
        "schema": 1,
        "service": service,
        "code": {
            "repository": (checkout.origin_url() or "") if checkout else "",
            "commit": head or "none",
            "dirty": not checkout or not head or bool(checkout.changes()),
        },
        "data": {},
        "stages": [],
        "params": {},
        "metrics": {},
        "run": run_id,
        "environment": {
            "python": environment.python_version(),
            "torch": environment.torch_version(),
            "mlops-build": __version__,
            "template": "unknown",
        },
        "adopted": dict(about),
    }
