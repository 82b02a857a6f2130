"""A file `random.py` or `jax.py` in the current directory, which takes the place of the library of that name."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from types import TracebackType


def find_shadow(error: BaseException) -> str | None:
    """The path in the folder where Python looks first that was loaded before `error` and hides a module of its name."""
    folder = os.path.abspath(sys.path[0])
    loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    trace = error.__traceback__
    while trace is not None:
        loaded.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    for file in filter(None, [*loaded, getattr(error, "filename", None)]):  # the last is a syntax error's
        place = os.path.dirname(file) if os.path.basename(file) == "__init__.py" else file
        name = os.path.basename(place).removesuffix(".py")
        hides = os.path.dirname(os.path.abspath(place)) == folder and name not in ("__main__", "nftk_jax")
        if hides and importlib.machinery.PathFinder.find_spec(name, sys.path[1:]) is not None:
            return place
    return None


def explain(error: BaseException) -> str | None:
    """One line about a shadow that explains an error, or None where there is none."""
    shadow = find_shadow(error)
    if shadow is None:
        return None
    name = os.path.basename(shadow).removesuffix(".py")
    return f"{shadow} hides the library {name}, which is needed; rename it, or run in another directory"


def watch_imports(prog: str) -> None:
    """End this program in one line and status 2, not in a traceback, where such a file is why it fails."""
    hook = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if (line := explain(error)) is None:
            return hook(kind, error, trace)
        sys.stderr.write(f"{prog}: {line}\n")
        raise SystemExit(2)

    sys.excepthook = report
