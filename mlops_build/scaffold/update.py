"""Update a service to a newer version of its template: copier renders the old and the new version, Git merges the difference.

`plan` works on any repository that has the service's commit, without a checkout; `update` writes its result into a checkout.
"""

import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from mlops_build.adapters.git import command
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.objects import Objects
from mlops_build.errors import Refused
from mlops_build.scaffold import answers, apply, tree
from mlops_build.scaffold.answers import Answers, Origin
from mlops_build.scaffold.merge import Merged, check_git, merge
from mlops_build.scaffold.merge_inputs import Inputs
from mlops_build.scaffold.render import recordable
from mlops_build.scaffold.source import NoSuchVersion, Source, fetch
from mlops_build.scaffold.template import Template
from mlops_build.scaffold.tree import Tree, shown


class Downgrade(Refused):
    """The requested version is older than the service's version."""


@dataclass(frozen=True)
class Version:
    """A version of the template. name: as copier records it."""

    name: str
    commit: str


@dataclass(frozen=True)
class Update:
    """The result of an update, or of its plan.

    status: `merged`, `conflict`, or `nothing` if the service already has that version. merged: of the service's folder alone; None for
    `nothing`. tree: of the whole repository afterwards. written: whether index and files were updated. commit: the new commit, if any.
    """

    status: Literal["merged", "conflict", "nothing"]
    template: str
    before: Version
    after: Version
    merged: Merged | None = None
    notes: tuple[str, ...] = ()
    tree: str | None = field(default=None, repr=False)
    written: bool = False
    commit: str | None = None

    def as_json(self) -> dict[str, object]:
        """For --json; undecodable bytes in paths become backslash escapes."""
        merged = asdict(self.merged or Merged(""))
        return {
            "status": self.status,
            "template": self.template,
            "from": asdict(self.before),
            "to": asdict(self.after),
            "changes": [{name: shown(value) for name, value in change.items() if value} for change in merged["changes"]],
            "conflicts": [{name: shown(value) for name, value in conflict.items()} for conflict in merged["conflicts"]],
            "kept": [*map(shown, merged["kept"])],
            "deleted_by_you": [*map(shown, merged["deleted"])],
            "outdated": [*map(shown, merged["outdated"])],
            "notes": list(self.notes),
            "written": self.written,
            "commit": self.commit,
        }


def update(
    service: Path,
    *,
    to: str | None = None,
    data: Mapping[str, str] | None = None,
    template: str | None = None,
    dry_run: bool = False,
    write_conflicts: bool = False,
    commit: bool = False,
) -> Update:
    """Update the service in this folder of a checkout; without a conflict, index and files are updated.

    to: a tag, branch or commit of the template; None: the newest release, as copier. data: answers to change. template: the new address of
    the template, if it has moved. dry_run: nothing is written. write_conflicts: write a result with conflict markers, too, as `git merge`
    does. commit: commit the result.

    Raises apply.Dirty, merge_inputs.Drift, Downgrade, rendering.BadAnswers, source.NoSuchVersion, and the errors of git/command.py.
    """
    check_git()
    place = apply.find(service.resolve())
    with apply.alone(place):
        apply.check_clean(place)
        checkout = Checkout(place.top)
        head = str(checkout.head())
        planned = plan(place.top, head, place.prefix, to=to, data=data, template=template, where=place.service)
        if planned.merged is None or planned.tree is None:
            return planned
        writes = planned.status == "merged" or write_conflicts
        if writes:
            apply.check_room(place, head, planned.tree)
        if dry_run or not writes:
            return planned
        if planned.merged.stages:
            apply.check_nothing_staged(place)
        apply.write(place, head, planned.tree, planned.merged.stages)
        if commit and planned.status == "merged":
            made = checkout.commit_tree(planned.tree, [head], message(planned))
            checkout.move(made, head)
            planned = replace(planned, commit=made)
        return replace(planned, written=True)


def message(planned: Update) -> str:
    """The commit message of an update."""
    return f"Update from the template: {planned.before.name} → {planned.after.name}\n\n{planned.template}\n"


def plan(
    repository: Path,
    head: str,
    prefix: str = "",
    *,
    to: str | None = None,
    data: Mapping[str, str] | None = None,
    template: str | None = None,
    where: Path | None = None,
) -> Update:
    """Plan an update of the service below `prefix` at `head`. Objects are stored; no ref, index or file changes.

    where: the service's folder in messages.
    """
    data = dict(data or {})
    where = where or repository
    ours = command.text(repository, "rev-parse", "--verify", f"{head}^{{commit}}:{prefix.rstrip('/')}")
    record = answers.read(repository, ours, where)
    with tempfile.TemporaryDirectory(prefix="mlops-build-update-") as scratch:
        source = fetch(recordable(template) if template else record.source, Path(scratch, "template.git"))
        origin = answers.origin(repository, head, prefix)
        candidates = _made_from(source, record, origin)
        version = Template.at(source, source.target(to))
        after = Version(version.name, version.commit)
        changes = bool(data) or template is not None
        notes = list(_untaken(source, to, version.commit))
        # With a single candidate, an update without changes is known without rendering.
        if len(candidates) == 1 and (done := _nothing(source, record, candidates[0], after, to, changes, notes)):
            return done
        inputs = Inputs(repository, Path(scratch), version, head, ours, prefix, where.name or "service")
        old, renderings = inputs.renderings(record, origin, candidates, data)
        if old != candidates[0]:
            notes.append(
                f"{record.version} is another commit now; the service was generated from {old[:12]}, and the update starts from that"
            )
        if len(candidates) > 1 and (done := _nothing(source, record, old, after, to, changes, notes)):
            return done
        notes += inputs.notes(record, data)
        if template:
            _take_over_address(repository, renderings[0], ours)
        merged = merge(
            repository,
            renderings[0],
            ours,
            renderings[1],
            owners=version.owners,
            answers=answers.FILE,
            labels=("yours", f"template-{after.name}"),
            is_newer=source.is_newer,
        )
    notes += _stale_lock(repository, ours, merged)
    before = Version(record.version, old)
    if not merged.changes and not merged.conflicts:
        return Update("nothing", command.masked(source.recorded), before, after, notes=tuple(notes))
    whole = tree.graft(repository, head, prefix, merged.tree)
    status: Literal["conflict", "merged"] = "conflict" if merged.conflicts else "merged"
    return Update(status, command.masked(source.recorded), before, after, merged, tuple(notes), whole)


def _nothing(
    source: Source, record: Answers, old: str, after: Version, to: str | None, changes: bool, notes: Sequence[str]
) -> Update | None:
    """The result if nothing has to be done, else None. changes: answers or the address change. Raises Downgrade."""
    before, template = Version(record.version, old), command.masked(source.recorded)
    if old == after.commit:
        return None if changes else Update("nothing", template, before, after, notes=tuple(notes))
    if not source.is_newer(old, after.commit):
        return None
    if to is None and not changes:
        later = f"the service was generated from a commit after {after.name}, the newest release; --to HEAD updates to later commits"
        return Update("nothing", template, before, before, notes=(*notes, later))
    raise Downgrade(
        f"the service's version {record.version} is newer than {after.name}",
        remedy="to go back, revert the commit of the update: git revert",
    )


def _stale_lock(repository: Path, ours: str, merged: Merged) -> list[str]:
    """A note if the requirements have changed and requirements.lock, which belongs to the team, was resolved from the old ones."""
    store = Objects(repository)
    former, now = (_requirements(store.read(treeish, "pyproject.toml")) for treeish in (ours, merged.tree))
    stale = former is not None and now is not None and former != now and store.read(ours, "requirements.lock") is not None
    return ["the requirements in pyproject.toml have changed: make lock updates requirements.lock"] if stale else []


def _requirements(pyproject: bytes | None) -> list[object] | None:
    """The requirements that requirements.lock resolves, without the pinned version of mlops-build. None if they cannot be read."""
    try:
        content = tomllib.loads((pyproject or b"").decode())
        project = content["project"]
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError):
        return None
    parts = [
        project.get("dependencies", []),
        *project.get("optional-dependencies", {}).values(),
        *content.get("dependency-groups", {}).values(),
    ]
    return [
        project.get("requires-python"),
        *([re.sub(r"^(mlops-build(?:\[[^]]*\])?).*", r"\1", str(requirement)) for requirement in part] for part in parts),
    ]


def _made_from(source: Source, record: Answers, origin: Origin) -> list[str]:
    """The commits that the service may have been generated from, the most likely first: its version's now, and its pin's then."""
    named = source.resolve(record.version)
    pinned = source.look_for(origin.commit) if origin.commit else None
    commits = list(dict.fromkeys(commit for commit in (named, pinned) if commit))
    if not commits:
        pin = f" (commit {origin.commit[:12]})" if origin.commit else ""
        remedy = "give a clone that has it with --template; `make tag` in the clone restores missing tags"
        if re.search(r"(?:^|-g)[0-9a-f]{7,40}$", record.version):  # copier records such a commit for uncommitted changes
            remedy += (
                "\n    if the template had uncommitted changes, commit them there, then run in the service:"
                "\n    copier recopy --defaults --overwrite --vcs-ref HEAD"
            )
        raise NoSuchVersion(
            f"the template at {command.masked(source.url)} does not have the version {record.version}{pin} of the service", remedy=remedy
        )
    for commit in commits:
        source.keep(commit)
    return commits


def _take_over_address(repository: Path, old: Tree, ours: str) -> None:
    """If the template has moved, keep the service's old address in the old rendering, so that only the new rendering changes it."""
    service = tree.read(repository, ours)
    if answers.PIN not in old or answers.PIN not in service:
        return
    contents = tree.blobs(repository, [old[answers.PIN].blob, service[answers.PIN].blob])
    before, now = (contents[files[answers.PIN].blob].decode(errors="replace") for files in (old, service))
    if answers.PINNED.sub(r"\1", before) == answers.PINNED.sub(r"\1", now):
        old[answers.PIN] = service[answers.PIN]


def _untaken(source: Source, to: str | None, new: str) -> Sequence[str]:
    later = 0 if to else source.later(new)
    return [f"{later} later commits of the template are not released yet; --to HEAD updates to them"] if later else []
