"""Stand-ins for the Git hosts: real repositories behind `git http-backend`, and the part of each API that we call."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.githosts.bitbucket import Bitbucket, bitbucket
from tests.githosts.gitlab import Gitlab, gitlab
from tests.githosts.server import GitHost

__all__ = ["HOSTS", "Bitbucket", "GitHost", "Gitlab", "bitbucket", "gitlab"]

# By the value of `git.pull_requests` in service.yaml; each is called with a folder and the only token it knows.
HOSTS: dict[str, Callable[..., AbstractContextManager[GitHost]]] = {"bitbucket": bitbucket, "gitlab": gitlab}
