"""The template's repository, fetched once into a private clone, and the versions in it."""

import re
from dataclasses import dataclass
from pathlib import Path

from mlops_build.adapters.git import command
from mlops_build.adapters.git.command import GitFailed
from mlops_build.adapters.git.objects import Objects
from mlops_build.errors import NotFound

# A tag, a branch, a commit, or `git describe`'s 0.1.0-3-gabcdef1.
REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+/-]{0,200}[A-Za-z0-9])?")
# A line of CHANGELOG.md's table of releases: version, date, commit.
RELEASE = re.compile(r"^\|\s*([0-9][0-9A-Za-z.]*)\s*\|[^|]*\|\s*`?([0-9a-f]{40})`?\s*\|", re.MULTILINE)
SHORT = (("gh:", "https://github.com/"), ("gl:", "https://gitlab.com/"))


class NoSuchVersion(NotFound):
    """The template's repository has no such version."""


@dataclass(frozen=True)
class Source:
    """A fetched template. recorded: the address in the service's record. url: the same for git. clone: a private bare clone."""

    recorded: str
    url: str
    clone: Path

    def resolve(self, revision: str) -> str | None:
        """The commit of a tag, branch, commit, `git describe` name or line of CHANGELOG.md's table; None if there is none."""
        if not REVISION.fullmatch(revision) or ".." in revision:
            return None
        # A copy of the repository may lack the tag; the table of releases is in every copy.
        return self._parse(revision) or self._parse(self.releases().get(revision.removeprefix("v"), "-"))

    def newest(self) -> str:
        """Copier's default version: the newest release among the tags (PEP 440), else HEAD."""
        from packaging.version import InvalidVersion, Version

        releases = []
        for tag in command.text(self.clone, "for-each-ref", "--format=%(refname:strip=2)", "refs/tags").splitlines():
            try:
                version = Version(tag)
            except InvalidVersion:
                continue
            if not version.is_prerelease:
                releases.append((version, tag))
        return max(releases)[1] if releases else "HEAD"

    def target(self, version: str | None) -> str:
        """The commit of a version, by default of the newest. Raises NoSuchVersion."""
        wanted = version or self.newest()
        if commit := self.resolve(wanted):
            return commit
        if wanted == "HEAD":
            raise NoSuchVersion(
                f"the HEAD of the template at {command.masked(self.url)} names a branch that does not exist",
                remedy="set its default branch (git symbolic-ref HEAD refs/heads/main), or give a version: mlops-build update --to VERSION",
            )
        raise NoSuchVersion(
            f"the template has no version {wanted}", remedy=f"git ls-remote --tags {command.masked(self.url)} lists what it has"
        )

    def describe(self, commit: str) -> str:
        """The commit's name as copier records it: its tag, the nearest tag with the distance, or its first digits."""
        return command.text(self.clone, "describe", "--tags", "--always", commit)

    def is_newer(self, commit: str, other: str) -> bool | None:
        """Whether `other` is in the history of `commit`; None where one of them is not known here."""
        known = [self._parse(commit) for commit in (commit, other)]
        if None in known:
            return None
        missing = command.text(self.clone, "rev-list", "--count", f"{known[0]}..{known[1]}")
        return missing == "0"

    def later(self, commit: str) -> int:
        """How many commits HEAD is ahead of this one; 0 if HEAD names a branch that does not exist."""
        return int(command.text(self.clone, "rev-list", "--count", f"{commit}..HEAD")) if self._parse("HEAD") else 0

    def releases(self) -> dict[str, str]:
        """CHANGELOG.md's table at HEAD: version → commit."""
        return releases((self.file("HEAD", "CHANGELOG.md") or b"").decode(errors="replace"))

    def file(self, commit: str, path: str) -> bytes | None:
        """A file's content at a commit."""
        return Objects(self.clone).read(commit, path)

    def keep(self, commit: str) -> None:
        """Create a branch for a commit, so that copies of the clone have it, too."""
        command.run(self.clone, "update-ref", f"refs/heads/mlops-build-{commit}", commit)

    def look_for(self, commit: str) -> str | None:
        """A commit by its full id: in the clone, else fetched from the template's host, which may have it without a branch."""
        if not re.fullmatch(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", commit):
            return None
        if not self._parse(commit):
            try:
                command.run(self.clone, "fetch", "--quiet", "--no-tags", "--", self.url, commit)
            except (GitFailed, command.RemoteUnreachable):
                return None
        return self._parse(commit)

    def _parse(self, revision: str) -> str | None:
        try:
            return command.text(self.clone, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        except GitFailed:
            return None


def fetch(recorded: str, folder: Path) -> Source:
    """Clone the template, with all its branches and tags, into `folder`. Raises NotFound, UsageError, RemoteUnreachable."""
    url = address(recorded)
    if not Path(url).is_absolute():
        command.checked_url(url)
    elif not Path(url).exists():
        raise NotFound(
            f"the template's address {url} does not exist",
            remedy="give the current address: mlops-build update --template URL",
        )
    try:
        command.run(folder.parent, "clone", "--quiet", "--bare", "--template=", "--", url, str(folder))
    except GitFailed as error:
        raise NotFound(
            f"the template {command.masked(recorded)} is not a Git repository: {error.message}",
            remedy="give its address: mlops-build update --template URL",
        ) from None
    return Source(recorded, url, folder)


def address(recorded: str) -> str:
    """Convert an address that copier recorded for git: `gh:` and `gl:` are short for two hosts, `git+` marks a repository."""
    for prefix, host in SHORT:
        if recorded.startswith(prefix):
            recorded = host + recorded.removeprefix(prefix).lstrip("/")
    if recorded.startswith("git+"):
        return recorded.removeprefix("git+")
    if recorded.startswith(("https://github.com/", "https://gitlab.com/")) and not recorded.endswith(".git"):
        return f"{recorded}.git"
    if re.match(r"[a-z]+://|[\w.-]+@[\w.-]+:", recorded):
        return recorded
    path = Path(recorded).expanduser()
    if not path.is_absolute():
        raise NotFound(
            f"the template's address was recorded as {recorded!r}, which is a relative path",
            remedy="give it: mlops-build update --template /absolute/path or URL",
        )
    return str(path)


def releases(changelog: str) -> dict[str, str]:
    """The table of releases in CHANGELOG.md: version → commit, oldest first."""
    return dict(RELEASE.findall(changelog))
