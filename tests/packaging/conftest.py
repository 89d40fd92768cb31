"""One world for the tests of this room: what they do to it does not change its versions."""

import pytest

from tests.packaging.world import World, make


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """points 1 and 2, with other weights, as files `one` and `two`."""
    made = make(tmp_path_factory.mktemp("world"))
    made.register(made.files("one"))
    made.register(made.files("two", weight=3.0))
    return made
