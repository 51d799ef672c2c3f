"""Models that people train, most of them from transformers, compute and learn the same when they are converted."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from errors import relative_error
from torch import nn
from unet import UNet

from normlib.convert import convert
from normlib.swap import revert

transformers = pytest.importorskip("transformers")

DECODER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "vocab_size": 50,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
ENCODER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": "eager",
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
VIT = {**ENCODER, "image_size": 16, "patch_size": 8, "num_labels": 5}
MOBILENET = {
    "depth_multiplier": 0.1,
    "depth_divisible_by": 4,
    "min_depth": 4,
    "expand_ratio": 2,
    "image_size": 64,
    "classifier_dropout_prob": 0.0,
    "num_labels": 5,
}
T5 = {
    "d_model": 24,
    "d_kv": 12,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 50,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}

# name: (class, configuration, its settings, kind of input, norms by class); what is a name is one of transformers.
MODELS = {
    # Two norms a layer and one at the end; Qwen3 normalizes queries and keys too.
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER, "tokens", {"LlamaRMSNorm": 5}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER, "tokens", {"Qwen3RMSNorm": 9}),
    # One in the embeddings, two a layer, one in the head.
    "bert": ("BertForMaskedLM", "BertConfig", {**ENCODER, "vocab_size": 50}, "tokens", {"LayerNorm": 6}),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT, "images", {"LayerNorm": 5}),
    # The stem, two a block, and one in the shortcut of the block that changes the width.
    "resnet": ("ResNetForImageClassification", "ResNetConfig", RESNET, "images", {"BatchNorm2d": 6}),
    # Three in the stem, 16 blocks of three, one at the end.
    "mobilenet": ("MobileNetV2ForImageClassification", "MobileNetV2Config", MOBILENET, "images", {"BatchNorm2d": 52}),
    # Two in an encoder's layer, three in a decoder's, one at the end of each.
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, "tokens", {"T5LayerNorm": 12}),
    # Two a block, one before the attention, one in the head.
    "unet": (UNet, SimpleNamespace, {"channels": 8, "labels": 5}, "images", {"GroupNorm": 6}),
}


def build(name, device, dtype=torch.float32):
    """The model with random norm parameters and statistics: ones and zeros would hide what is swapped or dropped."""
    kind, configuration, settings, *_ = MODELS[name]
    torch.manual_seed(1)
    kind, configuration = (getattr(transformers, c) if isinstance(c, str) else c for c in (kind, configuration))
    model = kind(configuration(**settings))
    for module in model.modules():
        if "Norm" in type(module).__name__ and not list(module.children()):
            for key, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5) if key != "bias" else nn.init.normal_(tensor)
    return model.to(device, dtype)


def batch(name, device):
    # A draw in which rounding decides no ReLU: the gradient of the other side is another function's.
    random = torch.Generator().manual_seed(3)
    if MODELS[name][3] == "tokens":
        ids = torch.randint(1, 50, (2, 5), generator=random).to(device)
        return {"input_ids": ids, "labels": ids}
    # Two images, as an interpreted batch norm takes longer by the image; MobileNet's end with 2 x 2 positions.
    size = MODELS[name][2].get("image_size", 16)
    pixels = torch.randn(2, 3, size, size, generator=random).to(device)
    return {"pixel_values": pixels, "labels": torch.tensor([1, 3], device=device)}


def results(model, inputs):
    """The logits, and the gradients of the loss by parameter."""
    dtype = next(model.parameters()).dtype
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    found = model(**inputs)
    found.loss.backward()
    return found.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "training"), [*((name, True) for name in MODELS), ("resnet", False)])
def test_a_converted_model_is_as_near_to_float64_as_the_original(name, training, device):
    """Each bound is the original's own error, as that depends on the model: 2e-5 through MobileNet's 52 batch norms."""
    original = build(name, device).train(training)
    truth, converted = copy.deepcopy(original).double(), copy.deepcopy(original)
    assert convert(converted).counts == MODELS[name][4]
    inputs = batch(name, device)
    (y, grads), (ours, our_grads), (y64, grads64) = (results(model, inputs) for model in (original, converted, truth))
    assert ours.dtype == y.dtype and our_grads.keys() == grads.keys()
    # A gradient that is zero but for rounding, as a bias's before a batch norm, counts by the terms that cancelled in
    # it, which are some hundredth of the whole gradient.
    whole = torch.stack([g.norm() for g in grads64.values()]).norm()
    sizes = {n: max(g.norm(), 0.01 * whole) for n, g in grads64.items()}
    theirs = max((grads[n].double() - g).norm() / sizes[n] for n, g in grads64.items())
    # Twice, as single roundings land elsewhere, and these are the worst of many.
    for n, g in grads64.items():
        error = (our_grads[n].double() - g).norm() / sizes[n]
        assert error <= 2 * theirs, f"{n}: {error:.1e}, and the original's worst {theirs:.1e}"
    assert relative_error(ours, y64) <= 2 * max(relative_error(y, y64), theirs)


def train(model, steps, inputs, optimizer):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "optimizer", "rate"),
    [("llama", torch.optim.Adam, 1e-2), ("vit", torch.optim.SGD, 1e-1), ("resnet", torch.optim.SGD, 2e-2)],
)
def test_twenty_steps_give_the_same_losses_and_revert_the_original(name, optimizer, rate, device):
    original = build(name, device).train()
    model = copy.deepcopy(original)
    inputs = batch(name, device)
    expected = train(original, 20, inputs, optimizer(original.parameters(), lr=rate))
    assert expected[-1] < 0.7 * expected[0]  # it learns, so the comparison says something

    before = [(n, m, type(m), list(vars(m)), list(m._parameters)) for n, m in model.named_modules()]
    parameters, keys, text = list(model.parameters()), list(model.state_dict()), repr(model)
    running = optimizer(model.parameters(), lr=rate)
    losses = train(model, 3, inputs, running)  # so the optimizer has a state, which goes on
    convert(model)
    losses += train(model, 17, inputs, running)
    # float32 rounds at 6e-8; twenty steps of training grow that, to some 1e-6 here.
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))

    revert(model)
    assert [(n, m, type(m), list(vars(m)), list(m._parameters)) for n, m in model.named_modules()] == before
    assert list(model.state_dict()) == keys and repr(model) == text
    fresh = build(name, device).train()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(**inputs).logits, fresh(**inputs).logits)


@pytest.mark.parametrize(("name", "norms"), [("Gemma", 5), ("Gemma2", 9), ("Gemma3Text", 13)])
def test_gemma_keeps_its_weight_around_zero(name, norms, device):
    config = getattr(transformers, f"{name}Config")(**DECODER)
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).to(device).eval()
    for key, parameter in model.named_parameters():
        if "norm" in key:
            nn.init.normal_(parameter, std=0.2)
    inputs = batch("llama", device)
    before = model(**inputs).logits.detach()
    summary = convert(model)
    assert len(summary.converted) == norms and not summary.left_alone
    assert all(m.zero_centred for m in model.modules() if "RMSNorm" in type(m).__name__)
    # float32 rounds at 6e-8; the layers between add their own.
    assert relative_error(model(**inputs).logits.detach(), before) < 1e-5
    revert(model)
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("name", ["llama", "t5", "bert", "resnet", "unet"])
def test_a_bfloat16_model_keeps_its_dtypes_and_its_error(name, device):
    original = build(name, device, torch.bfloat16).eval()
    truth, converted = copy.deepcopy(original).double(), copy.deepcopy(original)
    convert(converted)
    inputs = batch(name, device)
    (y, grads), (y64, _), (ours, our_grads) = (results(model, inputs) for model in (original, truth, converted))
    assert ours.dtype == y.dtype == torch.bfloat16
    assert {n: g.dtype for n, g in our_grads.items()} == {n: g.dtype for n, g in grads.items()}
    # The matrix products round too, and what they round differs by a bit: a quarter is chance, a second rounding more.
    assert relative_error(ours, y64) <= 1.25 * relative_error(y, y64)
