"""Compares openapi.json of the working tree with the one at the released commit: does the change break clients?"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mlops_build.adapters.git.checkout import Checkout
from mlops_build.model import contract
from mlops_build.model.identity import COMMIT
from mlops_build.model.openapi import FILE
from mlops_build.verify.document import parse
from mlops_build.verify.world import Fault, Part, mapping

RULE = contract.RULE


def check(root: Path, records: Sequence[tuple[str, Path]], notes: list[str]) -> Iterator[tuple[Fault, str]]:
    """Faults, each with the environment whose clients it affects. records: each environment's record.yaml.

    Appends to `notes` what could not be compared, and why.
    """
    path = root / FILE
    checkout = Checkout.find(root) if path.is_file() else None
    if checkout is None or checkout.head() is None:
        return
    part = Part(FILE, {}, lambda _: (FILE, 1))
    try:
        current = contract.of_text(path.read_bytes())
    except contract.BadContract as error:
        yield Fault(RULE, part, (), error.message, error.remedy), ""
        return
    for env, record in records:
        commit = _released_commit(record)
        if current is None or commit is None:
            continue
        if not checkout.has(commit):
            notes.append(f"{FILE} was not compared with the contract in {env}: its commit {commit[:12]} is not in this clone")
            continue
        text = checkout.read(commit, FILE)
        try:
            released = contract.of_text(text, f"{FILE} at {commit[:12]}") if text is not None else None
        except contract.BadContract as error:
            notes.append(f"{FILE} was not compared with the contract in {env}: {error.message}")
            continue
        if released is not None and current.major <= released.major:
            for breakage in contract.breaks(released, current):
                yield Fault(RULE, part, (), breakage.why, breakage.remedy), env


def _released_commit(record: Path) -> str | None:
    try:
        document = parse(record.read_text(encoding="utf-8", errors="replace"), record.name)
    except OSError:
        return None
    commit = next((str(mapping(node.value).get("commit")) for node in document.documents), "")
    return commit if COMMIT.fullmatch(commit) else None
