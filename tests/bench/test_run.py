"""The command line, in-process where nothing depends on the process, and as a program once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench.cases.operators
import bench.measure.providers
import bench.report
from bench import run
from bench.cases.case import MODES
from bench.measure import accuracy, devices, environment
from bench.measure.providers import Provider, Runnable
from bench.results import records as results

ROOT = Path(__file__).resolve().parents[2]
TORCH = bench.measure.providers.providers()["torch"]
# In this process, where the tests can replace providers.
TINY = ["--op", "ln", "--tokens", "4", "--hidden", "8", "--dtype", "fp32", "--in-process"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to run in, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


class Fake(Provider):
    """PyTorch under another name; `change` is applied to its outputs, `error` raised in their place."""

    one_shape = True  # each case is built once

    def __init__(self, name, change=lambda out: out, error=None, reason=None, modes=MODES):
        self.name, self.change, self.error, self.reason, self.modes = name, change, error, reason, modes
        self.built = 0

    def version(self):
        return "1"

    def unavailable(self, device):
        return self.reason

    def backend(self, case, inputs):
        return "torch"

    def build(self, case, inputs):
        self.built += 1
        if self.error is not None and case.mode in self.modes:
            raise self.error
        built = TORCH.build(case, inputs)
        return Runnable(built.run, lambda: self.change(built.outputs()))


def page(folder):
    """Stands in for the report, which has tests of its own."""
    path = folder / "report.html"
    path.write_text(f"{len(list(results.read(folder / 'records.jsonl')))} records")
    return path


@pytest.fixture
def registered(monkeypatch):
    """Replaces the providers by torch and the given ones."""
    monkeypatch.setattr(bench.report, "render", page)

    def register(*fakes):
        found = {provider.name: provider for provider in sorted((TORCH, *fakes), key=lambda p: p.name)}
        monkeypatch.setattr(bench.measure.providers, "providers", lambda: found)

    register(Fake("normlib"), Fake("extra", reason="needs a GPU"))
    return register


def refused(capsys, argv):
    """The one line on stderr of a run that is refused."""
    assert run.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bench.run: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


BAD = [
    (["--op", "bm"], "--op", "is not one of bn, bn_add_relu, bn_relu, brn, gn, in, ln, ln_add, lp, "),
    (["--op", ""], "--op", "empty"),
    (["--op"], "--op", "expected one argument"),
    (["--preset", "smok"], "--preset", "did you mean smoke?"),
    (["--op", "ln", "--preset", "resnet50"], "--preset", "is not one of smoke, quick, full"),
    (["--dtype", "float32"], "--dtype", "did you mean fp32?"),
    (["--dtype", "fp32,bfloat16"], "--dtype", "did you mean bf16?"),
    (["--op", "ln", "--preset", "resnet50"], "--preset", "it is a preset of --op bn, bn_add_relu, bn_relu"),
    (["--profile", "gdb"], "--profile", "is not one of ncu, nsys, torch"),
    (["--profile", "torch"], "--profile", "takes one case, and these are "),
    (["--profile", "ncu"], "--profile", "ncu needs a GPU"),
    (["--list", "cases"], "--list", "is not one of presets, cells"),
    (["--subject", "extra"], "--subject", "not among the providers of this run: torch, normlib"),
    (["--subject", "nobody"], "--subject", "is not one of"),
    (["--dtype", "fp8"], "--dtype", "'fp8' is not one of fp32, fp16, bf16"),
    (["--mode", "backward"], "--mode", "is not one of fwd, bwd, fwd_bwd, eval"),
    (["--layout", "nchv"], "--layout", "did you mean nchw?"),
    (["--op", "ln", "--layout", "nhwc"], "--layout", "is not one of rows"),
    (["--providers", "torhc"], "--providers", "did you mean torch?"),
    (["--providers", "extra"], "--providers", "none can run here: extra (needs a GPU)"),
    (["--batch", ","], "--batch", "empty"),
    (["--batch", ""], "--batch", "empty"),
    (["--batch", "0"], "--batch", "whole number above zero"),
    (["--batch", "-1"], "--batch", "whole number above zero"),
    (["--batch=-1,2"], "--batch", "whole number above zero"),
    (["--batch", "1e3"], "--batch", "whole number above zero"),
    (["--channels", "3.5"], "--channels", "whole number above zero"),
    (["--spatial", "56x"], "--spatial", "56x56"),
    (["--spatial", "56*56"], "--spatial", "56x56"),
    (["--op", "bn", "--hidden", "8"], "--hidden", "bn has --batch, --channels, --spatial"),
    (["--device", "tpu"], "--device", "is not one of cuda, cpu"),
    (["--device", "cuda"], "--device", "no GPU"),
    (["--time-budget", "soon"], "--time-budget", "such as 90s, 10m or 1.5h"),
    (["--time-budget", "0"], "--time-budget", "above zero"),
    (["--time-budget", ""], "--time-budget", "above zero"),
    (["--baseline", "extra"], "--baseline", "not among the providers of this run: normlib, torch"),
    (["--baseline", "nobody"], "--baseline", "is not one of"),
    (["--providers", "normlib", "--baseline", "torch"], "--baseline", "not among"),
    (["--seed", "x"], "--seed", "whole number"),
    (["--seed", "-1"], "--seed", "whole number"),
    (["--seed", ""], "--seed", "whole number"),
    (["--out", ""], "--out", "empty"),
    (["--resume", "nowhere"], "--resume", "holds no run"),
    (["--resume", ""], "--resume", "holds no run"),
    (["--force"], "--force", "only together with --resume"),
    (["--cell-timeout", "0"], "--cell-timeout", "above zero"),
    (["--against", "nowhere"], "--against", "holds no run"),
    (["--frobnicate"], "arguments", "--frobnicate"),
    (["stray\nline"], "arguments", "stray line"),
    (["--dtyp", "fp32"], "arguments", "--dtyp"),
]


@pytest.mark.parametrize(("argv", "argument", "says"), BAD, ids=[" ".join(argv) for argv, _, _ in BAD])
def test_unusable_arguments_are_refused_in_one_line_and_nothing_is_written(
    elsewhere, capsys, registered, argv, argument, says
):
    line = refused(capsys, argv)
    assert argument in line.removeprefix("bench.run: error: ").partition(": ")[0]
    assert says in line
    assert list(elsewhere.iterdir()) == []


def test_out_that_is_a_file_is_refused(elsewhere, capsys, registered):
    (elsewhere / "file").write_text("mine")
    for out in ("file", "file/below"):
        assert "--out: " in refused(capsys, ["--out", out])
    for option in ("--out", "--resume", "--against"):
        assert f"{option}: 'file' is a file; " in refused(capsys, [option, "file"])
    assert (elsewhere / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_where_nothing_may_be_written_is_refused(elsewhere, capsys, registered):
    (elsewhere / "closed").mkdir(mode=0o500)
    assert "--out: " in refused(capsys, ["--out", "closed"])
    assert "--out: " in refused(capsys, ["--out", "closed/below"])


@pytest.mark.parametrize("file", ["environment.json", "records.jsonl", "report.html"])
def test_out_that_holds_a_run_is_refused_and_left_alone(elsewhere, capsys, registered, file):
    (elsewhere / "a").mkdir()
    (elsewhere / "a" / file).write_text("mine")
    assert "already holds a run" in refused(capsys, [*TINY, "--out", "a"])
    assert [(path.name, path.read_text()) for path in (elsewhere / "a").iterdir()] == [(file, "mine")]


def test_a_run_leaves_its_five_files_and_says_where_the_report_is(elsewhere, capsys, registered):
    assert run.main([*TINY, "--out", "a/b", "--seed", "3"]) == 0
    folder = Path("a/b")
    assert {path.name for path in folder.iterdir()} - {"records.parquet"} == {
        "environment.json",
        "records.csv",
        "records.jsonl",
        "report.html",
        "samples.jsonl",
    }
    described = environment.read(folder)
    assert described["run"] == "b"
    assert described["command"] == "python -m bench.run " + " ".join([*TINY, "--out", "a/b", "--seed", "3"])
    assert described["interpreted"] is True
    assert described["seed"] == 3
    assert described["complete"] is True
    assert described["baseline"] == "torch"
    assert described["copy_gbps"] is None
    assert any("interpreter" in note for note in described["notes"])
    out, err = capsys.readouterr()
    assert "a/b/report.html" in out
    assert "speedup" not in out
    assert err == ""


def test_without_out_the_run_lands_in_reports_under_its_time_operator_and_device(elsewhere, registered):
    assert run.main(TINY) == 0
    assert run.main(TINY) == 0
    names = [path.name for path in (elsewhere / "reports").iterdir()]
    assert len(names) == 2
    assert all("-ln-cpu" in name for name in names)


def test_without_a_gpu_normlib_and_torch_run_the_smoke_preset(registered):
    assert run.main(["--op", "rms", "--mode", "fwd", "--out", "a", "--in-process"]) == 0
    described = environment.read(Path("a"))
    assert (described["arguments"]["preset"], described["arguments"]["providers"]) == ("smoke", "torch,normlib")


def test_the_baseline_runs_first_in_each_case(registered):
    assert run.main([*TINY, "--providers", "normlib,torch", "--out", "a"]) == 0
    assert [r.provider for r in results.read(Path("a/records.jsonl"))] == ["torch", "normlib"] * 3
    assert run.main([*TINY, "--providers", "normlib,torch", "--baseline", "normlib", "--out", "b"]) == 0
    assert [r.provider for r in results.read(Path("b/records.jsonl"))] == ["normlib", "torch"] * 3


def test_a_provider_asked_for_by_name_that_is_unavailable_is_recorded_as_unsupported(registered, capsys):
    assert run.main([*TINY, "--providers", "torch,extra", "--out", "a"]) == 0
    found = {r.provider: (r.status, r.reason) for r in results.read(Path("a/records.jsonl"))}
    assert found == {"torch": ("ok", ""), "extra": ("unsupported", "needs a GPU")}
    assert "extra cannot run here: needs a GPU" in capsys.readouterr().out


DOUBLED = lambda out: {name: tensor * 2 for name, tensor in out.items()}


@pytest.mark.parametrize(
    ("fake", "status"),
    [
        (Fake("normlib"), 0),
        (Fake("normlib", DOUBLED), 1),
        (Fake("normlib", error=RuntimeError("boom")), 1),
        (Fake("normlib", error=MemoryError()), 0),
        (Fake("normlib", error=bench.measure.providers.Unsupported("not this")), 0),
    ],
    ids=["right", "wrong", "crash", "oom", "unsupported"],
)
def test_the_exit_status_says_whether_a_normlib_cell_is_wrong(registered, fake, status):
    registered(fake)
    assert run.main([*TINY, "--out", "a"]) == status
    assert Path("a/report.html").exists()


def test_the_exit_status_is_about_the_subject(registered):
    registered(Fake("normlib", DOUBLED), Fake("mine"))
    names = ["--providers", "normlib,torch,mine"]
    assert run.main([*TINY, *names, "--out", "a", "--subject", "mine"]) == 0
    assert environment.read(Path("a"))["subject"] == "mine"
    assert run.main([*TINY, *names, "--out", "b"]) == 1
    registered(Fake("normlib"), Fake("mine", DOUBLED))
    assert run.main([*TINY, *names, "--out", "c", "--subject", "mine"]) == 1
    assert run.main(["--resume", "c"]) == 1


def test_the_subject_is_profiled_into_the_runs_folder(registered, capsys):
    assert run.main([*TINY, "--mode", "fwd", "--out", "a", "--profile", "torch", "--subject", "torch"]) == 0
    assert "profile: a/profile-torch-torch.json" in capsys.readouterr().out
    assert Path("a/profile-torch-torch.json").exists()


def test_a_missing_baseline_is_told_when_the_run_starts(registered, capsys):
    assert run.main([*TINY, "--providers", "normlib", "--out", "a"]) == 0
    said = "no speedups: torch is not measured, and --baseline names no other of normlib"
    assert said in capsys.readouterr().out and said in environment.read(Path("a"))["notes"]


def test_energies_that_no_gpu_counts_are_told_when_the_run_starts(registered, capsys):
    assert run.main([*TINY, "--energy", "--out", "a"]) == 0
    assert "no energies: only a GPU counts them" in capsys.readouterr().out
    assert all(one.energy_mj is None for one in results.read(Path("a/records.jsonl")))


def test_a_wrong_peer_is_told_and_is_no_failure_of_ours(capsys, registered):
    registered(Fake("normlib"), Fake("peer", DOUBLED))
    assert run.main([*TINY, "--providers", "normlib,torch,peer", "--out", "a"]) == 0
    assert "wrong: layer_norm 4x8 fp32 rows fwd peer: y: " in capsys.readouterr().out


def test_a_peers_impossible_time_is_a_failure(registered):
    registered(Fake("normlib"), Fake("peer", lambda out: (setattr(accuracy, "ROUNDINGS", 400), out)[1]))
    assert run.main([*TINY, "--providers", "normlib,torch,peer", "--out", "a"]) == 1


def test_an_interrupt_still_makes_the_report_and_exits_130_and_resume_finishes_the_run(registered, capsys):
    registered(Fake("normlib", error=KeyboardInterrupt(), modes=("bwd", "fwd_bwd")))
    assert run.main([*TINY, "--out", "a", "--seed", "5"]) == 130
    assert Path("a/report.html").exists()
    assert environment.read(Path("a"))["stopped_by"] == "interrupt"
    first = Path("a/records.jsonl").read_text()

    working = Fake("normlib")
    registered(working)
    assert run.main(["--resume", "a"]) == 0
    described = environment.read(Path("a"))
    assert (described["complete"], described["stopped_by"], described["seed"]) == (True, "", 5)
    assert described["command"].endswith("--out a --seed 5")
    assert any(note.startswith("continued ") for note in described["notes"])
    assert Path("a/records.jsonl").read_text().startswith(first)
    assert {r.seed for r in results.read(Path("a/records.jsonl"))} == {5}
    assert working.built == 2

    assert run.main(["--resume", "a"]) == 0
    assert working.built == 2


def test_an_interrupt_before_the_first_cell_leaves_a_run_that_can_be_resumed(registered):
    registered(Fake("normlib", error=KeyboardInterrupt()))
    assert run.main([*TINY, "--out", "a", "--providers", "normlib"]) == 130
    assert Path("a/records.jsonl").read_text() == ""
    registered(Fake("normlib"))
    assert run.main(["--resume", "a"]) == 0
    assert environment.read(Path("a"))["complete"] is True


@pytest.mark.chance
def test_a_spent_budget_is_no_failure_and_resume_takes_a_new_one(registered):
    assert run.main([*TINY, "--out", "a", "--time-budget", "0.000000001s"]) == 0
    assert environment.read(Path("a"))["stopped_by"] == "time budget"
    assert {r.status for r in results.read(Path("a/records.jsonl"))} == {"skipped"}
    assert run.main(["--resume", "a", "--time-budget", "1h"]) == 0
    assert {r.status for r in results.read(Path("a/records.jsonl"))} == {"ok"}
    assert environment.read(Path("a"))["complete"] is True


@pytest.mark.parametrize(
    "beside", [["--op", "bn"], ["--seed", "0"], ["--device", "cpu"], ["--out", "b"], ["--list"], ["--batch", ""]]
)
def test_resume_refuses_other_arguments(registered, capsys, beside):
    assert run.main([*TINY, "--out", "a"]) == 0
    before = {path.name: path.read_bytes() for path in Path("a").iterdir()}
    capsys.readouterr()
    line = refused(capsys, ["--resume", "a", *beside])
    assert beside[0] in line
    assert {path.name: path.read_bytes() for path in Path("a").iterdir()} == before
    assert not Path("b").exists()


def test_resume_refuses_other_versions_and_says_which(registered, capsys):
    assert run.main([*TINY, "--out", "a"]) == 0
    described = environment.read(Path("a"))
    environment.write(Path("a"), {**described, "torch": "1.0"})
    capsys.readouterr()
    assert f"torch was '1.0', is {torch.__version__!r}" in refused(capsys, ["--resume", "a"])
    assert run.main(["--resume", "a", "--force"]) == 0
    assert "with --force under other conditions: torch was '1.0'" in environment.read(Path("a"))["notes"][-1]


def test_resume_refuses_records_that_cannot_be_read(registered, capsys):
    assert run.main([*TINY, "--out", "a"]) == 0
    path = Path("a/records.jsonl")
    path.write_text("{broken\n" + path.read_text())
    capsys.readouterr()
    assert "cannot be read" in refused(capsys, ["--resume", "a"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"arguments": 3}'])
def test_resume_of_a_broken_description_is_refused(elsewhere, registered, capsys, text):
    (elsewhere / "a").mkdir()
    (elsewhere / "a" / "environment.json").write_text(text)
    assert "holds no run" in refused(capsys, ["--resume", "a"])


def test_list_prints_a_line_for_each_cell_and_thing_and_runs_nothing(elsewhere, capsys, registered):
    assert run.main([*TINY, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "provider: extra  needs a GPU" in lines
    kinds = {line.partition(":")[0] for line in lines[:-1]}
    assert kinds == {"operator", "preset", "provider"}
    assert run.main([*TINY, "--list", "cells"]) == 0
    *cells, last = capsys.readouterr().out.splitlines()
    assert len(cells) == 6 and "cell: layer_norm 4x8 fp32 rows fwd  torch" in cells and last == lines[-1]
    assert list(elsewhere.iterdir()) == []


def test_help_names_every_axis_and_the_exit_statuses(capsys):
    with pytest.raises(SystemExit) as left:
        run.main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    for word in ("--batch", "--hidden", "--resume", "exit status"):
        assert word in out


def test_with_a_gpu_a_user_who_set_the_interpreter_gets_it_with_a_note(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device, notes = devices.choose(None)
    assert device.type == "cpu"
    assert "TRITON_INTERPRET was set" in notes[0]


def test_with_a_gpu_cuda_and_the_interpreter_contradict_each_other(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "TRITON_INTERPRET" in refused(capsys, ["--device", "cuda"])


def test_with_a_gpu_it_is_taken_and_the_interpreter_stays_off(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert devices.choose(None) == (torch.device("cuda", 0), [])
    assert "TRITON_INTERPRET" not in os.environ


def program(*argv, **changes):
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), **changes}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, timeout=300)


@pytest.mark.chance
def test_the_program_measures_on_the_interpreter_and_makes_a_report(elsewhere):
    argv = [argument for argument in TINY if argument != "--in-process"]
    done = program("-m", "bench.run", *argv, "--mode", "fwd", "--providers", "torch", "--out", "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert "interpreter" in done.stdout
    (record,) = results.read(Path("a/records.jsonl"))
    assert (record.status, record.gbps, record.speedup) == ("ok", None, None)
    assert json.loads(Path("a/environment.json").read_text())["interpreted"] is True
    assert "<html" in Path("a/report.html").read_text()


@pytest.mark.chance
def test_the_program_refuses_with_status_2_and_one_line(elsewhere):
    done = program("-m", "bench.run", "--dtype", "fp8")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "bench.run: error: --dtype: 'fp8' is not one of fp32, fp16, bf16\n"
    assert list(elsewhere.iterdir()) == []


@pytest.mark.chance
def test_triton_is_not_imported_before_the_device_is_known():
    done = program("-c", "import sys, bench.run; print('triton' in sys.modules)")
    assert done.stdout == "False\n"
