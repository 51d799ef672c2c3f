"""The range of values that docs/accuracy.md promises: what is representable comes out, up to the root of float32's."""

import pytest
import torch

from normlib import functional as N

CALLS = {
    "layer_norm": lambda x: N.layer_norm(x, (64,)),
    "layer_norm, wide": lambda x: N.layer_norm(x.reshape(-1), (16 * 64,)),
    "layer_norm of sum": lambda x: N.layer_norm(x, (64,), residual=x)[0],
    "rms_norm": lambda x: N.rms_norm(x, (64,), eps=1e-5),
    "partial_rms_norm": lambda x: N.partial_rms_norm(x, (64,), partial=0.5, eps=1e-5),
    "batch_norm": lambda x: N.batch_norm(x, None, None, training=True),
    "batch_norm of columns": lambda x: N.batch_norm(x.T.contiguous()[:, :, None], None, None, training=True),
    "batch_renorm": lambda x: N.batch_renorm(x, x.new_zeros(64), x.new_ones(64), training=True, rmax=2.0, dmax=1.0),
    "group_norm": lambda x: N.group_norm(x, 4),
    "instance_norm": lambda x: N.instance_norm(x[:, None]),
    "lp_norm": lambda x: N.lp_norm(x, None, None, training=True, p=1),
}


def output_and_gradient(call, x, dy):
    x = x.detach().requires_grad_()
    y = call(x)
    y.backward(dy.reshape(y.shape).to(y.dtype))
    return y.detach(), x.grad


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "scale, dtype", [(1e17, torch.float32), (1e-30, torch.float32), (1e17, torch.bfloat16), (6e3, torch.float16)]
)
def test_values_far_from_one_are_as_exact_as_others(call, scale, dtype, device):
    x = (torch.randn(16, 64) * scale).to(dtype).to(device)
    dy = torch.randn(16, 64).to(dtype).to(device)
    found, truth = (output_and_gradient(CALLS[call], of, dy) for of in (x, x.double()))
    for ours, exact in zip(found, truth, strict=True):
        kept = exact.to(dtype).double()  # float16 rounds a gradient of 1e-4 to a denormal
        assert (ours.double() - kept).norm() <= 2 * torch.finfo(dtype).eps * exact.norm()


def test_rms_norm_has_torchs_default_eps(device):
    x = torch.full((2, 4), 1e-4, device=device)
    torch.testing.assert_close(N.rms_norm(x, (4,)), torch.nn.functional.rms_norm(x, (4,)))
