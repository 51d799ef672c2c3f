"""Conversion changes what computes a norm and nothing else, and can be undone."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import l1_unstructured

import normlib
from normlib import row_norm
from normlib.convert import SWAPS, convert
from normlib.lookalike import ConvertedRMSNorm
from normlib.swap import revert

LlamaRMSNorm = pytest.importorskip("transformers.models.llama.modeling_llama").LlamaRMSNorm
T5LayerNorm = pytest.importorskip("transformers.models.t5.modeling_t5").T5LayerNorm

# name: (how to make one, an input's shape, its class when converted).
NORMS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (4, 6), normlib.BatchNorm1d),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6, momentum=None), (2, 6, 3, 3), normlib.BatchNorm2d),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6, affine=False), (2, 6, 2, 2, 2), normlib.BatchNorm3d),
    "BatchNorm1d, untracked": (lambda: nn.BatchNorm1d(6, track_running_stats=False), (4, 6), normlib.BatchNorm1d),
    "LayerNorm": (lambda: nn.LayerNorm((2, 6), eps=1e-3), (3, 2, 6), normlib.LayerNorm),
    "LayerNorm, no bias": (lambda: nn.LayerNorm(6, bias=False), (4, 6), normlib.LayerNorm),
    "RMSNorm": (lambda: nn.RMSNorm(6), (4, 6), normlib.RMSNorm),
    "RMSNorm, no weight": (lambda: nn.RMSNorm(6, 1e-3, elementwise_affine=False), (4, 6), normlib.RMSNorm),
    "GroupNorm": (lambda: nn.GroupNorm(3, 6, eps=1e-3), (4, 6, 3), normlib.GroupNorm),
    "GroupNorm, no weight": (lambda: nn.GroupNorm(2, 6, affine=False), (2, 6, 3, 3), normlib.GroupNorm),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(6), (4, 6, 5), normlib.InstanceNorm1d),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6, affine=True), (2, 6, 3, 3), normlib.InstanceNorm2d),
    "InstanceNorm3d, tracked": (
        lambda: nn.InstanceNorm3d(6, track_running_stats=True),
        (2, 6, 2, 2, 2),
        normlib.InstanceNorm3d,
    ),
    "Llama's": (lambda: LlamaRMSNorm(6, 1e-3), (4, 6), ConvertedRMSNorm),
    "T5's": (lambda: T5LayerNorm(6), (4, 6), ConvertedRMSNorm),
}


def randomised(module):
    """Ones and zeros would hide a weight or a statistic that is dropped."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return module


class Net(nn.Module):
    """A norm of each kind, one of them at two places, and one that stays."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.group = nn.GroupNorm(2, 4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.local = nn.LocalResponseNorm(2)
        self.blocks = nn.ModuleList([nn.LayerNorm(6), nn.RMSNorm(6, eps=1e-6)])
        self.llama = LlamaRMSNorm(6)
        self.again = self.llama

    def forward(self, x):
        y = self.local(self.instance(self.group(self.bn(self.first(x)).relu())))
        return self.again(self.blocks[1](self.llama(self.blocks[0](y)).relu()))


CONVERTED = ("bn", "group", "instance", "blocks.0", "blocks.1", "llama")
IMAGES = (2, 3, 8, 8)
OTHER = "it is not one of batch norm, layer norm, RMS norm, group norm and instance norm"


def snapshot(module):
    """All that a model is made of: objects by identity, in their order."""
    return [
        (name, id(m), type(m), [(k, id(v)) for k, v in vars(m).items()], [(k, id(v)) for k, v in m._parameters.items()])
        for name, m in module.named_modules(remove_duplicate=False)
    ] + [(name, id(t)) for name, t in (*module.named_parameters(), *module.named_buffers())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_a_model_that_is_a_norm_itself_computes_the_same_and_reverts(name, training, device):
    make, shape, kind = NORMS[name]
    module = randomised(make()).to(device).train(training)
    theirs, before, text = copy.deepcopy(module), snapshot(module), repr(module)
    assert convert(module).counts == {type(theirs).__name__: 1}
    assert type(module) is kind and module.training == training
    x = torch.randn(shape, device=device)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    for m, t in ((module, a), (theirs, b)):
        m(t).square().sum().backward()
    # Beside float32's rounding of 6e-8 a gradient of a normalized square cancels to some hundredth of its terms.
    torch.testing.assert_close(module(x), theirs(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    for p, q in zip(module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5)
    for p, q in zip(module.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert revert(module) == ("",)
    assert snapshot(module) == before and repr(module) == text
    theirs.load_state_dict(module.state_dict())
    assert torch.equal(module(x), theirs(x))


def test_the_summary_names_what_was_converted_and_what_was_not_and_why():
    net = Net()
    reference = net.llama
    summary = convert(net)
    found = {c.names: (c.before, c.after) for c in summary.converted}
    assert found == {
        ("bn",): (nn.BatchNorm2d, normlib.BatchNorm2d),
        ("group",): (nn.GroupNorm, normlib.GroupNorm),
        ("instance",): (nn.InstanceNorm2d, normlib.InstanceNorm2d),
        ("blocks.0",): (nn.LayerNorm, normlib.LayerNorm),
        ("blocks.1",): (nn.RMSNorm, normlib.RMSNorm),
        ("llama", "again"): (LlamaRMSNorm, ConvertedRMSNorm),
    }
    assert summary.counts == {before.__name__: 1 for before, _ in found.values()}
    assert [(s.names, s.kind) for s in summary.left_alone] == [(("local",), nn.LocalResponseNorm)]
    assert net.again is net.llama is reference
    assert str(summary) == repr(summary)
    lines = str(summary).splitlines()
    assert f"converted: {len(CONVERTED)}" in lines
    assert "  1 x LlamaRMSNorm -> normlib's ConvertedRMSNorm (llama = again)" in lines
    assert {"left alone: 1", f"  1 x LocalResponseNorm: {OTHER} (local)"} <= {*lines}
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.dry_run = True


def test_the_summary_of_a_deep_model_is_short():
    summary = convert(nn.Sequential(*(nn.LayerNorm(4) for _ in range(100))))
    assert "100 x LayerNorm -> normlib's LayerNorm (0, 1, 2 and 97 more)" in str(summary) and len(str(summary)) < 200


def test_a_dry_run_reports_the_same_and_changes_nothing():
    net = Net()
    before = snapshot(net)
    dry = convert(net, dry_run=True)
    assert snapshot(net) == before and f"would convert: {len(CONVERTED)}" in str(dry)
    assert dataclasses.replace(dry, dry_run=False) == convert(net)


def test_a_second_conversion_finds_its_work_done():
    net = Net()
    convert(net)
    before = snapshot(net)
    again = convert(net)
    assert snapshot(net) == before and not again.converted
    assert {name for a in again.already for name in a.names} == {*CONVERTED, "again"}
    assert str(again).startswith("nothing to convert\n") and f"normlib's already: {len(CONVERTED)}" in str(again)
    assert "1 x LayerNorm (" in str(again)
    assert not revert(normlib.LayerNorm(4))  # which never was another


def test_every_norm_of_normlib_is_known_as_its_own():
    kinds = {kind for kind in vars(normlib).values() if isinstance(kind, type)}
    made = [normlib.GroupNorm(2, 4), *(kind(4) for kind in kinds - {normlib.GroupNorm})]
    summary = convert(nn.Sequential(*made, normlib.parametrize_weight_norm(nn.Linear(3, 4))))
    assert len(summary.already) == len(kinds) + 1 and not summary.converted and not summary.left_alone


@pytest.mark.parametrize("op", SWAPS)
def test_ops_restricts_what_is_converted_and_reported(op):
    class Subclass(nn.LayerNorm):
        def forward(self, input):
            return 2 * super().forward(input)

    net = nn.ModuleDict({"net": Net(), "sub": Subclass(4)})
    summary = convert(net, ops=[op])
    expected = {
        "batch_norm": {"BatchNorm2d"},
        "layer_norm": {"LayerNorm"},
        "rms_norm": {"RMSNorm", "LlamaRMSNorm"},
        "group_norm": {"GroupNorm"},
        "instance_norm": {"InstanceNorm2d"},
    }
    assert set(summary.counts) == expected[op]
    assert any(s.kind is Subclass for s in summary.left_alone) == (op == "layer_norm")


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        (({"a": 1},), {}, TypeError, "model must be a torch.nn.Module, not a dict"),
        ((nn.LayerNorm,), {}, TypeError, "model must be a torch.nn.Module, not the class LayerNorm"),
        ((nn.LayerNorm(4),), {"ops": "layer_norm"}, TypeError, "ops must be a tuple of names out of"),
        ((nn.LayerNorm(4),), {"ops": None}, TypeError, "ops must be a tuple of names out of"),
        ((nn.LayerNorm(4),), {"ops": ["weight_norm"]}, ValueError, "not 'weight_norm'"),
        ((nn.LayerNorm(4),), {"ops": [nn.LayerNorm]}, ValueError, "'batch_norm', 'layer_norm', 'rms_norm', "),
    ],
)
def test_a_bad_argument_is_refused_in_one_line_that_says_what_is_allowed(args, options, error, words):
    with pytest.raises(error) as caught:
        convert(*args, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_revert_refuses_what_is_no_module():
    with pytest.raises(TypeError, match="not a list"):
        revert([nn.LayerNorm(4)])


class OwnForward(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(nn.RMSNorm):
    pass


class GroupNorm32(nn.GroupNorm):
    """As of several published models: it computes in float32."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def with_forward():
    module = nn.BatchNorm1d(4)
    module.forward = lambda x: x
    return module


def parametrized(module):
    return parametrize.register_parametrization(module, "weight", nn.Softplus())


def with_bias():
    module = nn.RMSNorm(4)
    module.bias = nn.Parameter(torch.ones(4))  # which torch.nn.RMSNorm does not use, and normlib's does
    return module


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OwnForward(4), "it is a subclass of torch's LayerNorm"),
        (lambda: Renamed(4), "it is a subclass of torch's RMSNorm"),
        (lambda: GroupNorm32(2, 4), "it is a subclass of torch's GroupNorm"),
        (with_forward, "something replaced its forward"),
        (with_bias, "it has an attribute bias"),
        (lambda: parametrized(nn.LayerNorm(4)), "it is parametrized"),
        (lambda: parametrized(LlamaRMSNorm(4)), "it is parametrized"),
        (lambda: parametrized(nn.GroupNorm(2, 4)), "it is parametrized"),
        (lambda: nn.LazyBatchNorm2d(), "it is lazy"),
        (lambda: nn.LazyInstanceNorm1d(), "it is lazy"),
        (lambda: nn.SyncBatchNorm(4), "it merges statistics over processes"),
        (lambda: nn.LocalResponseNorm(2), OTHER),
    ],
)
def test_what_is_not_exactly_one_of_them_is_left_alone_with_the_reason(make, reason):
    module = make()
    before = snapshot(module)
    summary = convert(module)
    assert not summary.converted and snapshot(module) == before
    assert [(s.names, s.kind) for s in summary.left_alone] == [(("",), type(module))]
    assert summary.left_alone[0].reason.startswith(reason)


def test_what_no_one_would_expect_to_be_converted_is_not_mentioned():
    summary = convert(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.PReLU(4), nn.ModuleList([nn.Embedding(4, 4)])))
    assert not summary.converted and not summary.left_alone


@pytest.mark.parametrize("kind", ["BatchNorm2d", "InstanceNorm2d"])
def test_a_lazy_norm_is_converted_once_it_is_initialised(kind):
    module = getattr(nn, f"Lazy{kind}")()
    module(torch.randn(2, 3, 4, 4))
    assert convert(module).counts == {kind: 1}


@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm2d", "Llama's"])
def test_every_hook_stays_and_runs_once(name, device):
    make, shape, _ = NORMS[name]
    module = make().to(device)
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append("pre"))
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    module.register_full_backward_pre_hook(lambda *_: calls.append("backward pre"))
    module.register_state_dict_post_hook(lambda *_: calls.append("state_dict"))
    module.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    convert(module)
    assert not calls
    module(torch.randn(shape, device=device, requires_grad=True)).sum().backward()
    module.load_state_dict(module.state_dict())
    assert calls == ["pre", "forward", "backward pre", "backward", "state_dict", "load"]


def test_a_pruned_norm_keeps_its_mask(device):
    module = nn.LayerNorm(6).to(device)
    l1_unstructured(module, "weight", 3)
    x = torch.randn(4, 6, device=device)
    expected = module(x)
    assert convert(module).converted
    assert (expected == 0).sum() == 12
    torch.testing.assert_close(module(x), expected)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle])
def test_a_copy_of_a_converted_model_is_converted_and_reverts(through, device):
    net = randomised(Net()).to(device)
    classes = {name: type(m) for name, m in net.named_modules()}
    x = torch.randn(IMAGES, device=device)
    expected = net(x)
    convert(net)
    other = through(net)
    assert torch.equal(other(x), net(x)) and type(other.llama) is ConvertedRMSNorm and other.llama is other.again
    assert revert(other) == CONVERTED
    assert {name: type(m) for name, m in other.named_modules()} == classes
    assert torch.equal(other(x), expected)
    assert type(net.llama) is ConvertedRMSNorm  # a copy of its own


def test_attributes_of_the_same_name_come_back(device):
    class Named(LlamaRMSNorm):
        def __init__(self):
            super().__init__(6)
            self.eps, self.normalized_shape, self.result_dtype, self.bias = 0.5, "rows", None, None

        def forward(self, hidden_states):
            return super().forward(hidden_states)

    module = Named().to(device)
    before = snapshot(module)
    x = torch.randn(4, 6, device=device) * 1e-3
    expected = module(x)
    assert convert(module).converted and module.eps == 1e-6
    torch.testing.assert_close(module(x), expected)
    assert repr(module).startswith("ConvertedRMSNorm(")
    revert(module)
    assert snapshot(module) == before and module.eps == 0.5


def test_revert_refuses_what_changed_since_and_then_changes_nothing():
    net = Net()
    convert(net)
    parametrized(net.blocks[1])
    before = snapshot(net)
    with pytest.raises(RuntimeError, match=r"'blocks.1' became a ParametrizedRMSNorm after its conversion"):
        revert(net)
    assert snapshot(net) == before
    parametrize.remove_parametrizations(net.blocks[1], "weight")
    assert revert(net) == CONVERTED

    norm = nn.RMSNorm(4)
    convert(norm)
    norm.bias = nn.Parameter(torch.ones(4))
    with pytest.raises(RuntimeError, match="was given a bias"):
        revert(norm)


def test_a_model_on_the_meta_device_is_converted(device):
    with torch.device("meta"):
        net = Net()
    assert len(convert(net).converted) == len(CONVERTED) and all(p.is_meta for p in net.parameters())
    original = randomised(Net()).to(device)
    net = net.to_empty(device=device)
    net.load_state_dict(original.state_dict())
    x = torch.randn(IMAGES, device=device)
    # Norms in a row, each a few roundings of 6e-8.
    torch.testing.assert_close(net(x), original(x), rtol=1e-5, atol=1e-5)


def test_a_failure_while_examining_leaves_the_whole_model_as_it_was(monkeypatch):
    net = nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4), LlamaRMSNorm(4))
    before = snapshot(net)

    def interrupted(self, hidden_states):
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaRMSNorm, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(net)
    assert snapshot(net) == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_converted_model_compiles_whole(when, device, monkeypatch):
    """Also one that was compiled, and has run, before its conversion: it is compiled again, and so the kernels run."""
    torch._dynamo.reset()
    forward, calls = row_norm.kernels.forward, []
    monkeypatch.setattr(row_norm.kernels, "forward", lambda *a, **k: calls.append("forward") or forward(*a, **k))
    net = randomised(Net()).to(device)
    x = torch.randn(IMAGES, device=device)
    expected = net(x)
    if when == "after":
        convert(net)
    run = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(x), expected, rtol=1e-5, atol=1e-5)
    if when == "before":
        convert(net)
        assert not calls
        torch.testing.assert_close(run(x), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) >= 4  # one layer norm, three RMS norms
    run(x).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("kind", [LlamaRMSNorm, T5LayerNorm])
def test_a_converted_norm_of_mixed_dtypes_compiles_whole(kind, device):
    torch._dynamo.reset()
    module = kind(6).to(device)
    convert(module)
    x = torch.randn(4, 6, device=device, dtype=torch.bfloat16)
    y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype == torch.float32 and torch.equal(y, module(x))
