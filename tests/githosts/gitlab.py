"""A small GitLab.

It answers as the real one does: 401 without a token that it knows, 404 for what is not there or may not be seen, 409 for a second merge
request between the same branches. It opens a merge request without commits, and executes `/close` in a description.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.parse import unquote

from tests.githosts.server import GitHost, Pull, git, serve

STATES = {"open": "opened", "merged": "merged", "closed": "closed"}


@dataclass
class Gitlab(GitHost):
    """builds: GitLab's status of a commit is the first of its builds' states."""

    API = "/api/v4"
    CLONE = ""

    @property
    def pull_requests(self) -> list[dict[str, Any]]:
        return [self.document(pull) for pull in self.current()]

    def refuses(self, headers: Mapping[str, str]) -> Any:
        return None if headers.get("PRIVATE-TOKEN") == self.token else {"message": "401 Unauthorized"}

    def api(self, method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Any]:
        if group := re.fullmatch(r"/groups/([^/]+)/projects", path):
            assert (query["include_subgroups"], query["archived"]) == ("True", "False")
            paths = sorted(str(bare.relative_to(self.folder))[:-4] for bare in (self.folder / unquote(group[1])).rglob("*.git"))
            paths = [each for each in paths if not each.endswith("archived")]
            return (200, [{"id": 1, "path_with_namespace": each} for each in paths]) if paths else (404, {"message": "404 Group Not Found"})
        match = re.fullmatch(r"/projects/([^/]+)((?:/[^/]+)*)", path)
        bare = self.folder / f"{unquote(match[1])}.git" if match else self.folder
        if not match or not (bare / "HEAD").is_file():
            return 404, {"message": "404 Project Not Found"}
        what = match[2]
        if what == "":
            return 200, {"id": 1, "path_with_namespace": unquote(match[1])}
        if what == "/repository/compare":
            log = git(bare, "rev-list", f"refs/heads/{query['from']}..refs/heads/{query['to']}")
            return (404, {"message": "404 Ref Not Found"}) if log is None else (200, {"commits": [{"id": id_} for id_ in log.split()]})
        if commit := re.fullmatch(r"/repository/commits/([0-9a-f]{40})", what):
            return 200, {"id": commit[1], "status": next(iter(self.builds.get(commit[1], [])), None)}
        if what == "/merge_requests":
            return self.search(bare, query) if method == "GET" else self.open(bare, body)
        number = int(what.removeprefix("/merge_requests/"))
        if number > len(self.pulls):
            return 404, {"message": "404 Not found"}
        return 200, self.document(self.changed(self.current()[number - 1], body if method == "PUT" else {}))

    def search(self, bare: Path, query: Mapping[str, str]) -> tuple[int, Any]:
        assert (query["state"], query["order_by"], query["sort"]) == ("all", "created_at", "desc")
        branches = (bare, query["source_branch"], query["target_branch"])
        return 200, [self.document(pull) for pull in reversed(self.current()) if (pull.bare, pull.source, pull.target) == branches]

    def open(self, bare: Path, asked: dict[str, Any]) -> tuple[int, Any]:
        source, target = asked["source_branch"], asked["target_branch"]
        if there := self.open_between(bare, source, target):
            return 409, {"message": [f"Another open merge request already exists for this source branch: !{there.number}"]}
        pull = self.new(bare, source, target, "", "")
        return 201, self.document(self.changed(pull, {key: asked[key] for key in ("title", "description")}))

    def changed(self, pull: Pull, texts: dict[str, str]) -> Pull:
        pull.title, pull.description = texts.get("title", pull.title), texts.get("description", pull.description)
        if texts.get("state_event") == "close" or re.search(r"(?m)^\s*/close\b", texts.get("description", "")):
            pull.state = "closed"
        return pull

    def document(self, pull: Pull) -> dict[str, Any]:
        return {
            "iid": pull.number,
            "title": pull.title,
            "description": pull.description,
            "state": STATES[pull.state],
            "source_branch": pull.source,
            "target_branch": pull.target,
            "source_project_id": 1,
            "target_project_id": 1,
            "sha": pull.commit,
            "web_url": "javascript:alert(1)",
        }


@contextmanager
def gitlab(folder: Path, token: str, *, tls: SSLContext | None = None) -> Iterator[Gitlab]:
    """A server on a free port of this machine."""
    with serve(Gitlab, folder, token, tls) as host:
        yield host
