"""PyTorch's transforms of a function: forward-mode AD, vmap, torch.func, checkpointing, wrapper tensors, ONNX.

Where the kernels have no rule PyTorch's own formula serves; the bare operators refuse, as test_autograd.py has it.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import normlib
from normlib import composed
from normlib import functional as N

pytestmark = pytest.mark.usefixtures("process_group")
OPS = torch.ops.normlib
X, W, B = torch.randn(4, 6, dtype=torch.float64), torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
V = torch.randn(4, 6, dtype=torch.float64)
BUFFERS = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)


def partial_rms_norm_of(lib):
    """normlib's; of PyTorch, which has none, the composition."""
    return getattr(lib, "partial_rms_norm", composed.partial_rms_norm)


# Each as a function of (x, weight, bias), by the library that has it.
FUNCTIONS = {
    "layer_norm": lambda lib: lambda x, w, b: lib.layer_norm(x, (6,), w, b),
    "rms_norm": lambda lib: lambda x, w, b: lib.rms_norm(x, (6,), w, 1e-6) * b,
    "partial_rms_norm": lambda lib: lambda x, w, b: partial_rms_norm_of(lib)(x, (6,), w, 1e-6, b, 0.5),
    "batch_norm, training": lambda lib: lambda x, w, b: lib.batch_norm(x, None, None, w, b, True),
    "batch_norm, evaluation": lambda lib: lambda x, w, b: lib.batch_norm(x, *(t.to(x) for t in BUFFERS), w, b),
    "lp_norm, training": lambda lib: (
        lambda x, w, b: (composed if lib is F else lib).lp_norm(x, None, None, w, b, True, p=1)
    ),
}
TRANSFORMS = {
    "vmap of x": lambda f: vmap(lambda x: f(x, W, B))(torch.stack([X, V, X * V])),
    "vmap of x, last dimension": lambda f: vmap(lambda x: f(x, W, B), -1, 1)(torch.stack([X, V], -1)),
    "vmap of weight": lambda f: vmap(lambda w: f(X, w, B))(torch.stack([W, B])),
    "vmap of bias": lambda f: vmap(lambda b: f(X, W, b))(torch.stack([W, B])),
    "vmap of all": lambda f: vmap(f)(torch.stack([X, V]), torch.stack([W, B]), torch.stack([B, W])),
    "jvp": lambda f: jvp(f, (X, W, B), (V, B, W))[1],
    "jvp of weight": lambda f: jvp(lambda w: f(X, w, B), (W,), (B,))[1],
    "jacfwd": lambda f: jacfwd(f)(X, W, B),
    "jacrev": lambda f: jacrev(f, 1)(X, W, B),
    "grad": lambda f: grad(lambda *a: f(*a).pow(3).sum(), 2)(X, W, B),
    "hessian": lambda f: hessian(lambda x: f(x, W, B).pow(3).sum())(X),
    "gradient a sample": lambda f: vmap(grad(lambda x: f(x, W, B).pow(3).sum()))(torch.stack([X, V])),
    "a dual tensor": lambda f: dual(f, X, V),
    "a dual tensor that also wants a gradient": lambda f: dual(f, X.clone().requires_grad_(), V),
}


def dual(f, x, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent), W, B)).tangent


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_give_torchs_numbers(name, transform):
    theirs, ours = (TRANSFORMS[transform](FUNCTIONS[name](library)) for library in (F, N))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_mode_and_batched_derivatives_are_right(name):
    inputs = [t.clone().requires_grad_() for t in (X[:3], W, B)]
    function = FUNCTIONS[name](N)
    everything = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, inputs, **everything, fast_mode=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


def test_a_tangent_that_comes_in_backward_is_refused():
    x = X.clone().requires_grad_()
    y = N.layer_norm(x, (6,), W, B)  # recorded on the kernels, before there is a tangent
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="layer_norm_backward has no rule"):
        torch.autograd.grad(y, x, forward_ad.make_dual(V, V))


@pytest.mark.parametrize("transform", [grad, lambda f: vmap(grad(f)), lambda f: jacrev(f)])
def test_compiled_transforms_are_right(transform):
    x = torch.stack([X, V])
    f = {lib: transform(lambda x, lib=lib: lib.layer_norm(x, (6,), W, B).pow(3).sum()) for lib in (F, N)}
    compiled = torch.compile(f[N], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f[F](x))


SAVE = partial(create_selective_checkpoint_contexts, [OPS.layer_norm.default])


@pytest.mark.parametrize(
    "how",
    [{"use_reentrant": True}, {"use_reentrant": False}, {"use_reentrant": False, "context_fn": SAVE}],
    ids=["reentrant", "not reentrant", "selective"],
)
def test_checkpointing_gives_torchs_gradients_and_buffers(how, device):
    found = []
    for library in (torch.nn, normlib):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 6), library.BatchNorm1d(6), library.LayerNorm(6)).to(device)
        x = X.float().to(device).requires_grad_()
        checkpoint(net, x, **how).pow(3).sum().backward()
        found.append([x.grad, *(p.grad for p in net.parameters()), *net.buffers()])
    for theirs, ours in zip(*found, strict=True):
        # The first linear layer's bias has no gradient but rounding: batch norm takes its mean out.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_nested_tensors_are_pytorchs():
    parts = [torch.randn(2, 6), torch.randn(3, 6)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    y = N.layer_norm(nested, (6,), W.float(), B.float())
    for ours, part in zip(y.unbind(), parts, strict=True):
        torch.testing.assert_close(ours, F.layer_norm(part, (6,), W.float(), B.float()))


def test_distributed_tensors_are_pytorchs():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    x, w = distribute_tensor(X, mesh, [Shard(0)]), distribute_tensor(W, mesh, [Replicate()])
    y = N.layer_norm(x, (6,), w)
    assert y.placements == (Shard(0),)
    torch.testing.assert_close(y.full_tensor(), F.layer_norm(X, (6,), W))


def test_a_subclass_of_tensor_comes_back(device):
    class Named(torch.Tensor):
        pass

    x = X.to(device).as_subclass(Named)
    for y in (N.layer_norm(x, (6,)), N.rms_norm(x, (6,)), N.batch_norm(x, None, None, training=True)):
        assert type(y) is Named


def test_onnx_export_writes_standard_operators():
    pytest.importorskip("onnxscript")
    net = torch.nn.Sequential(normlib.BatchNorm1d(6), normlib.LayerNorm(6), normlib.RMSNorm(6)).eval()
    program = torch.onnx.export(net, (X.float(),), dynamo=True, verbose=False)
    names = [node.op_type for node in program.model_proto.graph.node]
    assert names[:2] == ["BatchNormalization", "LayerNormalization"] and not any("normlib" in n for n in names)
