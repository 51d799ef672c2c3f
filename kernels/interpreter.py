"""Triton's interpreter, mended where NumPy has left it behind.

A scalar is an array of one element there. Up to Triton 3.6 it becomes the bound of a `range` by `int(array)`, which
NumPy takes since 2.4 of arrays without dimensions alone; Triton 3.7 squeezes the array first, and so does this.
"""

from typing import Any

from triton.runtime import interpreter

_patch_lang_tensor = interpreter._patch_lang_tensor


def _patch_and_index(tensor: Any, scope: Any) -> None:
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def mend() -> None:
    """Lets a kernel's scalars count loops, whatever the versions of Triton and NumPy."""
    interpreter._patch_lang_tensor = _patch_and_index
