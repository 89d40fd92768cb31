"""Send recorded requests to two services, and compare their answers: an old service and its replacement, or two releases.

FILE has a JSON object per line: {"body": …}, and optionally path, method and headers. `first` and `second` have the same keys for one
side alone, such as {"body": {"inputs": [[1, 2]]}, "first": {"path": "/predict", "body": {"x": [1, 2]}}}. It can also be a JSON list of
bodies, or a version's examples/recorded.json. An address without a path means /invocations. --pick1 and --pick2 choose the part of
each answer that is compared, such as result.scores or predictions[*].score. Redirects are not followed.

Tokens come from MLOPS_COMPARE_TOKEN1 and MLOPS_COMPARE_TOKEN2 and are sent as `Authorization: Bearer`. Exit code: 0 if all answers are
equal, 4 if one differs or is an error, 5 if a service does not answer.
"""

import argparse

from mlops_build.cli.output import result, say
from mlops_build.cli.parser import whole

EXAMPLE = (
    "  mlops-build compare http://old.example.com/predict http://digits.example.com --requests requests.jsonl \\\n"
    "      --pick1 result.scores --pick2 predictions"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url1", metavar="URL1", help="the first service, http or https")
    parser.add_argument("url2", metavar="URL2", help="the second service")
    parser.add_argument("--requests", required=True, metavar="FILE", help="the requests")
    parser.add_argument("--pick1", default="", metavar="PART", help="the part of the first service's answer (default: all of it)")
    parser.add_argument("--pick2", default="", metavar="PART", help="the part of the second service's answer (default: all of it)")
    parser.add_argument("--tolerance", metavar="X", help="how much two numbers may differ, times the first of them (default: 0.0001)")
    parser.add_argument("--absolute-tolerance", metavar="X", help="how much two numbers may differ in any case (default: 0.0001)")
    parser.add_argument("--most", type=whole(1, 1_000_000), default=1000, metavar="N", help="send the first N requests (default: 1000)")
    parser.add_argument("--seconds", type=whole(1, 3600), default=30, metavar="N", help="the time limit of an answer (default: 30)")
    parser.add_argument(
        "--at-once", type=whole(1, 64), default=1, metavar="N", help="requests to each service at the same time (default: 1)"
    )
    parser.add_argument("--show", type=whole(0, 1000), default=10, metavar="N", help="show the first N requests that differ (default: 10)")


def run(args: argparse.Namespace) -> int:
    import os
    from pathlib import Path

    from mlops_build import compare, setting
    from mlops_build.errors import printable
    from mlops_build.model.answers import TOLERANCE

    tokens = [os.environ.get(f"MLOPS_COMPARE_TOKEN{number}") or None for number in (1, 2)]
    sides = (
        compare.Side.parse("first", args.url1, args.pick1, tokens[0]),
        compare.Side.parse("second", args.url2, args.pick2, tokens[1]),
    )
    relative = setting.number((TOLERANCE if args.tolerance is None else args.tolerance, "--tolerance"), float, 0)
    absolute = setting.number((TOLERANCE if args.absolute_tolerance is None else args.absolute_tolerance, "--absolute-tolerance"), float, 0)
    requests, left_out = compare.read(Path(args.requests), args.most)
    compared = compare.run(sides, requests, compare.Limits(args.seconds, relative, absolute, args.at_once))
    counts = compare.counts(compared)
    not_sent = len(requests) - len(compared)
    if left_out:
        say(f"mlops-build compare: {left_out} more requests were not sent (--most {args.most})")
    if not_sent:
        say(f"mlops-build compare: stopped: {not_sent} requests were not sent, since a service did not answer {compare.MOST_SILENT} times")
    times = [compare.latency(compared, side) for side in (0, 1)]
    unequal = [each for each in compared if each.state != "equal"][: args.show]
    lines = [", ".join(f"{count} {state}" for state, count in counts.items())]
    lines += [
        f"{side.name} {side.url}{side.path}: " + (f"median {taken[0]:.1f} ms, p95 {taken[1]:.1f} ms" if taken else "no answer")
        for side, taken in zip(sides, times, strict=True)
    ]
    alike: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for each in unequal:
        alike.setdefault((each.state, each.lines), []).append(each.number)
    for (state, differences), numbers in alike.items():
        lines.append(f"request{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: {state}")
        lines += ["    " + printable(line).replace("\n", "\\n") for line in differences]
    document = {
        **counts,
        "not_sent": not_sent + left_out,
        "services": [
            {"url": side.url, "median_ms": taken and round(taken[0], 3), "p95_ms": taken and round(taken[1], 3)}
            for side, taken in zip(sides, times, strict=True)
        ],
        "requests": [{"number": each.number, "state": each.state, "differences": each.lines} for each in unequal],
    }
    result(args, document, "\n".join(lines))
    return 5 if counts["unanswered"] else 4 if counts["different"] + counts["failed"] else 0
