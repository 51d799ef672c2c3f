"""Profiles of one cell: PyTorch's own, and those of tools that are stood in for by a script."""

import json

import pytest
import torch
from report_runs import page, record

from bench.cases.case import Case
from bench.cli import BadArgument
from bench.measure import profiling
from bench.measure.providers import providers

CASE = Case("layer_norm", (4, 8), (("tokens", 4), ("hidden", 8)), "fp32", "rows", "fwd_bwd")
TORCH, CPU = providers()["torch"], torch.device("cpu")


def test_pytorchs_profiler_leaves_a_trace_and_a_table_of_the_calls(tmp_path):
    said = profiling.profile("torch", CASE, TORCH, CPU, 0, tmp_path)
    assert said.startswith(f"profile: {tmp_path}/profile-torch-torch.json")
    events = json.loads((tmp_path / "profile-torch-torch.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::native_layer_norm" for event in events) == profiling.CALLS
    assert "aten::native_layer_norm_backward" in (tmp_path / "profile-torch-torch.txt").read_text()


def test_a_case_that_is_not_served_is_said(tmp_path):
    said = profiling.profile("torch", CASE, providers()["cudnn"], CPU, 0, tmp_path)
    assert said.startswith("no profile: cudnn does not serve layer_norm 4x8 fp32 rows fwd_bwd: ")


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a script in the place of ncu, which runs its program or fails."""

    def make(body):
        script = tmp_path / "bin" / "ncu"
        script.parent.mkdir()
        script.write_text("#!/bin/sh\n" + body)
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=":")

    return make


def test_a_tool_watches_the_cell_in_a_process_of_its_own(tool, tmp_path):
    tool('shift 6; out=$1; shift; "$@" && echo seen > "$out.ncu-rep"\n')
    assert profiling.profile("ncu", CASE, TORCH, CPU, 0, tmp_path) == f"profile: {tmp_path}/profile-torch-ncu.ncu-rep"
    assert (tmp_path / "profile-torch-ncu.ncu-rep").read_text() == "seen\n"


def test_a_tool_that_fails_is_one_line(tool, tmp_path):
    tool("echo 'ERR_NVGPUCTRPERM: no permission' >&2; exit 9\n")
    said = profiling.profile("ncu", CASE, TORCH, CPU, 0, tmp_path)
    assert said == "no profile: ncu ended with status 9: ERR_NVGPUCTRPERM: no permission"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("ncu", (CASE,), CPU), "ncu needs a GPU"),
        (("nsys", (CASE,), torch.device("cuda")), "nsys is not installed; it comes with the CUDA toolkit"),
        (("torch", (CASE, CASE), CPU), "takes one case, and these are 2: give every axis"),
    ],
)
def test_what_cannot_be_profiled_is_refused_in_one_line(given, said, monkeypatch):
    monkeypatch.setattr(profiling.shutil, "which", lambda name: None)
    with pytest.raises(BadArgument, match=said):
        profiling.check(*given)


def test_the_report_links_the_profiles_of_its_run(run_dir):
    folder = run_dir([record()])
    (folder / "profile-normlib-torch.json").touch()
    assert "profile-normlib-torch.json" in page(folder).references
