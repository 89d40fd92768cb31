"""Rules about registered models and versions, and the environments that use them."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from mlops_build.adapters.registry import RegisteredModel, RegisteredVersion
from mlops_build.audit.known import Known, commit, is_adopted, label, same
from mlops_build.audit.policy import finding
from mlops_build.finding import Finding
from mlops_build.inventory import Repository
from mlops_build.model import identity
from mlops_build.model.version import BadVersion

YEAR = 365 * 86400


def check(known: Known, repositories: Sequence[Repository], is_whole: bool) -> Iterator[Finding]:
    """is_whole: all repositories were read, so that what is in none of them does not exist."""
    services = {repository.service.name for repository in repositories if repository.service}
    urls = {same(repository.url) for repository in repositories}
    # Their service and its models are not known.
    invalid = {same(repository.url) for repository in repositories if repository.service is None}
    made = [version for version in known.versions if not is_adopted(version)]
    unsure = {version.name for version in made if invalid and same(version.tags.get(identity.REPOSITORY, "")) in invalid | {""}}
    first: dict[str, str] = {}
    for version in known.versions:
        is_certain = is_whole and version.name not in unsure
        yield from _version(version, known, services if is_certain else None, urls if is_whole else None)
        content = version.tags.get(identity.CONTENT) or version.tags.get(identity.DIGEST_TAG) or version.source
        subject = label(version.name, version.version)
        if (other := first.setdefault(content, subject)) != subject:
            yield finding("duplicate-content", subject, other=other)
    yield from _aliases(known)
    for repository in repositories:
        yield from _releases(known, repository)
    times: dict[str, list[float]] = defaultdict(list)
    for version in known.versions:
        times[version.name].append(version.created_ms / 1000)
    for name, model in known.models.items():
        yield from _model(model, times[name], [each for each in repositories if name in each.models], is_whole and name not in unsure)


def _version(version: RegisteredVersion, known: Known, services: set[str] | None, urls: set[str] | None) -> Iterator[Finding]:
    subject, tags = label(version.name, version.version), version.tags
    service, repository = tags.get(identity.SERVICE), tags.get(identity.REPOSITORY)
    if is_adopted(version):
        if services is not None and service not in services and version.uri not in known.weights:
            yield finding("adopted-without-service", subject, model=subject.removeprefix("models:/").partition("/")[0])
    elif not service:
        yield finding("version-without-service", subject)
    elif services is not None and service not in services:
        yield finding("service-unknown", subject, service=ascii(service[:64]))
    if repository and urls is not None and same(repository) not in urls:
        yield finding("repository-unknown", subject, repository=ascii(repository[:200]))
    if commit(version) is None and identity.ARCHIVED not in tags and not is_adopted(version):
        yield finding("version-without-commit", subject)
    if version.run_id and version.run_id not in known.runs:
        yield finding("run-erased", subject, run=ascii(version.run_id[:64]), uri=subject)
    elif known.runs.get(version.run_id):
        yield finding("run-deleted", subject, run=version.run_id)
    if version.status != "READY":
        yield finding("not-ready", subject, status=ascii(version.status[:40]))
    if until := version.expired:
        yield finding("exception-expired", subject, by=ascii(tags.get(identity.EXCEPTION_BY, "")[:64]), until=ascii(until))
    if version.stage and version.stage != "Archived":
        yield finding("stage", subject, stage=ascii(version.stage[:40]))


def _aliases(known: Known) -> Iterator[Finding]:
    for model in known.models.values():
        for alias, number in model.aliases.items():
            if (version := known.numbered.get((model.name, number))) is None:
                continue
            values = {"alias": ascii(alias[:64]), "name": ascii(model.name[:64])[1:-1]}
            if identity.ARCHIVED in version.tags:
                yield finding("alias-archived", label(model.name, number), **values)
                continue
            try:
                version.checked()
            except BadVersion as error:
                yield finding("alias-without-digest", label(model.name, number), why=error.message, **values)


def _releases(known: Known, repository: Repository) -> Iterator[Finding]:
    current = {number for env in repository.environments if env.record for number in env.record.numbers}
    for name in repository.models:
        if name not in known.models:
            yield finding("model-not-registered", repository.url, name=name)
    for env in repository.environments:
        for model in env.record.models if env.record else ():
            where = f"{env.name} of {repository.url}"
            version = known.numbered.get((model.name, model.version))
            if model.name in known.models and env.alias not in known.models[model.name].aliases:
                number = "VERSION" if version is None else model.version
                values = {"env": env.name, "name": model.name, "alias": env.alias, "released": model, "version": number}
                yield finding("alias-missing", where, **values)
            if version is None:
                yield finding("released-deleted", label(model.name, model.version), where=where, env=env.name, name=model.name)
            elif (tag := version.tags.get(identity.DIGEST_TAG, "")) != model.digest:
                values = {"env": where, "released": model.digest, "registered": ascii(tag[:80])}
                yield finding("release-altered", label(model.name, model.version), **values)
    for name, number in sorted(repository.released - current - known.numbered.keys()):
        yield finding("released-before-deleted", label(name, number))


def _model(model: RegisteredModel, times: Sequence[float], users: Sequence[Repository], is_whole: bool) -> Iterator[Finding]:
    """times: when its versions were registered, Unix time in seconds."""
    subject = ascii(model.name[:64])[1:-1]
    owner = model.owner
    team = next((each.service.team for each in users if each.service and each.service.team), None)
    if not owner and not team and is_whole:
        yield finding("owner-missing", subject)
    if not times:
        yield finding("model-empty", subject)
        return
    releases = [env.released_at for each in users for env in each.environments if env.released_at and env.record]
    newest = max(releases or times)
    if is_whole and newest < time.time() - YEAR:
        values = {"what": "release" if releases else "version, never released,", "owner": ascii((owner or team or "its team")[:64])}
        yield finding("release-old", subject, date=datetime.fromtimestamp(newest, UTC).date(), **values)
