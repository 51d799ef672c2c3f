"""Triton's interpreter, less what takes a third of its time: at every call of a device function it searches
triton.language for its built-in functions, by `inspect.getmembers`. They are the same each time, and found once here.
"""

import inspect

import triton.language as tl
from triton.runtime import interpreter

OWNERS = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
SEARCHING = interpreter._patch_builtin
_NAMES = {owner: [name for name, member in inspect.getmembers(owner) if tl.core.is_builtin(member)] for owner in OWNERS}


def patch_builtin(owner, *scope):
    """Does the same as the interpreter's own function, for the names that are known."""
    for name in _NAMES[owner]:
        member = getattr(owner, name)
        if tl.core.is_builtin(member):  # and not patched already
            interpreter._patch_attr(owner, name, member, *scope)


def find_builtins_once():
    interpreter._patch_builtin = patch_builtin
