"""Makes a module callable: `bench.run` is a program and a function, `bench.cases.sweep` is functions and one of them."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType


def make_callable(module: str, function: str) -> None:
    """Calling the module calls this function of bench/api.py, which is not imported before that.

    Python lets a module's class be replaced for such ends (the data model, "Customizing module attribute access").
    """

    class CallableModule(ModuleType):
        def __call__(self, *args: object, **kwargs: object) -> object:
            return getattr(import_module("bench.api"), function)(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
