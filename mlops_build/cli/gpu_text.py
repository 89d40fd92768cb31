"""The text output of `gpu list` and `gpu explain`: pure functions of cards and decision records."""

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlops_build.gpu.cards import Card
from mlops_build.gpu.neighbours import Neighbour
from mlops_build.gpu.nvml import Trouble
from mlops_build.gpu.promise import printable
from mlops_build.gpu.visible import hidden
from mlops_build.quantity import show_bytes

GIB = 1 << 30
# An unknown value is not 0: a card that does not report its use is not an empty card.
UNKNOWN = "–"
WIDE = 96  # columns
MOST_LETTERS = 1000  # of a line of a record
LEGEND = "GiB. committed: used or promised, whichever is larger; left: available for a new lease."


def table(cards: Sequence[Card], columns: int) -> str:
    """A line for each card, followed by its users; at most `columns` wide. The prefix of the UUID is for `--uuid`."""
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
        if card.trouble is not Trouble.MIG_PARENT:  # the users of its instances are listed there
            rows += [_cut(f"     {line}", columns) for line in _users(card)]
    return "\n".join([*rows, "", LEGEND])


def _row(cells: Sequence[str], columns: int) -> str:
    number, name, uuid, *figures, utilisation, temperature = cells
    name_columns = 40 if columns >= WIDE + 12 else 28 if columns >= WIDE else 23
    used, committed, left, total = figures
    line = f"{number:>3}  {_cut(name, name_columns):<{name_columns}}  {uuid:<12}  {used:>5} {committed:>9} {left:>6} {total:>6}"
    return f"{line} {utilisation:>6} {temperature:>6}" if columns >= WIDE else f"{line} {utilisation:>6}"


def _reasons(card: Card) -> Iterator[str]:
    """Why the card is never chosen, for any request."""
    if card.trouble is not None:
        yield f"not chosen: {card.why if card.why.startswith(card.trouble) else f'{card.trouble}: {card.why}'}"
    elif card.visible is False:
        yield f"not chosen: {hidden()}"
    elif card.visible is None:
        yield "CUDA_VISIBLE_DEVICES is ambiguous for this card: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or use UUIDs"


def _users(card: Card) -> Iterator[str]:
    """Leases, then neighbours, the larger first. Long parts come last, since lines are cut."""
    for lease in sorted(card.leases, key=lambda lease: -lease.bytes):
        seen = lease.seen.get(card.uuid)
        if lease.until is not None:
            state = "waits for room"
        elif seen is None:
            state = "nothing seen yet"
        else:
            state = f"{show_bytes(seen)} seen" + (", MORE THAN PROMISED" if seen > lease.bytes else "" if lease.loaded else ", loading")
        amount = f"{show_bytes(lease.bytes)} {'promised' if lease.until is None else 'requested'}"
        yield f"{lease.service} ({lease.id[:8]}): {amount}, {state}{', exclusive' if lease.exclusive else ''}"
    for neighbour in sorted(card.neighbours, key=lambda neighbour: -neighbour.counted_bytes):
        ids = (("uid", neighbour.uid), ("pid", neighbour.pid))
        owner = ", ".join(f"{kind} {number}" for kind, number in ids if number is not None)
        name = f"{neighbour.name} ({owner})" if owner else neighbour.name
        command = f": {neighbour.command}" if neighbour.command and neighbour.command != neighbour.name else ""
        yield f"no lease: {name}: {show_bytes(neighbour.used_bytes)} used{_counted(neighbour)}{command}"


def _counted(neighbour: Neighbour) -> str:
    if neighbour.counted_bytes == neighbour.used_bytes:
        return ""
    reason = {"peak": ", its peak", "declared": ", as declared"}.get(neighbour.why, "")
    return f", counted as {show_bytes(neighbour.counted_bytes)}{reason}"


def _gib(amount: int | None) -> str:
    return UNKNOWN if amount is None else f"{amount / GIB:.1f}"


def _cut(text: str, columns: int) -> str:
    """The text without control characters, shortened to one line: names come from other users."""
    text = printable(text, columns + 1)
    return text if len(text) <= columns else text[: columns - 1] + "…"


def as_json(card: Card) -> dict[str, Any]:
    """A card as `gpu list --json` shows it. Sizes in bytes; null means unknown."""
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
                "waiting": lease.until is not None,
                "uid": lease.uid,
                "pid": lease.pid,
                "id": lease.id,
            }
            for lease in card.leases
        ],
        "neighbours": [
            {name: getattr(neighbour, name) for name in ("name", "uid", "pid", "command", "cgroup", "used_bytes", "counted_bytes", "why")}
            for neighbour in card.neighbours
        ],
    }


def decision(record: Mapping[str, Any]) -> str:
    """A record of decisions.py as text: the request, the outcome, and each card's figures with the reason."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["time"]))
    lines = [f"{when}  {record['service']} requested {_request(record['request'])}: {_outcome(record)}"]
    for card in record["cards"]:
        lines.append(
            f"  {card['index'] if card['mig_parent'] is None else 'mig':>3}  {card['name']}, {card['uuid'][:12]}: {_figures(card)}"
        )
        lines.append(f"       {_verdict(card, record)}")
    return "\n".join(printable(line, MOST_LETTERS) for line in lines)  # another user may have written the record


def _request(request: Mapping[str, Any]) -> str:
    where = "a card" if request["count"] == 1 else f"each of {request['count']} cards"
    conditions = [
        "exclusive" if request["exclusive"] else "",
        f"named {' or '.join(request['names'])}" if request["names"] else "",
        f"UUID {' or '.join(request['uuids'])}" if request["uuids"] else "",
        f"utilisation at most {request['max_utilisation']} %" if request["max_utilisation"] is not None else "",
        "compute capability at least {}.{}".format(*request["min_compute_capability"]) if request["min_compute_capability"] else "",
    ]
    memory = f"{show_bytes(request['bytes'])} on {where}"
    return ", ".join(part for part in (memory, *conditions, f"strategy {request['strategy']}") if part)


def _outcome(record: Mapping[str, Any]) -> str:
    waited = f" after {record['waited']:.0f} s" if record["waited"] >= 1 else ""
    names = {card["uuid"]: card["index"] for card in record["cards"]}
    chosen = ", ".join(f"card {names.get(uuid, uuid)}" for uuid in record["chosen"])
    texts = {
        "granted": f"{chosen}{waited}",
        "waiting": "no room yet, waiting",
        "refused": f"no room{waited}",
        "cpu": f"no room{waited}, CPU instead",
    }
    return texts[record["outcome"]]


def _figures(card: Mapping[str, Any]) -> str:
    if card["total_bytes"] is None or card["used_bytes"] is None:
        return "memory unknown"
    external = card["external_counted_bytes"]
    unleased = f" ({show_bytes(external)} for processes without a lease)" if external else ""
    return (
        f"{show_bytes(card['used_bytes'])} of {show_bytes(card['total_bytes'])} used, "
        f"{show_bytes(card['committed_bytes'])} committed{unleased}, {show_bytes(card['left_bytes'])} left"
    )


def _verdict(card: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    if card["uuid"] in record["chosen"]:
        return "chosen"
    if card["uuid"] in record["refused"]:
        return f"not chosen: {record['refused'][card['uuid']]}"
    reasons = {
        "spread": "a larger share of the chosen card is left",
        "WORST_FIT": "a larger share of the chosen card is left",
        "pack": "less memory of the chosen card is left",
        "BEST_FIT": "less memory of the chosen card is left",
        "random": "another card was chosen at random",
        "RANDOM": "another card was chosen at random",
    }
    return f"not chosen: it has room, but {reasons.get(record['request']['strategy'], 'the strategy chose another card')}"
