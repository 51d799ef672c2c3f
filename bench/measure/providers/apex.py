"""Apex's CUDA kernels, by the functions under its FusedLayerNorm and FusedRMSNorm.

    fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False)
    fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False)

The modules run PyTorch's own norm where the extension does not serve a tensor; the functions never do. Apex is built
from source, and a package of the same name on PyPI is none of NVIDIA's: what counts is the compiled extension.
"""

from __future__ import annotations

from typing import ClassVar

from bench.measure.providers._peer import Native, Peer

_MODULE = "apex.normalization.fused_layer_norm"
_NO_BATCH_NORM = "Apex has batch norm only as modules for several GPUs (SyncBatchNorm, groupbn, cudnn_gbn)"


class Apex(Peer):
    """NVIDIA's extensions from before PyTorch had fused norms."""

    name = "apex"
    package = "apex"
    source = "built from github.com/NVIDIA/apex with its CUDA extensions"
    modules = ("apex", "fused_layer_norm_cuda")
    natives: ClassVar = {
        "layer_norm": Native(
            (f"{_MODULE}:fused_layer_norm_affine",),
            lambda case, norm: lambda x, weight, bias: norm(x, weight, bias, list(case.shape[-1:]), case.eps),
        ),
        "rms_norm": Native(
            (f"{_MODULE}:fused_rms_norm_affine",),
            lambda case, norm: lambda x, weight: norm(x, weight, list(case.shape[-1:]), case.eps),
        ),
    }
    unserved: ClassVar = dict.fromkeys(("batch_norm", "batch_norm_relu", "batch_norm_add_relu"), _NO_BATCH_NORM)


PROVIDERS = (Apex(),)
