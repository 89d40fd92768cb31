"""Files as tests write them down: path → content, a `Run` for an executable, a `Link` for a symbolic link."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import git


class Run(str):
    """The content of an executable file."""


class Link(str):
    """The target of a symbolic link."""


Content = str | bytes
Files = Mapping[str, Content]


def put(folder: Path, files: Files) -> None:
    """Write these files into a folder, over what is there."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.is_file():
            path.unlink()
        if isinstance(content, Link):
            path.symlink_to(str(content))
        else:
            path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
            path.chmod(0o755 if isinstance(content, Run) else 0o644)


def only(folder: Path, files: Files) -> None:
    """Make the folder hold exactly these files (and its .git)."""
    for path in folder.iterdir():
        if path.name == ".git":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    put(folder, files)


def taken(folder: Path) -> dict[str, Content]:
    """The files in a folder (not those of Git), as `put` takes them."""
    found: dict[str, Content] = {}
    for path in folder.rglob("*"):
        key = path.relative_to(folder).as_posix()
        if key.split("/")[0] == ".git" or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            found[key] = Link(path.readlink())
            continue
        content = path.read_bytes()
        try:
            found[key] = Run(content.decode()) if path.stat().st_mode & 0o100 else content.decode()
        except UnicodeDecodeError:
            found[key] = content
    return found


def same(one: Files, other: Files) -> bool:
    """Equal content, and equal kinds of file."""
    return one.keys() == other.keys() and all(one[name] == other[name] and type(one[name]) is type(other[name]) for name in one)


def commit(folder: Path, message: str = "x") -> str:
    """Commit everything in a folder, made a repository if need be."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")
