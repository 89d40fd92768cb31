"""Checks of the Git host: permission to push, author of commits, access to the API."""

import re

from mlops_build.adapters import githost
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.objects import EMAIL, NAME, Identity
from mlops_build.checklist.names import Names
from mlops_build.checklist.result import Result, no, ok, unseen
from mlops_build.errors import MlopsBuildError

# Never created: the push is a dry run.
BRANCH = "retrain/doctor"


def push(names: Names) -> Result:
    """Whether the bot may push: a dry run, which sends no objects."""
    checkout = Checkout.find(names.root)
    if checkout is None or checkout.head() is None:
        return unseen("this is not a Git checkout with a commit")
    if not checkout.origin_url():
        return no("there is no Git remote called origin")
    try:
        checkout.try_push(BRANCH)
    except MlopsBuildError as error:
        return no(error.message)
    return ok(f"a dry run of pushing {BRANCH} to {checkout.origin_url()} is accepted")


def identity(names: Names) -> Result:
    """The author of training's commits."""
    checkout = Checkout.find(names.root)
    author = checkout.signs_as() if checkout else Identity(NAME, EMAIL, 0)
    name, email = author.name, author.email
    if email == EMAIL:
        return no(f"commits would have the author {NAME} <{EMAIL}>, which no host knows")
    if not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", email):
        return no(f"commits would have the author {name} <{email}>, which is not an email address")
    return ok(f"{name} <{email}>; whether this is the token's user cannot be checked")


def pull_requests(names: Names) -> Result:
    """Whether the token may read the repository through the API. A pull request is not opened."""
    git = names.service.git
    try:
        repository = githost.HOSTS[git.pull_requests].repository_of(names.origin or "no origin")
        githost.HOSTS[git.pull_requests].check(str(git.api), repository)
    except MlopsBuildError as error:
        return no(error.message)
    return ok(f"{git.api} accepts the token and has {repository}")
