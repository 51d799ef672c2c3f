"""Stand-ins for libraries that cannot be installed: functions of their recorded signatures that compute with PyTorch.

Their parameters have the library's own names, defaults filled in. What they compute is what the library documents.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peer_signatures import record
from torch import Tensor
from torch.nn import functional as F

Function = Callable[..., Any]
EVERY_GRADIENT = [True, True, True]
SWITCHES = {"ln_out": None, "quantizer": None, "otype": "kFloat32", "sm_margin": 0, "zero_centered_gamma": False}


def put(name: str, monkeypatch: Any) -> None:
    """Puts modules with stand-ins where this provider imports its library's functions from."""
    objects: dict[str, Any] = {
        entry: _bound(entry, one["signature"], FUNCTIONS[name][entry.partition(":")[2]])
        for entry, one in record.read(name)["entry_points"].items()
    }
    objects["transformer_engine.pytorch.constants:TE_DType"] = {torch.float32: "kFloat32"}
    modules: dict[str, ModuleType] = {}
    for entry, stand_in in objects.items():
        file, _, path = entry.partition(":")
        outer, _, last = path.rpartition(".")
        attribute = {outer: SimpleNamespace(**{last: stand_in})} if outer else {last: stand_in}
        vars(modules.setdefault(file, ModuleType(file))).update(attribute)
    for file, module in modules.items():
        monkeypatch.setitem(sys.modules, file, module)


def _bound(entry_point: str, recorded: str, compute: Function) -> Function:
    """Refuses with TypeError what does not bind to the signature, as the library itself would."""
    signature = inspect.signature(eval(f"lambda {recorded}: None"))

    def function(*args: object, **kwargs: object) -> object:
        # autograd.Function.apply takes none, whatever forward calls its parameters.
        assert not (kwargs and entry_point.endswith(".apply"))
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return compute(**bound.arguments)

    return function


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _maybe_pair(norm: Function, x: Tensor, residual: Tensor | None, prenorm: bool) -> Any:
    z = x if residual is None else x + residual
    return (norm(z), z) if prenorm else norm(z)


def _layer_norm_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> list[Tensor]:
    y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
    return [y, mean.flatten(), rstd.flatten()]


def _layer_norm_bwd(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    saved = mean.view(-1, 1), rstd.view(-1, 1)
    return torch.ops.aten.native_layer_norm_backward(dy, x, weight.shape, *saved, weight, weight, EVERY_GRADIENT)


def _rms_norm_bwd(dy: Tensor, x: Tensor, rstd: Tensor, weight: Tensor) -> list[Tensor]:
    x_hat, wdy = x * rstd.view(-1, 1), dy * weight
    dx = (wdy - x_hat * (x_hat * wdy).mean(1, keepdim=True)) * rstd.view(-1, 1)
    return [dx, (dy * x_hat).sum(0)]


def _liger_rms_norm(X, W, eps, offset, casting_mode, in_place, row_mode):
    assert (casting_mode, in_place) == ("gemma", False)
    return _rms_norm(X, offset + W, eps)


def _liger_add_rms_norm(X, R, W, eps, offset, casting_mode, in_place):
    assert (casting_mode, in_place) == ("gemma", False)
    return _maybe_pair(lambda z: _rms_norm(z, offset + W, eps), X, R, True)


def _layer_norm_and_residual(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm):
    return _maybe_pair(lambda z: F.layer_norm(z, weight.shape, weight, bias, eps), x, residual, prenorm)


def _rms_norm_and_residual(x, weight, bias, residual, eps, prenorm, **unused):
    assert bias is None
    return _maybe_pair(lambda z: _rms_norm(z, weight, eps), x, residual, prenorm)


def _quack_layernorm_fwd(x, weight, bias, eps, return_rstd, return_mean):
    y, mean, rstd = _layer_norm_fwd(x, weight, bias, eps)
    return (y, *([rstd] if return_rstd else []), *([mean] if return_mean else []))


def _engine_layernorm_fwd(input, weight, bias, eps, **switches):
    assert switches == SWITCHES
    return _layer_norm_fwd(input, weight, bias, eps)


def _engine_layernorm_bwd(dz, x, mu, rsigma, gamma, **switches):
    assert switches.items() <= SWITCHES.items()
    return list(_layer_norm_bwd(dz, x, mu, rsigma, gamma))


def _engine_rmsnorm_fwd(input, weight, eps, **switches):
    assert switches == SWITCHES
    return [_rms_norm(input, weight, eps), None, (input.square().mean(1) + eps).rsqrt()]


def _engine_rmsnorm_bwd(dz, x, rsigma, gamma, **switches):
    assert switches.items() <= SWITCHES.items()
    return _rms_norm_bwd(dz, x, rsigma, gamma)


def _gems_layer_norm_backward(grad_out, input, normalized_shape, mean, rstd, weight, bias, output_mask):
    assert output_mask == EVERY_GRADIENT and bias is not None
    return _layer_norm_bwd(grad_out, input, mean, rstd, weight)


# By provider and the name that is called, without its module.
FUNCTIONS: dict[str, dict[str, Function]] = {
    "apex": {
        "fused_layer_norm_affine": lambda input, weight, bias, normalized_shape, eps, memory_efficient: F.layer_norm(
            input, normalized_shape, weight, bias, eps
        ),
        "fused_rms_norm_affine": lambda input, weight, normalized_shape, eps, memory_efficient: F.rms_norm(
            input, normalized_shape, weight, eps
        ),
    },
    "flag_gems": {
        "layer_norm": lambda input, normalized_shape, **given: _layer_norm_fwd(input, **given),
        "layer_norm_backward": _gems_layer_norm_backward,
        "rms_norm": lambda x, normalized_shape, weight, eps: F.rms_norm(x, normalized_shape, weight, eps),
        # PyTorch's own operators, which these are registered for; `input` is no keyword's name there.
        "batch_norm": lambda **given: torch.native_batch_norm(*given.values()),
        "batch_norm_backward": lambda **given: torch.ops.aten.native_batch_norm_backward(*given.values()),
    },
    "flash_linear_attention": {"layer_norm": _layer_norm_and_residual, "rms_norm": _rms_norm_and_residual},
    "liger": {
        "LigerLayerNormFunction.apply": lambda X, W, B, eps: F.layer_norm(X, W.shape, W, B, eps),
        "LigerRMSNormFunction.apply": _liger_rms_norm,
        "LigerFusedAddRMSNormFunction.apply": _liger_add_rms_norm,
    },
    "quack": {
        "rmsnorm": _rms_norm_and_residual,
        "layernorm_fwd": _quack_layernorm_fwd,
        "layernorm_bwd": lambda x, weight, dout, rstd, mean, has_bias: _layer_norm_bwd(dout, x, mean, rstd, weight),
    },
    "transformer_engine": {
        "layernorm_fwd": _engine_layernorm_fwd,
        "layernorm_bwd": _engine_layernorm_bwd,
        "rmsnorm_fwd": _engine_rmsnorm_fwd,
        "rmsnorm_bwd": _engine_rmsnorm_bwd,
    },
}
