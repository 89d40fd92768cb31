"""Update a service to a newer version of its template: copier renders the old and the new version, Git merges the difference.

`plan` works on any repository that has the service's commit, without a checkout; `update` writes its result into a checkout.
"""

import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml.error import YAMLError

from mlops_build.errors import Refused, UsageError
from mlops_build.git import command
from mlops_build.git.checkout import Checkout
from mlops_build.git.objects import Objects
from mlops_build.scaffold import answers, apply, tree
from mlops_build.scaffold.answers import Answers, Origin
from mlops_build.scaffold.merge import Merged, check_git, merge
from mlops_build.scaffold.ownership import documents, owned_together, owner_of
from mlops_build.scaffold.render import recordable
from mlops_build.scaffold.rendering import BadAnswers, Job, Problem, render
from mlops_build.scaffold.source import NoSuchVersion, Source, fetch
from mlops_build.scaffold.tree import Tree


class Drift(Refused):
    """The record of answers and the service's files differ."""


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
        merged = self.merged
        return {
            "status": self.status,
            "template": self.template,
            "from": asdict(self.before),
            "to": asdict(self.after),
            "changes": [{name: shown(value) for name, value in asdict(change).items() if value} for change in merged.changes]
            if merged
            else [],
            "conflicts": [{name: shown(value) for name, value in asdict(conflict).items()} for conflict in merged.conflicts]
            if merged
            else [],
            "kept": [*map(shown, merged.kept)] if merged else [],
            "deleted_by_you": [*map(shown, merged.deleted)] if merged else [],
            "outdated": [*map(shown, merged.outdated)] if merged else [],
            "notes": list(self.notes),
            "written": self.written,
            "commit": self.commit,
        }


def shown(path: str) -> str:
    """A path for output: undecodable bytes become backslash escapes."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


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

    Raises apply.Dirty, Drift, Downgrade, rendering.BadAnswers, source.NoSuchVersion, and the errors of git/command.py.
    """
    check_git()
    place = apply.find(service.resolve())
    with apply.alone(place) as lock:
        apply.check_clean(place)
        head = str(Checkout(place.top).head())
        planned = plan(place.top, head, place.prefix, to=to, data=data, template=template, where=place.service)
        if planned.merged is None or planned.tree is None:
            return planned
        if planned.status == "merged" or write_conflicts:
            apply.check_room(place, head, planned.tree)
        if dry_run or (planned.status == "conflict" and not write_conflicts):
            return planned
        apply.write(place, lock, planned.tree, planned.merged.stages)
        if commit and planned.status == "merged":
            checkout = Checkout(place.top)
            made = checkout.commit_tree(planned.tree, [head], message(planned))
            command.run(place.top, "update-ref", "-m", "mlops-build update", "HEAD", made, head)
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
        new = _target(source, to)
        after = Version(source.describe(new), new)
        changes = bool(data) or template is not None
        notes = list(_untaken(source, to, new))
        # With a single candidate, an update without changes is known without rendering.
        if len(candidates) == 1 and (done := _nothing(source, record, candidates[0], after, to, changes, notes)):
            return done
        work = _Work(repository, Path(scratch), source, head, ours, prefix, where.name or "service", new)
        old, renderings = work.renderings(record, origin, candidates, data)
        if old != candidates[0]:
            notes.append(
                f"{record.version} is another commit now; the service was generated from {old[:12]}, and the update starts from that"
            )
        if len(candidates) > 1 and (done := _nothing(source, record, old, after, to, changes, notes)):
            return done
        otherwise = work.otherwise({**record.values, **data})
        notes += [
            f"service.yaml has {name}: {value}; change it there if you want the new answer"
            for name, value in otherwise.items()
            if name in data
        ]
        notes += [f"{name}: not asked any more; the answer {record.values[name]!r} is dropped" for name in work.dropped(record)]
        if template:
            _take_over_address(repository, renderings[0], ours)
        merged = merge(
            repository,
            renderings[0],
            ours,
            renderings[1],
            owner=work.owner,
            together=work.together,
            answers=answers.FILE,
            labels=("yours", f"template {after.name}"),
            is_newer=source.is_newer,
        )
    notes += _stale_lock(repository, ours, merged)
    before = Version(record.version, old)
    if not merged.changes and not merged.conflicts:
        return Update("nothing", command.masked(source.recorded), before, after, notes=tuple(notes))
    whole = tree.graft(repository, head, prefix, merged.tree)
    status: Literal["conflict", "merged"] = "conflict" if merged.conflicts else "merged"
    return Update(status, command.masked(source.recorded), before, after, merged, tuple(notes), whole)


def _target(source: Source, to: str | None) -> str:
    """The commit of the requested version. Raises NoSuchVersion."""
    wanted = to or source.newest()
    if commit := source.resolve(wanted):
        return commit
    if wanted == "HEAD":
        raise NoSuchVersion(
            f"the HEAD of the template at {command.masked(source.url)} names a branch that does not exist",
            remedy="set its default branch (git symbolic-ref HEAD refs/heads/main), or give a version: mlops-build update --to VERSION",
        )
    raise NoSuchVersion(
        f"the template has no version {wanted}", remedy=f"git ls-remote --tags {command.masked(source.url)} lists what it has"
    )


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
    """The requirements that requirements.lock resolves, without mlops-build, which is pinned elsewhere. None if they cannot be read."""
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
        *([requirement for requirement in part if not str(requirement).startswith("mlops-build")] for part in parts),
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


@dataclass(frozen=True)
class _Work:
    """The common state of the renderings of an update."""

    repository: Path
    scratch: Path
    source: Source
    head: str
    ours: str
    prefix: str
    name: str
    new: str

    def __post_init__(self) -> None:
        content = self.source.file(self.new, "copier.yml")
        if content is None:
            raise NoSuchVersion(f"the template has no copier.yml at {self.new[:12]}", remedy="give another version: --to VERSION")
        self._copier_yml.write_bytes(content)
        self.source.keep(self.new)

    @property
    def _copier_yml(self) -> Path:
        return self.scratch / "copier.yml"

    @property
    def owner(self) -> Any:
        return partial(owner_of, copier_yml=self._copier_yml)

    @property
    def together(self) -> Any:
        return partial(owned_together, copier_yml=self._copier_yml)

    @cached_property
    def asked(self) -> Mapping[str, Any]:
        """The new version's copier.yml; empty if only copier can read it (`!include`)."""
        try:
            parts = documents(self._copier_yml)
        except YAMLError:
            return {}
        merged = {name: value for part in parts for name, value in part.items()}
        return merged | {"_exclude": [pattern for part in parts for pattern in part.get("_exclude", [])]}

    def dropped(self, record: Answers) -> list[str]:
        asked = self.asked
        return [name for name in record.values if asked and name not in asked]

    def otherwise(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The answers that have another value in service.yaml, with that value."""
        content = Objects(self.repository).read(self.ours, "service.yaml")
        return answers.of_service(wanted, content.decode(errors="replace") if content else None)

    def renderings(
        self, record: Answers, origin: Origin, candidates: Sequence[str], data: Mapping[str, str]
    ) -> tuple[str, tuple[Tree, Tree]]:
        """The commit that the service was generated from, and both renderings. Raises BadAnswers, Drift, UsageError."""
        asked = self.asked
        for name in data:
            if asked and (name.startswith("_") or name not in asked):
                raise UsageError(f"--data {name}: the template has no such question", remedy=f"its questions: {', '.join(_names(asked))}")
        excluded = asked.get("_exclude", [])
        wanted = {**record.values, **data}
        service = tree.read(self.repository, self.ours)
        seeded = {name: value for name, value in self.otherwise(wanted).items() if name not in data}
        jobs = {"new": Job(self._folder("new"), self.new, wanted)}
        jobs |= {commit: Job(self._folder(commit), commit, record.values, excluded) for commit in candidates}
        if answers.differing(origin.values, record.values):
            jobs["answered"] = Job(self._folder("answered"), candidates[0], origin.values, excluded)
        if seeded:
            jobs["service.yaml"] = Job(self._folder("service.yaml"), self.new, {**wanted, **seeded})
        problems = dict(zip(jobs, render(self.source, list(jobs.values()), self.scratch), strict=True))
        _refuse_answers(problems["new"], asked, wanted)
        usable = [commit for commit in candidates if not problems[commit]]
        if not usable:
            _refuse_record(record, problems[candidates[0]])
        attributes = self._attributes()
        trees = {name: self._store(job, attributes) for name, job in jobs.items() if not problems[name]}
        old = usable[0] if len(usable) == 1 else max(usable, key=lambda commit: self._alike(trees[commit], service))
        if "answered" in trees:
            self._refuse_edited_record(record, origin, trees["answered"], trees[old], service)
        if "service.yaml" in trees:
            self._refuse_service(wanted, seeded, trees["new"], trees["service.yaml"])
        return old, (trees[old], trees["new"])

    def _folder(self, name: str) -> str:
        return str(self.scratch / "rendered" / name / (self.prefix or self.name))

    def _store(self, job: Job, attributes: Mapping[str, bytes]) -> Tree:
        folder = Path(job.folder)
        worktree = folder if not self.prefix else folder.parents[len(Path(self.prefix).parts) - 1]
        return tree.store(self.repository, worktree, self.prefix, attributes)

    def _attributes(self) -> dict[str, bytes]:
        """The .gitattributes that apply to the service, including those of the folders above it, by path in the repository."""
        store = Objects(self.repository)
        above = [f"{parent}/.gitattributes" for parent in Path(self.prefix).parents if str(parent) != "."] if self.prefix else []
        contents = {path: store.read(self.head, path) for path in ([".gitattributes", *above] if self.prefix else [])}
        for path in tree.read(self.repository, self.ours):
            if Path(path).name == ".gitattributes":
                contents[self.prefix + path] = store.read(self.head, self.prefix + path)
        return {path: content for path, content in contents.items() if content is not None}

    def _alike(self, rendered: Tree, service: Tree) -> int:
        return sum(service.get(path) == entry for path, entry in rendered.items() if self.owner(path) == "template")

    def _refuse_edited_record(self, record: Answers, origin: Origin, answered: Tree, recorded: Tree, service: Tree) -> None:
        """Raises Drift if files still match the former answers and not the recorded ones."""
        files = [
            path
            for path in sorted(answered.keys() | recorded.keys())
            if path != answers.FILE and self.owner(path) == "template" and answered.get(path) != recorded.get(path)
        ]
        stale = [path for path in files if path in service and service[path] == answered.get(path)]
        if stale:
            changed = answers.differing(origin.values, record.values)
            gone = answers.differing(record.values, origin.values)
            names = sorted(changed.keys() | gone.keys())
            back = {name: origin.values.get(name) for name in names}
            raise Drift(
                f"{answers.FILE} was edited by hand: it has {_listed(changed)}, but {_some(stale)} were rendered with {_listed(back)}",
                remedy=f"restore its former content with git checkout, then: mlops-build update {_arguments(changed)}",
            )

    def _refuse_service(self, wanted: Mapping[str, Any], seeded: Mapping[str, Any], new: Tree, as_service_says: Tree) -> None:
        """Raises Drift if service.yaml and the answers differ in a value from which template files are rendered."""
        files = [
            path
            for path in sorted(new.keys() | as_service_says.keys())
            if path != answers.FILE and self.owner(path) == "template" and new.get(path) != as_service_says.get(path)
        ]
        if files:
            raise Drift(
                f"service.yaml has {_listed(seeded)}, the answers have {_listed({name: wanted[name] for name in seeded})}; "
                f"{_some(files)} are rendered from the answers",
                remedy=f"use the values of service.yaml: mlops-build update {_arguments(seeded)}\n"
                f"    or keep the answers: mlops-build update {_arguments({name: wanted[name] for name in seeded})}",
            )


def _refuse_answers(problems: Sequence[Problem], asked: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises BadAnswers with all refused and all missing answers of the new version."""
    if not problems:
        return
    named = {problem.name for problem in problems}
    missing = [
        name
        for name in _names(asked)
        if name not in wanted
        and name not in named
        and isinstance(asked[name], dict)
        and "default" not in asked[name]
        and "when" not in asked[name]
    ]
    refused = [*problems, *(Problem(name, "this question is new and has no default") for name in missing)]
    lines = [
        f"{problem.name}: {problem.why}" if problem.value is None else f"{problem.name}: {problem.value!r}: {problem.why}"
        for problem in refused
    ]
    raise BadAnswers(
        refused,
        message="the new version refuses these answers:\n    " + "\n    ".join(lines),
        remedy="give them: mlops-build update " + " ".join(f"--data {problem.name}=VALUE" for problem in refused),
    )


def _refuse_record(record: Answers, problems: Sequence[Problem]) -> None:
    details = "; ".join(f"{problem.name}: {problem.value!r}: {problem.why}" for problem in problems)
    raise BadAnswers(
        problems,
        message=f"{answers.FILE} has answers that {record.version} refuses: {details}",
        remedy="it was edited by hand; restore it from Git's history",
    )


def _names(asked: Mapping[str, Any]) -> list[str]:
    return [name for name in asked if not name.startswith("_")]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _arguments(values: Mapping[str, Any]) -> str:
    import shlex

    return " ".join(f"--data {shlex.quote(f'{name}={value}')}" for name, value in values.items())


def _some(paths: Sequence[str]) -> str:
    head = ", ".join(map(shown, paths[:3]))
    return head if len(paths) <= 3 else f"{head} and {len(paths) - 3} more files"
