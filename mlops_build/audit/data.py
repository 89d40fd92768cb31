"""The code and data of versions: commits in the repositories, and what the DVC remotes have of them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlops_build.adapters import dvc_files, dvc_remote
from mlops_build.adapters.dvc_remote import Remote
from mlops_build.adapters.git import remote as git_remote
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.registry import RegisteredVersion
from mlops_build.adapters.storage.address import place as place_at
from mlops_build.adapters.storage.place import NoPlace, Place
from mlops_build.audit.known import Known, Say, below, commit, is_from, label, resolved
from mlops_build.audit.listing import DAY_MS, Orphans, objects
from mlops_build.audit.policy import finding
from mlops_build.errors import Failed, MlopsBuildError, Refused, UsageError
from mlops_build.finding import Finding
from mlops_build.inventory import Repository
from mlops_build.model import identity
from mlops_build.release.tree import NoService
from mlops_build.service import ServiceError

CHECKOUT = Path("/checkout")
MOST_LIST = 1 << 29  # bytes of the list of a folder's files


@dataclass(frozen=True)
class Need:
    """Who needs a file or a folder of the remote."""

    subject: str
    path: str
    commit: str


@dataclass
class Looked:
    """What a repository says. needs: MD5 (with .dir) → who needs it on the remote. mentioned: all MD5s in DVC's files, which are kept.

    unseen: what could not be read. unsure: whose data is not known.
    """

    repository: Repository
    remote: Remote | None = None
    needs: dict[str, list[Need]] = field(default_factory=lambda: defaultdict(list))
    mentioned: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)


@dataclass
class Listed:
    """A DVC remote. needs: of the repositories that use it. folders: the hashes of each folder's files, packed. unread: why not, of others.

    orphans: paths of 41 to 52 characters, packed, of files older than the days that are kept.
    """

    place: Place
    endpoint: str | None
    inner: list[str]
    needs: dict[str, list[Need]]
    folders: dict[str, bytes] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    orphans: list[bytes] = field(default_factory=list)

    def read(self, folders: Iterable[str]) -> None:
        """Read the lists of folders' files: others are missing, or the place does not answer."""
        for md5 in folders:
            for path in dvc_files.places(md5):
                try:
                    self.folders[md5] = b"".join(dvc_files.listed(self.place.read(path, MOST_LIST)))
                    self.unread.pop(md5, None)
                    break
                except (NoPlace, Failed, Refused) as error:
                    self.unread.setdefault(md5, error.message)

    def hashes(self) -> Iterator[bytes]:
        """All that the repositories need. A million hashes as text would need more than twice the memory. A folder's list has 17 bytes."""
        yield from map(_packed, self.needs)
        for many in self.folders.values():
            yield from _each(many)


def look(known: Known, repository: Repository, mirror: Mirror | None) -> Looked:
    """Read the commits of a repository's versions, releases and branches."""
    looked, url = Looked(repository), repository.url
    if isinstance(repository.error, NoService | ServiceError):
        looked.findings.append(finding("service-invalid", url, why=repository.error.message.splitlines()[0]))
    if mirror is None or repository.commit is None:
        looked.unseen.append(f"the repository {url}: {repository.error.message if repository.error else 'not fetched'}")
        return looked
    if repository.unreadable:
        looked.findings.append(finding("record-unreadable", url, count=repository.unreadable))
    versions: dict[str, list[RegisteredVersion]] = defaultdict(list)
    for version in known.versions:
        if (made_from := commit(version)) and is_from(version, repository):
            versions[made_from].append(version)
    subjects = {made_from: [label(each.name, each.version) for each in many] for made_from, many in versions.items()}
    for record in repository.records:
        if record.commit:
            subjects.setdefault(record.commit, [f"the release of {record}, {url}"])
    for branch, head in mirror.heads().items():
        subjects.setdefault(head, [f"the branch {ascii(branch)[1:-1]} of {url}"])
    reachable = mirror.reachable()
    cache: dict[str, Any] = {}
    for made_from, many in subjects.items():
        if made_from not in reachable and not _brought(mirror, made_from, versions.get(made_from, ()), looked):
            looked.unsure.append(f"{many[0]}: its commit {made_from} is missing")
            continue
        try:
            for path, md5 in dvc_files.hashes(_documents(mirror, made_from, cache, looked)).items():
                looked.needs[md5] += [Need(subject, path, made_from) for subject in many]
        except MlopsBuildError as error:
            looked.unseen.append(f"the data of {many[0]}, commit {made_from[:12]} of {url}: {error.message}")
    for tagged in mirror.tags() - subjects.keys():
        try:
            _documents(mirror, tagged, cache, looked)
        except MlopsBuildError as error:
            looked.unsure.append(f"the tagged commit {tagged} of {url}: {error.message}")
    config = mirror.read(repository.commit, ".dvc/config")
    looked.remote = dvc_remote.parsed([config.decode(errors="replace")], CHECKOUT) if config else None
    if looked.needs and looked.remote is None:
        looked.findings.append(finding("remote-missing", url))
    elif looked.remote and looked.remote.folder and not looked.remote.url.startswith("/"):
        values = {"remote": ascii(looked.remote.url[:200]), "name": ascii(looked.remote.name[:64])[1:-1]}
        looked.findings.append(finding("remote-in-checkout", url, **values))
    return looked


def _brought(mirror: Mirror, missing: str, versions: Sequence[RegisteredVersion], looked: Looked) -> bool:
    """Whether a commit that no branch has could be fetched; a finding for each of its versions. Raises RemoteUnreachable."""
    is_there = mirror.bring(missing)
    if not is_there:
        git_remote.heads(mirror.path, mirror.url, mirror.branch)  # raises if the host does not answer
    for version in versions:
        values = {"commit": missing, "short": missing[:12], "repository": looked.repository.url, "name": ascii(version.name[:64])[1:-1]}
        rule = "commit-unreachable" if is_there else "commit-missing"
        if version.tags.get(identity.REPOSITORY):
            looked.findings.append(finding(rule, label(version.name, version.version), **values))
    return is_there


def _documents(mirror: Mirror, at: str, cache: dict[str, Any], looked: Looked) -> dict[str, Any]:
    """DVC's files of a commit, by path. cache: blob → document. Raises Refused."""
    blobs = {path: blob for path, blob in mirror.blobs(at).items() if dvc_files.is_read(path)}
    for blob, text in mirror.contents(set(blobs.values()) - set(cache)).items() if blobs else ():
        looked.mentioned |= dvc_files.mentioned(text)
        cache[blob] = dvc_files.parse(text)
    return {path: cache[blob] for path, blob in blobs.items()}


def check(
    looked: Sequence[Looked], others: Sequence[str], endpoint: str | None, keep_days: int, say: Say
) -> tuple[list[Finding], list[Listed], list[str]]:
    """List each remote once. others: places that are not DVC's. endpoint: if the remote names none. Returns findings, remotes, unseen."""
    findings: list[Finding] = []
    listed: list[Listed] = []
    unseen: list[str] = []
    remotes: dict[tuple[str, str | None], list[Looked]] = defaultdict(list)
    for each in looked:
        if (remote := each.remote) and (remote.folder is None or remote.url.startswith("/")):
            remotes[resolved(remote.url, ""), remote.endpoint or endpoint].append(each)
    for (url, at), users in remotes.items():
        services = ", ".join(user.repository.service.name if user.repository.service else user.repository.url for user in users)
        if url.startswith("/"):
            findings.append(finding("single-copy-data", url, services=services))
        try:
            if any(user.remote and user.remote.keeps_names for user in users):
                raise UsageError("it keeps the files under their own names, which the audit does not read")
            inner = [path for other in [*others, *(each for each, _ in remotes)] if (path := below(other, url)) is not None]
            listed.append(Listed(place_at(url, at), at, inner, _together(users)))
            listed[-1].read(_folders(listed[-1].needs))
        except (NoPlace, UsageError) as error:
            unseen.append(f"the DVC remote {url}: {error.message}")
    # Two addresses may name the same place: what one repository needs is an orphan nowhere.
    mentioned = {md5 for each in looked for md5 in each.mentioned}
    known = {md5 for store in listed for md5 in store.folders}
    for store in listed:
        store.read(set(_folders(mentioned)) - known - store.needs.keys())
    needed = {_packed(md5) for md5 in mentioned}
    if len(listed) > 1:  # else all of it is in `present`, and would need the memory twice
        needed.update(each for store in listed for each in store.hashes())
    for store in listed:
        try:
            findings += _list(store, needed, partial(_is_old, keep_days=keep_days), unseen, say)
        except NoPlace as error:
            unseen.append(f"the DVC remote {store.place.uri}: {error.message}")
    return findings, listed, unseen


def _together(users: Sequence[Looked]) -> dict[str, list[Need]]:
    needs: dict[str, list[Need]] = defaultdict(list)
    for user in users:
        for md5, many in user.needs.items():
            needs[md5] += many
    return needs


def _is_old(modified_ms: int, now_ms: float, keep_days: int) -> bool:
    return now_ms - modified_ms > keep_days * DAY_MS


def _list(store: Listed, needed: Set[bytes], is_old: Any, unseen: list[str], say: Say) -> list[Finding]:
    present = dict.fromkeys(store.hashes(), False)
    orphans = Orphans("data-orphaned", store.place)
    for each in objects(store.place, store.inner, say):
        match = dvc_files.STORED.fullmatch(each.path)
        key = bytes.fromhex(match[1] + match[2]) + (b"d" if match[3] else b"") if match else b""
        if key in present:
            present[key] = True
        elif match and match[3] and match[1] + match[2] + match[3] in store.unread:
            unseen.append(f"a list of files, which a commit mentions: {store.unread[match[1] + match[2] + match[3]]}")
        elif key not in needed:
            orphans.add("" if match else each.path.partition("/")[0], each)
            if match and is_old(each.modified_ms, orphans.now_ms):
                store.orphans.append(each.path.encode())
    findings = list(orphans.findings())
    for md5, many in store.needs.items():
        is_there = present[_packed(md5)]
        missing = sum(not present[key] for key in _each(store.folders.get(md5, b"")))
        if is_there and md5 in store.unread:
            unseen.append(f"the files of {many[0].path[:100]!a} of {many[0].subject}: {store.unread[md5]}")
        for need in many if not is_there or missing else ():
            count = f"{missing} files" if missing else "the list of files" if md5.endswith(".dir") else "1 file"
            values = {"path": ascii(need.path[:100]), "remote": ascii(store.place.uri)[1:-1], "commit": need.commit, "count": count}
            findings.append(finding("data-missing", need.subject, **values))
    return findings


def _folders(hashes: Iterable[str]) -> Iterator[str]:
    return (md5 for md5 in hashes if md5.endswith(".dir"))


def _packed(md5: str) -> bytes:
    return bytes.fromhex(md5[:32]) + (b"d" if md5.endswith(".dir") else b"")


def _each(packed: bytes) -> Iterator[bytes]:
    return (packed[start : start + 16] for start in range(0, len(packed), 16))
