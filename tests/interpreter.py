"""Triton's interpreter, less what takes most of its time and changes nothing.

At every call of a device function it patches triton.language, which the launch has patched already, and to do so it
searches for the built-in functions by `inspect.getmembers`. It computes every sum, difference and product of integers
a second time in 64 bits, and drops what that finds unless it debugs. For each intermediate result it makes the same
types and shapes again, and it compares shapes that are the same length by length. Here all of these are found once.
"""

import inspect
from dataclasses import replace
from functools import cache

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

OWNERS = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
# The interpreter's own functions.
PATCHING, SEARCHING, NUMPY = interpreter._patch_lang, interpreter._patch_builtin, interpreter._get_np_dtype
BLOCK, TENSOR, BROADCAST = tl.block_type.__init__, tl.tensor.__init__, TritonSemantic.broadcast_impl_value
_NAMES = {owner: [name for name, member in inspect.getmembers(owner) if tl.core.is_builtin(member)] for owner in OWNERS}
_numpy_dtypes = {}
_blocks = {}


def patch_builtin(owner, *scope):
    """Does the same as the interpreter's own function, for the names that are known."""
    for name in _NAMES[owner]:
        member = getattr(owner, name)
        if tl.core.is_builtin(member):  # and not patched already
            interpreter._patch_attr(owner, name, member, *scope)


def patch_lang(function):
    """Patches what a kernel or a device function sees of triton.language, unless that is patched."""
    if tl.core.is_builtin(tl.tensor.__add__) or any(tl.core.is_builtin(seen.load) for seen in _languages(function)):
        return PATCHING(function)
    return interpreter._LangPatchScope()


@cache
def _languages(function):
    return [value for value in function.__globals__.values() if value is tl or value is tl.core]


def numpy_dtype(dtype):
    """Returns the dtype of the arrays that hold tensors of this one."""
    name = dtype.scalar.name
    if name not in _numpy_dtypes:
        _numpy_dtypes[name] = NUMPY(dtype)
    return _numpy_dtypes[name]


def make_block(self, element_ty, shape):
    """Initializes a type as an equal one was initialized before."""
    key = (element_ty.name, *shape)
    if key not in _blocks:
        BLOCK(self, element_ty, shape)
        _blocks[key] = dict(vars(self))
    vars(self).update(_blocks[key])


def make_tensor(self, handle, type):
    """Initializes a tensor, of whose shape nothing is computed again."""
    vars(self).update(_extent(*type.shape) if type.is_block() else _extent())
    self.handle, self.type, self.dtype = handle, type, type.scalar


@cache
def _extent(*shape):
    tensor = object.__new__(tl.tensor)
    TENSOR(tensor, None, tl.block_type(tl.int1, list(shape)) if shape else tl.int1)
    return {"shape": tensor.shape, "numel": tensor.numel}


def broadcast(semantic, a, b):
    """Broadcasts two tensors against each other, if their shapes differ."""
    if a.type.is_block() and b.type.is_block() and a.type.shape.values == b.type.shape.values:
        return a, b
    return BROADCAST(semantic, a, b)


def find_once():
    """Makes this process's interpreter do so."""
    TritonSemantic.broadcast_impl_value = broadcast
    interpreter._patch_builtin, interpreter._patch_lang = patch_builtin, patch_lang
    interpreter._get_np_dtype = numpy_dtype
    tl.block_type.__init__, tl.tensor.__init__ = make_block, make_tensor
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
