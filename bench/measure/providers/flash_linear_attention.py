"""flash-linear-attention's Triton kernels, which add the residual themselves; the package is fla-core.

    layer_norm(x, weight, bias, residual=None, eps=1e-5, prenorm=False, residual_in_fp32=False, is_rms_norm=False)
    rms_norm(x, weight, bias, residual=None, eps=1e-5, prenorm=False, residual_in_fp32=False)

`prenorm` gives x + residual back beside y, which is the norm of that sum before it is rounded: in 16 bits not the norm
of what is handed on, which the operator asks for.

They are autotuned, by a timer that asks for a GPU: the interpreter cannot run them.
"""

from __future__ import annotations

from typing import ClassVar

from bench.cases.case import Case
from bench.measure.providers._peer import Native, Peer

# layer_norm_fwd in fla/modules/norm/layernorm.py: one block holds a row, and ends at so many bytes.
_WIDEST_BYTES = 65536
# In fla-core 0.6 the module's older name, which that version keeps as an alias.
_LAYER_NORM, _RMS_NORM = ("fla.modules.layernorm:layer_norm",), ("fla.modules.layernorm:rms_norm",)


class FlashLinearAttention(Peer):
    """The norms of fla's models, after Tri Dao's in Mamba."""

    name = "flash_linear_attention"
    compiles = True
    package = "fla-core"
    source = "pip install fla-core"
    modules = ("fla",)
    natives: ClassVar = {
        "layer_norm": Native(
            _LAYER_NORM,
            lambda case, norm: lambda x, weight, bias: norm(x, weight, bias, eps=case.eps),
        ),
        "layer_norm_add": Native(
            _LAYER_NORM,
            lambda case, norm: (
                lambda x, residual, weight, bias: norm(x, weight, bias, residual=residual, eps=case.eps, prenorm=True)
            ),
            "prenorm=True",
        ),
        "rms_norm": Native(
            _RMS_NORM,
            lambda case, norm: lambda x, weight: norm(x, weight, None, eps=case.eps),
        ),
        "rms_norm_add": Native(
            _RMS_NORM,
            lambda case, norm: (
                lambda x, residual, weight: norm(x, weight, None, residual=residual, eps=case.eps, prenorm=True)
            ),
            "prenorm=True",
        ),
    }

    def refusal(self, case: Case) -> str | None:
        """A row is one block, which ends at 64 KB."""
        if case.op in self.natives and case.shape[-1] * case.item_bytes > _WIDEST_BYTES:
            return f"{self.package} takes rows of {_WIDEST_BYTES} bytes at most"
        return super().refusal(case)


PROVIDERS = (FlashLinearAttention(),)
