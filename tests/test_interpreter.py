"""The cached values are those that the interpreter would find each time."""

import numpy as np
import pytest
import torch
import triton.language as tl
from interpreter import BLOCK, BROADCAST, NUMPY, OWNERS, SEARCHING, TENSOR, patch_builtin, patch_lang
from triton.runtime import interpreter

from normlib.kernels import reduction

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is interpreted where there is a GPU")
DTYPES = [value for value in vars(tl).values() if isinstance(value, tl.dtype) and value is not tl.void]


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_known_builtins_are_those_that_the_interpreter_would_find(owner):
    def changes(patch):
        scope = interpreter._LangPatchScope()
        patch(owner, interpreter.interpreter_builder, scope)
        changed = list(scope._changes)
        scope.restore()
        return changed

    assert interpreter._patch_builtin is patch_builtin
    assert changes(patch_builtin) == changes(SEARCHING)


@pytest.mark.parametrize("function", [reduction.sum_partials.__globals__["_sum_partials_kernel"].fn, tl.sum.fn])
def test_what_a_function_sees_is_patched_and_once(function):
    assert interpreter._patch_lang is patch_lang
    first, second = patch_lang(function), patch_lang(function)
    seen = [owner for owner in (tl, tl.core) if owner in function.__globals__.values()]
    left = [name for owner in (*seen, tl.tensor) for name, member in vars(owner).items() if tl.core.is_builtin(member)]
    again = second._changes
    first.restore()
    assert seen and not left and not again
    assert tl.core.is_builtin(tl.tensor.__add__)


@pytest.mark.parametrize("scalar", [*DTYPES, tl.pointer_type(tl.float32)], ids=str)
def test_dtypes_and_types_are_those_that_the_interpreter_would_make(scalar):
    def made(initialize, kind, *arguments):
        one = object.__new__(kind)
        initialize(one, *arguments)
        return {name: getattr(value, "values", value) for name, value in vars(one).items()}

    for _ in range(2):  # made, and found
        for shape in ([], [1], [4, 8], [8, 4]):
            block = tl.block_type(scalar, shape) if shape else scalar
            if shape:
                assert made(tl.block_type.__init__, tl.block_type, scalar, shape) == made(
                    BLOCK, tl.block_type, scalar, shape
                )
            assert made(tl.tensor.__init__, tl.tensor, None, block) == made(TENSOR, tl.tensor, None, block)
            assert interpreter._get_np_dtype(block) == NUMPY(block)


@pytest.mark.parametrize(
    "shapes", [((), (4,)), ((4,), (4,)), ((4, 1), (1, 8)), ((8,), (4, 8)), ((4, 8), (4, 8))], ids=str
)
def test_tensors_are_broadcast_as_the_interpreter_would(shapes):
    semantic = interpreter.interpreter_semantic

    def tensor(shape):
        handle = interpreter.TensorHandle(np.arange(np.prod(shape, dtype=int)).reshape(shape), tl.int64)
        return tl.tensor(handle, tl.block_type(tl.int64, list(shape)) if shape else tl.int64)

    given = [tensor(shape) for shape in shapes]
    for ours, theirs in zip(semantic.broadcast_impl_value(*given), BROADCAST(semantic, *given), strict=True):
        assert ours.type == theirs.type and np.array_equal(ours.handle.data, theirs.handle.data)
