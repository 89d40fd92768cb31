"""Does the contract in the working tree break who calls what is released? openapi.json here beside the one at the released commit."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mlops_build.git.repository import Checkout
from mlops_build.model import contract
from mlops_build.model.identity import COMMIT
from mlops_build.model.openapi import FILE
from mlops_build.verify.document import parse
from mlops_build.verify.judge import place
from mlops_build.verify.world import Fault, Part, mapping

RULE = contract.RULE


def check(root: Path, records: Sequence[tuple[str, Path]], notes: list[str]) -> Iterator[tuple[Fault, str]]:
    """Faults with the environment whose callers they are about. records: each environment's record.yaml. notes: gets what could not be
    compared, and why."""
    here = root / FILE
    checkout = Checkout.find(root) if here.is_file() else None
    if checkout is None or checkout.head() is None:
        return
    part = Part(FILE, {}, place(FILE, 1))
    try:
        now = contract.of_text(here.read_bytes())
    except contract.BadContract as error:
        yield Fault(RULE, part, (), error.message, error.remedy), ""
        return
    for env, record in records:
        commit = _released_commit(record)
        if now is None or commit is None:
            continue
        if not checkout.has(commit):
            notes.append(f"{FILE} was not compared with what {env} answers: its commit {commit[:12]} is not in this clone")
            continue
        text = checkout.read(commit, FILE)
        try:
            before = contract.of_text(text, f"{FILE} at {commit[:12]}") if text is not None else None
        except contract.BadContract as error:
            notes.append(f"not compared with what {env} answers: {error.message}")
            continue
        if before is not None and now.major <= before.major:
            for found in contract.breaks(before, now):
                yield Fault(RULE, part, (), found.why, found.remedy), env


def _released_commit(record: Path) -> str | None:
    try:
        document = parse(record.read_text(encoding="utf-8", errors="replace"), record.name)
    except OSError:
        return None
    found = next((str(mapping(one.value).get("commit")) for one in document.documents), "")
    return found if COMMIT.fullmatch(found) else None
