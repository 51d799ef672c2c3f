"""The limits of a multiprocessor, for each GPU that the audit compiles for. Imports neither torch nor triton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a multiprocessor's programs, and the cache that all multiprocessors share."""

    warps: int
    programs: int
    registers: int  # 32-bit ones, of all lanes
    register_step: int  # a warp's registers are allocated in multiples of this
    shared: int  # bytes
    shared_reserved: int  # bytes of it that each program loses to the system
    cache: int  # bytes that device memory is behind


def _cuda(shared: int, cache: int) -> Limits:
    """Compute capabilities 8.0, 9.0 and 10.0 differ only in shared memory (CUDA C++ Programming Guide, 20.2)."""
    return Limits(64, 32, 65536, 256, shared << 10, 1 << 10, cache << 20)


LIMITS = {
    "sm_80": _cuda(shared=164, cache=40),  # NVIDIA A100 Tensor Core GPU Architecture
    "sm_90": _cuda(shared=228, cache=50),  # NVIDIA H100 Tensor Core GPU Architecture; H200 has the same die
    "sm_100": _cuda(shared=228, cache=126),  # NVIDIA Blackwell Architecture
    # AMD CDNA 3 white paper: 4 SIMDs a compute unit, 64 KB of LDS, 256 MB of Infinity Cache before the memory (the
    # L2 is one of 4 MB for each eighth of the device). LLVM's AMDGPU guide: 8 waves and 512 vector registers of 64
    # lanes a SIMD, allocated by eights. LLVM grants 16 work-groups of several waves a compute unit.
    "gfx942": Limits(32, 16, 4 * 512 * 64, 8 * 64, 64 << 10, 0, 256 << 20),
}


def resident_programs(limits: Limits, warps: int, warp_size: int, registers: int, shared: int) -> int:
    """Returns the number of programs of a kernel that one multiprocessor can hold; at least 1.

    `registers` are those of one lane, `shared` bytes of one program. An upper bound: nothing says that so many arrive.
    """
    a_warp = -(-max(registers, 1) * warp_size // limits.register_step) * limits.register_step
    by_registers = limits.registers // a_warp // warps
    by_shared = limits.shared // (shared + limits.shared_reserved) if shared else limits.programs
    return max(min(limits.warps // warps, by_registers, by_shared, limits.programs), 1)
