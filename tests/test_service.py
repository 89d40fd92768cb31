"""service.yaml: what is valid, and what the message says when it is not."""

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mlops_build import service
from mlops_build.errors import NotFound

ROOT = Path(__file__).parent.parent
VALID = """\
schema: 1
name: digits
team: ml-platform
tracking: {uri: "sqlite:///mlflow.db"}
models:
  - name: digits
environments:
  staging: {namespace: ml-staging, host: digits-staging.example.com, replicas: 1, cpu: 500m, memory: 1GiB}
  production: {namespace: ml, host: digits.example.com, replicas: 2, cpu: 500m, memory: 1GiB}
gpu: {mode: none, memory: 4GiB}
image: {registry: registry.example.com/ml, base: "python:3.11-slim", apt: []}
serving: {port: 8080, startup_seconds: 120}
hold: {}
"""


def test_a_valid_file_is_read() -> None:
    found = service.parse(VALID)
    assert found.name == "digits"
    assert found.alias_of("production") == "production"
    assert found.environments["staging"].memory_bytes == 2**30
    assert found.gpu.memory_bytes == 4 * 2**30


def test_a_character_that_yaml_forbids_is_named() -> None:
    with pytest.raises(service.ServiceError, match=r"service.yaml: not valid YAML: .*#x0007"):
        service.parse(VALID + "# \a\n")


def test_an_environment_may_follow_another_alias() -> None:
    assert service.parse(VALID.replace("namespace: ml,", "namespace: ml, alias: champion,")).alias_of("production") == "champion"


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (("replicas: 2", "replcas: 2"), 9, "unknown key 'environments.production.replcas'; did you mean 'replicas'?"),
        (("serving:", "servin:"), 12, "unknown key 'servin'; did you mean 'serving'?"),
        (("memory: 4GiB", "memory: 4GB"), 10, "gpu.memory: '4GB' is not an amount of memory with a binary unit, such as 4GiB"),
        (("memory: 4GiB", "memory: 4"), 10, "gpu.memory: 4 is not text: write it in quotes (an amount of"),
        (("schema: 1", "schema: 2"), 1, "schema: Input should be 1 (found 2)"),
        (("mode: none", "mode: exclusiv"), 10, "gpu.mode: Input should be 'none', 'shared' or 'exclusive' (found 'exclusiv')"),
        (("  - name: digits", "  - nam: digits"), 6, "models.0.name is missing"),
        (("apt: []", "apt: [libgomp1, 'a;b']"), 11, "image.apt.1: 'a;b' is not a Debian package name"),
        (("host: digits.example.com", 'host: "x y"'), 9, "environments.production.host: 'x y' is not a host name in lower case"),
        (("replicas: 2", "replicas: -1"), 9, "environments.production.replicas: Input should be greater than or equal to 0 (found -1)"),
        (("hold: {}", "hold: {prod: why}"), 13, "hold: prod is not an environment; environments: staging, production"),
        (("hold: {}", "git: {pull_requests: bitbucket}"), 13, "git: pull_requests: bitbucket needs `api:`, the host's address"),
        (
            ("hold: {}", "git: {commit_prefix: 'ML-1\\nX'}"),
            13,
            "git.commit_prefix: 'ML-1\\\\nX' is not a Jira issue at the start of",
        ),
        (("hold: {}", "git: {api: 'https://a@git.example.com'}"), 13, "git.api: 'https://a@git.example.com' is not the host's address"),
        (("  - name: digits", "  - name: digits\n  - name: digits"), 5, "models: a model is listed twice: digits, digits"),
        (
            ("replicas: 2", "replicas: 2, autoscale: {max_replicas: 2, target: 4}"),
            9,
            "environments.production.autoscale: max_replicas must be",
        ),
        (
            ("replicas: 2", "autoscale: {max_replicas: 2, targt: 4}"),
            9,
            "unknown key 'environments.production.autoscale.targt'; did you mean",
        ),
        (("replicas: 2", "priority_class: High"), 9, "environments.production.priority_class: 'High' is not the name of a PriorityClass"),
        (("mode: none", "mode: shared, lease_dir: /"), 10, "gpu.lease_dir: '/' is not shared: a folder on each GPU node"),
        (("mode: none", "mode: shared, lease_dir: /run/../etc"), 10, "gpu.lease_dir: '/run/../etc' is not shared: a folder"),
        (
            ("mode: none", "mode: shared, spare_cards: 1"),
            10,
            "gpu.spare_cards: is only used with mode: exclusive; with shared write spare_memory",
        ),
        (
            ("mode: none", "mode: exclusive, spare_memory: 4GiB"),
            10,
            "gpu.spare_memory: is only used with mode: shared; with exclusive write",
        ),
        (
            ("mode: none", "mode: shared, tolerations: [{key: a, value: b}]"),
            10,
            "gpu.tolerations.0.value: operator Exists (the default) takes",
        ),
        (("mode: none", "mode: shared, node_selector: {a: true}"), 10, "gpu.node_selector.a: True is not text: write it in quotes (lab"),
        (
            ("mode: none", 'mode: shared, node_selector: {"a b": x}'),
            10,
            "gpu.node_selector.a b: 'a b' is not labels of nodes with such GPUs",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_is_allowed(change: tuple[str, str], line: int, said: str) -> None:
    with pytest.raises(service.ServiceError) as caught:
        service.parse(VALID.replace(*change))
    assert f"service.yaml line {line}: {said}" in str(caught.value)
    assert caught.value.exit_code == 4
    assert caught.value.remedy == "see docs/reference/service-yaml.md in the repository of mlops-build"


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_a_gpu_service_is_not_scaled_by_its_cpu(mode: str) -> None:
    scaled = VALID.replace("replicas: 2", "replicas: 2, autoscale: {max_replicas: 5, metric: cpu, target: 70}")
    assert service.parse(scaled).environments["production"].autoscale == service.Autoscale(max_replicas=5, metric="cpu", target=70)
    with pytest.raises(
        service.ServiceError, match=r"line 10: gpu: environments\.production\.autoscale\.metric: cpu is not meaningful"
    ) as caught:
        service.parse(scaled.replace("mode: none", f"mode: {mode}"))
    assert "write requests_in_progress" in str(caught.value)


def test_what_was_added_to_the_first_format_is_optional() -> None:
    found = service.parse(VALID)
    assert (found.gpu.runtime_class, found.gpu.lease_dir, found.gpu.spare_memory, found.gpu.spare_cards) == (
        "nvidia",
        "/run/mlops-gpu",
        None,
        0,
    )
    place = found.environments["production"]
    assert (place.autoscale, place.priority_class) == (None, None)
    more = (
        "mode: shared, runtime_class: null, node_selector: {example.com/card: l4}, tolerations: [{key: nvidia.com/gpu, effect: NoSchedule}]"
    )
    gpu = service.parse(VALID.replace("mode: none", f"{more}, spare_memory: 6GiB")).gpu
    assert (gpu.runtime_class, gpu.node_selector, gpu.tolerations[0].operator) == (None, {"example.com/card": "l4"}, "Exists")


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(service.ServiceError) as caught:
        service.parse(VALID.replace("team:", "taem:").replace("port: 8080", "port: 80"))
    assert len(str(caught.value).splitlines()) == 3  # unknown taem, missing team, port


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "a: b: c", "\t", "!!python/object:os.system {}"])
def test_what_is_no_service_file_is_refused(text: str) -> None:
    with pytest.raises(service.ServiceError):
        service.parse(text)


def test_text_that_needs_quotes_is_explained() -> None:
    with pytest.raises(service.ServiceError, match=r"team: 42 is not text: write it in quotes \(letters, digits, space and"):
        service.parse(VALID.replace("team: ml-platform", "team: 42"))
    with pytest.raises(service.ServiceError, match="not valid YAML") as caught:
        service.parse(VALID + "hold: {staging: see: ML-12}\n")
    assert "quotes" in str(caught.value.remedy)


def test_a_file_cannot_take_all_memory_or_all_stack() -> None:
    aliases = "x0: &a0 [1]\n" + "".join(f"x{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 8)}]\n" for n in range(20))
    for text, message in ((VALID + aliases, "more than 100000 values"), (VALID + "x: " + "[" * 800, "too deep")):
        for strict in (True, False):
            with pytest.raises(service.ServiceError, match=message):
                service.parse(text, strict=strict)
    assert service.parse(VALID + "x: &x [1]\ny: [*x, *x]\n", strict=False) == service.parse(VALID)


def test_a_newer_file_is_read_by_the_tolerant_door_only() -> None:
    newer = VALID + "future: {a: 1}\n"
    newer = newer.replace("mode: none,", "mode: none, slices: 2,").replace("replicas: 2,", "replicas: 2, zone: a,")
    assert service.parse(newer, strict=False) == service.parse(VALID)
    with pytest.raises(service.ServiceError, match="unknown key"):
        service.parse(newer)


def test_the_reason_for_an_exception_is_one_line_for_people() -> None:
    def parse(reason: object) -> str | None:
        return service.parse(VALID.replace("port: 8080", f"port: 8080, unsafe_pickle: {json.dumps(reason)}")).serving.unsafe_pickle

    for reason in ("made by us, see ML-12", "für die Übergangszeit", "x" * 500, "costs $5", 'a "quoted" one: #1'):
        assert parse(reason) == reason
    for wrong in ("", " ", "two\nlines", "x" * 501, "a\u202eb", "a\u0000b", "$(PASSWORD)", " padded", "a\ttab", True, 1, ["x"]):
        with pytest.raises(service.ServiceError, match=r"line \d+: serving\.unsafe_pickle: .* is not a reason: write .* in quotes"):
            parse(wrong)
    assert service.parse(VALID).serving.unsafe_pickle is None


def test_machines_commits_may_name_an_issue() -> None:
    assert service.parse(VALID).git.subject("Release") == "Release"
    assert service.parse(VALID + "git: {commit_prefix: ML-42}\n").git.subject("Release") == "ML-42 Release"


def test_missing_file_and_unknown_environment(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"service\.yaml is missing"):
        service.load(tmp_path)
    with pytest.raises(NotFound, match=r"no service\.yaml in"):
        service.find_root(tmp_path)
    with pytest.raises(NotFound, match="no environment 'prod'") as caught:
        service.parse(VALID).environment("prod")
    assert "staging, production" in str(caught.value.remedy)


def test_root_is_found_from_below(tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(VALID)
    (tmp_path / "src/deep").mkdir(parents=True)
    assert service.find_root(tmp_path / "src/deep") == tmp_path.resolve()
    # The template keeps the Kubernetes Service in a file of the same name.
    (tmp_path / "deploy/base").mkdir(parents=True)
    (tmp_path / "deploy/base/service.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata:\n  name: digits\n")
    assert service.find_root(tmp_path / "deploy/base") == tmp_path.resolve()


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40), st.sampled_from(["registry", "base"]))
def test_nothing_that_breaks_a_dockerfile_passes_as_an_image(text: str, key: str) -> None:
    try:
        service.Image.model_validate({key: text})
    except ValueError:
        return
    assert not set(text) & set("\n\r \t'\"`$;&|<>\\{}()#")


def test_the_schema_for_editors_is_the_generated_one_and_agrees() -> None:
    stored = json.loads((ROOT / "template/.mlops-build/service.schema.json").read_text())
    assert stored == service.json_schema(), "run `make docs`"
    jsonschema.validate(YAML(typ="safe").load(VALID), stored)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(YAML(typ="safe").load(VALID.replace("4GiB", "4GB")), stored)


TWO = VALID.replace("  - name: digits\n", "  - {name: digits, gpu_memory: 2GiB}\n  - {name: other, gpu_memory: 512MiB}\n")


def test_the_budgets_of_several_models_are_added_up() -> None:
    assert service.parse(TWO.replace("{mode: none, memory: 4GiB}", "{mode: shared}")).gpu.memory == "2560MiB"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (TWO, "gpu.memory is the sum"),
        (TWO.replace(", gpu_memory: 512MiB", "").replace(", memory: 4GiB}\nimage", "}\nimage"), "other has no gpu_memory"),
    ],
)
def test_budgets_are_said_in_one_way(text: str, why: str) -> None:
    with pytest.raises(service.ServiceError, match=why):
        service.parse(text)
