"""What `gpu list` and `gpu explain` say: text made of cards and of decision records, and of nothing else."""

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlops_build.gpu.cards import Card
from mlops_build.gpu.neighbours import Neighbour
from mlops_build.gpu.nvml import Trouble
from mlops_build.quantity import show_bytes

GIB = 1 << 30
# Unknown is never 0: a card that does not say what is used is not an empty card.
UNKNOWN = "–"
WITH_UUID = 96  # columns
LEGEND = "GiB. committed: used or promised, whichever is more; left: what a new lease can have."


def table(cards: Sequence[Card], columns: int) -> str:
    """A line for each card, and below it who uses it; at most so many columns wide.

    Wide terminals also get the beginning of the UUID, which is what `--uuid` takes.
    """
    if not cards:
        return "no card"
    rows = [_row(("gpu", "card", "uuid", "used", "committed", "left", "total", "util", "temp"), columns)]
    for card in cards:
        known = card.total_bytes is not None and card.used_bytes is not None
        cells = (
            str(card.index) if card.mig_parent is None else "mig",
            card.name,
            card.uuid[:12],
            _gib(card.used_bytes),
            _gib(card.committed_bytes if known else None),
            _gib(card.left_bytes if known and card.trouble is None else None),
            _gib(card.total_bytes),
            UNKNOWN if card.utilisation is None else f"{card.utilisation} %",
            UNKNOWN if card.temperature is None else f"{card.temperature} °C",
        )
        rows.append(_row(cells, columns))
        for reason in _reasons(card):
            rows += textwrap.wrap(reason, columns, initial_indent="     ", subsequent_indent="       ")
        if card.trouble is not Trouble.MIG_PARENT:  # its instances' users are named below them
            rows += [_cut(f"     {line}", columns) for line in _users(card)]
    return "\n".join([*rows, "", LEGEND])


def _row(cells: Sequence[str], columns: int) -> str:
    number, name, uuid, *figures, utilisation, temperature = cells
    prefix = f"{uuid:<12}  " if columns >= WITH_UUID else ""
    name_columns = 40 if columns >= WITH_UUID + 12 else 28 if columns >= WITH_UUID else 26
    used, committed, left, total = figures
    return (
        f"{number:>3}  {_cut(name, name_columns):<{name_columns}}  {prefix}"
        f"{used:>5} {committed:>9} {left:>6} {total:>6} {utilisation:>6} {temperature:>6}"
    ).rstrip()


def _reasons(card: Card) -> Iterator[str]:
    """Why it is not chosen, whatever is asked for."""
    if card.trouble is not None:
        yield f"not chosen: {card.why if card.why.startswith(card.trouble) else f'{card.trouble}: {card.why}'}"
    elif card.visible is False:
        yield "not chosen: hidden by CUDA_VISIBLE_DEVICES"
    elif card.visible is None:
        yield "whether CUDA_VISIBLE_DEVICES shows it cannot be said: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name cards by UUID"


def _users(card: Card) -> Iterator[str]:
    """Leases, then those without; the larger first. What is long stands last: lines are cut."""
    for lease in sorted(card.leases, key=lambda one: -one.bytes):
        seen = lease.seen.get(card.uuid)
        if seen is None:
            state = "nothing seen yet"
        else:
            state = f"{show_bytes(seen)} seen" + (", MORE THAN PROMISED" if seen > lease.bytes else "" if lease.loaded else ", loading")
        yield f"{lease.service}: {show_bytes(lease.bytes)} promised, {state}{', alone on the card' if lease.exclusive else ''}"
    for one in sorted(card.neighbours, key=lambda one: -one.counted_bytes):
        owner = ", ".join(f"{what} {number}" for what, number in (("uid", one.uid), ("pid", one.pid)) if number is not None)
        command = f": {one.command}" if one.command and one.command != one.name else ""
        yield f"no lease: {one.name}{f' ({owner})' if owner else ''}: {show_bytes(one.used_bytes)} used{_counted(one)}{command}"


def _counted(neighbour: Neighbour) -> str:
    if neighbour.counted_bytes == neighbour.used_bytes:
        return ""
    reason = {"peak": ", its peak", "declared": ", as declared"}.get(neighbour.why, "")
    return f", counted as {show_bytes(neighbour.counted_bytes)}{reason}"


def _gib(amount: int | None) -> str:
    return UNKNOWN if amount is None else f"{amount / GIB:.1f}"


def _cut(text: str, columns: int) -> str:
    """On one line, whatever others have called themselves."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= columns else text[: columns - 1] + "…"


def as_json(card: Card) -> dict[str, Any]:
    """A card as `gpu list --json` shows it. Amounts in bytes; null is unknown."""
    names = ("index", "uuid", "name", "total_bytes", "used_bytes", "utilisation", "temperature", "mig_parent", "bus_id", "visible", "why")
    sums = ("committed_bytes", "external_bytes", "external_counted_bytes")
    known = card.total_bytes is not None and card.used_bytes is not None
    return {
        **{name: getattr(card, name) for name in names},
        **{name: getattr(card, name) if known else None for name in sums},
        "left_bytes": card.left_bytes if known and card.trouble is None else None,
        "trouble": card.trouble and card.trouble.value,
        "compute_capability": card.compute_capability and "{}.{}".format(*card.compute_capability),
        "leases": [
            {
                "service": lease.service,
                "promised_bytes": lease.bytes,
                "seen_bytes": lease.seen.get(card.uuid),
                "exclusive": lease.exclusive,
                "loaded": lease.loaded,
                "uid": lease.uid,
                "pid": lease.pid,
                "id": lease.id,
            }
            for lease in card.leases
        ],
        "neighbours": [
            {name: getattr(one, name) for name in ("name", "uid", "pid", "command", "cgroup", "used_bytes", "counted_bytes", "why")}
            for one in card.neighbours
        ],
    }


def decision(record: Mapping[str, Any]) -> str:
    """One record of decisions.py in words: what was asked for, what came of it, and each card's figures with the reason."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["time"]))
    lines = [f"{when}  {record['service']} asked for {_request(record['request'])}: {_outcome(record)}"]
    for card in record["cards"]:
        lines.append(
            f"  {card['index'] if card['mig_parent'] is None else 'mig':>3}  {card['name']}, {card['uuid'][:12]}: {_figures(card)}"
        )
        lines.append(f"       {_verdict(card, record)}")
    return "\n".join(lines)


def _request(request: Mapping[str, Any]) -> str:
    on = "a card" if request["count"] == 1 else f"each of {request['count']} cards"
    wishes = [
        "alone" if request["exclusive"] else "",
        f"named {' or '.join(request['names'])}" if request["names"] else "",
        f"of UUID {' or '.join(request['uuids'])}" if request["uuids"] else "",
        f"at most {request['max_utilisation']} % busy" if request["max_utilisation"] is not None else "",
        "of compute capability {}.{}".format(*request["min_compute_capability"]) if request["min_compute_capability"] else "",
    ]
    return ", ".join(part for part in (f"{show_bytes(request['bytes'])} of {on}", *wishes, f"by {request['strategy']}") if part)


def _outcome(record: Mapping[str, Any]) -> str:
    waited = f" after {record['waited']:.0f} s" if record["waited"] >= 1 else ""
    names = {card["uuid"]: card["index"] for card in record["cards"]}
    chosen = ", ".join(f"card {names.get(uuid, uuid)}" for uuid in record["chosen"])
    words = {
        "granted": f"{chosen}{waited}",
        "waiting": "no room yet, it waits",
        "refused": f"no room{waited}",
        "cpu": f"no room{waited}, so the CPU",
    }
    return words[record["outcome"]]


def _figures(card: Mapping[str, Any]) -> str:
    if card["total_bytes"] is None or card["used_bytes"] is None:
        return "its memory is unknown"
    others = f" ({show_bytes(card['external_counted_bytes'])} counted for those without a lease)" if card["external_counted_bytes"] else ""
    return (
        f"{show_bytes(card['used_bytes'])} of {show_bytes(card['total_bytes'])} used, "
        f"{show_bytes(card['committed_bytes'])} committed{others}, {show_bytes(card['left_bytes'])} left"
    )


def _verdict(card: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    if card["uuid"] in record["chosen"]:
        return "chosen"
    if card["uuid"] in record["refused"]:
        return f"not chosen: {record['refused'][card['uuid']]}"
    why = {
        "spread": "a larger share of the chosen card is left",
        "WORST_FIT": "a larger share of the chosen card is left",
        "pack": "less is left on the chosen card, and it is enough",
        "BEST_FIT": "less is left on the chosen card, and it is enough",
        "random": "chance took another",
        "RANDOM": "chance took another",
    }
    return f"it would do; {why.get(record['request']['strategy'], 'the strategy took another')}"
