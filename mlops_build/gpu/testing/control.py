"""The C functions that create and change a node (c/control.c), with their types."""

import ctypes
from pathlib import Path


def control(library: Path) -> ctypes.CDLL:
    """Load the library by its path, since LD_LIBRARY_PATH takes effect only at the start of a process, and this process is not on the
    node."""
    control = ctypes.CDLL(str(library))
    pointer, text, integer, wide = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64
    for name, result, arguments in (
        ("control_create", pointer, (text, wide, text, integer)),
        ("control_close", None, (pointer,)),
        ("control_add", integer, (pointer, integer, text, text, text, text)),
        ("control_show", None, (pointer,)),
        ("control_set", integer, (pointer, integer, text, wide)),
        ("control_init_code", None, (pointer, integer)),
        ("control_fault", integer, (pointer, integer, text, integer, integer, integer)),
        ("control_restore", None, (pointer, integer, integer)),
        ("control_used", wide, (pointer, integer)),
        ("control_processes", integer, (pointer, integer, ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(wide), integer)),
    ):
        function = getattr(control, name)
        function.restype, function.argtypes = result, arguments
    return control
