"""/etc/mlops-gpu.toml: an administrator's settings for a node, mainly the budgets of processes without a lease.

    loading = 1                      # how many services may load onto one card at the same time
    reserve = "512MiB"               # kept free on each card

    [[neighbour]]
    name = "billing"                 # how `gpu list` calls it
    user = "billing"                 # or uid = 1001
    cgroup = "/system.slice/billing*"    # shell patterns for the whole path or command line; all given keys must match
    command = "*score.py*"
    memory = "6GiB"                  # counted on each card where it runs, instead of its observed peak

A declaration counts only where its processes are visible (neighbours.py). Inside a container they are not; only `reserve` works there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlops_build.errors import UsageError
from mlops_build.quantity import NotAnAmount, parse_bytes

FILE, FILE_VARIABLE = "/etc/mlops-gpu.toml", "MLOPS_GPU_CONFIG"
MOST_LOADING = 64


class BadConfig(UsageError):
    """The administrator's file is not valid; the message names file and key."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A neighbour with a declared budget. uid, cgroup, command: None matches every process; the latter two are shell patterns."""

    name: str
    memory_bytes: int
    uid: int | None = None
    cgroup: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """loading: how many services may load onto one card at the same time. reserve_bytes: kept free on each card."""

    neighbours: tuple[Declared, ...] = ()
    loading: int = 1
    reserve_bytes: int = 0


def settings() -> Settings:
    """The node's settings, from the file that MLOPS_GPU_CONFIG names, else from /etc/mlops-gpu.toml, or defaults if that does not exist.

    Raises BadConfig, also for an unknown key: an ignored budget would harm a service.
    """
    path = os.environ.get(FILE_VARIABLE) or FILE
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs its import
            content = file.read()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        if missing and path == FILE:
            return Settings()
        remedy = f"create it, or unset {FILE_VARIABLE}" if missing else f"make it readable for all users: chmod 644 {path}"
        raise BadConfig(f"{path} cannot be read: {error.strerror}", remedy=remedy) from None
    return parse(content, path)


def parse(content: bytes, path: str = FILE) -> Settings:
    """Parse a file's content; `path` is for messages. Raises BadConfig."""
    import tomllib

    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadConfig(
            f"{path} is not valid TOML: {error}",
            remedy="fix it; docs/how-to/live-with-services-that-hold-no-lease.md in the repository of mlops-build has an example",
        ) from None
    _check_keys(document, ("loading", "reserve", "neighbour"), path)
    tables = document.get("neighbour", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BadConfig(f"{path}: `neighbour` is not a list of tables", remedy="start each table with [[neighbour]]")
    loading = document.get("loading", 1)
    if type(loading) is not int or not 1 <= loading <= MOST_LOADING:
        raise BadConfig(f"{path}: `loading` is {loading!r}", remedy=f"write a whole number from 1 to {MOST_LOADING}")
    return Settings(
        tuple(_neighbour(table, f"{path}: neighbour {number}") for number, table in enumerate(tables, 1)),
        loading,
        _amount(document, "reserve", path) if "reserve" in document else 0,
    )


def _neighbour(table: Mapping[str, Any], where: str) -> Declared:
    _check_keys(table, ("name", "uid", "user", "cgroup", "command", "memory"), where)
    for key in ("name", "user", "cgroup", "command"):
        if key in table and (not isinstance(table[key], str) or not 0 < len(table[key]) <= 500):
            raise BadConfig(f"{where}: `{key}` is {table[key]!r}"[:300], remedy="write a string in quotes, at most 500 characters")
    if "memory" not in table:
        raise BadConfig(f"{where} has no `memory`", remedy='add the memory that it may use on a card: memory = "6GiB"')
    if not table.keys() & {"uid", "user", "cgroup", "command"}:
        raise BadConfig(f"{where} matches every process", remedy="add uid, user, cgroup or command")
    if "uid" in table and "user" in table:
        raise BadConfig(f"{where} has both `uid` and `user`", remedy="remove one of them")
    uid = table.get("uid")
    if uid is not None and (type(uid) is not int or not 0 <= uid < 2**32 - 1):
        raise BadConfig(f"{where}: `uid` is {uid!r}", remedy="write a numeric user ID, or `user` with a name")
    if "user" in table:
        uid = _uid(table["user"], where)
    cgroup, command = table.get("cgroup"), table.get("command")
    name = table.get("name") or table.get("user") or cgroup or command or f"uid {uid}"
    return Declared(str(name), _amount(table, "memory", where), uid, cgroup, command)


def _uid(user: str, where: str) -> int:
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise BadConfig(f"{where}: there is no user {user!r} on this machine", remedy="write `uid` with the numeric user ID") from None


def _amount(table: Mapping[str, Any], key: str, where: str) -> int:
    value = table[key]
    try:
        if type(value) is not str:
            raise NotAnAmount(f"{value!r} is not an amount of memory"[:200], remedy='write it in quotes, with a unit: "6GiB"')
        return parse_bytes(value)
    except NotAnAmount as error:
        raise BadConfig(f"{where}: `{key}`: {error.message}", remedy=error.remedy) from None


def _check_keys(table: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in table:
        if key not in keys:
            import difflib

            near = difflib.get_close_matches(key, keys, 1)
            raise BadConfig(
                f"{where}: unknown key {key[:100]!r}", remedy=f"did you mean `{near[0]}`?" if near else f"use one of {', '.join(keys)}"
            )
