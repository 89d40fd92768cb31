"""The rendering process: `python -m mlops_build.scaffold.child` (rendering.py starts it). It reads jobs from stdin and writes replies to
stdout.

It runs nothing else, so it can patch copier to save work. A test compares the result with copier's own update.
"""

import json
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from mlops_build.adapters.git import command as git
from mlops_build.scaffold.render import REFUSED

REQUIRED = re.compile(r"Question \"(\w+)\" is required")


def main() -> None:
    """Read jobs, render them one after another, and print their results."""
    request = json.load(sys.stdin)
    warnings.simplefilter("ignore")
    _prepare(request["clone"])
    print(json.dumps([_render(request["source"], job) for job in request["jobs"]], default=str))


def _render(source: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Render one job. A refused answer is removed and the rest tried again, so that all refused answers are reported at once."""
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
            message = str(error)
            name = _question(error)
            if name in answers:
                match = REFUSED.match(message)
                problems.append({"name": name, "why": " ".join((match["why"] if match else message).split()), "value": answers.pop(name)})
                continue
            if required := REQUIRED.match(message):
                problems.append({"name": required[1], "why": "this question is new and has no default", "value": None})
            elif not problems:
                return {"error": " ".join(message.split())[:500] or type(error).__name__, "problems": []}
        return {"error": "", "problems": problems}


def _question(error: BaseException) -> str:
    """The question at which copier failed; its messages do not always name it."""
    trace, name = error.__traceback__, ""
    while trace:
        asker = trace.tb_frame.f_locals.get("self")
        name = str(getattr(asker, "var_name", name))
        trace = trace.tb_next
    return name


def _prepare(clone: str) -> None:
    from copier import _main, _template

    compile_once()
    # Copier's own update sets this, too, for an _exclude that uses _copier_operation.
    _main._operation.set("update")
    # Copier runs git for each file to check core.fileMode in the destination, which is not a repository here.
    _main.Worker._sync_git_index_executable_bit = lambda *_: None

    # Copier would create a mirror of the clone and a worktree of the mirror, and look for submodules.
    def check_out(_url: str, ref: str, location: str) -> str:
        for arguments in (["clone", "--quiet", "--no-checkout", "--shared", "--", clone, location],
                          ["-C", location, "checkout", "--quiet", "--detach", ref]):  # fmt: skip
            git.run(Path(location).parent, *arguments)
        return location

    _template.clone = check_out


def compile_once() -> None:
    """Let Jinja compile each text once. Most of the time goes there: copier compiles the same patterns for each file and question."""
    from jinja2 import Environment

    compiled: dict[tuple[Any, ...], CodeType] = {}
    compile_anew = Environment.compile

    def compile_cached(self: Environment, source: Any, name: Any = None, filename: Any = None, *rest: Any, **more: Any) -> Any:
        if not isinstance(source, str) or rest or more:
            return compile_anew(self, source, name, filename, *rest, **more)
        # Environments with equal settings share a lexer.
        key = (source, name, type(self), self.lexer, *sorted(self.extensions))
        if key in compiled:
            self.preprocess(source, name, filename)  # copier's `yield` is reset by this
        else:
            compiled[key] = compile_anew(self, source, name, filename)
        return compiled[key]

    Environment.compile = compile_cached  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
