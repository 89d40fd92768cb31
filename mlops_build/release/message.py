"""The message of a release's commit: what is released, the evidence for it, and trailers that `mlops-build history` reads."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.model import identity
from mlops_build.release.decide import Desired
from mlops_build.release.record import Record
from mlops_build.service import Service

# Characters of a commit's subject.
SUBJECT = 72
# How many metrics or parameters of a model are listed, and characters of one.
LISTED, SHOWN = 20, 80


def message(service: Service, wanted: Desired, before: Record | None, changed: Sequence[str], evidence: Sequence[str]) -> str:
    """A subject for people, trailers for `git log --format='%(trailers)'`; a group of them for each model.

    changed: the changes besides the models' versions. evidence: the lines of `evidence` below.
    """
    promotion = wanted.promotion
    subject, why = f"Release {wanted.record} to {wanted.record.environment}", f"The alias {wanted.alias} says so."
    if promotion and promotion.why:
        why = promotion.why
    if before is not None and str(before) == str(wanted.record):
        why = "The models did not change."
        only = f"{subject}: {', '.join(changed)}"
        subject = only if len(only) <= SUBJECT else f"{subject}: {len(changed)} changes of its settings"
    paragraphs = [service.git.subject(subject), why]
    if changed:
        paragraphs.append("Changed settings:\n" + "\n".join(f"- {line}" for line in changed))
    if evidence:
        paragraphs.append("Metrics and parameters of the runs:\n" + "\n".join(f"- {line}" for line in evidence))
    trailers = [trailer for version in wanted.versions for trailer in _of_model(version, wanted, before)]
    if before is None or str(before) != str(wanted.record):
        # In MLflow everybody who may edit a model can write this: a claim, unless the server authenticates its users.
        trailers += [f"Promotion: {promotion.id}"] if promotion else []
        trailers.append(f"Promoted-By: {promotion.by if promotion else wanted.by}")
        trailers += [f"Why: {promotion.why}"] if promotion and promotion.why else []
    return "\n\n".join([*paragraphs, "\n".join(trailers)]) + "\n"


def _of_model(version: RegisteredVersion, wanted: Desired, before: Record | None) -> list[str]:
    return [
        f"Model: {version.name}",
        f"Version: {version.version}",
        f"Run: {version.run_id}",
        f"Alias: {wanted.alias}",
        f"Previous-Version: {(before.version_of(version.name) if before else None) or 'none'}",
        f"Code: {version.tags[identity.COMMIT_TAG]}",
        *([f"Data: {version.tags[identity.DATA]}"] if version.tags.get(identity.DATA) else []),
        f"Registered: {datetime.fromtimestamp(version.created_ms // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
    ]


def evidence(registry: Registry, wanted: Desired, before: Record | None) -> list[str]:
    """Metrics of the old and the new run, and the parameters that differ, a line each. Runs that were deleted have none."""
    lines: list[str] = []
    for version in wanted.versions:
        old = next((model for model in before.models if model.name == version.name), None) if before else None
        if old is not None and old.version == version.version:
            continue
        now = registry.run(version.run_id)
        was = registry.run(old.run) if old else None
        if now is None:
            continue
        metrics = {name: f"{value:.6g}" for name, value in now.metrics.items()}
        metrics_before = {name: f"{value:.6g}" for name, value in was.metrics.items()} if was else {}
        lines += _listed(version.name, metrics, metrics_before)
        params_before = was.params if was else {}
        changed = {name: value for name, value in now.params.items() if params_before.get(name) != value}
        lines += _listed(version.name, changed, params_before)
    return lines


def _listed(model: str, now: Mapping[str, str], before: Mapping[str, str]) -> Iterator[str]:
    """`MODEL: NAME OLD → NEW`, or `MODEL: NAME NEW`. Everybody can log any text, so it is cut and made printable."""
    for name in sorted(now)[:LISTED]:
        value = f"{before[name]} → {now[name]}" if name in before and before[name] != now[name] else now[name]
        text = " ".join(f"{name} {value}".split())
        yield f"{model}: {''.join(filter(str.isprintable, text))[:SHOWN]}"
    if len(now) > LISTED:
        yield f"{model}: {len(now) - LISTED} more"
