"""A whole run on a GPU that is made up, from the command line to the report: nothing on that way is missing."""

import json

import pytest
import torch
from made_up_cuda import PROPERTIES, made_up_cuda

from bench import environment, gpu_phases, results
from bench.run import main
from bench.sampling import Rule

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a PyTorch built for CUDA asks the real driver")


@pytest.fixture
def gpu(monkeypatch):
    # The kernels run as ever; only the instrument takes the device for a GPU, and a few samples for enough.
    monkeypatch.setattr(environment, "interpreting", lambda: False)
    for name in ("COLD", "BESIDE"):
        monkeypatch.setattr(gpu_phases, name, Rule(budget_s=0.0))
    with made_up_cuda(monkeypatch):
        yield


def test_a_run_has_every_figure_of_a_gpu_and_a_report(gpu, tmp_path, capsys):
    cells = ["--op", "ln", "--tokens", "3", "--hidden", "64", "--dtype", "fp32", "--mode", "fwd,bwd"]
    status = main([*cells, "--providers", "normlib,torch", "--in-process", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    records = results.read(tmp_path / "run/records.jsonl")
    assert [(r.provider, r.mode, r.status, r.reason) for r in records if r.status != "ok"] == [], said
    assert [(r.provider, r.mode) for r in records] == [
        (p, mode) for mode in ("fwd", "bwd") for p in ("torch", "normlib")
    ]
    for record in records:
        assert record.clock == "cuda_event" and record.device == "cuda"
        assert record.peak_bytes == 1 << 10
        for figure in ("latency_us", "hot_us", "call_us", "graph_us", "gbps"):
            assert getattr(record, figure) > 0, figure
    described = json.loads((tmp_path / "run/environment.json").read_text())
    assert described["gpu"]["name"] == PROPERTIES.name and described["copy_gbps"] > 0
    assert (tmp_path / "run/report.html").exists()
    assert status == 0
