"""service.yaml: the typed and validated settings of a service. The JSON schema for editors is generated from here.

A service's own commands refuse unknown keys and suggest the right one; the bridge reads with `strict=False`, because a service may be
newer.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from mlops_build.errors import NotFound, Refused
from mlops_build.model.identity import ALIAS, NAME
from mlops_build.quantity import UNITS, parse_bytes
from mlops_build.service import document
from mlops_build.service.reason import Reason
from mlops_build.service.root import FILE as FILE
from mlops_build.service.root import find_root as find_root
from mlops_build.serving_settings import KEYS, Nan, Precision, Ragged, variable

REFERENCE = "docs/reference/service-yaml.md in the repository of mlops-build"
MEMORY = r"[1-9][0-9]{0,6}(?:KiB|MiB|GiB|TiB|Ki|Mi|Gi|Ti)"
HOST = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
# A registry host with an optional port, then path components: the grammar of the OCI distribution specification.
REGISTRY = r"[a-z0-9](?:[a-z0-9.-]{0,250}[a-z0-9])?(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-][a-z0-9]+)*){0,8}"
IMAGE = rf"(?:{REGISTRY}/)?[a-z0-9]+(?:[._-][a-z0-9]+)*:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}(?:@sha256:[0-9a-f]{{64}})?"
APT = r"[a-z0-9][a-z0-9+.-]{1,100}"
# A file or folder of the repository: relative, and no part is "." or "..".
IMAGE_FILE = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,100}){0,10}"
TRACKING = r"(?:sqlite:///[A-Za-z0-9_./-]{1,500}|https?://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?(?:/[A-Za-z0-9_./-]{0,200})?)"
ENDPOINT = r"https?://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?/?"
# A Kubernetes label's key and value; a taint has the same: kubernetes.io/docs/concepts/overview/working-with-objects/labels.
LABEL_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)"
LABEL_KEY = rf"(?:{HOST}/)?{LABEL_VALUE}"
# At least two parts, so that a lease directory is not the top of a file system, and no part is "..".
FOLDER = r"(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,100}){2,10}"
GIT_API = r"https?://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*/?"
JIRA = r"[A-Z][A-Z0-9_]{1,19}-[1-9][0-9]{0,8}"


class ServiceError(Refused):
    """service.yaml is not valid; the message has file, line and key."""


def _pattern(regex: str, wanted: str) -> Any:
    return Field(pattern=f"^{regex}$", description=wanted)


Name = Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}$"), Field(description="a DNS-1123 label: a-z, 0-9 and -, at most 63")]
Memory = Annotated[str, _pattern(MEMORY, "an amount of memory with a binary unit, such as 4GiB")]


class _Section(BaseModel):
    # pydantic's own regular expressions: `$` is the end there, while Python's also matches before a final newline.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class Tracking(_Section):
    """The address of MLflow. The environment variable MLFLOW_TRACKING_URI overrides it."""

    uri: Annotated[str, _pattern(TRACKING, "https://HOST, or sqlite:///FILE relative to the service's root")] = "sqlite:///mlflow.db"
    s3_endpoint_url: Annotated[str, _pattern(ENDPOINT, "the S3 gateway, such as https://s3.example.com")] | None = None


class Model(_Section):
    """A registered model that the service serves."""

    name: Name
    gpu_memory: Annotated[
        Memory | None, Field(description="its part of the GPU memory; set it for every model, then the sum replaces gpu.memory")
    ] = None


class Autoscale(_Section):
    """More pods under load: `replicas` is then the lowest number. requests_in_progress needs an adapter that provides Prometheus' metrics
    to the cluster (docs/explanation/manifests.md); cpu needs metrics-server, and a service without a GPU."""

    max_replicas: Annotated[int, Field(ge=2, le=1000, description="the highest number of pods; the cluster must have GPUs for them")]
    metric: Literal["requests_in_progress", "cpu"] = "requests_in_progress"
    target: Annotated[
        int,
        Field(ge=1, le=10000, description="the target per pod on average: requests in progress, or percent of the CPU request"),
    ]


class Environment(_Section):
    """An environment of the service. It follows the alias of the same name unless `alias` is set."""

    alias: Annotated[str, _pattern(ALIAS.pattern, "an MLflow alias")] | None = None
    namespace: Name
    host: Annotated[str, Field(pattern=f"^{HOST}$", max_length=253, description="a host name in lower case")]
    replicas: Annotated[int, Field(ge=0, le=1000, description="how many pods")] = 1
    cpu: Annotated[str, _pattern(r"(?:[1-9][0-9]{0,5}m|[1-9][0-9]{0,2})", "CPU request, such as 500m or 2")] = "500m"
    memory: Memory = "1GiB"
    priority_class: Annotated[str, _pattern(HOST, "the name of a PriorityClass that the cluster has")] | None = None
    autoscale: Autoscale | None = None
    landing: Annotated[
        Literal["push", "pull-request"],
        Field(description="how a release reaches Git: pushed to the branch, or as a pull request from release/ENVIRONMENT"),
    ] = "push"

    @field_validator("autoscale")
    @classmethod
    def _above_replicas(cls, autoscale: Autoscale | None, info: ValidationInfo) -> Autoscale | None:
        replicas = info.data.get("replicas", 0)  # missing if it was refused itself
        if autoscale and autoscale.max_replicas <= replicas:
            raise ValueError(f"max_replicas must be more than replicas, which is the lowest number of pods ({replicas})")
        return autoscale

    @property
    def memory_bytes(self) -> int:
        return parse_bytes(self.memory)


class Toleration(_Section):
    """A taint of GPU nodes that the pods tolerate, in Kubernetes' format."""

    key: Annotated[str, _pattern(LABEL_KEY, "a taint's key, such as nvidia.com/gpu")]
    operator: Literal["Exists", "Equal"] = "Exists"
    value: Annotated[str, _pattern(LABEL_VALUE, "a taint's value")] | None = None
    effect: Annotated[Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None, Field(description="the taint's effect; null: any")] = (
        None
    )

    @field_validator("value")
    @classmethod
    def _only_equal_has_a_value(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("operator") == "Exists":
            raise ValueError("operator Exists (the default) takes no value; write `operator: Equal`")
        return value


class Gpu(_Section):
    """none: CPU. shared: a lease on a GPU that other services use, too. exclusive: a whole GPU from the device plugin. All other keys
    are only used with a GPU."""

    mode: Literal["none", "shared", "exclusive"] = "none"
    memory: Memory = "4GiB"
    node_selector: Annotated[
        dict[
            Annotated[str, _pattern(LABEL_KEY, "a label's key")], Annotated[str, _pattern(f"{LABEL_VALUE}?", "a label's value, in quotes")]
        ],
        Field(description='labels of nodes with such GPUs, such as {"example.com/card": "l4"}'),
    ] = {}
    tolerations: list[Toleration] = []
    runtime_class: Annotated[str, _pattern(HOST, "shared: the name of NVIDIA's RuntimeClass; null if it is the nodes' default")] | None = (
        "nvidia"
    )
    lease_dir: Annotated[
        str, _pattern(FOLDER, "shared: a folder on each GPU node, such as /run/mlops-gpu, that every user can write to (mode 1777)")
    ] = "/run/mlops-gpu"
    spare_memory: Memory | None = Field(
        default=None, description="shared: memory that stays free on a GPU, so that the next version can start next to this one"
    )
    spare_cards: Annotated[int, Field(ge=0, le=1000, description="exclusive: GPUs that stay free for the same purpose")] = 0

    @field_validator("spare_memory", "spare_cards")
    @classmethod
    def _spare_of_this_mode(cls, spare: object, info: ValidationInfo) -> object:
        mode, counts = info.data.get("mode"), "shared" if info.field_name == "spare_memory" else "exclusive"
        if spare and mode not in (counts, "none", None):
            other = "spare_cards" if mode == "exclusive" else "spare_memory"
            raise ValueError(f"is only used with mode: {counts}; with {mode} write {other}")
        return spare

    @property
    def spare_bytes(self) -> int:
        return parse_bytes(self.spare_memory) if self.spare_memory else 0

    @property
    def memory_bytes(self) -> int:
        return parse_bytes(self.memory)


class Image(_Section):
    """The image's name and its contents."""

    registry: Annotated[str, _pattern(REGISTRY, "HOST[:PORT][/PATH], in lower case")] = "registry.example.com/ml"
    base: Annotated[str, _pattern(IMAGE, "NAME:TAG, with an optional @sha256 digest")] = "python:3.11-slim"
    apt: list[Annotated[str, _pattern(APT, "a Debian package name")]] = []
    files: Annotated[
        list[Annotated[str, _pattern(IMAGE_FILE, "a file or folder of the repository, such as config/labels.txt")]],
        Field(
            description="files and folders of the repository that the image has in /app/files (MLOPS_FILES). Each model "
            "version has those of its commit"
        ),
    ] = []
    secrets: Annotated[
        list[Literal["index-url", "netrc", "ca-bundle"]],
        Field(
            description="ids of the secrets for the build; the image does not contain them: the package index's address with its "
            "credentials, a netrc file, certificates to trust. Needs BuildKit or buildah"
        ),
    ] = []
    cuda: Annotated[
        Literal["wheels", "base"],
        Field(
            description="the source of a GPU service's CUDA libraries: wheels, with torch; base, from `base`, an nvidia/cuda image whose "
            "Debian or Ubuntu has the model's Python as a package"
        ),
    ] = "wheels"
    revision: Annotated[
        int | None,
        Field(
            ge=1, le=99999999, description="another number gives the image another name, so it is built again, such as with a patched base"
        ),
    ] = None
    assemble: Annotated[bool, Field(description="add models to the environment image, without an engine; false: build with one")] = True
    _newer: dict[str, Any] = {}

    def set_keys(self) -> dict[str, Any]:
        """The keys that are set, also those of a newer mlops-build."""
        return {**self._newer, **self.model_dump(exclude_unset=True)}


def _flag(name: str) -> Any:
    key = KEYS[name]
    return Field(description=key.description, **key.bounds)


class Serving(_Section):
    """How the model is served. The keys from max_batch on are the flags of `mlops-build serve` (docs/how-to/tune-batching.md) with the same
    defaults; the release passes them to the pod, and a local `serve` reads them."""

    port: Annotated[int, Field(ge=1024, le=65535, description="the container's port")] = 8080
    startup_seconds: Annotated[int, Field(ge=1, le=7200, description="the longest load of the model, in seconds")] = 120
    max_batch: Annotated[int, _flag("max_batch")] | None = None
    max_delay_ms: Annotated[float, _flag("max_delay_ms")] | None = None
    max_queue: Annotated[int, _flag("max_queue")] | None = None
    deadline: Annotated[float, _flag("deadline")] | None = None
    body_limit: Memory | None = None
    nan: Annotated[Nan, _flag("nan")] | None = None
    ragged: Annotated[Ragged, _flag("ragged")] | None = None
    access_log: Annotated[bool, _flag("access_log")] | None = None
    compile: Annotated[bool, _flag("compile")] | None = None
    precision: Annotated[Precision, _flag("precision")] | None = None
    unsafe_pickle: Annotated[Reason, _flag("unsafe_pickle")] | None = None
    rows_independent: Annotated[Reason, _flag("rows_independent")] | None = None

    def variables(self) -> dict[str, str]:
        """The environment variables of the pod's `mlops-build serve`: only those that are set here."""
        values = self.model_dump(exclude_none=True, exclude={"port", "startup_seconds"})
        return {variable(key): str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}


class Git(_Section):
    """Pull requests on the Git host, for retrained models and for releases, and the subjects of generated commits."""

    pull_requests: Annotated[
        Literal["none", "bitbucket", "gitlab"],
        Field(description="how to open one: not at all, with the API of Bitbucket Data Center, or with GitLab's (a merge request)"),
    ] = "none"
    api: Annotated[str, _pattern(GIT_API, "the host's address, such as https://git.example.com")] | None = None
    commit_prefix: Annotated[str, _pattern(JIRA, "a Jira issue at the start of generated commits' subjects, such as ML-123")] | None = None

    @model_validator(mode="after")
    def _has_address(self) -> "Git":
        if self.opens_pull_requests and not self.api:
            raise ValueError(f"pull_requests: {self.pull_requests} needs `api:`, the host's address")
        return self

    @property
    def opens_pull_requests(self) -> bool:
        return self.pull_requests != "none"

    def subject(self, text: str) -> str:
        """A commit's subject, prefixed with the issue that a hook of the host may require."""
        return f"{self.commit_prefix} {text}" if self.commit_prefix else text


class Verify(_Section):
    """Settings of `mlops-build verify` for this service."""

    kubernetes: Annotated[str, _pattern(r"1\.[0-9]{1,2}", "the cluster's version, such as 1.31 (default: the newest known)")] | None = None
    ignore: Annotated[
        dict[
            Annotated[str, _pattern(r"[a-z0-9]+(?:-[a-z0-9]+)*", "a rule of docs/reference/verify-rules.md")],
            Annotated[str, StringConstraints(min_length=1, max_length=500)],
        ],
        Field(description="RULE: why. Findings of these rules are ignored"),
    ] = {}


class Service(_Section):
    """A service: a Git repository with one or more registered models, the first of which answers /invocations."""

    schema_version: Annotated[Literal[1], Field(alias="schema", description="the version of this file's format")]
    name: Name
    team: Annotated[str, _pattern(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}", "letters, digits, space and ._-")]
    tracking: Tracking = Tracking()
    models: Annotated[list[Model], Field(min_length=1)]
    environments: Annotated[dict[Name, Environment], Field(min_length=1)]
    contract: Annotated[
        int, Field(ge=1, le=9999, description="increase it by one to release a model that breaks callers, after they were informed")
    ] = 1
    gpu: Gpu = Gpu()
    image: Image = Image()
    serving: Serving = Serving()
    git: Git = Git()
    verify: Verify = Verify()
    require_promotion: Annotated[
        bool, Field(description="true: an alias that was moved without `mlops-build promote` is not released, unless it goes back")
    ] = False
    hold: Annotated[
        dict[Name, Annotated[str, StringConstraints(min_length=1, max_length=500)]],
        Field(description="ENVIRONMENT: why. The bridge does not change a held environment"),
    ] = {}

    @field_validator("models")
    @classmethod
    def _models_differ(cls, models: list[Model]) -> list[Model]:
        names = [model.name for model in models]
        if len(set(names)) != len(names):
            raise ValueError(f"a model is listed twice: {', '.join(names)}")
        return models

    @field_validator("gpu")
    @classmethod
    def _scaled_by_what_is_busy(cls, gpu: Gpu, info: ValidationInfo) -> Gpu:
        for env, place in info.data.get("environments", {}).items():
            if gpu.mode != "none" and place.autoscale and place.autoscale.metric == "cpu":
                raise ValueError(
                    f"environments.{env}.autoscale.metric: cpu is not meaningful for a service on a GPU: its CPU is idle while the GPU "
                    "is busy (and busy while it waits); write requests_in_progress"
                )
        return gpu

    @model_validator(mode="after")
    def _lands_somewhere(self) -> "Service":
        for env, place in self.environments.items():
            if place.landing == "pull-request" and not self.git.opens_pull_requests:
                raise ValueError(f"environments.{env}.landing: pull-request needs `git: {{pull_requests: …, api: …}}`, the Git host")
        return self

    @model_validator(mode="after")
    def _budgets_added_up(self) -> "Service":
        """A single process with one lease serves all models, so its budget is the sum of theirs."""
        amounts = [model.gpu_memory for model in self.models if model.gpu_memory]
        if not amounts:
            return self
        if silent := [model.name for model in self.models if not model.gpu_memory]:
            raise ValueError(
                f"models: {', '.join(silent)} has no gpu_memory, but other models have: write it for every model, or only gpu.memory"
            )
        if "memory" in self.gpu.model_fields_set:
            raise ValueError("gpu.memory is the sum of the models' gpu_memory: remove one of them")
        total = sum(map(parse_bytes, amounts))
        unit = next(unit for unit in ("TiB", "GiB", "MiB", "KiB") if total % UNITS[unit] == 0)
        return self.model_copy(update={"gpu": self.gpu.model_copy(update={"memory": f"{total // UNITS[unit]}{unit}"})})

    @field_validator("hold")
    @classmethod
    def _hold_known(cls, hold: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        environments = info.data.get("environments", hold)  # missing if it was refused itself
        unknown = sorted(set(hold) - set(environments))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is not an environment; environments: {', '.join(environments)}")
        return hold

    def environment(self, env: str) -> Environment:
        """The settings of an environment. Raises NotFound, which lists the environments."""
        if env not in self.environments:
            raise NotFound(f"{self.name} has no environment {env!r}", remedy=f"environments in {FILE}: {', '.join(self.environments)}")
        return self.environments[env]

    def alias_of(self, env: str) -> str:
        """The alias that an environment follows. Raises NotFound."""
        return self.environment(env).alias or env


def load(root: Path, *, strict: bool = True) -> Service:
    """Read `root`/service.yaml. Raises NotFound or ServiceError."""
    path = root / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", remedy="run this inside a service, or restore the file from Git") from None
    except UnicodeDecodeError as error:
        raise ServiceError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}", remedy="save it as UTF-8") from None
    return parse(text, str(path), strict=strict)


def parse(text: str, where: str = FILE, *, strict: bool = True) -> Service:
    """Parse service.yaml's text. `strict=False` ignores unknown keys. Raises ServiceError with line and key."""
    return _parse(text, where, strict)


@lru_cache(maxsize=64)  # a pass of the bridge needs the same text several times, and 5 ms for each
def _parse(text: str, where: str, strict: bool) -> Service:
    service, read = document.parse(text, where, Service, error=ServiceError, reference=REFERENCE, strict=strict)
    service.image._newer.update({key: value for key, value in read.get("image", {}).items() if key not in Image.model_fields})
    return service


def json_schema() -> dict[str, Any]:
    """The JSON schema of service.yaml, for editors."""
    return document.json_schema(Service, FILE)
