"""Apex's CUDA kernels, by the functions under its FusedLayerNorm and FusedRMSNorm.

    fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False)
    fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False)

The modules run PyTorch's own norm where the extension does not serve a tensor; the functions never do. Apex is built
from source, and a package of the same name on PyPI is none of NVIDIA's: what counts is the compiled extension.
"""

from __future__ import annotations

from typing import ClassVar

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.providers import Runnable
from bench.measure.providers._pairs import Forward, runnable
from bench.measure.providers._peer import Function, Peer

_NO_BATCH_NORM = "Apex has batch norm only as modules for several GPUs (SyncBatchNorm, groupbn, cudnn_gbn)"


class Apex(Peer):
    """NVIDIA's extensions from before PyTorch had fused norms."""

    name = "apex"
    package = "apex"
    source = "built from github.com/NVIDIA/apex with its CUDA extensions"
    modules = ("apex", "fused_layer_norm_cuda")
    entry_points: ClassVar = {
        "layer_norm": ("apex.normalization.fused_layer_norm:fused_layer_norm_affine",),
        "rms_norm": ("apex.normalization.fused_layer_norm:fused_rms_norm_affine",),
    }
    unserved: ClassVar = dict.fromkeys(("batch_norm", "batch_norm_relu", "batch_norm_add_relu"), _NO_BATCH_NORM)

    def runnable(self, case: Case, inputs: Inputs, *functions: Function) -> Runnable:
        (norm,) = functions
        normalized_shape = list(case.shape[-1:])
        forwards: dict[str, Forward] = {
            "layer_norm": lambda x, weight, bias: norm(x, weight, bias, normalized_shape, case.eps),
            "rms_norm": lambda x, weight: norm(x, weight, normalized_shape, case.eps),
        }
        return runnable(case, inputs, forwards[case.op])


PROVIDER = Apex()
