"""Small users' calls over ragged tails, forward and backward, that launch every kernel: for the sanitizers to watch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor

from bench.audit.calls import DEVICE, Call, recorded_small_calls
from bench.cases.operators.batch_norm import MOMENTUM
from bench.fake_gpu import planned_for
from normlib import functional
from normlib.kernels import host
from normlib.kernels.plan import Device

# How a tensor of a call lies in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda t: t,
    "rows apart": lambda t: torch.stack([t, t], 1)[:, 0],
    "expanded": lambda t: t[:1].expand(t.shape),
}


@dataclass(frozen=True)
class SmallCall:
    """A user's call, and the device that it is planned for."""

    call: Call
    device: Device = DEVICE
    layout: str = ""
    pre_relu: bool = False  # of batch norm with a residual or without: a ReLU before the norm too

    def __str__(self) -> str:
        device = f"{self.device.multiprocessors}mp {self.device.l2}"
        return f"{self.call} {device} {self.layout} {'pre-relu' * self.pre_relu}".strip()

    def run(self, device: torch.device) -> dict[str, Tensor]:
        """Returns all results of the call on normal inputs, by pass, and the running statistics that it updates."""

        def drawn(operator, case, _):
            inputs = {name: t.to(device) for name, t in operator.drawn(case, torch.device("cpu"), 0).items()}
            for name in inputs.keys() & {"x", "dy", "residual", "dz"}:
                inputs[name] = LAYOUTS[self.layout](inputs[name])
            updated.update((name, t) for name, t in inputs.items() if name.startswith("running_"))
            return inputs

        updated: dict[str, Tensor] = {}
        found = {}
        forward = _after_a_relu if self.pre_relu else None
        with planned_for(self.device), mock.patch.object(host, "_properties", lambda _: self.device):
            for mode, run in self.call.passes(str(device), drawn, forward):
                found |= {f"{mode} {name}": t for name, t in run().items()}
        return found | updated


def _after_a_relu(case):
    def forward(x, running_mean, running_var, weight, bias, residual=None):
        arguments = (running_mean, running_var, weight, bias, case.mode != "eval", MOMENTUM, case.eps)
        return functional.batch_norm(x, *arguments, activation="relu", residual=residual, pre_activation="relu")

    return forward


def _chosen() -> list[SmallCall]:
    """The calls whose bytes are counted, less those that wait and those that differ from another only in their dtype.

    Of an operator whose sweeps are batch norm's or whose rows are layer norm's one shape is enough.
    """
    found: dict[object, SmallCall] = {}
    for call, device, passes in recorded_small_calls():
        launches = [moved for one in passes for moved in one.launches]
        if not any(moved.waits for moved in launches):
            kinds = tuple(moved.kernel for moved in launches)
            plain = call.op in ("batch_norm", "layer_norm", "group_norm", "weight_norm")
            shape = call.shape if plain else ()
            found.setdefault((replace(call, dtype="", shape=shape), kinds), SmallCall(call, device))
    return list(found.values())


def _wide(multiprocessors: int) -> Device:
    return Device(multiprocessors)


# Layouts that no case has; a single column, row or channel; and what many programs leave, more than the merge takes at
# once: 66 partial rows, 66 splits of a channel, three splits of a long row's weight gradient, the last with one row.
CALLS = [
    *_chosen(),
    *(
        SmallCall(Call(op, (6, 37), "fp32", "rows"), layout=layout)
        for op in ("layer_norm", "rms_norm", "layer_norm_add", "weight_norm")
        for layout in ("rows apart", "expanded")
    ),
    *(SmallCall(Call("layer_norm", shape, "fp32", "rows")) for shape in ((1, 1), (5, 1))),
    *(SmallCall(Call(op, (7, 1000), "fp16", "rows"), _wide(3)) for op in ("layer_norm", "partial_rms_norm")),
    SmallCall(Call("layer_norm", (66, 520), "fp64", "rows"), _wide(17)),
    SmallCall(Call("layer_norm", (17, 4100), "fp64", "rows", ("dx",)), _wide(9)),
    SmallCall(Call("weight_norm", (2, 4100), "fp64", "rows", ("dx",))),
    *(SmallCall(Call("batch_norm", shape, "fp32", "nchw")) for shape in ((2, 1, 1, 1), (5, 7))),
    *(SmallCall(Call("batch_norm", (4, 3, 7, 7), "fp16", layout), _wide(5)) for layout in ("nchw", "nhwc")),
    SmallCall(Call("batch_norm", (66, 2, 1), "fp32", "nchw"), _wide(17)),
    *(SmallCall(Call("batch_norm_relu", shape, "fp32", "nchw"), _wide(3)) for shape in ((2, 65, 7, 7), (33, 130))),
    *(
        SmallCall(Call(op, (2, 65, 6, 6), "fp32", "nchw"), _wide(3), pre_relu=True)
        for op in ("batch_norm_relu", "batch_norm_add_relu")
    ),
    SmallCall(Call("batch_norm_add_relu", (2, 1, 1, 1), "fp32", "nchw")),  # tiles that are smaller than a byte of signs
    SmallCall(Call("batch_renorm", (2, 65, 7, 7), "fp32", "nhwc"), _wide(3)),
    SmallCall(Call("noisy_batch_norm", (3, 5, 11), "bf16", "nchw"), _wide(2)),
    SmallCall(Call("group_norm", (2, 10, 700), "fp32", "nhwc", (), (("groups", 2),)), _wide(9)),
]

# A few in which every kernel has lanes to mask, along rows and along columns.
RAGGED = [
    SmallCall(Call("layer_norm", (33, 100), "fp32", "rows")),
    SmallCall(Call("layer_norm", (3, 8205), "fp64", "rows")),
    *(SmallCall(Call("batch_norm", (3, 5, size), "fp32", "nchw"), _wide(2)) for size in (11, 49, 700)),
    SmallCall(Call("batch_renorm", (3, 5, 11), "fp32", "nchw"), _wide(2)),
    SmallCall(Call("noisy_batch_norm", (3, 5, 11), "fp32", "nchw"), _wide(2)),
    SmallCall(Call("instance_norm", (3, 5, 11), "fp32", "nchw")),
    SmallCall(Call("group_norm", (1, 9, 5000), "fp32", "nchw", (), (("groups", 3),)), _wide(3)),
    SmallCall(Call("sync_batch_norm", (3, 5, 11), "fp32", "nchw", (), (("ranks", 3),)), _wide(2)),
    SmallCall(Call("lp_norm", (3, 5, 11), "fp32", "nchw", (), (("p", "inf"),)), _wide(2)),
    SmallCall(Call("weight_norm", (33, 100), "fp32", "rows")),
    SmallCall(Call("weight_norm", (3, 8205), "fp64", "rows")),
]
