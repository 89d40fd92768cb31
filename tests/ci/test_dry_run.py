"""The API server's dry run in `ci check` and `ci deploy`, with a simulated kubectl that answers as the real one does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build.ci import check, deploy
from mlops_build.errors import Refused
from mlops_build.model import identity
from tests.ci.conftest import Release, simulate_kubectl
from tests.packaging.world import World

# kustomize is real. $ANSWER is the answer to the objects of the kind $KIND; other objects are accepted.
KUBECTL = """\
#!/bin/sh
if [ "$1" = kustomize ]; then exec "{real}" "$@"; fi
case "$*" in *--dry-run=server*) ;; *) echo "$*" >>"{folder}/calls"; exit 1 ;; esac
if grep -q "\\"kind\\": \\"$KIND\\""; then echo "$ANSWER" >&2; exit 1; fi
"""
UNREACHABLE = """error: error validating "STDIN": error validating data: failed to download openapi: Get "http://localhost:8080/openapi/v2\
": dial tcp 127.0.0.1:8080: connect: connection refused; if you choose to ignore these errors, turn validation off with --validate=false"""
IMMUTABLE = """Error from server (Invalid): error when applying patch:
{"spec":{"clusterIP":"10.0.0.1"}}
to:
Resource: "/v1, Resource=services", GroupVersionKind: "/v1, Kind=Service"
for: "STDIN": error when patching "STDIN": Service "points" is invalid: spec.ports[0].port: Invalid value: 80: field is immutable"""
STRICT = """Error from server (BadRequest): error when creating "STDIN": Service in version "v1" cannot be handled as a Service: \
strict decoding error: unknown field "spec.selectors\""""
DENIED = 'Error from server: error when creating "STDIN": admission webhook "policy.example.com" denied the request: label team is missing'
NO_KIND = """error: resource mapping not found for name: "points" namespace: "" from "STDIN": no matches for kind "Service" in version "v1"
ensure CRDs are installed first"""
POD_SECURITY = 'Error from server (Forbidden): error when creating "STDIN": pods "x" is forbidden: violates PodSecurity "restricted:latest"'
NOT_PERMITTED = """Error from server (Forbidden): error when retrieving current configuration of: Resource: "/v1, Resource=services"
from server for: "STDIN": services "points" is forbidden: User "agent" cannot get resource "services" in API group "" """
NO_NAMESPACE = 'Error from server (NotFound): error when creating "STDIN": namespaces "ml" not found'
TIMEOUT_FIELD = 'The Service "points" is invalid: spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: -1: x509, i/o timeout'
WEBHOOK = """Error from server (InternalError): error when creating "STDIN": Internal error occurred: failed calling webhook \
"a.example.com": context deadline exceeded"""
NO_DRY_RUN = 'Error from server (BadRequest): error when creating "STDIN": admission webhook "a.example.com" does not support dry run'
LOGGED_OUT = "error: You must be logged in to the server (Unauthorized)"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """cluster(answer) sets the answer to Services, cluster(answer, kind) to another kind."""
    monkeypatch.setenv("PATH", str(simulate_kubectl(tmp_path / "bin", KUBECTL)), prepend=":")
    monkeypatch.setenv("KIND", "Service")

    def answers(answer: str) -> None:
        monkeypatch.setenv("ANSWER", answer)

    return answers


def checked(service: Path) -> tuple[bool, list[str]]:
    """Whether `ci check` accepts the manifests, and what it prints about them."""
    lines: list[str] = []
    return check.verified(service, [], lines.append), lines


@pytest.mark.parametrize(
    "answer", [UNREACHABLE, NOT_PERMITTED, NO_NAMESPACE, NO_DRY_RUN, WEBHOOK, LOGGED_OUT], ids=lambda answer: answer[:30]
)
def test_an_object_that_cannot_be_checked_is_a_remark(service: Path, cluster: Callable[[str], None], answer: str) -> None:
    cluster(answer)
    passed, lines = checked(service)
    assert passed
    remarks = [line for line in lines if "has not checked Service/points of" in line or "no API server has checked" in line]
    assert len(remarks) == (1 if answer == UNREACHABLE else 2)  # no other environment is tried without a cluster
    assert any("the API server accepts" in line for line in lines) is (answer != UNREACHABLE)


@pytest.mark.parametrize(
    ("answer", "reason", "line"),
    [
        (IMMUTABLE, 'Service "points" is invalid: spec.ports[0].port: Invalid value: 80: field is immutable', "port: 80"),
        (STRICT, 'unknown field "spec.selectors"', "spec:"),
        (TIMEOUT_FIELD, "timeoutSeconds: Invalid value: -1: x509, i/o timeout", "spec:"),
        (DENIED, "label team is missing", ""),
        (NO_KIND, 'no matches for kind "Service" in version "v1" ensure CRDs are installed first', ""),
        (POD_SECURITY, 'violates PodSecurity "restricted:latest"', ""),
    ],
)
def test_an_object_that_the_server_refuses_is_a_finding_with_its_place(
    service: Path, cluster: Callable[[str], None], answer: str, reason: str, line: str
) -> None:
    cluster(answer)
    passed, lines = checked(service)
    assert not passed
    text = lines[-1]
    assert text.startswith("deploy/base/service.yaml\n")
    assert "Service/points in staging: the API server refuses it: " in text
    assert reason in text
    assert "[api-server]\n      correct it" in text
    number = int(text.split("line ")[1].split()[0])
    assert line in (service / "deploy/base/service.yaml").read_text().splitlines()[number - 1]


def test_service_yaml_ignores_what_the_server_refuses(service: Path, cluster: Callable[[str], None]) -> None:
    cluster(DENIED)
    with (service / "service.yaml").open("a") as settings:
        settings.write("verify: {ignore: {api-server: the label is added later}}\n")
    passed, lines = checked(service)
    assert passed
    assert any("ignored: the API server refuses Service/points of staging" in line for line in lines)


def test_nothing_is_changed_by_a_deployment_that_the_server_refuses(
    service: Path, cluster: Callable[[str], None], release: Release, world: World, tmp_path: Path
) -> None:
    record = release("staging")
    world.registry.set_tag("points", 1, identity.IMAGE_NAME, str(record.image))
    world.registry.set_tag("points", 1, identity.IMAGE, f"{str(record.image).rpartition(':')[0]}@sha256:{'1' * 64}")
    cluster(IMMUTABLE)
    with pytest.raises(Refused, match=r"refuses 1 object of staging:\ndeploy/base/service.yaml\n  line \d+  Service/points") as caught:
        deploy.run(service, "staging", url=None, timeout_s=None, say=print)
    assert "nothing was applied" in str(caught.value.remedy)
    assert not (tmp_path / "bin/calls").exists()
