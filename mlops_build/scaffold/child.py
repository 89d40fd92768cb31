"""The process that renders: `python -m mlops_build.scaffold.child` (rendering.py starts it). Jobs come on stdin, replies go to stdout.

It is there for this alone, so it may take shortcuts through copier that are nobody else's to take. Each only saves work; a test compares
what comes out with copier's own update.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from types import CodeType
from typing import Any

INVALID = re.compile(r"(?:Validation error for question|Invalid choice for) '\w+': (.*)", re.DOTALL)
REQUIRED = re.compile(r"Question \"(\w+)\" is required")


def main() -> None:
    """Read jobs, do them one after the other, and print what became of each."""
    request = json.load(sys.stdin)
    warnings.simplefilter("ignore")
    _prepare(request["clone"])
    print(json.dumps([_render(request["source"], job) for job in request["jobs"]], default=str))


def _render(source: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """One job, in the child. An answer that is not taken is left out and the rest tried, so that all of them are named at once."""
    from copier import run_copy
    from copier.errors import CopierError
    from jinja2 import TemplateError

    answers, problems = dict(job["answers"]), []
    while True:
        try:
            run_copy(
                source,
                job["folder"],
                data=answers,
                vcs_ref=job["commit"],
                exclude=job["exclude"],
                defaults=True,
                overwrite=True,
                quiet=True,
                skip_tasks=True,
                unsafe=False,
            )
        except (CopierError, ValueError, TemplateError, OSError) as error:
            said = str(error)
            name = _asked(error)
            if name in answers:
                found = INVALID.match(said)
                problems.append({"name": name, "why": " ".join((found[1] if found else said).split()), "value": answers.pop(name)})
                continue
            if required := REQUIRED.match(said):
                problems.append({"name": required[1], "why": "it is asked now, and has no default", "value": None})
            elif not problems:
                return {"error": " ".join(said.split())[:500] or type(error).__name__, "problems": []}
        return {"error": "", "problems": problems}


def _asked(error: BaseException) -> str:
    """The question that copier was at when it failed: its messages do not always say."""
    trace, name = error.__traceback__, ""
    while trace:
        asker = trace.tb_frame.f_locals.get("self")
        name = str(getattr(asker, "var_name", name))
        trace = trace.tb_next
    return name


def _prepare(clone: str) -> None:
    from copier import _main, _template
    from jinja2 import Environment

    # An _exclude that asks for _copier_operation is told that this is an update, as copier's own update tells it.
    _main._operation.set("update")
    # Copier looks, by a git process for each file, whether a repository at the destination ignores modes. There is no repository.
    _main.Worker._sync_git_index_executable_bit = lambda *_: None

    # Copier would make a mirror of the clone, a worktree of the mirror, and look for submodules.
    def check_out(_url: str, ref: str, location: str) -> str:
        for arguments in (["clone", "--quiet", "--no-checkout", "--shared", "--", clone, location],
                          ["-C", location, "checkout", "--quiet", "--detach", ref]):  # fmt: skip
            subprocess.run(["git", *arguments], check=True, stdout=subprocess.DEVNULL)
        return location

    _template.clone = check_out

    # Most of rendering is compiling: the same few patterns for each file and question, and most files of both versions.
    compiled: dict[tuple[Any, ...], CodeType] = {}
    compile_anew = Environment.compile

    def compile_once(self: Environment, source: Any, name: Any = None, filename: Any = None, *rest: Any, **more: Any) -> Any:
        if not isinstance(source, str) or rest or more:
            return compile_anew(self, source, name, filename, *rest, **more)
        # Environments with equal settings have one lexer.
        key = (source, name, type(self), self.lexer, *sorted(self.extensions))
        if key in compiled:
            self.preprocess(source, name, filename)  # copier's `yield` is reset by this
        else:
            compiled[key] = compile_anew(self, source, name, filename)
        return compiled[key]

    Environment.compile = compile_once  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
