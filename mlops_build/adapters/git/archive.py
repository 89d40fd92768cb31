"""Unpack a tar archive into a folder, and never outside it, on every supported Python.

`tarfile`'s own filter is used if it exists (3.11.4 and later; Debian 12 has 3.11.2). Every archive is checked first, before anything is
written, and the check does not depend on existing files.
"""

import os
import stat
import tarfile
from io import BytesIO
from pathlib import Path, PurePosixPath

from mlops_build.errors import Refused


class UnsafeArchive(Refused):
    """An archive with a member or a link target outside the folder, or with a device."""


def unpack(archive: bytes, folder: Path) -> None:
    """Unpack files, folders and symbolic links into `folder`, which is created. Modes become 0644 or 0755, the owner is the current user.

    Raises UnsafeArchive before anything is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        members = files.getmembers()
        links = {PurePosixPath(member.name) for member in members if member.issym()}
        for member in members:
            _check(member, links)
        if hasattr(tarfile, "data_filter"):
            files.extractall(folder, members, filter="data")
        else:
            files.extractall(folder, [_plain(member) for member in members])  # noqa: S202


def _check(member: tarfile.TarInfo, links: set[PurePosixPath]) -> None:
    """Raises UnsafeArchive. links: the paths of all symbolic links in the archive."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise _unsafe(member, "its path leads out of the folder")
    if not links.isdisjoint(path.parents):
        raise _unsafe(member, "it is below a symbolic link")
    if member.issym():
        _check_target(member, path)
    elif not (member.isreg() or member.isdir()):
        raise _unsafe(member, "it is neither a file, a folder nor a symbolic link")


def _check_target(member: tarfile.TarInfo, path: PurePosixPath) -> None:
    """A link's target may have `..` only at its start: after a name it could follow another link out of the folder."""
    target = PurePosixPath(member.linkname)
    up = 0
    while up < len(target.parts) and target.parts[up] == "..":
        up += 1
    if target.is_absolute() or up >= len(path.parts) or ".." in target.parts[up:]:
        raise _unsafe(member, f"it is a symbolic link to {member.linkname[:200]}, which may lead out of the folder")


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Set mode and owner as the filter of the standard library does."""
    executable = member.isdir() or member.mode & stat.S_IXUSR
    member.mode = 0o755 if executable else 0o644
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    return member


def _unsafe(member: tarfile.TarInfo, why: str) -> UnsafeArchive:
    return UnsafeArchive(
        f"{member.name[:200]!r} cannot be unpacked: {why}",
        remedy="remove it from the repository (git rm), commit, and run this again",
    )
