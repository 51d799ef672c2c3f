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
from bench.cases.operators import Inputs
from bench.cases.operators._draw import TORCH_DTYPES
from bench.measure.providers import Runnable
from bench.measure.providers._pairs import Forward, runnable
from bench.measure.providers._peer import Function, Peer

# layer_norm_fwd in fla/modules/norm/layernorm.py: one block holds a row, and ends at so many bytes.
_WIDEST_BYTES = 65536
# In fla-core 0.6 the module's older name, which that version keeps as an alias.
_LAYER_NORM, _RMS_NORM = "fla.modules.layernorm:layer_norm", "fla.modules.layernorm:rms_norm"


class FlashLinearAttention(Peer):
    """The norms of fla's models, after Tri Dao's in Mamba."""

    name = "flash_linear_attention"
    package = "fla-core"
    source = "pip install fla-core"
    modules = ("fla",)
    entry_points: ClassVar = {
        "layer_norm": (_LAYER_NORM,),
        "layer_norm_add": (_LAYER_NORM,),
        "rms_norm": (_RMS_NORM,),
        "rms_norm_add": (_RMS_NORM,),
    }
    settings: ClassVar = dict.fromkeys(("layer_norm_add", "rms_norm_add"), "prenorm=True")

    def refusal(self, case: Case) -> str | None:
        """A row is one block, which ends at 64 KB."""
        if case.op in self.entry_points and case.shape[-1] * TORCH_DTYPES[case.dtype].itemsize > _WIDEST_BYTES:
            return f"{self.package} takes rows of {_WIDEST_BYTES} bytes at most"
        return super().refusal(case)

    def runnable(self, case: Case, inputs: Inputs, *functions: Function) -> Runnable:
        (norm,) = functions
        adding = {"eps": case.eps, "prenorm": True}
        forwards: dict[str, Forward] = {
            "layer_norm": lambda x, weight, bias: norm(x, weight, bias, eps=case.eps),
            "layer_norm_add": lambda x, residual, weight, bias: norm(x, weight, bias, residual=residual, **adding),
            "rms_norm": lambda x, weight: norm(x, weight, None, eps=case.eps),
            "rms_norm_add": lambda x, residual, weight: norm(x, weight, None, residual=residual, **adding),
        }
        return runnable(case, inputs, forwards[case.op])


PROVIDER = FlashLinearAttention()
