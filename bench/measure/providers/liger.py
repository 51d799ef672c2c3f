"""Liger-Kernel's Triton kernels, the default ones: their own modules are asked, where no other implementation can be
put in their place (liger_kernel.ops swaps in cuTile's or CuTe's by device and by LIGER_KERNEL_IMPL).

    LigerLayerNormFunction.apply(X, W, B, eps)
    LigerRMSNormFunction.apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None)
    LigerFusedAddRMSNormFunction.apply(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False)

Two switches differ from those of Liger's models:

casting_mode="gemma"  computes in float32 and rounds once, which is what PyTorch's RMS norm does and the operator asks
                      for. "llama" rounds x_hat as well, as Hugging Face's Llama does: another function in 16 bits.
in_place=False        backward writes dx into a tensor of its own. True writes it into dy, which a cell must not
                      change. For RMS norm Liger clears that tensor first: one more pass over memory than in place.
"""

from __future__ import annotations

from typing import ClassVar

from bench.cases.case import Case
from bench.measure.providers._peer import Native, Peer

# calculate_settings in liger_kernel/ops/utils.py: one block holds a row.
_WIDEST = 65536
_OFFSET, _CASTING_MODE, _IN_PLACE = 0.0, "gemma", False
_SETTINGS = f"casting_mode={_CASTING_MODE}, in_place={_IN_PLACE}"


class Liger(Peer):
    """LinkedIn's kernels for training language models."""

    name = "liger"
    compiles = True
    package = "liger-kernel"
    source = "pip install liger-kernel"
    modules = ("liger_kernel",)
    natives: ClassVar = {
        "layer_norm": Native(
            ("liger_kernel.ops.layer_norm:LigerLayerNormFunction.apply",),
            lambda case, apply: lambda x, weight, bias: apply(x, weight, bias, case.eps),
        ),
        "rms_norm": Native(
            ("liger_kernel.ops.rms_norm:LigerRMSNormFunction.apply",),
            lambda case, apply: lambda x, weight: apply(x, weight, case.eps, _OFFSET, _CASTING_MODE, _IN_PLACE),
            _SETTINGS,
        ),
        "rms_norm_add": Native(
            ("liger_kernel.ops.fused_add_rms_norm:LigerFusedAddRMSNormFunction.apply",),
            lambda case, apply: (
                lambda x, residual, weight: apply(x, residual, weight, case.eps, _OFFSET, _CASTING_MODE, _IN_PLACE)
            ),
            _SETTINGS,
        ),
    }

    def refusal(self, case: Case) -> str | None:
        """A row is one block, which ends at 65536 columns."""
        if case.op in self.natives and case.shape[-1] > _WIDEST:
            return f"{self.package} takes rows of {_WIDEST} columns at most"
        return super().refusal(case)


PROVIDERS = (Liger(),)
