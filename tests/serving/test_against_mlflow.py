"""Compare `mlops-build serve` with MLflow's scoring server: every kind of model, in every form, over HTTP.

Both receive the same requests. They must agree on status, error_code and values, except where docs/reference/http-contract.md says
otherwise.
"""

import asyncio
import contextlib
import http.client
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from typing import Any

import pandas as pd
import pytest
from mlflow.pyfunc import scoring_server

from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.refusal import Refusal
from tests.serving import models
from tests.serving.conftest import Server, serving
from tests.serving.differences import DIFFERENCES, MANY_BYTES, Answers, Verdict, documented, reasons, verdict
from tests.serving.forms import PARQUET, Request, paths, requests
from tests.serving.kinds import KINDS_OF_MODELS

pytestmark = [pytest.mark.slow, pytest.mark.real_python]
FIRST = next(iter(KINDS_OF_MODELS))


class Servers:
    """Both servers. MLflow's runs in this process, since only what it answers is of interest."""

    def __init__(self, loaded: dict[str, Any], server: Server) -> None:
        self.loaded = loaded
        host, port = server.url.removeprefix("http://").split(":")
        self.loop = asyncio.new_event_loop()
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self.server = server
        self.compared = cache(self._compared)

    def _compared(self, model: str) -> list[tuple[Answers, set[str] | None]]:
        """The answers to all requests to a model, and the reasons why they differ."""
        mlflow = scoring_server.init(self.loaded[model])
        sent = [*requests(KINDS_OF_MODELS[model])]
        if model == FIRST:
            usual = sent[0].body
            sent += [*paths(), Request("17 MiB", usual + b" " * (MANY_BYTES + 1))]
        return [(answers, reasons(answers)) for answers in (self._ask(mlflow, model, request) for request in sent)]

    def _ask(self, mlflow: Any, model: str, request: Request) -> Answers:
        path = f"/models/{model}{request.path}" if request.path == "/invocations" else request.path
        self.connection.request(request.method, path, request.body, request.headers)
        response = self.connection.getresponse()
        return Answers(model, request, self.theirs(mlflow, request), verdict(response.status, response.read()))

    def theirs(self, mlflow: Any, request: Request) -> Verdict:
        """The answer of MLflow's application, as uvicorn would send it."""
        status, body = 500, b""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, body
            status, body = message.get("status", status), body + message.get("body", b"")

        path, _, query = request.path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method, "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "headers": [(name.encode(), value.encode()) for name, value in request.headers.items()],
        }  # fmt: skip
        with contextlib.suppress(Exception):  # after it has sent a 500
            self.loop.run_until_complete(mlflow(scope, receive, send))
        return verdict(status, body)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns for most requests
    folder = tmp_path_factory.mktemp("kinds")
    loaded = {name: kind.save(folder / name) for name, kind in KINDS_OF_MODELS.items()}
    context = models.context(folder / "context", **{name: folder / name / "model" for name in loaded})
    with serving(folder / "served", str(context)) as server:
        both = Servers(loaded, server)
        with closing(both.connection), closing(both.loop):
            yield both


@pytest.mark.parametrize("model", KINDS_OF_MODELS)
def test_the_same_answers_as_mlflows_server(servers: Servers, model: str) -> None:
    compared = servers.compared(model)
    unexplained = [answers for answers, why in compared if why is None]
    shown = "\n".join(
        f"{a.request.name}: {a.request.body[:300]!r}\n  MLflow: {a.theirs}\n  ours:   {a.ours}"[:1500] for a in unexplained[:20]
    )
    assert not unexplained, f"{len(unexplained)} of {len(compared)} answers differ:\n{shown}"
    # The comparison is meaningful only if there are requests of both kinds.
    statuses = Counter(answers.ours.status // 100 for answers, _ in compared)
    assert statuses[2] >= 10, statuses
    assert statuses[4] >= 50, statuses
    assert not [answers.request for answers, _ in compared if "Traceback" in str(answers.ours.content)]
    failed = [answers for answers, _ in compared if answers.ours.status >= 500 and answers.theirs.status < 500]
    assert not failed, failed[:3]


def test_every_documented_difference_is_found(servers: Servers) -> None:
    found = Counter(reason for model in KINDS_OF_MODELS for _, why in servers.compared(model) for reason in why or ())
    without_pyarrow(servers, found)
    sent = sum(len(servers.compared(model)) for model in KINDS_OF_MODELS)
    sys.stdout.write(f"{sent} requests to {len(KINDS_OF_MODELS)} models\n{json.dumps(found, indent=1)}\n")
    assert set(found) == set(DIFFERENCES)
    assert servers.server.process.poll() is None


def without_pyarrow(servers: Servers, found: "Counter[str]") -> None:
    request = Request("parquet", pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}, dtype="float32").to_parquet(), PARQUET)
    theirs = servers.theirs(scoring_server.init(servers.loaded[FIRST]), request)
    decoder = Decoder(servers.loaded[FIRST])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(Refusal) as refused:
            decoder.decode(request.body, PARQUET)
    ours = verdict(refused.value.status, refused.value.message.encode())
    found.update(reasons(Answers(FIRST, request, theirs, ours)) or ())


def test_the_docs_list_the_same_differences() -> None:
    assert documented() == list(DIFFERENCES)
