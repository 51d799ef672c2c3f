"""The examples run, and the API page is what the docstrings say."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def test_the_training_loop_learns(capsys):
    losses = example("train")["main"]()
    assert losses[-1] < losses[0]
    assert capsys.readouterr().out.count("loss") == len(losses)


def test_a_compiled_model_gives_the_same_results(capsys):
    example("compile")["main"](backend="aot_eager")
    assert capsys.readouterr().out.count("the same results") == 2


def test_a_hugging_face_model_is_converted(capsys):
    summary = example("convert_hugging_face")["main"]()
    assert summary.counts == {"LlamaRMSNorm": 5}
    assert "converted back: 5" in capsys.readouterr().out


def test_the_api_page_is_generated_from_the_docstrings():
    build = runpy.run_path(str(ROOT / "docs" / "build_api.py"))
    assert build["PAGE"].read_text(encoding="utf-8") == build["page"](), "run python docs/build_api.py"


@pytest.mark.parametrize(
    "name", ["LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d", "InstanceNorm2d", "SyncBatchNorm"]
)
def test_help_is_about_the_layer(name):
    import normlib

    said = vars(getattr(normlib, name))["__doc__"]
    assert said.startswith(f"`torch.nn.{name}` on the Triton kernels") and len(said.splitlines()) > 3
