"""Cases x providers -> records, with providers that misbehave."""

import os

import pytest
import torch
from scripted import TORCH, Scripted, Silent, cases, changing, plan, raising, run, statuses

from bench.cases.operators import operators
from bench.measure import looks, timing
from bench.measure.providers import Runnable, Unsupported
from bench.results import records as results


def test_every_cell_gets_a_record_on_disk_with_checked_errors_and_a_time(tmp_path):
    planned = plan(TORCH, Scripted(), found=cases("bn", layout="nchw,nhwc"))
    outcome, described = run(tmp_path, planned)
    assert len(outcome.records) == planned.cells == described["cells_planned"] == 2 * 2 * 4
    assert list(results.read(tmp_path / "records.jsonl")) == outcome.records
    for record in outcome.records:
        assert record.status == "ok", record.reason
        saved = {"mean", "rstd"} if record.mode in ("fwd", "fwd_bwd") else set()
        assert {error.tensor for error in record.errors} == {*operators()["batch_norm"].outputs(record.mode), *saved}
        assert record.latency_us > 0
        assert record.compile_ms > 0
        assert record.bytes_moved > 0
    assert described["complete"] is True
    assert described["stopped_by"] == ""
    assert described["finished"] is not None
    assert (tmp_path / "records.csv").read_text().count("\n") == planned.cells + 1


def test_nothing_measured_on_a_cpu_supports_a_claim_of_speed(tmp_path):
    outcome, _ = run(tmp_path, plan(TORCH, Scripted()))
    for record in outcome.records:
        assert record.clock == "host_cpu"
        assert (record.gbps, record.speedup, record.roofline_fraction, record.peak_bytes) == (None,) * 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda out: {name: tensor * 1.001 for name, tensor in out.items()}, "beyond"),
        (lambda out: {name: torch.zeros_like(tensor) for name, tensor in out.items()}, "beyond"),
        (lambda out: dict.fromkeys(out), "missing"),
        (lambda out: {}, "missing"),
        (lambda out: {name: tensor.double() for name, tensor in out.items()}, "dtype"),
        (lambda out: {name: tensor * float("nan") for name, tensor in out.items()}, "NaN"),
    ],
)
def test_a_wrong_output_is_wrong_with_the_figure_as_the_reason(tmp_path, change, says):
    outcome, described = run(tmp_path, plan(TORCH, Scripted(spoil=changing(change))))
    assert statuses(outcome) == {"wrong"}
    assert all(says in record.reason for record in outcome.records if record.provider == "scripted")
    assert statuses(outcome, "torch") == {"ok"}
    assert described["complete"] is True


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("boom\nand a long trace"), "crash", "RuntimeError: boom"),
        (AssertionError(), "crash", "AssertionError"),
        (torch.OutOfMemoryError("no room"), "oom", "OutOfMemoryError: no room"),
        (MemoryError("no room"), "oom", "MemoryError: no room"),
        (type("OutOfResources", (Exception,), {})("shared memory"), "oom", "OutOfResources: shared memory"),
        (Unsupported("fp32 is not served"), "unsupported", "fp32 is not served"),
    ],
)
def test_an_exception_costs_one_provider_its_cells_and_nobody_else(tmp_path, error, status, reason):
    outcome, described = run(tmp_path, plan(Scripted(spoil=raising(error)), TORCH))
    assert statuses(outcome) == {status}
    assert {record.reason for record in outcome.records if record.provider == "scripted"} == {reason}
    assert all(record.latency_us is None for record in outcome.records if record.provider == "scripted")
    assert statuses(outcome, "torch") == {"ok"}
    assert described["complete"] is True


class Mute(RuntimeError):
    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file or directory", "/home/somebody/.cache/kernel.bin"), "'kernel.bin'"),
        (RuntimeError("nvcc /home/somebody/a b/x.cu: error"), "nvcc "),
        (RuntimeError("ratio 1/2 of aten/native"), "ratio 1/2 of aten/native"),
        (RuntimeError(os.fsdecode(b"no \xfc")), "no \\udcfc"),
        (Mute(), "its text cannot be had: ValueError"),
        (SystemExit(0), "it calls sys.exit(0)"),
    ],
)
def test_a_reason_names_nobodys_folders_and_survives_a_broken_text(tmp_path, error, reason):
    outcome, _ = run(tmp_path, plan(Scripted(spoil=raising(error)), TORCH))
    assert statuses(outcome) == {"crash"} and statuses(outcome, "torch") == {"ok"}
    told = [record.reason for record in outcome.records if record.provider == "scripted"]
    assert all(reason in one and "somebody" not in one for one in told), told


def test_whole_traces_are_kept_beside_the_records(tmp_path):
    outcome, _ = run(tmp_path, plan(Scripted(spoil=raising(RuntimeError("boom\nand a long text"))), TORCH))
    kept = (tmp_path / results.TRACES).read_text(encoding="utf-8")
    crashed = [record.key for record in outcome.records if record.status == "crash"]
    assert [line for line in kept.splitlines() if line in crashed] == crashed
    assert kept.count("Traceback") == kept.count("RuntimeError: boom\nand a long text\n") == len(crashed) > 0


def test_a_lack_of_memory_is_seen_through_what_wraps_it(tmp_path):
    def spoil(built, case, inputs):
        try:
            raise torch.OutOfMemoryError("no room")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("the compiler failed") from error

    outcome, _ = run(tmp_path, plan(Scripted(spoil=spoil)))
    assert statuses(outcome) == {"oom"}


@pytest.mark.parametrize(
    ("owner", "since"), [(looks, "at_one_call"), (timing, "measure_together"), (looks, "at_timed_calls")]
)
@pytest.mark.parametrize("error", [RuntimeError("no more"), SystemExit(0)])
def test_an_exception_at_any_call_costs_one_cell(tmp_path, monkeypatch, owner, since, error):
    begun, real = [], getattr(owner, since)
    monkeypatch.setattr(owner, since, lambda *given, **named: (begun.append(since), real(*given, **named))[1])

    def spoil(built, case, inputs):
        begun.clear()

        def once():
            if begun:
                raise error
            return built.run()

        return Runnable(once, built.outputs)

    outcome, _ = run(tmp_path, plan(Scripted(spoil=spoil), TORCH))
    reason = "RuntimeError: it calls sys.exit(0)" if isinstance(error, SystemExit) else "RuntimeError: no more"
    assert {(r.status, r.reason) for r in outcome.records if r.provider == "scripted"} == {("crash", reason)}
    assert statuses(outcome, "torch") == {"ok"}


def test_inputs_that_cannot_be_made_cost_the_cells_of_that_problem(tmp_path, monkeypatch):
    operator = operators()["layer_norm"]
    made = type(operator).inputs

    def inputs(self, case, device, seed):
        if case.shape == (4, 8):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return made(self, case, device, seed)

    monkeypatch.setattr(type(operator), "inputs", inputs)
    outcome, _ = run(tmp_path, plan(TORCH, found=cases(tokens="4,5")))
    assert {(r.shape[0], r.status) for r in outcome.records} == {(4, "oom"), (5, "ok")}
    assert all(r.reason.startswith("inputs and reference: ") for r in outcome.records if r.status == "oom")


def test_an_unavailable_provider_that_was_asked_for_is_unsupported_and_never_built(tmp_path):
    missing = Scripted(reason="needs a GPU")
    outcome, _ = run(tmp_path, plan(TORCH, missing))
    assert {r.reason for r in outcome.records if r.provider == "scripted"} == {"needs a GPU"}
    assert statuses(outcome) == {"unsupported"}
    assert missing.built == []


def test_no_cell_sees_what_another_left_in_its_inputs(tmp_path):
    def spoil(built, case, inputs):
        # After the check, when only timing is left: what an ill-behaved kernel would do last.
        def outputs():
            found = built.outputs()
            for tensor in inputs.values():
                tensor.detach().fill_(7)
                tensor.grad = torch.ones_like(tensor)
            return found

        return Runnable(built.run, outputs)

    outcome, _ = run(tmp_path, plan(Scripted("first", spoil), TORCH, found=cases("bn")))
    assert statuses(outcome, "torch") == {"ok"}


def test_a_provider_that_writes_into_x_is_wrong(tmp_path):
    def spoil(built, case, inputs):
        def run():
            inputs["x"].data.mul_(2)
            return built.run()

        return Runnable(run, built.outputs)

    outcome, _ = run(tmp_path, plan(Scripted(spoil=spoil)))
    assert statuses(outcome) == {"wrong"}
    assert {record.reason for record in outcome.records} == {"writes into its input x"}


def test_running_buffers_move_in_every_pass_and_are_put_back_before_the_check(tmp_path):
    def spoil(built, case, inputs):
        def run():
            inputs["running_mean"].add_(1)
            inputs["running_var"].mul_(2)
            return built.run()

        return Runnable(run, built.outputs)

    outcome, _ = run(tmp_path, plan(Scripted(spoil=spoil), found=cases("bn")))
    assert statuses(outcome) == {"ok"}


def cached(built, case, inputs):
    found = built.run()
    return Runnable(lambda: found, built.outputs)


def unwritten(built, case, inputs):
    found = built.run()

    def run():
        for name, tensor in built.run().items():
            found[name].detach().flatten()[1:] = tensor.flatten()[1:]  # the first element is left as it was
        return found

    return Runnable(run, built.outputs)


def of_the_first_inputs(built, case, inputs):
    before = {name: tensor.clone() for name, tensor in inputs.items()}

    def run():
        now = {name: tensor.clone() for name, tensor in inputs.items()}
        for name, tensor in inputs.items():
            tensor.copy_(before[name])
        found = built.run()
        for name, tensor in inputs.items():
            tensor.copy_(now[name])
        return found

    return Runnable(run, built.outputs)


@pytest.mark.parametrize("cheat", [cached, unwritten, of_the_first_inputs])
def test_what_was_timed_must_be_right_on_new_inputs_too(tmp_path, cheat):
    outcome, _ = run(tmp_path, plan(Scripted(spoil=cheat)))
    assert statuses(outcome) == {"wrong"}
    looks = (
        "does less for inputs",
        "tensors as large as x",
        "in a timed call: ",
        "on new inputs after timing: ",
        "with its work",
        "gave the results of the call before",
    )
    assert [r.reason for r in outcome.records if not any(look in r.reason for look in looks)] == []


def test_hard_inputs_are_judged_and_not_timed(tmp_path):
    found = cases("bn", inputs="normal,offset,constant", offset="1e4")
    outcome, _ = run(tmp_path, plan(TORCH, found=found))
    assert {r.inputs: r.samples is not None for r in outcome.records} == {
        "normal": True,
        "offset": False,
        "constant": False,
    }
    assert all(r.errors for r in outcome.records) and len({r.cell for r in outcome.records}) == len(found)


def test_the_statistics_that_forward_saves_are_judged_where_they_are_given_away(tmp_path):
    modes = {r.mode: [e.tensor for e in r.errors] for r in run(tmp_path, plan(TORCH))[0].records}
    assert [{"mean", "rstd"} <= set(tensors) for tensors in modes.values()] == [mode != "bwd" for mode in modes]
    off = changing(lambda out: out | {"rstd": out["rstd"] * 1.001} if "rstd" in out else out)
    (tmp_path / "off").mkdir()
    found = {r.mode: r.status for r in run(tmp_path / "off", plan(Scripted(spoil=off)))[0].records}
    assert found == {mode: "ok" if mode == "bwd" else "wrong" for mode in modes}


def test_errors_are_compared_with_torch_also_when_torch_is_not_chosen(tmp_path):
    outcome, _ = run(tmp_path, plan(Scripted(), baseline=""))
    assert {record.provider for record in outcome.records} == {"scripted"}
    assert {error.error_vs_torch for record in outcome.records for error in record.errors} == {1.0}


def test_without_a_yardstick_the_record_says_so(tmp_path):
    broken = Scripted("torch", raising(RuntimeError("boom")))
    outcome, _ = run(tmp_path, plan(Scripted(), yardstick=broken, baseline=""))
    assert {record.reason for record in outcome.records} == {"not compared with torch: crash: RuntimeError: boom"}
    assert {error.error_vs_torch for record in outcome.records for error in record.errors} == {None}


def test_the_display_is_told_of_every_cell_and_stopped(tmp_path):
    display = Silent()
    run(tmp_path, plan(TORCH), display)
    assert display.told[0] == ("start", 3, 0)
    told = [word for word, *_ in display.told[1:-1]]
    assert told.count("finished") == 3
    assert all(told[told.index("finished", i) - 1] == "running" for i in range(len(told)) if told[i] == "running")
    assert display.told[-1] == ("stop",)


def test_the_seed_decides_the_inputs(tmp_path):
    errors = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome, _ = run(folder, plan(TORCH, seed=seed))
        errors.append([error.rel_l2_error for record in outcome.records for error in record.errors])
        assert {record.seed for record in outcome.records} == {seed}
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.gpu
def test_a_gpu_run_has_bandwidth_speedup_and_peak_memory(tmp_path):
    device = torch.device("cuda", torch.cuda.current_device())
    outcome, described = run(tmp_path, plan(TORCH, Scripted(), device=device))
    assert described["copy_gbps"] > 0
    for record in outcome.records:
        assert record.clock == "cuda_event"
        assert record.peak_bytes > 0
        assert record.gbps > 0
        assert record.status != "ok" or record.speedup > 0
