"""Every sample of PyTorch's own module database, with normlib's layer in the place of torch.nn's."""

import re
from math import prod

import pytest
import torch
from samples import BUFFERS, DTYPES, LEAVES, Sample, check, complaint, few
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.testing._internal.common_modules import module_db

import normlib

NORMS = {
    "BatchNorm1d": "batch_norm",
    "BatchNorm2d": "batch_norm",
    "BatchNorm3d": "batch_norm",
    "LayerNorm": "layer_norm",
    "RMSNorm": "rms_norm",
    "GroupNorm": "group_norm",
    "InstanceNorm1d": "instance_norm",
    "InstanceNorm2d": "instance_norm",
    "InstanceNorm3d": "instance_norm",
}
DATABASE = {info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in NORMS}
# fmt: off
PER_MODE = {  # samples, of torch 2.11 and 2.13 the fewer
    "BatchNorm1d": 7, "BatchNorm2d": 6, "BatchNorm3d": 6, "LayerNorm": 7, "RMSNorm": 6,
    "GroupNorm": 8, "InstanceNorm1d": 4, "InstanceNorm2d": 4, "InstanceNorm3d": 4,
}
# fmt: on
# The functional forms of these layers are tried in a wide dtype too, by test_operator_database.py.
BRIEFLY = ("group_norm", "instance_norm")
CASES = [(name, dtype) for name, norm in NORMS.items() for dtype in (DTYPES[1:2] if norm in BRIEFLY else DTYPES)]

each_module = pytest.mark.parametrize("name", NORMS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def prepared_by(library, name, given, training, eps=None):
    def prepare(tensors):
        x = tensors["input"]
        layer = getattr(library, name)(*given.args, **given.kwargs, device=x.device, dtype=x.dtype).train(training)
        layer.eps = layer.eps if eps is None else eps
        layer.load_state_dict({n: tensors[n] for n in layer.state_dict()})
        own = {**dict(layer.named_parameters()), **dict(layer.named_buffers()), "input": x}
        return lambda: layer(x), {n: own.get(n) for n in (*LEAVES, *BUFFERS)}

    return prepare


def state_like(layer):
    """Random parameters and buffers, the variance positive, and a count for the cumulative average to go on from."""
    drawn = {n: torch.randn_like(t) for n, t in layer.state_dict().items() if t.is_floating_point()}
    if "running_var" in drawn:
        drawn["running_var"] = torch.rand_like(drawn["running_var"]) + 0.5
        drawn["num_batches_tracked"] = torch.full_like(layer.num_batches_tracked, 3)
    return drawn


def grouped(layer, x):
    """An input of group norm as (N, groups, channels of one, positions); instance norm's may be a single image."""
    if isinstance(layer, nn.GroupNorm):
        return x.shape[0], layer.num_groups, layer.num_channels // layer.num_groups, prod(x.shape[2:])
    if isinstance(layer, _InstanceNorm):
        images = 1 if x.dim() == layer._get_no_batch_dim() else x.shape[0]
        return images, layer.num_features, 1, x.numel() // (images * layer.num_features)
    return None


def samples(name, device, dtype, training):
    info = DATABASE[name]
    for entry in info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=False, training=training):
        given, forward = entry.constructor_input, entry.forward_input
        layer = info.module_cls(*given.args, **given.kwargs, device=device, dtype=dtype)
        x = few(forward.args[0]) if isinstance(layer, nn.GroupNorm) else forward.args[0]
        assert not forward.kwargs and len(forward.args) == 1
        state = state_like(layer)
        eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps if layer.eps is None else layer.eps
        arguments = (name, given, training)
        yield Sample(
            name=f"{name}: {entry.desc}",
            tensors={"input": x, **{n: state.get(n) for n in (*LEAVES[1:], *BUFFERS)}},
            ours=prepared_by(normlib, *arguments),
            theirs=prepared_by(torch.nn, *arguments),
            truth=prepared_by(torch.nn, *arguments, eps),
            norm=NORMS[name],
            eps=eps,
            normalized=len(getattr(layer, "normalized_shape", ())),
            given=not training and getattr(layer, "running_mean", None) is not None,
            grouped=grouped(layer, x),
        )


@each_mode
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_every_sample_of_the_module_database_is_right(name, dtype, training, device, record_property):
    ran = {True: 0, False: 0}
    for sample in samples(name, device, dtype, training):
        on_kernels = check(sample)
        ran[on_kernels] += 1
        # A batch without a row has no statistics, and is all that may be left to PyTorch.
        assert on_kernels or sample.tensors["input"].numel() == 0, f"{sample.name} did not reach the kernels"
    record_property("module database samples, on the kernels", ran[True])
    record_property("module database samples, left to PyTorch as the batch is empty", ran[False])
    assert sum(ran.values()) >= PER_MODE[name] and ran[True] >= PER_MODE[name] - 1


@each_module
def test_the_module_databases_layers_exchange_their_state_and_describe_themselves_alike(name, device):
    info = DATABASE[name]
    for entry in info.module_inputs_func(info, device=device, dtype=torch.float32, requires_grad=False, training=True):
        given = entry.constructor_input
        ours, theirs = (getattr(lib, name)(*given.args, **given.kwargs, device=device) for lib in (normlib, torch.nn))
        for source, target in ((ours, theirs), (theirs, ours)):
            source.load_state_dict(state_like(source), strict=True)
            target.load_state_dict(source.state_dict(), strict=True)
            assert list(target.state_dict()) == list(source.state_dict())
            for key, value in source.state_dict().items():
                assert torch.equal(target.state_dict()[key], value), key
        assert ours.state_dict()._metadata == theirs.state_dict()._metadata  # batch norm's says version 2
        assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs))


# With eps 0 the interpreter's numpy complains of lanes that are masked, whose variance is loaded as 0.
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")
@each_mode
@pytest.mark.parametrize("name", [n for n, info in DATABASE.items() if info.module_error_inputs_func])
def test_the_module_databases_errors_are_torchs_own(name, training, device, record_property):
    info = DATABASE[name]
    errors = info.module_error_inputs_func(
        info, device=device, dtype=torch.float32, requires_grad=False, training=training
    )
    for error in errors:
        given, forward = error.module_error_input.constructor_input, error.module_error_input.forward_input

        def use(library, given=given, forward=forward):
            layer = getattr(library, name)(*given.args, **given.kwargs, device=device).train(training)
            return layer(*forward.args, **forward.kwargs)

        theirs = complaint(lambda use=use: use(torch.nn))
        assert complaint(lambda use=use: use(normlib)) == theirs
        if training:  # the database's own words are for a layer as constructed, in training
            assert theirs[0] is error.error_type and re.search(error.error_regex, theirs[1])
    assert errors
    record_property("module database error samples", len(errors))
