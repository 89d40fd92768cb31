"""Secrets that stand in plain sight, and pods that may do more than a model server needs.

A secret in plain text is a fault anywhere. What a pod may do is judged in a service only: a storage driver must be privileged, a model
server never.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import shown
from mlops_build.verify.world import Container, Fault, Object, Pod, World, environment, mapping, mappings, of_pods, text

# A name that means a secret, at its end: DB_PASSWORD, apiToken, aws_secret_access_key. Not PASSWORD_FILE, TOKEN_URL, SECRET_NAME.
SECRET_NAME = re.compile(
    r"(?i)(?:^|[_.-]|(?<=[a-z]))(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_.-]?key|secret[_.-]?(?:access[_.-]?)?key|private[_.-]?key|credentials?)$"
)
# A name that only looks like one.
NOT_SECRET = re.compile(r"(?i)(?:csrf|cancel|page|next|max|min|num|eos|bos|pad|unk|stop|public)[_.-]?tokens?$|access[_.-]?key[_.-]?id$")
# Values that are secrets whatever they are called.
SECRET_VALUE = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bxox[baprs]-[A-Za-z0-9-]{10,}|\bsk-[A-Za-z0-9]{32,}"
)
URL_WITH_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>{}$]*:(?P<secret>[^\s/@'\"<>{}$*]{3,})@[a-zA-Z0-9]")
# Not a secret: a placeholder in capitals, a setting, empty, a reference, a path, a number or a switch, an address.
HARMLESS = re.compile(
    r"\s*(?:[A-Z][A-Z_]+|\w+=.*"
    r"|(?i:|\$[({].*|/.*|[0-9.]{1,4}|true|false|none|null|yes|no|https?://\S*|<.*>|\*+|x+|\.\.\.|change[-_ ]?me.*|your[-_ ].*))\s*"
)
ARGUMENT = re.compile(r"--?(?P<name>[A-Za-z0-9_.-]+)[= ](?P<value>\S+)")


def check(world: World) -> Iterator[Fault]:
    for pod, container in of_pods(world):
        yield from _variables(pod, container)
        yield from _arguments(pod, container)
    for one in world.of("ConfigMap"):
        yield from _config_map(one)
    if world.service:
        for secret in world.of("Secret"):
            yield from _secret(secret)
        for pod in world.pods:
            yield from _privileges(pod)
        for pod, container in of_pods(world):
            yield from _image_tag(world, pod, container)


def secret_in(name: str, value: str) -> str | None:
    """Why a named value is a secret that everybody can read; None where it is none."""
    if SECRET_VALUE.search(value):
        return "it holds a key or token"
    if (found := URL_WITH_PASSWORD.search(value)) and not HARMLESS.fullmatch(found["secret"]):
        return "it is an address with a password in it"
    if SECRET_NAME.search(name) and not NOT_SECRET.search(name) and not HARMLESS.fullmatch(value) and len(value) < 2000:
        return "by its name it is a secret"
    return None


def _variables(pod: Pod, container: Container) -> Iterator[Fault]:
    for where, variable in environment(container):
        name, value = text(variable.get("name")), variable.get("value")
        if isinstance(value, str) and (reason := secret_in(name, value)):
            yield Fault("secret-in-env", pod.owner, (*where, "value"), f"{name} of {container.name} stands here in plain text; {reason}")


def _arguments(pod: Pod, container: Container) -> Iterator[Fault]:
    for key in ("command", "args"):
        listed = container.data.get(key)
        for index, argument in enumerate(listed if isinstance(listed, list) else []):
            if not isinstance(argument, str) or len(argument) > 20000:
                continue
            named = [(found["name"], found["value"]) for found in ARGUMENT.finditer(argument)]
            if any(secret_in(name, value) for name, value in [*named, ("", argument)]):
                why = f"an argument of {container.name} holds a secret in plain text"
                yield Fault("secret-in-env", pod.owner, (*container.path, key, index), why)


def _config_map(one: Object) -> Iterator[Fault]:
    for key, value in mapping(one.data.get("data")).items():
        if not isinstance(value, str):
            continue
        # A name counts for a value of one line: a whole file may be called credentials, and say where they are.
        plain = len(value) < 200 and "\n" not in value.strip() and value[:1] not in "{["
        reason = secret_in(key if plain else "", value if len(value) < 100_000 else "")
        if reason:
            yield Fault("secret-in-configmap", one, ("data", key), f"{key} is in a ConfigMap, which is no place for a secret; {reason}")


def _secret(one: Object) -> Iterator[Fault]:
    """A Secret in Git is a secret that everybody with the repository has; base64 hides nothing."""
    for section in ("data", "stringData"):
        for key, value in mapping(one.data.get(section)).items():
            if isinstance(value, str) and value and text(one.data.get("type")) != "kubernetes.io/service-account-token":
                why = f"{one} holds {key} in plain text (base64 is no encryption), in Git for ever"
                yield Fault("secret-in-git", one, (section, key), why)
                return


# What a pod may do


def _privileges(pod: Pod) -> Iterator[Fault]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(key) is True:
            yield Fault("privileged", pod.owner, (*pod.path, "spec", key), f"the pods have {key}: they see what belongs to the node")
    for index, volume in enumerate(mappings(pod.spec.get("volumes"))):
        if mapping(volume.get("hostPath")):
            where: Path = (*pod.path, "spec", "volumes", index, "hostPath")
            why = f"the volume {text(volume.get('name'))} is a folder of the node, which no namespace with pod security admits"
            yield Fault("privileged", pod.owner, where, why, "claim a PersistentVolume instead; an emptyDir for what may be lost")
    security = mapping(pod.spec.get("securityContext"))
    for container in pod.containers:
        yield from _container_privileges(pod, container, security)


def _container_privileges(pod: Pod, container: Container, security: Mapping[str, Any]) -> Iterator[Fault]:
    own = mapping(container.data.get("securityContext"))
    where: Path = (*container.path, "securityContext")
    if own.get("privileged") is True:
        yield Fault("privileged", pod.owner, (*where, "privileged"), f"{container.name} is privileged: it is root on the node")
    if own.get("allowPrivilegeEscalation") is True:
        yield Fault(
            "privileged", pod.owner, (*where, "allowPrivilegeEscalation"), f"{container.name} may gain more rights than it starts with"
        )
    added = [one for one in mapping(own.get("capabilities")).get("add") or [] if one != "NET_BIND_SERVICE"]
    if added:
        why = f"{container.name} adds the capabilities {', '.join(map(str, added))}"
        yield Fault("privileged", pod.owner, (*where, "capabilities", "add"), why)
    user = own.get("runAsUser", security.get("runAsUser"))
    if user == 0:
        place: Path = (*where, "runAsUser") if "runAsUser" in own else (*pod.path, "spec", "securityContext", "runAsUser")
        yield Fault("runs-as-root", pod.owner, place, f"{container.name} runs as root")
    elif own.get("runAsNonRoot", security.get("runAsNonRoot")) is not True and not user:
        yield Fault("runs-as-root", pod.owner, container.path, f"nothing keeps {container.name} from running as root")


def _image_tag(world: World, pod: Pod, container: Container) -> Iterator[Fault]:
    """Before the first release the image has no tag, and nothing runs."""
    image = text(container.data.get("image"))
    if not image or (pod.replicas == 0 and world.service and image == world.service.name):
        return
    if "@" in image:
        return
    tag = image.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        said = "has the tag latest" if tag else "has no tag, which means latest"
        yield Fault(
            "image-tag", pod.owner, (*container.path, "image"), f"the image {shown(image)} {said}: every start may run something else"
        )
