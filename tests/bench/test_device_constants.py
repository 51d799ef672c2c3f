"""A device's constants come out as they are on a virtual GPU, and each is written with what it was measured with."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from virtual_gpu import LAUNCH_S, VirtualGpu

from bench.cli import BadArgument
from bench.device_constants import __main__ as device_constants
from bench.device_constants import device_file
from bench.device_constants import figures as device_figures
from bench.device_constants.__main__ import measure
from bench.device_constants.figures import MANY, Session, Unmeasured
from bench.measure import devices, environment
from bench.measure.timing.phases import NotCaptured, Phases
from normlib.kernels import plan
from normlib.kernels.plan import Device

ROOT = Path(__file__).parents[2]
US = 1e-6
H200 = Device(132, l2=50 << 20, cooperative=True)
LATER = float("inf")
VERSIONS = {"torch": "2.13", "triton": "3.7", "cuda": "13.0", "git_commit": "0" * 40, "git_dirty": False}
DESCRIBED = {"device_name": "a GPU", **VERSIONS}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr("bench.measure.sampling.REST_S", 0.0)
    return VirtualGpu()


@pytest.fixture
def on(gpu):
    return Session(gpu, Phases(gpu, None), torch.device("cpu"), H200)


def repeated(gpu, of_one_s, once_s=7 * US, host_s=LAUNCH_S):
    """Runs that take so long for each of what they are told the number of, and something besides."""
    return lambda count: gpu.call(once_s + count * of_one_s, host_s)


def test_bandwidth_is_what_cold_calls_move(gpu, on):
    # What is in the cache is faster, and not in the figure.
    runs = {size: gpu.call(0.0, reading_s=2 * size / 3e12) for size in (1 << 24, 1 << 28)}
    found = device_figures.bandwidths(on.phases, runs, 2)
    assert found == {str(size): pytest.approx(3000, rel=1e-3) for size in runs}


def test_what_one_more_takes_is_the_slope_of_hot_calls(gpu, on):
    flushes = gpu.flushes
    assert device_figures.slope(on.phases, repeated(gpu, 1.5 * US)) == pytest.approx(1.5)
    assert gpu.flushes == flushes


def test_a_figure_that_the_host_is_in_is_not_told(gpu, on):
    with pytest.raises(Unmeasured, match="the host is in their time"):
        device_figures.slope(on.phases, lambda count: gpu.call(US, waits=True))


def test_what_a_run_raises_is_raised(gpu, on):
    def fails():
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        device_figures.medians(on.phases, {"good": gpu.call(US), "bad": fails}, device_figures.BlockTimer.cold)


def test_the_hosts_part_of_a_launch_is_timed_while_the_device_is_idle(gpu):
    assert device_figures.host_us(gpu, gpu.call(40 * US, host_s=6 * US)) == pytest.approx(6)


def test_a_launch_has_a_figure_in_a_stream_and_in_a_graph_and_of_the_host(gpu, on, monkeypatch):
    monkeypatch.setattr(device_figures, "launching", lambda n: gpu.call(n * 2.5 * US, host_s=n * 6 * US))
    graphs = iter([1, MANY])
    replayed = lambda run: SimpleNamespace(replay=gpu.call(next(graphs) * 1.25 * US, host_s=US))
    found = device_figures.launch_figure(on, replayed)
    assert found == {"stream_us": 2.5, "graph_us": 1.25, "host_us": 6.0}


def test_where_no_graph_can_be_captured_there_is_no_figure_of_launches(gpu, on, monkeypatch):
    monkeypatch.setattr(device_figures, "launching", repeated(gpu, US))

    def refuses(run):
        raise NotCaptured("not here", poisoned=True)

    with pytest.raises(Unmeasured, match="no CUDA graph: not here"):
        device_figures.launch_figure(on, refuses)


def waiting_for(gpu, left=0, short=0):
    """In the place of the kernel with barriers of 1.75 us; in what it leaves, counters and programs may be wrong."""

    def waiting(seen, counters, waits, **options):
        assert options == {"launch_cooperative_grid": True}
        run = gpu.call((9 + waits * 1.75) * US)

        def launch():
            run()
            seen.fill_(waits * seen.numel())
            seen[:short] -= 1
            counters[1] = left

        return launch

    return waiting


def test_a_barrier_takes_the_slope_of_its_waits(gpu, on, monkeypatch):
    monkeypatch.setattr(device_figures, "waiting", waiting_for(gpu))
    assert device_figures.barrier_figure(on) == {"us": 1.75, "programs": 132}


@pytest.mark.parametrize(
    ("wrong", "said"), [({"left": 1}, "left its counters"), ({"short": 2}, "2 of 132 programs did not wait")]
)
def test_a_barrier_that_does_not_hold_has_no_figure(gpu, on, monkeypatch, wrong, said):
    monkeypatch.setattr(device_figures, "waiting", waiting_for(gpu, **wrong))
    with pytest.raises(Unmeasured, match=said):
        device_figures.barrier_figure(on)


def test_where_programs_cannot_wait_for_each_other_no_barrier_is_launched(gpu, monkeypatch):
    monkeypatch.setattr(device_figures, "waiting", waiting_for(gpu))
    alone = Session(gpu, Phases(gpu, None), torch.device("cpu"), Device(304, 64, None))
    with pytest.raises(Unmeasured, match="cannot be relied on"):
        device_figures.barrier_figure(alone)


@pytest.mark.parametrize("figure", ["copy", "read"])
def test_every_size_that_fits_into_memory_is_swept(figure, gpu, on, monkeypatch):
    swept = []

    def reading(x, rounds, facts):
        assert rounds == 1
        return lambda: swept.append(x.nbytes) or gpu.launch(x.nbytes / 4e12)

    def copy(target, source):
        assert target.nbytes == source.nbytes and target.data_ptr() != source.data_ptr()
        swept.append(source.nbytes)
        gpu.launch(2 * source.nbytes / 4e12)

    on = replace(on, sizes=(1 << 12, 1 << 13, 1 << 14))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((1 << 15) + 7, 1 << 20))
    monkeypatch.setattr(device_figures, "reading", reading)
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    found = device_figures.FIGURES[figure](on)
    assert set(swept) == {1 << 12, 1 << 13}
    assert found["gbps"] == {"4096": 4000.0, "8192": 4000.0}


def test_the_l2_is_swept_by_a_third_of_it(gpu, on, monkeypatch):
    third = 1024 * device_figures.BLOCK * 4
    tensors = []

    def sweeping(ways, gbps):
        def sweep(*arguments):
            *moved, rounds, _ = arguments
            tensors.extend(moved)
            return gpu.call(5 * US + rounds * ways * moved[0].nbytes / gbps / 1e9)

        return sweep

    monkeypatch.setattr(device_figures, "reading", sweeping(1, 5500))
    monkeypatch.setattr(device_figures, "copying", sweeping(2, 4500))
    assert device_figures.l2_figure(on) == {
        "bytes": pytest.approx(third, abs=device_figures.BLOCK * 4 * 64),
        "read_gbps": 5500.0,
        "copy_gbps": 4500.0,
    }
    assert {t.nbytes for t in tensors} <= {device_figures.l2_figure(on)["bytes"]}
    with pytest.raises(Unmeasured, match="does not tell the size"):
        device_figures.l2_figure(Session(gpu, on.phases, on.device, Device(132)))


def told(us):
    return lambda on: {"us": us}


def test_each_figure_is_written_with_its_versions_and_what_was_not_measured_stays(tmp_path, capsys):
    file = tmp_path / "folder" / "gpu.json"
    kept = {"values": {"row_forward 64 2": {"threads": 64}}, "gains": {"row_forward 64 2": {"cells": 2}}}
    device_file.update(file, "a GPU", **kept, constants={"copy": {"gbps": {"16777216": 7.0}}, "l2": {"us": 3.0}})
    on = SimpleNamespace(gpu=VirtualGpu())

    def fails(on):
        raise Unmeasured("no such thing\nand more")

    figures = {"copy": told(1.0), "read": fails, "barrier": told(2.0)}
    assert measure(figures, lambda: on, LATER, file, DESCRIBED) == 1
    written = json.loads(file.read_text())
    assert {key: written[key] for key in kept} == kept
    versions = written["constants"]["copy"].pop("with")
    assert versions.pop("measured") and versions == VERSIONS
    assert written["constants"]["copy"] == {"us": 1.0} and written["constants"]["barrier"]["us"] == 2.0
    assert written["constants"]["l2"] == {"us": 3.0} and "read" not in written["constants"]
    assert [found.name for found in file.parent.iterdir()] == ["gpu.json"]
    printed = capsys.readouterr()
    assert printed.err == "bench.device_constants: error: read: Unmeasured: no such thing\n"
    assert printed.out == f"copy: us 1\nbarrier: us 2\nwritten: {file}\n"


def test_after_the_device_is_lost_nothing_more_is_tried(tmp_path):
    gpu, tried = VirtualGpu(), []

    def loses(on):
        gpu.lost = True
        raise RuntimeError("an illegal memory access was encountered")

    figures = {"copy": told(1.0), "read": loses, "barrier": lambda on: tried.append(on) or {}}
    assert measure(figures, lambda: SimpleNamespace(gpu=gpu), LATER, tmp_path / "gpu.json", DESCRIBED) == 1
    assert tried == [] and json.loads((tmp_path / "gpu.json").read_text())["constants"].keys() == {"copy"}


def test_when_the_time_is_up_no_figure_is_begun(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    assert measure({"copy": told(1.0)}, lambda: None, time.monotonic() - 1, file, DESCRIBED) == 0
    assert capsys.readouterr().out == "copy: not measured, the time budget was spent\n" and not file.exists()


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    file = tmp_path / "gpu.json"
    device_file.update(file, "a GPU", values={"a": {"threads": 64}})
    before = file.read_text()

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        device_file.update(file, "a GPU", values={})
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("{", "gpu.json", "is not a device's file: "),
        ("[]", "gpu.json", "is not a JSON object"),
        ('{"device_name": "another"}', "gpu.json", "is the file of another, and this is a GPU"),
        ("", "gpu.json/gpu.json", "cannot be written"),
    ],
)
def test_a_file_that_is_not_this_devices_or_cannot_be_made_is_refused_in_a_line(tmp_path, text, place, said):
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(BadArgument, match="--out: ") as error:
        device_file.choose(tmp_path / place, "a GPU")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_chosen_file_gets_its_folder_and_nothing_in_it(tmp_path):
    assert device_file.choose(tmp_path / "folder" / "gpu.json", "a GPU") == tmp_path / "folder" / "gpu.json"
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_device_that_hangs_ends_the_process_in_one_line():
    code = (
        "import time\nfrom bench.device_constants.__main__ import ended_when_hung\n"
        "with ended_when_hung(time.monotonic() + 1):\n    pass\n"
        "time.sleep(1.5)\nprint('done', flush=True)\n"
        "with ended_when_hung(time.monotonic() + 0.1):\n    time.sleep(60)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "done\n") and time.monotonic() - began < 50
    assert done.stderr == "bench.device_constants: error: the device hangs; what was measured is written\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert device_constants.main([]) == 2
    assert capsys.readouterr().err == (
        "bench.device_constants: error: device: a GPU is needed, and there is none: nothing is measured without one\n"
    )


def test_a_bad_argument_is_one_line_and_status_2(capsys):
    assert device_constants.main(["--time-budget", "soon"]) == 2
    assert capsys.readouterr().err == (
        "bench.device_constants: error: --time-budget: 'soon' is not a duration above zero such as 90s, 10m or 1.5h\n"
    )
    assert device_constants.main(["--fast"]) == 2
    assert capsys.readouterr().err == "bench.device_constants: error: unrecognized arguments: --fast\n"


def test_a_gpu_that_is_to_be_interpreted_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "interpreting", lambda: True)
    with pytest.raises(BadArgument, match="TRITON_INTERPRET is set"):
        devices.gpu()


def test_the_command_measures_every_figure_of_this_gpu_into_its_file(tmp_path, monkeypatch, capsys):
    sessions = []
    monkeypatch.setattr(devices, "gpu", lambda: torch.device("cuda", 3))
    monkeypatch.setattr(environment, "collect", lambda device, providers: DESCRIBED)
    monkeypatch.setattr(plan, "tuning_file", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(
        device_figures, "session", lambda device, sizes: sessions.append((device, sizes)) or SimpleNamespace()
    )
    monkeypatch.setattr(device_figures, "FIGURES", {"copy": told(1.0), "read": told(2.0)})
    assert device_constants.main(["--bytes", "8192,4096"]) == 0
    assert sessions == [(torch.device("cuda", 3), (4096, 8192))] * 2
    assert json.loads((tmp_path / "a GPU.json").read_text())["constants"].keys() == {"copy", "read"}
    assert device_constants.main(["--bytes", "1K"]) == 2
    assert capsys.readouterr().err == (
        "bench.device_constants: error: --bytes: '1K' is not a number of bytes from 1000 to 9999999999999\n"
    )
    (tmp_path / "other.json").write_text("no JSON")
    assert device_constants.main(["--out", str(tmp_path / "other.json")]) == 2
    assert capsys.readouterr().err.startswith("bench.device_constants: error: --out: ")


@pytest.mark.gpu
def test_a_gpu_has_all_its_constants_within_20_seconds(tmp_path):
    file, began = tmp_path / "gpu.json", time.monotonic()
    assert device_constants.main(["--out", str(file)]) == 0
    assert time.monotonic() - began < 20
    found = json.loads(file.read_text())["constants"]
    assert found.keys() == device_figures.FIGURES.keys()
    assert all(0 < gbps < 1e5 for figure in ("copy", "read") for gbps in found[figure]["gbps"].values())
    assert 0 < found["launch"]["graph_us"] < found["launch"]["stream_us"] < 100
    assert 0 < found["barrier"]["us"] < 100
    assert plan.tuning_of(torch.cuda.get_device_name()) is not None
