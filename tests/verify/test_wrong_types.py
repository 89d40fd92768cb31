"""Every value of a service's objects, replaced by values of other types: no traceback."""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mlops_build import service as service_file
from mlops_build.verify import check
from mlops_build.verify.document import Path
from mlops_build.verify.rules import check_objects
from mlops_build.verify.world import World, at
from tests.verify.conftest import Services

# A run replaces every 25th value, so that each value is replaced once, beside right ones.
STEP = 25
WRONG = ([], {"a": {"b": []}}, [["a"]], [{"name": []}], 7, None, "x y")


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_value_of_another_type_is_no_error_of_a_rule(services: Services, wrong: object) -> None:
    root = services("shared")
    objects = check(root, environments=["production"], specs=[]).rendered["production"]
    world = World(objects, service=service_file.load(root), env="production")
    paths = [path for path in places([dict(obj.data) for obj in objects]) if len(path) > 1]
    for first in range(STEP):
        data: list[Any] = copy.deepcopy([dict(obj.data) for obj in objects])
        for path in paths[first::STEP]:
            if at(data, path) is not None:  # it may be within a value that is replaced already
                at(data, path[:-1])[path[-1]] = copy.deepcopy(wrong)
        changed = [replace(obj, data=value) for obj, value in zip(objects, data, strict=True)]
        list(check_objects(replace(world, objects=changed)))
        list(check_objects(World(changed)))
