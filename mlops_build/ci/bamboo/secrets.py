"""Secrets in plain text in Bamboo specs: in variables, repositories and scripts."""

from collections.abc import Iterator

from mlops_build.ci.bamboo.spec import Document, scripts, values
from mlops_build.verify.document import Tagged
from mlops_build.verify.schema import display
from mlops_build.verify.security import ARGUMENT, secret_in
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
            for path, script in scripts(owner, where):
                if len(script) <= 100_000 and any(_has_secret(line) for line in script.splitlines()):
                    yield Fault("bamboo-secret", document.part, path, "the script contains a secret in plain text")


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not isinstance(value, Tagged) and not value.startswith(ENCRYPTED)


def _has_secret(line: str) -> bool:
    """Quoted values and variables are not secrets: `--password "$PASSWORD"` is correct."""
    arguments = [(match["name"], match["value"]) for match in ARGUMENT.finditer(line)]
    literal = [(name, value) for name, value in arguments if value[:1] not in "\"'" and "$" not in value]
    return bool(secret_in("", line) or any(secret_in(name, value) for name, value in literal))
