"""The limit: uvicorn on uvloop and httptools, orjson, and a batcher. It checks nothing, knows one form of request, logs nothing.

python bare.py MODEL PORT
"""

import asyncio
import sys
import threading
from typing import Any

import networks
import numpy as np
import orjson
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MODEL, PORT = sys.argv[1], int(sys.argv[2])
MOST = 128  # requests that are predicted together, as in ours
network = networks.network(MODEL)
waiting: list[tuple[Any, "asyncio.Future[Any]"]] = []
wake = threading.Event()


def work(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        wake.wait()
        wake.clear()
        while batch := waiting[:MOST]:
            del waiting[: len(batch)]
            with torch.inference_mode():
                scores = network(torch.from_numpy(np.concatenate([rows for rows, _ in batch]))).numpy().tolist()
            loop.call_soon_threadsafe(settle, batch, scores)


def settle(batch: list[tuple[Any, "asyncio.Future[Any]"]], scores: list[Any]) -> None:
    at = 0
    for rows, future in batch:
        future.set_result(scores[at : at + len(rows)])
        at += len(rows)


async def invocations(request: Request) -> Response:
    document = orjson.loads(await request.body())
    rows = document["dataframe_split"]["data"] if MODEL == "tab" else document["inputs"]
    future = asyncio.get_running_loop().create_future()
    waiting.append((np.array(rows, np.float32), future))
    wake.set()
    return Response(orjson.dumps({"predictions": await future}), media_type="application/json")


async def ping(_: Request) -> Response:
    return Response(b"\n")


async def main() -> None:
    threading.Thread(target=work, args=(asyncio.get_running_loop(),), daemon=True).start()
    app = Starlette(routes=[Route("/invocations", invocations, methods=["POST"]), Route("/ping", ping)])
    await uvicorn.Server(uvicorn.Config(app, port=PORT, log_level="error", access_log=False)).serve()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
