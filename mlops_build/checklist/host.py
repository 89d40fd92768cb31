"""What can be seen of the Git host: whether the bot may push, who it signs as, whether it may open pull requests."""

import re

from mlops_build.checklist.look import Seen, no, ok, unseen
from mlops_build.checklist.names import Names
from mlops_build.errors import MlopsBuildError
from mlops_build.git import host
from mlops_build.git.repository import EMAIL, NAME, Checkout

# A branch that nobody makes: the push of it is a dry run.
BRANCH = "retrain/doctor"


def push(names: Names) -> Seen:
    """A dry run: the host is asked for the right to push, and nothing is sent."""
    checkout = Checkout.find(names.root)
    if checkout is None or checkout.head() is None:
        return unseen("this is no checkout with a commit")
    if not checkout.origin_url():
        return no("there is no Git remote called origin")
    try:
        checkout.try_push(BRANCH)
    except MlopsBuildError as error:
        return no(error.message)
    return ok(f"a dry run of pushing {BRANCH} to {checkout.origin_url()} is let in")


def identity(names: Names) -> Seen:
    """Who training signs as."""
    checkout = Checkout.find(names.root)
    name, email = checkout.signs_as() if checkout else (NAME, EMAIL)
    if email == EMAIL:
        return no(f"commits would be signed {NAME} <{EMAIL}>, whom no host knows")
    if not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", email):
        return no(f"commits would be signed {name} <{email}>, which is no address")
    return ok(f"{name} <{email}>; whether that is the token's user cannot be seen")


def pull_requests(names: Names) -> Seen:
    """Whether the token may see the repository through the API; opening one would be more than a look."""
    if not names.repository:
        return no(f"{names.origin or 'no origin'} is no clone address of Bitbucket")
    try:
        host.check(str(names.service.git.api), names.repository)
    except MlopsBuildError as error:
        return no(error.message)
    return ok(f"{names.service.git.api} knows {names.repository} and the token")
