"""Checks the permission to push images: an upload is started and cancelled."""

from mlops_build.adapters import http
from mlops_build.adapters.image_registry import LoginElsewhere, try_push
from mlops_build.checklist.names import Names
from mlops_build.checklist.result import Result, no, ok, unseen


def push(names: Names) -> Result:
    """Whether images may be pushed."""
    host, _, path = names.image.partition("/")
    try:
        status, logged_in = try_push(host, path)
    except LoginElsewhere as helper:
        return unseen(f"the login is in docker's credential helper {helper}; test it with `docker push`")
    except http.NoAnswer as error:
        return no(error.message)
    if status == 202:
        return ok(f"{host} accepts a push to {path}")
    if status in (401, 403):
        return no(f"{host} refuses a push to {path} ({status}{'' if logged_in else ', docker is not logged in to it'})")
    return no(f"{host} answers {status} to a push to {path}")
