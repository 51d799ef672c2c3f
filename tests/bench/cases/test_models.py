"""The counts of real models' norms, and the batch sizes that they are measured at."""

import subprocess
import sys

import pytest

from bench.cases import models

MODELS = models.names()


@pytest.mark.parametrize(
    ("model", "op", "count"),
    [
        ("resnet50", "batch_norm", 53),
        ("resnet50", "batch_norm_relu", 33),  # the stem's, and two in each of 16 blocks
        ("resnet50", "batch_norm_add_relu", 16),  # one a block; the other four are the shortcuts'
        ("vgg16_bn", "batch_norm_relu", 13),
        ("inception_v3", "batch_norm", 94),
        ("mobilenet_v2", "batch_norm", 52),
        ("gpt2-xl", "layer_norm", 2 * 48 + 1),
        ("gpt2-xl", "layer_norm_add", 2 * 48),  # before the first one nothing has been added
        ("llama3-70b", "rms_norm", 2 * 80 + 1),
        ("deepseek-v3", "rms_norm", 61 * 4 + 1),
        ("qwen3-8b", "rms_norm", 36 * 4 + 1),
        ("qwen3-8b", "rms_norm_add", 36 * 2),  # queries and keys are no stream
    ],
)
def test_a_model_has_as_many_norms_as_its_layers_make(model, op, count):
    assert sum(norm.count for norm in models.norms(model, op)) == count


@pytest.mark.parametrize("model", MODELS)
def test_a_fused_operator_has_a_share_of_its_norms_layers_and_no_shape_of_its_own(model):
    for fused, (op, _) in models.FUSED.items():
        whole = {(*norm.size.values(), norm.each): norm.count for norm in models.norms(model, op)}
        for norm in models.norms(model, fused):
            assert 0 < norm.count <= whole[*norm.size.values(), norm.each]


def test_a_model_whose_activations_are_other_ones_is_none_of_the_fused_operators():
    # Clipped ReLUs, and no ReLU behind its additions.
    assert not models.norms("mobilenet_v2", "batch_norm_relu")
    assert not models.norms("mobilenet_v2", "batch_norm_add_relu")


def test_counts_that_nobody_published_are_unknown_and_not_zero():
    assert [norm.count for norm in models.norms("deep-speech-2", "batch_norm")] == [None, None]
    for model in set(MODELS) - {"deep-speech-2"}:
        for op in ("batch_norm", "layer_norm", "rms_norm"):
            assert all(norm.count for norm in models.norms(model, op))


def test_inference_takes_one_request_and_32_and_where_tokens_are_written_the_prompt():
    def batches(model, op):
        (found,) = {tuple(norm.batches[models.INFERENCE]) for norm in models.norms(model, op)}
        return found

    assert batches("resnet50", "batch_norm") == (1, 32)
    assert batches("vit_b_16", "layer_norm") == (197, 32 * 197)
    assert batches("gpt2", "layer_norm") == (1, 32, 1024)
    assert batches("qwen3-8b", "rms_norm") == (1, 32, 4096)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("use", [models.TRAINING, models.INFERENCE])
def test_a_preset_is_told_back_to_its_model(model, use):
    assert models.of_preset(models.preset(model, use)) == (model, use)


@pytest.mark.parametrize("preset", ["quick", "None", "", "-inference", "quick-inference"])
def test_a_preset_of_no_model_is_told(preset):
    assert models.of_preset(preset) is None


def test_headlines_import_no_torch():
    code = "import sys, bench.results.headline; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
