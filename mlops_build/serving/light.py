"""A lighter start: MLflow without the parts that a server of one model never calls, and no search for garbage while all is being loaded."""

import contextlib
import gc
import sys
import types
from collections.abc import Iterator

# They judge language models and pass requests on to them. `import mlflow` would load both, and FastAPI with them: a tenth of the start.
UNUSED = ("mlflow.genai", "mlflow.gateway")


def import_mlflow() -> None:
    """Import mlflow and mlflow.pyfunc. A model that uses an unused part gets it then, as MLflow's own flavours are loaded: on first use."""
    if "mlflow" in sys.modules:
        return
    sys.modules.update({name: types.ModuleType(name) for name in UNUSED})
    try:
        import mlflow.pyfunc
    except ImportError:  # another MLflow, which needs them to be imported itself
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
def no_garbage() -> Iterator[None]:
    """What is loaded meanwhile stays for good: it is not searched for garbage, neither now nor in the midst of a request, where that would
    take a tenth of a second."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
