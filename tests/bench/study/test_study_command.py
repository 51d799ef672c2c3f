"""The command line of a study, in-process: what it writes, how it goes on, and what it refuses."""

import json
import multiprocessing
import time
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from bench.measure import environment
from bench.study import __main__ as command
from bench.study import data, page, records, runner
from bench.study.experiments import selu
from bench.study.training import SCALES, StudyOutcome
from normlib import dispatch

CHEAP = ["--only", "selu", "--in-process"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to run in, on a machine without a GPU; the page has tests of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(page, "render", lambda folder: folder / "report.html")
    return tmp_path


def outcome(condition, seed, setting):
    return StudyOutcome({"variance": float(condition == "SELU")})


@pytest.fixture
def counted(monkeypatch):
    """Stands in for the experiment that is run; `side_effect` is what it does."""
    made = Mock(side_effect=outcome)
    monkeypatch.setattr(selu, "run", made)
    return made


def raising(error, *at):
    def does(*run):
        if run[:2] == at:
            raise error
        return outcome(*run)

    return does


def cifar(folder, images=8, **content):
    """CIFAR-10's files with so many images each; `content` replaces a file's bytes by name."""
    folder.mkdir()
    dice = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        drawn = dice.integers(0, 256, (images, 3073), dtype=np.uint8)
        drawn[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(content.get(name, drawn.tobytes()))
    return folder


def test_a_study_leaves_its_records_and_says_what_was_run(elsewhere, capsys):
    assert command.main([*CHEAP, "--out", str(elsewhere / "study")]) == 0
    out = capsys.readouterr().out
    assert out.count("reproduced") == 2
    assert "report: " in out
    runs = list(records.read(elsewhere / "study"))
    assert {run.key for run in runs} == {("selu", c, seed) for c in ("SELU", "ReLU") for seed in range(3)}
    described = environment.read(elsewhere / "study")
    assert described["complete"] is True
    assert described["command"] == "python -m bench.study --only selu --in-process --out study"
    assert str(elsewhere) not in json.dumps(described)
    assert described["study"] == {
        "experiments": ["selu"], "data": "digits", "scale": "pilot", "network": "mlp", "seeds": 3
    }  # fmt: skip


def test_runs_side_by_side_give_the_records_of_runs_one_after_the_other(elsewhere):
    assert command.main(["--only", "selu", "--seeds", "1", "--out", "beside"]) == 0
    assert command.main([*CHEAP, "--seeds", "1", "--out", "after"]) == 0
    values = [{run.key: run.values for run in records.read(elsewhere / name)} for name in ("beside", "after")]
    assert values[0].keys() == values[1].keys()
    for key, found in values[0].items():
        assert found == pytest.approx(values[1][key], rel=1e-3)  # another number of threads sums in another order


def test_ctrl_c_ends_the_runs_and_no_other_process_of_the_caller(elsewhere, monkeypatch):
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    monkeypatch.setattr(runner, "as_completed", Mock(side_effect=KeyboardInterrupt))
    try:
        assert command.main(["--only", "selu", "--seeds", "1", "--out", "beside"]) == 130
        other.join(1)
        assert other.is_alive()
    finally:
        other.terminate()
        other.join()


def test_ctrl_c_keeps_what_is_done_and_resume_runs_the_rest(elsewhere, counted):
    counted.side_effect = raising(KeyboardInterrupt, "SELU", 1)
    assert command.main([*CHEAP, "--out", "study"]) == 130
    described = environment.read(elsewhere / "study")
    assert (described["complete"], described["stopped_by"], described["runs_planned"]) == (False, "interrupt", 6)
    assert len(list(records.read(elsewhere / "study"))) == 2
    counted.reset_mock()
    counted.side_effect = outcome
    assert command.main(["--resume", "study", "--in-process"]) == 0
    assert {call.args[:2] for call in counted.mock_calls} == {(c, seed) for c in ("SELU", "ReLU") for seed in (1, 2)}
    assert environment.read(elsewhere / "study")["complete"] is True
    assert len(list(records.read(elsewhere / "study"))) == 6


def test_a_run_that_fails_costs_no_other_and_is_run_again_on_resume(elsewhere, counted, capsys):
    counted.side_effect = raising(ValueError("no such thing\nat all"), "ReLU", 0)
    assert command.main([*CHEAP, "--out", "study"]) == 1
    assert "failed: selu, ReLU, seed 0: ValueError: no such thing" in capsys.readouterr().out
    assert [run.state for run in records.read(elsewhere / "study")].count("failed") == 1
    counted.reset_mock()
    counted.side_effect = outcome
    assert command.main(["--resume", "study", "--in-process"]) == 0
    assert [call.args[:2] for call in counted.mock_calls] == [("ReLU", 0)]


def test_a_study_of_another_machine_is_continued_only_by_force(elsewhere, counted, capsys):
    assert command.main([*CHEAP, "--out", "study"]) == 0
    environment.write(elsewhere / "study", environment.read(elsewhere / "study") | {"torch": "0.1"})
    assert command.main(["--resume", "study"]) == 2
    assert "torch was '0.1'" in capsys.readouterr().err
    assert command.main(["--resume", "study", "--force", "--in-process"]) == 0
    assert "torch was '0.1'" in environment.read(elsewhere / "study")["notes"][-1]


def test_the_list_names_every_experiment_and_runs_nothing(elsewhere, counted, capsys):
    assert command.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in command.BY_NAME)
    assert not counted.called
    assert not (elsewhere / "reports").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "landscap"], "--only: 'landscap' is not one of"),
        (["--only", ""], "--only: '' has an empty value"),
        (["--data", "nowhere"], "neither digits, mnist5k nor a folder with CIFAR-10's data_batch_*.bin"),
        (["--scale", "huge"], "--scale: 'huge' is not one of pilot, full, full-vgg16"),
        (["--scale", "full"], "--scale: full needs --data with the folder of CIFAR-10's binary files"),
        (["--seeds", "0"], "--seeds: '0' is not a whole number from 1 to 9999"),
        (["--seeds", "3.5"], "--seeds"),
        (["--device", "tpu"], "--device: 'tpu' is not one of cuda, cpu"),
        (["--device", "cuda"], "--device: there is no GPU"),
        (["--resume", "nowhere"], "--resume: 'nowhere' holds no run"),
        (["--resume", "nowhere", "--seeds", "3"], "--seeds: not together with --resume"),
        (["--force"], "--force: only together with --resume"),
        (["--out", ""], "--out: empty; give a folder"),
    ],
)
def test_what_cannot_be_used_gets_one_line_and_status_2(argv, said, capsys, elsewhere):
    assert command.main([*CHEAP[2:], *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not (elsewhere / "reports").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "data_batch_2.bin has 0 bytes"),
        (bytes(3074), "data_batch_2.bin has 3074 bytes, not whole records of 3073"),
        (b"\x0a" + bytes(3072), "data_batch_2.bin has labels beyond 9"),
    ],
)
def test_files_that_are_not_cifar_10_are_refused(content, said, elsewhere, capsys):
    folder = cifar(elsewhere / "cifar", data_batch_2=content)
    assert command.main([*CHEAP, "--data", str(folder)]) == 2
    assert said in capsys.readouterr().err


def test_cifar_10s_pixels_are_red_green_and_blue_planes_with_mean_0_and_deviation_1(elsewhere):
    found = data.load(str(cifar(elsewhere / "cifar")))
    raw = np.fromfile(elsewhere / "cifar" / "data_batch_1.bin", np.uint8).reshape(8, 3073)
    assert found.y[:8].tolist() == raw[:, 0].tolist()
    assert found.x.shape == (16, 3, 32, 32)
    torch.testing.assert_close(found.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.x.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    # The second pixel of the third row of the first image's green, against its neighbour.
    both = [np.fromfile(elsewhere / "cifar" / f"data_batch_{i}.bin", np.uint8).reshape(8, 3073) for i in (1, 2)]
    step = (raw[0, 1 + 1024 + 65] / 1.0 - raw[0, 1 + 1024 + 64]) / np.concatenate(both)[:, 1025:2049].std(ddof=1)
    assert float(found.x[0, 1, 2, 1] - found.x[0, 1, 2, 0]) == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize("scale", ["full", "full-vgg16"])
def test_two_steps_of_vgg_on_cifar_10(scale, elsewhere, monkeypatch):
    monkeypatch.setattr(dispatch, "CPU_RUNS_KERNELS", False)
    monkeypatch.setitem(SCALES, scale, replace(SCALES[scale], steps=2))
    folder = cifar(elsewhere / "cifar", images=4)
    arguments = ["--only", "training", "--seeds", "1", "--scale", scale, "--data", str(folder), "--in-process"]
    assert command.main([*arguments, "--out", "study"]) == 0
    runs = list(records.read(elsewhere / "study"))
    assert [run.state for run in runs] == ["ok"] * 4
    assert environment.read(elsewhere / "study")["study"]["data"] == "cifar10"
    assert str(elsewhere) not in (elsewhere / "study" / environment.FILE).read_text()
