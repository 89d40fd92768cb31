"""A small Bitbucket Data Center over real HTTP: bare repositories behind `git http-backend`, and the part of its REST API that we call.

It answers as the real one does: 401 without a token that it knows, 404 for what is not there or may not be seen, 409 with
DuplicatePullRequestException and the pull request that is open, 409 with EmptyPullRequestException where nothing is to be merged.
"""

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

PULL = "com.atlassian.bitbucket.pull"
PROTECTED = """#!/bin/sh
while read old new ref; do
    [ "$ref" != refs/heads/BRANCH ] || { echo "BRANCH is protected: open a pull request" >&2; exit 1; }
done
"""


@dataclass
class Bitbucket:
    """url: its address. folder: holds PROJECT/NAME.git. token: the only one it knows. pull_requests: as JSON, in order.

    requests: method, path and headers of every REST call. answer: set it to (status, body, headers) to get that for each REST call.
    """

    url: str
    folder: Path
    token: str
    pull_requests: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    answer: tuple[int, str, dict[str, str]] | None = None

    def make(self, project: str, name: str, *, protect_main: bool = False) -> str:
        """A new repository; returns its clone address."""
        bare = self.folder / project / f"{name}.git"
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
        subprocess.run(["git", "-C", str(bare), "config", "http.receivepack", "true"], check=True)
        if protect_main:
            self.protect(project, name)
        return f"{self.url}/scm/{project}/{name}.git"

    def protect(self, project: str, name: str, branch: str = "main") -> None:
        """From now on nobody pushes to this branch."""
        hook = self.folder / project / f"{name}.git/hooks/pre-receive"
        hook.write_text(PROTECTED.replace("BRANCH", branch))
        hook.chmod(0o755)

    def head(self, project: str, name: str, ref: str) -> str | None:
        bare = self.folder / project / f"{name}.git"
        done = subprocess.run(
            ["git", "-C", str(bare), "rev-parse", "--verify", "--quiet", ref], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or None

    def rest(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        found = re.fullmatch(r"/rest/api/1\.0/projects/([^/]+)/repos/([^/]+)(/pull-requests)?", path)
        if not found or not (self.folder / found[1] / f"{found[2]}.git").is_dir():
            return 404, errors("Repository does not exist.", "com.atlassian.bitbucket.repository.NoSuchRepositoryException")
        project, name, pulls = found.groups()
        if method == "GET":
            return 200, {"slug": name, "project": {"key": project}}
        if not pulls:
            return 405, {}
        asked = json.loads(body)
        heads = [self.head(project, name, asked[ref]["id"]) for ref in ("fromRef", "toRef")]
        if None in heads:
            return 404, errors("Repository does not have that ref.", "com.atlassian.bitbucket.repository.NoSuchRefException")
        for pull in self.pull_requests:
            if pull["state"] == "OPEN" and all(pull[ref]["id"] == asked[ref]["id"] for ref in ("fromRef", "toRef")):
                message = "Only one pull request may be open for a given source and target branch"
                return 409, errors(message, f"{PULL}.DuplicatePullRequestException", existingPullRequest=pull)
        bare = self.folder / project / f"{name}.git"
        merged = subprocess.run(["git", "-C", str(bare), "merge-base", "--is-ancestor", str(heads[0]), str(heads[1])], check=False)
        if merged.returncode == 0:
            return 409, errors("main is already up-to-date", f"{PULL}.EmptyPullRequestException")
        pull = {**asked, "id": len(self.pull_requests) + 1, "state": "OPEN", "links": {"self": [{"href": "javascript:alert(1)"}]}}
        self.pull_requests.append(pull)
        return 201, pull


def errors(message: str, exception: str, **more: Any) -> dict[str, Any]:
    return {"errors": [{"context": None, "message": message, "exceptionName": exception, **more}]}


@contextmanager
def bitbucket(folder: Path, token: str, *, tls: SSLContext | None = None) -> Iterator[Bitbucket]:
    """A server on a free port of this machine."""
    folder.mkdir(parents=True, exist_ok=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if address.path.startswith("/rest/"):
                found.requests.append((self.command, address.path, dict(self.headers.items())))
                if found.answer:
                    status, text, more = found.answer
                    self.reply(status, text.encode(), {"Content-Type": "application/json", **more})
                elif self.headers.get("Authorization") != f"Bearer {found.token}":
                    said = errors("Authentication failed.", "com.atlassian.bitbucket.auth.IncorrectPasswordAuthenticationException")
                    self.reply(401, json.dumps(said).encode(), {"Content-Type": "application/json"})
                else:
                    status, document = found.rest(self.command, address.path, body)
                    self.reply(status, json.dumps(document).encode(), {"Content-Type": "application/json"})
            elif address.path.startswith("/scm/"):
                self.git(address.path.removeprefix("/scm"), address.query, body)
            else:
                self.reply(404, b"", {})

        do_POST = do_GET  # noqa: N815

        def git(self, path: str, query: str, body: bytes) -> None:
            sent = self.headers.get("Authorization", "").removeprefix("Basic ")
            if base64.b64decode(sent).decode().partition(":")[2] != found.token:
                self.reply(401, b"", {"WWW-Authenticate": 'Basic realm="Bitbucket"'})
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

        def reply(self, status: int, body: bytes, fields: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    host = "https://localhost" if tls else "http://127.0.0.1"
    found = Bitbucket(f"{host}:{server.server_address[1]}", folder, token)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
