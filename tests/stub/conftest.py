"""The stub is compared with the real server on the same build context."""

from tests.serving.conftest import context, server, world

__all__ = ["context", "server", "world"]
