"""Tools that find and replace layers by their class: none drops what a layer adds to its PyTorch class."""

import warnings

import pytest
import torch
from every_layer import FORMS
from torch import nn
from torch.ao import quantization
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fusion
from torch.optim.swa_utils import update_bn

import normlib
from normlib import functional as N

IMAGES = torch.randn(4, 3, 5, 5)
MORE_THAN_BATCH_NORM = {
    "NoisyBatchNorm2d": lambda: normlib.NoisyBatchNorm2d(3),
    "LpNorm2d": lambda: normlib.LpNorm2d(3),
    "BatchRenorm2d": lambda: normlib.BatchRenorm2d(3),
    "SequenceBatchNorm": lambda: normlib.SequenceBatchNorm(5),
}
FUSED = [{"activation": "relu"}, {"pre_activation": "relu"}]


@pytest.mark.parametrize("make", MORE_THAN_BATCH_NORM.values(), ids=MORE_THAN_BATCH_NORM)
def test_a_layer_that_is_more_than_batch_norm_is_found_only_for_its_statistics(make):
    model = nn.Sequential(make())
    layer = model[0]
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model)[0] is layer and not isinstance(layer, _BatchNorm)

    (found,) = (m for m in model.modules() if isinstance(m, _BatchNorm))
    assert not list(found.parameters()) and not list(found.buffers()) and found.weight is layer.weight
    found.eval()
    assert not layer.training and not found.training
    found.momentum = None
    assert layer.momentum is None
    with pytest.raises(TypeError, match=f"{type(layer).__name__} has no eps for tools .* drop its {layer.beyond}"):
        _ = found.eps
    assert [name for name, _ in model.named_modules()] == ["", "0", "0.statistics"]
    assert list(model.state_dict()) == [f"0.{name}" for name in layer.state_dict()]


def test_a_layer_that_is_registered_twice_has_its_statistics_once():
    layer = normlib.NoisyBatchNorm2d(3)
    assert [name for name, _ in nn.ModuleList([layer, layer]).named_modules()] == ["", "0", "0.statistics"]


@pytest.mark.parametrize("around", FUSED, ids=str)
def test_a_batch_norm_with_an_activation_refuses_to_be_replaced(around):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), normlib.BatchNorm2d(3, **around), nn.ReLU()).eval()
    with pytest.raises(TypeError, match="drop its activation"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(TypeError, match="drop its activation"):
        quantization.fuse_modules(model, [["0", "1", "2"]])
    with pytest.raises(TypeError, match="drop its activation"):
        fusion.fuse_conv_bn_eval(model[0], model[1])
    assert model[1].extra_repr().startswith("3, ") and model[1].num_features == 3 and normlib.BatchNorm2d(3).eps == 1e-5


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if hasattr(form.make(), "num_batches_tracked")])
def test_pytorchs_sync_conversion_keeps_results_or_refuses(form):
    form = FORMS[form]
    model = nn.Sequential(form.layer()).eval()
    inputs = [x.detach() for x in form.inputs()]
    truth = model[0](*inputs, *form.constants)
    try:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    except TypeError:
        return
    torch.testing.assert_close(model.eval()[0](*inputs, *form.constants), truth)


BATCH_NORMS = [
    name
    for name, form in FORMS.items()
    if any(isinstance(found, _BatchNorm) for found in nn.Sequential(form.make()).modules())
]


@pytest.mark.parametrize("form", BATCH_NORMS)
def test_statistics_that_a_tool_stops_tracking_stay_as_they_are_in_training_too(form):
    """As Lightning's BaseFinetuning.freeze has it, which finds batch norms by their class."""
    layer = FORMS[form].layer()
    for found in nn.Sequential(layer).modules():
        if isinstance(found, _BatchNorm):
            found.track_running_stats = False
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer(*FORMS[form].inputs(), *FORMS[form].constants)
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_update_bn_and_freezing_find_the_whole_family():
    layers = [make() for name, make in MORE_THAN_BATCH_NORM.items() if name != "SequenceBatchNorm"]
    layers += [normlib.BatchNorm2d(3), normlib.BatchNorm2d(3, activation="relu"), normlib.SyncBatchNorm(3)]
    for layer in layers:
        momentum = layer.momentum
        update_bn([IMAGES + 5, IMAGES + 7], nn.Sequential(layer))
        torch.testing.assert_close(layer.running_mean, IMAGES.mean((0, 2, 3)) + 6)
        assert layer.momentum == momentum and layer.num_batches_tracked == 2


@pytest.mark.parametrize("theirs", [nn.LayerNorm(5), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), nn.BatchNorm2d(3)])
@pytest.mark.parametrize("how", ["converted", "made"])
def test_eager_quantization_takes_a_layer_as_pytorchs(theirs, how):
    def quantized(norm):
        model = nn.Sequential(quantization.QuantStub(), norm, quantization.DeQuantStub()).eval()
        model.qconfig = quantization.get_default_qconfig("fbgemm")
        quantization.prepare(model, inplace=True)(IMAGES)
        return quantization.convert(model, inplace=True)(IMAGES)

    kind = type(theirs)
    arguments = (1, 3) if kind is nn.GroupNorm else (theirs.normalized_shape,) if kind is nn.LayerNorm else (3,)
    if how == "made":
        ours = getattr(normlib, kind.__name__)(*arguments)
    else:
        ours = kind(*arguments)
        normlib.convert(ours)
    with warnings.catch_warnings(action="ignore"):
        torch.testing.assert_close(quantized(ours), quantized(kind(*arguments)))


@pytest.mark.parametrize("training", [False, True])
def test_eager_fusion_takes_a_converted_batch_norm_as_pytorchs(training):
    def fused(convert):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).train(training)
        if convert:
            normlib.convert(model)
        return (quantization.fuse_modules_qat if training else quantization.fuse_modules)(model, [["0", "1", "2"]])

    with warnings.catch_warnings(action="ignore"):
        ours, theirs = fused(True), fused(False)
    assert type(ours[0]) is type(theirs[0])
    torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))


def test_conv_bn_fusion_of_a_plain_batch_norm_is_pytorchs():
    conv, norm = nn.Conv2d(3, 4, 1).eval(), normlib.BatchNorm2d(4).eval()
    torch.testing.assert_close(fusion.fuse_conv_bn_eval(conv, norm)(IMAGES), norm(conv(IMAGES)))


def running(**which):
    """Running statistics of which one requires a gradient."""
    return [torch.ones(3).requires_grad_(name in which) for name in ("mean", "spread")]


BUFFERED = {
    "batch_norm": lambda x, *b, training: N.batch_norm(x, *b, training=training),
    "batch_norm, relu": lambda x, *b, training: N.batch_norm(x, *b, training=training, activation="relu"),
    "batch_norm, sum": lambda x, *b, training: N.batch_norm(x, *b, training=training, activation="relu", residual=x),
    "batch_renorm": lambda x, *b, training: N.batch_renorm(x, *b, training=training),
    "lp_norm": lambda x, *b, training: N.lp_norm(x, *b, training=training, p=1),
    "noisy_batch_norm": lambda x, *b, training: N.noisy_batch_norm(x, *b, training=training),
    "sequence_batch_norm": lambda x, *b, training: N.sequence_batch_norm(x.flatten(2).mT, *b, training=training),
    "instance_norm": lambda x, *b, training: N.instance_norm(x, *b, use_input_stats=training),
}


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BUFFERED)
def test_running_statistics_that_require_a_gradient_are_refused(name, training, kernels, monkeypatch):
    monkeypatch.setattr("normlib.dispatch.CPU_RUNS_KERNELS", kernels)
    function = BUFFERED[name]
    for which in ("mean", "spread"):
        with pytest.raises(RuntimeError, match="is not differentiable with respect to argument 'running_"):
            function(IMAGES, *running(**{which: True}), training=training)
        with torch.no_grad():
            function(IMAGES, *running(**{which: True}), training=training)


def test_limits_of_batch_renorm_that_require_a_gradient_are_refused():
    for name in ("rmax", "dmax"):
        with pytest.raises(RuntimeError, match=f"argument '{name}'"):
            N.batch_renorm(IMAGES, *running(), training=True, **{name: torch.tensor(2.0, requires_grad=True)})
