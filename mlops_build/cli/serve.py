"""Serve a model over HTTP: MLflow's /invocations, /ping, /health and /version, and /metrics for Prometheus.

DIR is a build context (`mlops-build package`): its files are checked against their digests, and no registry is needed. A version of the
registry is fetched first. The first model answers at /invocations, each also at /models/NAME/invocations. In a service's folder, `serving`
of service.yaml applies to its models.

On a machine with GPUs it leases one (`mlops-build gpu list` shows all leases), and only this one is visible to the model. With --device gpu
or a memory budget it never falls back to the CPU: it exits with 6 (5 without a working driver) and gives the reason for every GPU.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_build.cli.output import result, say
from mlops_build.cli.parser import port
from mlops_build.serving_settings import KEYS, PREFIX, flag, settings

if TYPE_CHECKING:
    from mlops_build.serving.output import Output

EXAMPLE = "  mlops-build serve build/context --port 8000\n  mlops-build serve models:/digits@staging"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="DIR|MODEL_URI", help="a build context, a model's folder, models:/NAME/VERSION or models:/NAME@ALIAS"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=port, default=8080, help="the port; 0 for a free one (default: 8080)")
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], help="auto: a GPU if there is one (default: MLOPS_DEVICE, else auto)")
    parser.add_argument("--gpu-memory", metavar="AMOUNT", help="its budget of GPU memory, such as 4GiB (default: MLOPS_GPU_MEMORY)")
    parser.add_argument("--wait", metavar="SECONDS", help="how long to wait for free GPU memory (default: MLOPS_GPU_WAIT, else 60)")
    own = parser.add_argument_group("requests", "each can also be set as MLOPS_SERVE_MAX_BATCH and so on")
    for name, key in KEYS.items():
        own.add_argument(flag(name), metavar=key.metavar, choices=key.choices or None, help=key.help)


def run(args: argparse.Namespace) -> int:
    from mlops_build.serving.output import without_blocking
    from mlops_build.serving.sigterm import exit_on_sigterm

    with exit_on_sigterm(), without_blocking() as output:
        return _serve(args, output)


def _serve(args: argparse.Namespace, output: "Output") -> int:
    import os
    import tempfile

    from mlops_build.gpu import device
    from mlops_build.service.owner import owner
    from mlops_build.serving import listen, load, server
    from mlops_build.serving.http.tokens import Tokens
    from mlops_build.serving.light import without_garbage_collection

    own = service.serving.variables() if (service := owner(args.what)) else {}
    keys = [variable.removeprefix(PREFIX).lower() for variable in own if not os.environ.get(variable)]
    if applied := [key for key in keys if vars(args)[key] is None]:
        say(f"settings of service.yaml: {', '.join(applied)}")
    options = settings(vars(args), own=own)
    callers = Tokens(Path(options.tokens)) if options.tokens else None
    bound = listen.bind(args.host, args.port)
    request = device.requested(args.device, args.gpu_memory, args.wait)
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        with without_garbage_collection():
            if args.what.startswith("models:"):
                checked = load.from_registry(args.what, Path(scratch), options.unsafe_pickle)
            else:
                checked = load.from_folder(Path(args.what), say, options.unsafe_pickle)
        if checked.unsafe_pickle:
            say(f"pickled files, which run code when they are loaded, are accepted (unsafe_pickle): {checked.unsafe_pickle}")
        with device.acquired(request, checked.service, say) as chosen:
            say(f"device: {chosen.description}")
            with without_garbage_collection():
                if chosen.lease:
                    chosen.lease.limit_torch()  # before the model, so that loading also stays within the budget
                serving = load.load(
                    checked, compile=options.compile, precision=options.precision, rows_independent=options.rows_independent
                )
            for loaded in serving.models:
                load.warm_up(loaded, say)
            if chosen.lease:
                chosen.lease.report(loaded=True)
            from mlops_build.serving.app import Service

            where = listen.url(args.host, bound)
            names = ", ".join(map(str, serving.models))

            def ready() -> None:
                say(f"serving {names} on {where}")
                models = [{"name": model.name, "version": model.version, "digest": model.digest} for model in serving.models]
                document = {
                    "service": serving.service,
                    "image": serving.image,
                    "models": models,
                    "device": chosen.description,
                    "url": where,
                }
                result(args, {**document, "gpu": chosen.as_json()}, "")

            return server.run(Service(serving, chosen.lease, options, callers, output), bound, ready, options)
