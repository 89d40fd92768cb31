"""What a service's repository says at a commit, as far as releases need it. It is read at once, in two git processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mlops_build import service as service_file
from mlops_build.adapters.git.objects import Objects
from mlops_build.errors import NotFound
from mlops_build.release import hold as holds
from mlops_build.release import record as records
from mlops_build.release.record import Record
from mlops_build.service import Service, ServiceError
from mlops_build.service import pin as pins
from mlops_build.service.pin import Pin

OVERLAYS = "deploy/overlays"


class NoService(NotFound):
    """A repository without service.yaml."""


@dataclass(frozen=True)
class Tree:
    """service.yaml, pyproject.toml and the overlays at `commit`: path → content."""

    commit: str
    files: Mapping[str, bytes]

    @classmethod
    def at(cls, objects: Objects, commit: str) -> "Tree":
        return cls(commit, objects.snapshot(commit, service_file.FILE, pins.FILE, OVERLAYS))

    @cached_property
    def service(self) -> Service:
        """service.yaml, keys of a newer mlops-build ignored. Raises NotFound or ServiceError."""
        return _service(self.files.get(service_file.FILE), self.commit)

    def ignored(self) -> list[str]:
        """The keys of service.yaml that this version does not know, with their lines: a newer one's, or misspelt."""
        try:
            service_file.parse(self.files[service_file.FILE].decode(errors="replace"))
        except ServiceError as error:
            return [f"{line}; it is ignored" for line in error.message.splitlines()]
        return []

    @cached_property
    def pin(self) -> Pin | None:
        """The service's pin of mlops-build; None if there is none, or it cannot be read."""
        return _pin(self.files.get(pins.FILE))

    def record(self, env: str) -> Record | None:
        """The record of an environment; None if there is none, or it cannot be read."""
        return _record(self.files.get(f"{records.folder(env)}/{records.RECORD}"))

    def release(self, env: str) -> dict[str, bytes]:
        """The files of an environment's release folder, by path."""
        return {path: content for path, content in self.files.items() if path.startswith(f"{records.folder(env)}/")}

    def hold(self, env: str) -> str | None:
        """Why an environment is held; None if it is not."""
        path = holds.file(env)
        text = self.files.get(path)
        if text is None and any(other.startswith(f"{path}/") for other in self.files):
            text = b""  # a folder in its place
        return holds.read(text, env, self.service)

    def check_overlay(self, env: str) -> None:
        """Raises NotFound if the environment has no overlay."""
        overlay = records.folder(env).removesuffix("/release")
        if f"{overlay}/kustomization.yaml" not in self.files:
            raise NotFound(
                f"{service_file.FILE} has the environment {env}, but {overlay}/kustomization.yaml is missing",
                remedy="copy another overlay and commit it; a release alone deploys nothing",
            )


def service_at(objects: Objects, commit: str) -> Service:
    """The service.yaml of a commit, keys of a newer mlops-build ignored. Raises NotFound or ServiceError."""
    return _service(objects.read(commit, service_file.FILE), commit)


def pin_at(objects: Objects, commit: str) -> Pin | None:
    """The service's pin of mlops-build at a commit; None if there is none, or it cannot be read."""
    return _pin(objects.read(commit, pins.FILE))


def recorded(objects: Objects, commit: str, env: str) -> Record | None:
    """Git's record of an environment at a commit; None if there is none, or it cannot be read."""
    return _record(objects.read(commit, f"{records.folder(env)}/{records.RECORD}"))


def _service(text: bytes | None, commit: str) -> Service:
    if text is None:
        raise NoService(f"no {service_file.FILE} at commit {commit[:12]}", remedy="is this repository a service made from the template?")
    return service_file.parse(text.decode(errors="replace"), f"{service_file.FILE} at {commit[:12]}", strict=False)


def _pin(text: bytes | None) -> Pin | None:
    return pins.pin_of(text.decode(errors="replace")) if text is not None else None


def _record(text: bytes | None) -> Record | None:
    try:
        return records.parse(text.decode(errors="replace")) if text is not None else None
    except records.BadRecord:
        return None
