"""bench.api: what is measured comes back as a frame."""

import runpy
from pathlib import Path

import pytest
import torch

from bench.api import FunctionProvider, cases, measure
from bench.cli import BadArgument
from bench.measure.providers import Provider, providers
from bench.results import records as results

TINY = {"op": "ln", "tokens": [2, 4], "hidden": 8, "dtype": "fp32", "mode": "fwd"}


class Mine(Provider):
    """A kernel as somebody has it in a notebook: no module, no pickle."""

    name = "mine"

    def version(self):
        return "0"

    def backend(self, case, inputs):
        return "torch"

    def build(self, case, inputs):
        return providers()["torch"].build(case, inputs)


def test_cases_are_those_of_the_command_line():
    assert [case.shape for case in cases(**TINY)] == [(2, 8), (4, 8)]
    assert cases(**{**TINY, "tokens": "2,4"}) == cases(**TINY)


def test_a_run_gives_a_frame_with_a_row_a_cell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = measure(cases(**TINY), providers=["torch", Mine()])
    assert list(zip(frame["provider"], frame["shape"], frame["status"], strict=True)) == [
        (name, shape, "ok") for shape in ("2x8", "4x8") for name in ("torch", "mine")
    ]
    assert frame["y.rel_l2_error"].max() < 1e-6
    assert list(tmp_path.iterdir()) == []


def test_records_are_kept_where_a_folder_is_given_and_never_overwritten(tmp_path):
    frame = measure(cases(**TINY), providers=["torch"], out=tmp_path)
    assert len(list(results.read(tmp_path / "records.jsonl"))) == len(frame) == 2
    with pytest.raises(BadArgument, match="already holds a run"):
        measure(cases(**TINY), providers=["torch"], out=tmp_path)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cases(op="bm"), "is not one of"),
        (lambda: cases(tokns=4), "did you mean tokens"),
        (lambda: measure(cases(**TINY), providers=["torhc"]), "did you mean torch"),
        (lambda: measure(cases(**TINY), device="tpu"), "cuda, cpu"),
        (lambda: measure(cases(**TINY), baseline="liger"), "baseline: 'liger' is not one of torch, normlib"),
        (lambda: measure(cases(**TINY), subject="mine"), "subject: 'mine' is not one of torch, normlib"),
        (lambda: measure([]), "cases: empty"),
        (lambda: measure(cases(**TINY), providers=[]), "providers: empty"),
        (lambda: measure(cases(**TINY), time_budget=0), "time_budget: 0 is not a number of seconds above zero"),
        (lambda: cases(op="ln", dtype="float32"), "did you mean fp32"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(call, says):
    with pytest.raises(BadArgument, match=says) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_the_example_leaves_a_report_about_its_own_kernel(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.api.cases", lambda **_: cases(op="rms", tokens=4, hidden=8, dtype="fp32,bf16"))
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "my_provider.py"))
    assert capsys.readouterr().out.count("ok") == 3
    report = Path("reports/mine/report.html").read_text(encoding="utf-8")
    assert "Verdict on mine" in report and "Right: 6 mine cells compared with float64, none wrong" in report


def test_a_provider_of_functions_serves_only_its_operators(tmp_path):
    frame = measure(cases(**TINY), ["torch", FunctionProvider("mine", rms_norm=None)])
    mine = frame[frame["provider"] == "mine"]
    assert set(mine["status"]) == {"unsupported"} and set(mine["reason"]) == {"has no layer_norm"}


@pytest.mark.parametrize(("backend", "status"), [("torch", "ok"), ("", "wrong")])
def test_a_function_of_pytorch_says_so(backend, status):
    mine = FunctionProvider("mine", backend=backend, layer_norm=torch.nn.functional.layer_norm)
    frame = measure(cases(**{**TINY, "tokens": 4}), [mine])
    assert list(frame["status"]) == [status]
    assert backend or "backend() has to say torch" in frame["reason"][0]
