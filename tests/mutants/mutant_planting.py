"""Runs normlib's operators with an edited copy of kernels/ in place of the real one."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from mutant_catalogue import SMALL_PLANS, Mutant

import normlib

KERNELS = "normlib.kernels"


def callers() -> dict[ModuleType, ModuleType]:
    """Returns the operators' modules, with the launchers that each calls through its name `kernels`."""
    modules = [importlib.import_module(f"normlib.{found.name}") for found in pkgutil.iter_modules(normlib.__path__)]
    return {module: module.kernels for module in modules if isinstance(getattr(module, "kernels", None), ModuleType)}


def _taken_out() -> dict[str, ModuleType]:
    """Removes the modules of kernels/ from those that are imported, so that they are imported anew; returns them."""
    names = [name for name in sys.modules if f"{name}.".startswith(f"{KERNELS}.")]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def planted(*mutants: Mutant) -> Iterator[None]:
    """Within, normlib's operators run the kernels with SMALL_PLANS and these mutants."""
    sources: dict[str, str] = {}
    for mutant in (*SMALL_PLANS, *mutants):
        sources[mutant.file] = mutant.edited(sources.get(mutant.file))
    real = callers()
    # Triton reads the source of a jitted function from its file, and not before its first launch.
    with tempfile.TemporaryDirectory() as folder:
        for file, source in sources.items():
            path = Path(folder, "kernels", f"{file.replace('.', '/')}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        # kernels/ has no __init__.py, so the same folder earlier on normlib's path comes before it, file by file.
        normlib.__path__.insert(0, folder)
        modules = _taken_out()
        try:
            for caller, launchers in real.items():
                caller.kernels = importlib.import_module(launchers.__name__)
            yield
        finally:
            normlib.__path__.remove(folder)
            _taken_out()
            sys.modules.update(modules)
            normlib.kernels = modules[KERNELS]
            for caller, launchers in real.items():
                caller.kernels = launchers
