"""A Git tag for the commit of a model version: otherwise a squash merge or a deleted branch would remove the version's code."""

from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.registry.translation import SERVER
from mlops_build.errors import MlopsBuildError
from mlops_build.model.identity import COMMIT


def push(checkout: Checkout, tracking_uri: str, name: str, commit: str) -> str | None:
    """Push the tag model/NAME/<commit12> to origin, if there is one and a tracking server. Returns a remark if that failed.

    The versions in a file are for one machine, which has their commits. A tag that is there already is left as it is.
    """
    if not tracking_uri.startswith(SERVER) or not checkout.origin_url() or not COMMIT.fullmatch(commit) or not checkout.has(commit):
        return None
    tag = f"model/{name}/{commit[:12]}"
    try:
        checkout.push_tag(tag, commit)
    except MlopsBuildError as error:
        by_hand = f"git push origin {commit}:refs/tags/{tag}"
        return f"the tag {tag}, which keeps the version's code in Git, was not pushed: {error.message}. By hand: {by_hand}"
    return None
