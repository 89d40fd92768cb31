"""Secrets in plain text in Bamboo specs: in variables, repositories and scripts."""

from collections.abc import Iterator

from mlops_build.ci import commands
from mlops_build.ci.bamboo.spec import Document, scripts, values
from mlops_build.verify.document import Tagged
from mlops_build.verify.schema import display
from mlops_build.verify.security import secret_in
from mlops_build.verify.world import Fault

ENCRYPTED = "BAMSCRT@"
VARIABLES = ("variables/*", "*/variables/*", "branch-overrides/#/*/variables/*", "branch-overrides/#/*/*/variables/*")
# Of a job or an environment.
OWNERS = ("*", "branch-overrides/#/*/*")
REPOSITORIES = "repositories/#/*/url|password|ssh-key|ssh-key-passphrase|passphrase|private-key"


def check(document: Document) -> Iterator[Fault]:
    for pattern in VARIABLES:
        for path, value in values(document.data, pattern):
            if _is_plain(value) and (reason := secret_in(str(path[-1]), str(value))):
                yield Fault("bamboo-secret", document.part, path, f"the variable {path[-1]} is in plain text; {reason}")
    for path, value in values(document.data, REPOSITORIES):
        if _is_plain(value) and (secret_in("", str(value)) if path[-1] == "url" else not str(value).startswith("${")):
            why = f"{path[-1]} of the repository {display(path[-2])} contains a secret in plain text"
            yield Fault("bamboo-secret", document.part, path, why)
    for pattern in OWNERS:
        for where, owner in values(document.data, pattern):
            yield from commands.secrets(scripts(owner, where), document.part, "bamboo-secret")


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not isinstance(value, Tagged) and not value.startswith(ENCRYPTED)
