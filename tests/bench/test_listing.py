"""The tables of --list, above all the presets."""

import io
import re

import pytest
import torch
from rich.console import Console

from bench import listing
from bench.cases import sweep
from bench.cases.operators import operators
from bench.cases.reduced import reduced
from bench.measure.providers import providers
from bench.measure.runner import RunPlan

OPERATORS, PROVIDERS = operators(), providers()
PRESETS = sweep.presets_of(OPERATORS.values())


def shown(preset, device="cpu", terminal=False, cells=False):
    device = torch.device(device)
    chosen = {name: PROVIDERS[name] for name in ("torch", "normlib")}
    asked = sweep.parse({"preset": preset}, OPERATORS, preset)
    cases, _ = reduced(sweep.cases(asked, OPERATORS), device)
    plan = RunPlan(cases, chosen, OPERATORS, "torch", PROVIDERS["torch"], device, 0)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)
    listing.show(console, plan, {"torch": PROVIDERS["torch"]}, cells)
    return console.file.getvalue()


def test_every_preset_has_its_operators_cells_and_time_in_one_line():
    lines = [line.split("  ") for line in shown("smoke").splitlines() if line.startswith("preset: ")]
    assert {name.removeprefix("preset: ") for name, *_ in lines} == set(PRESETS)
    for _, shorts, cells, time, about in lines:
        assert set(shorts.split(", ")) <= {operator.short for operator in OPERATORS.values()}
        assert int(cells) > 0 and time.startswith("about ") and about
    (resnet,) = [line for line in lines if line[0] == "preset: resnet50-inference"]
    assert resnet[1] == "bn, bn_add_relu, bn_relu"


@pytest.mark.parametrize("preset", ["resnet50", "deep-speech-2-inference", "qk-norm"])
def test_a_presets_line_counts_the_cells_that_a_run_of_it_has(preset):
    lines = shown(preset).splitlines()
    counted = [int(line.split("  ")[2]) for line in lines if line.startswith(f"preset: {preset}  ")]
    cells = [line for line in shown(preset, cells=True).splitlines() if line.startswith("cell: ")]
    assert sum(counted) == len(cells)
    assert lines[-1].startswith(f"{len(cells) // 2} cases, {len(cells)} cells, about ")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_gpus_list_needs_none(terminal):
    listed = shown("resnet50", "cuda", terminal)
    assert "llama3-70b-inference" in listed and "batch_norm 32x" not in listed


def test_a_gpus_time_says_what_it_is_made_of_and_a_cpus_does_not():
    *_, last = shown("resnet50", "cuda").splitlines()
    found = re.search(
        r"thumb: (\d+) s to start, (\d+) s for cells, .* of (\d+) kernels and 0 graphs, (\d+) s for", last
    )
    assert found and all(int(number) > 0 for number in found.groups())
    assert shown("resnet50").splitlines()[-1].endswith("by a rule of thumb")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "about 1 s"), (1, "about 1 s"), (90, "about 1.5 min"), (5400, "about 1.5 h")]
)
def test_a_time_is_told_in_the_unit_that_it_fills(seconds, said):
    assert listing.about(seconds) == said
