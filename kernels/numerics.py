"""Precision: what kernels accumulate in, how scalars reach them, and how results are rounded.

Everything is loaded in its own dtype, computed in float32 (float64 for float64) and rounded once, at the store.
"""

import triton
import triton.language as tl

# As triton.jit decides for the kernels that import this: by the environment, or what a program has set in its place.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
if INTERPRETED.value:
    from triton.runtime import interpreter

    _patch_lang_tensor = interpreter._patch_lang_tensor

    def _patch_and_index(tensor, scope):
        """Lets a kernel's scalars, which are arrays of one element in the interpreter, be the bounds of a `range`.

        Up to Triton 3.6 that takes `int(array)`, which NumPy refuses since 2.4 unless the array has no dimensions.
        Triton 3.7 squeezes the array first, as this does.
        """
        _patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    if _patch_lang_tensor.__name__ != "_patch_and_index":  # this module may be imported again, as a mutant's copy
        interpreter._patch_lang_tensor = _patch_and_index

# How long what is moved stays in cache: as long as it would. As the default of a device function a string of Python's
# own is refused by Triton 3.6.
STAYS = tl.constexpr("")


@triton.jit
def from_pair(high, low, ACC: tl.constexpr):
    """The scalar that host.float_pair split, in the accumulation dtype, as a block of one."""
    return tl.zeros([1], ACC) + high + low


@triton.constexpr_function
def accumulator(pointer_type):
    """The dtype that a kernel computes in, from the type of the pointer to its input."""
    return tl.float64 if pointer_type.scalar.element_ty == tl.float64 else tl.float32


@triton.jit
def load(pointer, mask, ACC: tl.constexpr, EVICT: tl.constexpr = STAYS):
    """Values in the accumulation dtype, zero where masked: nothing is ever computed in 16 bits."""
    return widen(load_narrow(pointer, mask, EVICT), ACC)


@triton.jit
def load_narrow(pointer, mask, EVICT: tl.constexpr = STAYS):
    """Values in the pointer's dtype, zero where masked; to be widened before anything is computed."""
    return tl.load(pointer, mask=mask, other=0.0, eviction_policy=EVICT)


@triton.jit
def widen(value, ACC: tl.constexpr):
    """The value in the accumulation dtype."""
    # The hardware widens exactly; the interpreter mistakes bfloat16's denormals, so there it is spelled out.
    if INTERPRETED and value.dtype == tl.bfloat16:
        value = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value.to(ACC)


@triton.jit
def store(pointer, value, mask, EVICT: tl.constexpr = STAYS):
    """Rounds to the pointer's dtype, to nearest even, and stores."""
    element_ty: tl.constexpr = pointer.dtype.scalar.element_ty
    tl.store(pointer, round_to(value, element_ty), mask=mask, eviction_policy=EVICT)


@triton.jit
def round_to(value, dtype: tl.constexpr):
    """The value in a dtype, to nearest even."""
    # The hardware rounds to nearest even; the interpreter truncates float32 to bfloat16, so there it is spelled out.
    if value.dtype == dtype:
        return value
    elif INTERPRETED and dtype == tl.bfloat16:
        value = value.to(tl.float32)
        bits = value.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        nan = ((bits >> 16) | 0x40).to(tl.uint16)
        return tl.where(value == value, rounded, nan).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def blocks(n, BLOCK):
    """Returns the number of blocks of n > 0 elements: tl.cdiv's n + BLOCK - 1 would wrap within a block of 2^31."""
    return (n - 1) // BLOCK + 1


@triton.jit
def even_share(part, parts, n):
    """The range [first, end) of n things that is one part's: contiguous, and as even as they come."""
    share, over = n // parts, n % parts
    first = part * share + tl.minimum(part, over)
    return first, first + share + (part < over).to(tl.int32)


@triton.jit
def divide(a, b):
    """a / b, correctly rounded: for the few values a row or channel has, where `/` may be off by two ulp."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def square_root(a):
    """sqrt(a), correctly rounded."""
    if a.dtype == tl.float32:
        return tl.sqrt_rn(a)
    else:
        return tl.sqrt(a)


@triton.jit
def reciprocal_sqrt(a):
    """1 / sqrt(a) to within an ulp, where the hardware's own approximation is not."""
    if a.dtype == tl.float32:
        return tl.div_rn(1.0, tl.sqrt_rn(a))
    else:
        return 1.0 / tl.sqrt(a)
