"""Secrets in plain text, and pods with more privileges than a model server needs.

A secret in plain text is always a fault. Privileges are checked only in a service: a storage driver must be privileged, a model server
need not.
"""

import re
from collections.abc import Iterator

from mlops_build.verify import fields
from mlops_build.verify.document import Path
from mlops_build.verify.world import Container, Fault, Object, Pod, World, containers_of, mapping, select, text, variables

# The end of a name of a secret: DB_PASSWORD, apiToken, aws_secret_access_key. Not PASSWORD_FILE, TOKEN_URL, SECRET_NAME.
SECRET_NAME = re.compile(
    r"(?i)(?:^|[_.-]|(?<=[a-z]))(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_.-]?key|secret[_.-]?(?:access[_.-]?)?key|private[_.-]?key|credentials?)$"
)
# Names that only look like one.
NOT_SECRET = re.compile(
    r"(?i)(?:csrf|cancel|page|next|max|min|num|eos|bos|pad|unk|stop|public|cluster)[_.-]?tokens?$|access[_.-]?key[_.-]?id$"
)
# Values that are secrets under any name.
SECRET_VALUE = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bxox[baprs]-[A-Za-z0-9-]{10,}|\bsk-[A-Za-z0-9]{32,}"
)
URL_WITH_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>{}$]*:(?P<secret>[^\s/@'\"<>{}$*]{3,})@[a-zA-Z0-9]")
# Not secrets: a placeholder in capitals, a setting, an empty value, a reference, a path, a number, a boolean, a URL.
HARMLESS = re.compile(
    r"\s*(?:[A-Z][A-Z_]+|\w+=.*|[{}]{2}.*|.*\$[({].*"
    r"|(?i:|/.*|[0-9.]{1,4}|true|false|none|null|yes|no|https?://\S*|<.*>|\*+|x+|\.\.\.|change[-_ ]?me.*|your[-_ ].*))\s*"
)
MAX_CHARACTERS = 20_000
ARGUMENT = re.compile(r"--?(?P<name>[A-Za-z0-9_.-]+)[= ](?P<value>\S+)")


def check(world: World) -> Iterator[Fault]:
    for pod, container in containers_of(world):
        yield from _variables(pod, container)
        yield from _arguments(pod, container)
    for obj in world.of("ConfigMap"):
        yield from _config_map(obj)
    if world.service:
        for secret in world.of("Secret"):
            yield from _secret(secret)
        for pod in world.pods:
            yield from fields.faults(pod.owner, "service-pod", pod.path)
            yield from fields.faults(pod.owner, "tagged-pod", pod.path) if world.released else ()
            for container in pod.containers:
                yield from _root(pod, container)


def secret_in(name: str, value: str) -> str | None:
    """Why a named value is a secret in plain text; None if it is not one."""
    if SECRET_VALUE.search(value):
        return "it contains a key or token"
    if (match := URL_WITH_PASSWORD.search(value)) and not HARMLESS.fullmatch(match["secret"]):
        return "it is a URL with a password"
    if SECRET_NAME.search(name) and not NOT_SECRET.search(name) and not HARMLESS.fullmatch(value) and len(value) < 2000:
        return "its name says that it is a secret"
    return None


def _variables(pod: Pod, container: Container) -> Iterator[Fault]:
    for name, (where, variable) in variables(container).items():
        if reason := secret_in(name, text(variable, "value")):
            yield Fault("secret-in-env", pod.owner, (*where, "value"), f"{name} of {container.name} is in plain text; {reason}")


def _arguments(pod: Pod, container: Container) -> Iterator[Fault]:
    for key in ("command", "args"):
        for path, argument in select(pod.owner.data, *container.path, key, "*"):
            if not isinstance(argument, str) or len(argument) > MAX_CHARACTERS:
                continue
            named = [(match["name"], match["value"]) for match in ARGUMENT.finditer(argument)]
            if any(secret_in(name, value) for name, value in [*named, ("", argument)]):
                why = f"an argument of {container.name} contains a secret in plain text"
                yield Fault("secret-in-env", pod.owner, path, why)


def _config_map(obj: Object) -> Iterator[Fault]:
    for key, value in mapping(obj.data, "data").items():
        if not isinstance(value, str):
            continue
        # The name counts only for a value of one line: a whole file may be named credentials and contain none.
        plain = len(value) < 200 and "\n" not in value.strip() and value[:1] not in "{["
        reason = secret_in(key if plain else "", value if len(value) < MAX_CHARACTERS else "")
        if reason:
            yield Fault("secret-in-configmap", obj, ("data", key), f"{key} must not be in a ConfigMap; {reason}")


def _secret(obj: Object) -> Iterator[Fault]:
    """A Secret in Git can be read by everyone with access to the repository."""
    for section in ("data", "stringData"):
        for key, value in mapping(obj.data, section).items():
            if isinstance(value, str) and value and text(obj.data, "type") != "kubernetes.io/service-account-token":
                why = f"{obj} contains {key} in plain text (base64 is not encryption), and Git keeps it"
                yield Fault("secret-in-git", obj, (section, key), why)
                return


def _root(pod: Pod, container: Container) -> Iterator[Fault]:
    pod_context, context = mapping(pod.spec, "securityContext"), mapping(container.data, "securityContext")
    settings = {**pod_context, **context}
    if settings.get("runAsUser") == 0:
        level: Path = container.path if "runAsUser" in context else (*pod.path, "spec")
        yield Fault("runs-as-root", pod.owner, (*level, "securityContext", "runAsUser"), f"{container.name} runs as root")
    elif settings.get("runAsNonRoot") is not True and not settings.get("runAsUser"):
        yield Fault("runs-as-root", pod.owner, container.path, f"{container.name} may run as root")
