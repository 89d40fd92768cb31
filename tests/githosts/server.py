"""A Git host over real HTTP: bare repositories behind `git http-backend`, with basic auth and protected branches, and pull requests.

The pull requests follow the branches: a push to the source branch moves them, and what the target branch contains is merged.
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, urlsplit

from tests import servers

PROTECTED = """#!/bin/sh
while read old new ref; do
    [ "$ref" != refs/heads/BRANCH ] || { echo "BRANCH is protected: open a pull request" >&2; exit 1; }
done
"""


@dataclass
class Pull:
    """A pull request. state: open, merged or closed. commit: the head of the source branch, as long as it is open."""

    number: int
    bare: Path
    source: str
    target: str
    title: str
    description: str
    commit: str
    state: str = "open"
    version: int = 0
    reviewers: list[str] = field(default_factory=list)


@dataclass
class GitHost:
    """url: its address. folder: holds PROJECT/NAME.git. token: the only one it knows. pulls: in order. builds: the states of a commit's.

    requests: method, path and headers of every API call. answer: set it to (status, body, headers) to get that for each API call.
    """

    url: str
    folder: Path
    token: str
    pulls: list[Pull] = field(default_factory=list)
    builds: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    answer: tuple[int, str, dict[str, str]] | None = None

    API: ClassVar[str]
    CLONE: ClassVar[str]

    def api(self, method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        """The answer to an API call. path: without API."""
        raise NotImplementedError

    def refuses(self, headers: Mapping[str, str]) -> Any:
        """The body of a 401 if the token is wrong."""
        raise NotImplementedError

    def make(self, project: str, name: str, *, protect_main: bool = False) -> str:
        """A new repository; returns its clone address."""
        bare = self.bare(project, name)
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
        git(bare, "config", "http.receivepack", "true")
        if protect_main:
            self.protect(project, name)
        return f"{self.url}{self.CLONE}/{project}/{name}.git"

    def bare(self, project: str, name: str) -> Path:
        return self.folder / project / f"{name}.git"

    def protect(self, project: str, name: str, branch: str = "main") -> None:
        """From now on nobody pushes to this branch."""
        hook = self.bare(project, name) / "hooks/pre-receive"
        hook.write_text(PROTECTED.replace("BRANCH", branch))
        hook.chmod(0o755)

    def head(self, project: str, name: str, ref: str) -> str | None:
        return git(self.bare(project, name), "rev-parse", "--verify", "--quiet", ref)

    def merge(self, number: int, *, squash: bool = False) -> str:
        """What a person does: merge a pull request. Returns the new head of its target."""
        pull = self.current()[number - 1]
        assert pull.state == "open"
        tree = git(pull.bare, "merge-tree", "--write-tree", pull.target, pull.commit)
        parents = ["-p", pull.target] if squash else ["-p", pull.target, "-p", pull.commit]
        sign = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
        head = git(pull.bare, *sign, "commit-tree", str(tree), *parents, "-m", pull.title if squash else f"Merge {pull.source}")
        git(pull.bare, "update-ref", f"refs/heads/{pull.target}", str(head))
        pull.state = "merged"
        return str(head)

    def decline(self, number: int) -> None:
        """What a person does: close a pull request."""
        self.current()[number - 1].state = "closed"

    def current(self) -> list[Pull]:
        """The pull requests with the states that follow from the branches."""
        for pull in self.pulls:
            if pull.state == "open":
                commit = git(pull.bare, "rev-parse", "--verify", "--quiet", f"refs/heads/{pull.source}")
                pull.commit = commit or pull.commit
                pull.state = "closed" if commit is None else "merged" if contains(pull.bare, pull.target, commit) else "open"
        return self.pulls

    def open_between(self, bare: Path, source: str, target: str) -> Pull | None:
        return next((p for p in self.current() if (p.bare, p.source, p.target, p.state) == (bare, source, target, "open")), None)

    def new(self, bare: Path, source: str, target: str, title: str, description: str) -> Pull:
        commit = str(git(bare, "rev-parse", f"refs/heads/{source}"))
        self.pulls.append(Pull(len(self.pulls) + 1, bare, source, target, title, description, commit))
        return self.pulls[-1]


def git(bare: Path, *arguments: str) -> str | None:
    """The output of git; None if it failed."""
    done = subprocess.run(["git", "-C", str(bare), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def contains(bare: Path, branch: str, commit: str) -> bool:
    return git(bare, "merge-base", "--is-ancestor", commit, branch) is not None


Host = TypeVar("Host", bound=GitHost)


@contextmanager
def serve(kind: type[Host], folder: Path, token: str, tls: SSLContext | None = None) -> Iterator[Host]:
    """A server on a free port of this machine."""
    folder.mkdir(parents=True, exist_ok=True)

    class Handler(servers.Handler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if address.path.startswith(kind.API):
                host.requests.append((self.command, address.path, dict(self.headers.items())))
                if host.answer:
                    status, text, more = host.answer
                    self.reply(status, text.encode(), {"Content-Type": "application/json", **more})
                    return
                status, document = 401, host.refuses(self.headers)
                if document is None:
                    path, query = address.path.removeprefix(kind.API), dict(parse_qsl(address.query))
                    status, document = host.api(self.command, path, query, json.loads(body or b"null"))
                self.reply(status, json.dumps(document).encode(), {"Content-Type": "application/json"})
            elif address.path.startswith(f"{kind.CLONE}/"):
                self.git(address.path.removeprefix(kind.CLONE), address.query, body)
            else:
                self.reply(404, b"", {})

        do_POST = do_PUT = do_GET

        def git(self, path: str, query: str, body: bytes) -> None:
            sent = self.headers.get("Authorization", "").removeprefix("Basic ")
            if base64.b64decode(sent).decode().partition(":")[2] != host.token:
                self.reply(401, b"", {"WWW-Authenticate": 'Basic realm="Git"'})
                return
            variables = {
                "GIT_PROJECT_ROOT": str(folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "REMOTE_USER": "bot",
            }
            done = subprocess.run(["git", "http-backend"], env={**os.environ, **variables}, input=body, capture_output=True, check=True)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.reply(int(fields.pop("Status", "200").split()[0]), content, fields)

    with servers.serve(Handler, tls) as address:
        host = kind(f"https://localhost:{address.partition(':')[2]}" if tls else f"http://{address}", folder, token)
        yield host
