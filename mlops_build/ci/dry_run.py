"""Ask the API server whether it would accept the objects of an overlay: `kubectl apply --dry-run=server`, which changes nothing.

The server knows what `verify` cannot know: its own version, custom resources, admission rules, quotas, and fields that cannot be changed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlops_build.adapters import kubectl
from mlops_build.finding import Finding
from mlops_build.verify.world import Object

RULE = "api-server"
# What a server says of an object that it does not accept. Everything else (no network, no permission, no such namespace yet) says nothing
# about the object.
REFUSED = re.compile(
    r"^The \S+ \".*\" is invalid|admission webhook .* denied the request|no matches for kind|strict decoding error"
    r"|error validating data: \[|Error from server \((?:Invalid|BadRequest)\)|Error from server \(Forbidden\).* is forbidden: (?!User )",
    re.MULTILINE | re.DOTALL,
)
NOT_CHECKED = re.compile(r"does not support dry.?run|failed calling webhook", re.IGNORECASE)
FIELD = re.compile(r"\b(?:spec|metadata|data)(?:\.[A-Za-z][\w-]*|\[\d+\])+")
MESSAGE_LENGTH = 500


@dataclass
class Answer:
    """What the API server says. reached: whether there is one. accepted: how many objects it accepts. findings: those that it refuses.

    remarks: what it could not check, and why.
    """

    reached: bool = True
    accepted: int = 0
    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def ask(objects: Sequence[Object], env: str, ignore: Mapping[str, str]) -> Answer:
    """The API server's answer to the rendered objects of an environment. That no cluster can be asked is a remark, not an error.

    ignore: that of service.yaml.
    """
    answer = Answer()
    try:
        if not kubectl.dry_run(_manifests(objects)).code:
            return Answer(accepted=len(objects))
        # kubectl's errors do not always name their object, so each object gets a call of its own.
        for obj in objects:
            _ask(obj, env, ignore.get(RULE), answer)
    except kubectl.ClusterUnreachable as error:
        answer.reached = False
        answer.remarks.append(f"no API server has checked {'all ' * bool(answer.findings)}the objects of {env}: {error.message}")
    return answer


def _ask(obj: Object, env: str, ignored: str | None, answer: Answer) -> None:
    done = kubectl.dry_run(_manifests([obj]))
    if not done.code:
        answer.accepted += 1
    elif NOT_CHECKED.search(done.message) or not REFUSED.search(done.message):
        answer.remarks.append(f"the API server has not checked {obj} of {env}: {_reason(done.message)}")
    elif ignored:
        answer.remarks.append(f"ignored: the API server refuses {obj} of {env} [{RULE}]: {ignored}")
    else:
        answer.findings.append(_finding(obj, env, _reason(done.message)))


def _manifests(objects: Sequence[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [obj.data for obj in objects]})


def _reason(message: str) -> str:
    """kubectl's error on one line, without the patch that it repeats."""
    reason = re.sub(r"\s*\n\s*\*?\s*", " ", message.rpartition('"STDIN": ')[2].strip()).removeprefix("error: ")
    reason = "".join(character if character.isprintable() else "\ufffd" for character in reason)
    return reason if len(reason) <= MESSAGE_LENGTH else f"{reason[:MESSAGE_LENGTH]}…"


def _finding(obj: Object, env: str, reason: str) -> Finding:
    named = FIELD.search(reason)
    parts = re.findall(r"[A-Za-z][\w-]*|\d+(?=\])", named[0]) if named else []
    file, line = obj.where(tuple(int(part) if part.isdigit() else part for part in parts))
    explained = ".".join([obj.kind.lower(), *(part for part in parts if not part.isdigit())])
    remedy = f"correct it; `kubectl explain {explained}` describes the field" if parts else "correct it, or ask the cluster's administrator"
    return Finding(f"{obj} in {env}", RULE, f"the API server refuses it: {reason}", remedy, file, line)
