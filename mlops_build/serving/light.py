"""A faster start: import MLflow without parts that a model server does not use, and disable garbage collection during loading."""

import contextlib
import gc
import sys
import types
from collections.abc import Iterator

from mlops_build.adapters.registry import quiet_mlflow

# Evaluation and proxying of language models. `import mlflow` loads both, and FastAPI with them: a tenth of the start time.
UNUSED = ("mlflow.genai", "mlflow.gateway")


def import_mlflow() -> None:
    """Import mlflow and mlflow.pyfunc. The parts in UNUSED are loaded on first use, as MLflow's own flavors are."""
    if "mlflow" in sys.modules:
        return
    quiet_mlflow()
    sys.modules.update({name: types.ModuleType(name) for name in UNUSED})
    try:
        import mlflow.pyfunc
    except ImportError:  # this version of MLflow needs them during its import
        for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
            del sys.modules[name]
        import mlflow.pyfunc

        return
    from mlflow.utils.lazy_load import LazyLoader

    for name in UNUSED:
        del sys.modules[name]
        short = name.removeprefix("mlflow.")
        setattr(mlflow, short, LazyLoader(short, vars(mlflow), name))


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, and exclude the objects created inside from later collections.

    They live as long as the process. A collection during a request would search them too, which takes a tenth of a second.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
