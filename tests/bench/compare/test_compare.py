"""`bench.compare`: runs that are made up, with changes planted in them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import PROVIDERS, steady, write
from report_runs import HOSTILE, ROOT, Page, without_torch

from bench.compare.__main__ import main
from bench.compare.comparison import FASTER, FIXED, LESS_ACCURATE, NEWLY_WRONG, SAME, SLOWER, UNCLEAR
from bench.compare.judging import compare
from bench.compare.page import html
from bench.results.load import UnreadableRun

# Of most tests: 4 providers x 6 cases, 40 to 60 samples that scatter by 1%, with outliers among them.
CASES = 6
NOISE = steady(least=40, most=60)


def slowed(provider, factor):
    """The same times, longer by a factor for one provider."""
    return lambda case, name, dice: NOISE(case, name, dice) * (factor if name == provider else 1.0)


@pytest.fixture
def runs(tmp_path):
    """Writes runs A and B: B's times, and what is done to its records, may be given; `a` and `b` are environments."""

    def make(draw=NOISE, change=id, change_a=id, cases=CASES, a=None, b=None, **both):
        before = write(tmp_path / "a", cases, NOISE, 1, change=change_a, **both, **(a or {}))
        return before, write(tmp_path / "b", cases, draw, 2, change=change, **both, **(b or {}))

    return make


def of(provider, case, status, reason=""):
    """Gives the cells of a provider whose name holds `case` another ending."""

    def change(record):
        if record.provider == provider and case in record.cell:
            record.status, record.reason = status, reason

    return change


def test_a_slowdown_of_one_provider_is_found_and_nothing_else(runs):
    found = compare(*runs(slowed("normlib", 1.05)))
    assert {name: dict(count) for name, count in found.counts.items()} == {
        name: {SLOWER if name == "normlib" else SAME: CASES} for name in PROVIDERS
    }
    assert found.regressed() and not found.regressed(("wrong",))
    for pair in found.having(SLOWER):
        assert pair.change == pytest.approx(0.05, abs=0.015)
        assert 0.005 < pair.low < pair.change < pair.high


def test_a_speedup_is_no_regression(runs):
    found = compare(*runs(slowed("normlib", 0.95)))
    assert dict(found.counts["normlib"]) == {FASTER: CASES}
    assert not found.regressed()


def test_a_change_below_the_threshold_does_not_count(runs):
    a, b = runs(slowed("normlib", 1.05))
    assert SLOWER in compare(a, b, 0.005).said
    assert compare(a, b, 0.10).said == [SAME]
    assert main([str(a), str(b), "--threshold", "10%"]) == 0


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (NOISE, ""),
        (lambda case, *at: NOISE(case, *at) * (0.97 if case % 3 else 1.06), "moved"),
        (lambda *at: 1.05 * NOISE(*at), "The whole run moved"),
        (lambda *at: np.maximum(np.round(NOISE(*at) / 0.5) * 0.5, 0.5), ""),
    ],
    ids=["the same again", "drift from case to case", "slower throughout", "a clock with coarse ticks"],
)
def test_what_the_machine_did_is_no_change_of_a_provider(draw, said, runs):
    a, b = runs(draw)
    for found in (compare(a, b), compare(a, b, providers=("normlib",))):  # the others still tell what the machine did
        assert not {SLOWER, FASTER} & set(found.said) and not found.regressed()
        assert (found.said == [SAME]) or draw is not NOISE
        assert said in " ".join(found.notes)
    assert list(found.counts) == ["normlib"]
    if said.startswith("The whole run"):
        assert any("the other providers of this case moved as well" in pair.why for pair in found.having(UNCLEAR))


def test_without_samples_the_records_intervals_decide(runs):
    a, b = runs(slowed("normlib", 1.08))
    (a / "samples.jsonl").unlink()
    found = compare(a, b)
    assert dict(found.counts["normlib"]) == {SLOWER: CASES}
    assert SLOWER not in {word for name in PROVIDERS[1:] for word in found.counts[name]}


def without_interval(record):
    record.latency_us_low = record.latency_us_high = None


@pytest.mark.parametrize(
    ("draw", "samples", "why"),
    [
        (slowed("normlib", 1.5), False, "A holds neither samples nor an interval of the median"),
        (steady(least=3, most=5), True, "fewer than 10 samples in one of the runs"),
    ],
)
def test_too_few_samples_are_unclear_and_it_says_why(draw, samples, why, runs):
    a, b = runs(draw, change_a=without_interval)
    if not samples:
        (a / "samples.jsonl").unlink()
    found = compare(a, b)
    assert found.said == [UNCLEAR]
    assert {pair.why for pair in found.pairs} == {why}


def test_times_that_scatter_too_much_for_a_verdict_are_unclear_and_it_says_what_is_possible(tmp_path):
    wild = steady(noise=0.3, least=20, most=30)
    found = compare(*(write(tmp_path / name, CASES, wild, seed) for seed, name in enumerate("ab")))
    assert found.said == [UNCLEAR]
    for pair in found.pairs:
        assert pair.low < 0 < pair.high and pair.why.endswith("is possible")


def test_an_interpreted_run_is_compared_for_errors_alone(runs):
    found = compare(*runs(slowed("normlib", 2.0), interpreted=True))
    assert found.said == [] and found.between is None
    assert any("Only errors are compared: A and B" in note for note in found.notes)
    found = compare(*runs(slowed("normlib", 2.0), of("torch", "fp16", "wrong"), b={"interpreted": True}))
    assert found.said == [NEWLY_WRONG]


@pytest.mark.parametrize("status", ["wrong", "impossible", "crash", "oom", "timeout", "unsupported"])
def test_a_cell_that_was_ok_and_has_failed_is_a_regression(status, runs):
    a, b = runs(change=of("normlib", "fp16", status, "why it failed"))
    found = compare(a, b)
    assert {(pair.provider, pair.b.dtype) for pair in found.having(NEWLY_WRONG)} == {("normlib", "fp16")}
    assert found.regressed() and not found.regressed(("slower",))
    assert compare(b, a).counts["normlib"][FIXED] == CASES // 3
    assert not compare(b, a).regressed()


def test_a_cell_that_was_skipped_says_nothing(runs):
    found = compare(*runs(change=of("normlib", "", "skipped")))
    assert found.said == [SAME] and not found.counts["normlib"]


def grow(tensor, figure, factor):
    def change(record):
        for error in record.errors:
            if error.tensor == tensor and getattr(error, figure) is not None:
                setattr(error, figure, factor * getattr(error, figure))

    return change


@pytest.mark.parametrize(
    ("tensor", "figure", "factor", "grown"),
    [
        ("mean", "rel_l2_error", 1.04, False),
        ("mean", "rel_l2_error", 4.0, True),
        ("mean", "rel_l2_error", 0.1, False),
        ("y", "floor_ratio", 1.005, False),
        ("y", "floor_ratio", 1.03, True),
    ],
)
def test_errors_that_grew_beyond_luck_are_told_and_fail_nothing_by_themselves(tensor, figure, factor, grown, runs):
    found = compare(*runs(change=grow(tensor, figure, factor)))
    assert (LESS_ACCURATE in found.said) is grown
    assert not found.regressed()
    assert found.regressed(("less_accurate",)) is grown
    assert all((pair.growth.tensor, pair.growth.figure) == (tensor, figure) for pair in found.pairs if pair.growth)


def test_errors_of_a_cell_that_has_failed_are_no_growth(runs):
    def worse_and_wrong(record):
        grow("y", "rel_l2_error", 50.0)(record)
        record.status = "wrong"

    found = compare(*runs(change=worse_and_wrong))
    assert found.said == [NEWLY_WRONG] and all(pair.growth is None for pair in found.pairs)


def test_another_seed_excuses_what_two_draws_differ_by(runs):
    def another(record):
        record.seed = 1
        grow("mean", "rel_l2_error", 1.9)(record)

    # 64 rows: up to exp(6 / 8) = 2.1 times the error, and 5% on top.
    assert LESS_ACCURATE not in compare(*runs(change=another)).said


def test_of_errors_that_grew_the_largest_is_told(runs):
    def two(record):
        grow("mean", "rel_l2_error", 4.0)(record)
        grow("y", "floor_ratio", 1.03)(record)

    assert {pair.growth.tensor for pair in compare(*runs(change=two)).pairs if pair.growth} == {"mean"}


def test_float32_errors_below_the_unit_roundoff_are_luck(runs):
    def tiny(error_size, record):
        for error in record.errors:
            error.rel_l2_error = error_size

    assert LESS_ACCURATE not in compare(*runs(change=partial(tiny, 5e-8), change_a=partial(tiny, 1e-8))).said


def test_the_same_code_that_gives_other_bits_is_pointed_out(runs):
    a, b = runs(change=grow("y", "max_ulp", 1.0), git_commit="abc", git_dirty=False)
    assert not any("bits" in note for note in compare(a, b).notes)
    a, b = runs(change=grow("y", "rel_l2_error", 1.0001), git_commit="abc", git_dirty=False)
    assert f"{CASES} cells of normlib gave other bits" in " ".join(compare(a, b).notes)


def test_cells_of_one_run_alone_are_counted_and_named(runs):
    a, b = runs()
    lines = (b / "records.jsonl").read_text().splitlines(keepends=True)
    (b / "records.jsonl").write_text("".join(lines[:-3]))
    found = compare(a, b)
    assert [provider for provider, _ in found.only_a] == list(PROVIDERS[1:]) and found.only_b == ()
    assert not found.regressed()
    assert f"{len(PROVIDERS) - 1} only in A, 0 only in B" in html(found)


def test_of_a_cell_that_was_measured_again_the_last_counts(runs):
    a, b = runs(slowed("normlib", 2.0))
    for name in ("records.jsonl", "samples.jsonl"):
        with (b / name).open("a") as file:
            file.write((a / name).read_text())
    assert compare(a, b).said == [SAME]


def test_cells_that_differ_in_eps_alone_are_told_apart(runs):
    a, b = runs()
    lines = (b / "records.jsonl").read_text()
    for folder in (a, b):
        with (folder / "records.jsonl").open("a") as file:
            file.write(lines.replace('"eps": 1e-05', '"eps": 1e-06'))
    found = compare(a, b)
    assert len(found.pairs) == 2 * len(PROVIDERS) * CASES
    assert len({(pair.label, pair.provider) for pair in found.pairs}) == len(found.pairs)


def test_what_differs_around_the_runs_is_named(runs):
    before = {"torch": "2.12.0", "gpu": {"driver": "580.1"}, "providers": {"torch": {"version": "2.12.0"}}}
    after = {"torch": "2.13.0", "gpu": {"driver": "590.2"}, "providers": {"torch": {"version": "2.13.0"}}}
    found = compare(*runs(a=before, b=after))
    assert found.differences == (
        "gpu driver was '580.1', is '590.2'",
        "torch was '2.12.0', is '2.13.0'",
        "torch's version was '2.12.0', is '2.13.0'",
    )


def test_a_run_without_an_environment_is_compared_and_that_is_said(runs):
    a, b = runs()
    (a / "environment.json").unlink()
    assert any(note.startswith("A has no environment.json") for note in compare(a, b).notes)


def test_some_providers_alone_can_be_looked_at(runs, capsys):
    a, b = map(str, runs(slowed("torch", 1.05)))
    assert main([a, b, "--provider", "torch"]) == 1
    assert main([a, b, "--provider", "normlib,cudnn"]) == 0
    assert "torch_compile" not in capsys.readouterr().out.rpartition("provider ")[2]


@pytest.mark.parametrize(
    ("fail_on", "status"), [("slower,wrong", 1), ("slower", 1), ("wrong", 0), ("none", 0), ("less_accurate", 0)]
)
def test_the_exit_status_is_what_fail_on_asks_for(fail_on, status, runs):
    a, b = map(str, runs(slowed("normlib", 1.05)))
    assert main([a, b, "--fail-on", fail_on]) == status


def test_json_holds_every_cell(runs, capsys):
    a, b = runs(slowed("normlib", 1.05), of("cudnn", "bf16", "wrong"))
    assert main([str(a), str(b), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert len(told["cells"]) == len(PROVIDERS) * CASES
    assert told["counts"]["normlib"] == {SLOWER: CASES} and told["counts"]["cudnn"][NEWLY_WRONG] == CASES // 3
    assert told["regressed"] and told["page"] == str(b / "compare.html")


def one_line(capsys, *arguments):
    """Returns the one line that rejects these arguments."""
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert status == 2 and len(said.err.splitlines()) == 1 and not said.out
    return said.err


def test_what_cannot_be_compared_is_one_line_and_status_2(runs, capsys):
    a, b = map(str, runs())
    assert "no such folder" in one_line(capsys, a, "nowhere")
    assert "records.jsonl: a file; give the folder" in one_line(capsys, a, f"{b}/records.jsonl")
    assert "holds no records.jsonl" in one_line(capsys, a, str(ROOT / "bench"))
    assert "only of cudnn, normlib, torch, torch_compile" in one_line(capsys, a, b, "--provider", "liger")
    assert "none of slower, wrong, less_accurate" in one_line(capsys, a, b, "--fail-on", "faster")
    assert "write 3% or 0.03" in one_line(capsys, a, b, "--threshold", "three")
    assert "cannot be written" in one_line(capsys, a, b, "--out", "nowhere/page.html")
    (Path(a) / "records.jsonl").write_text("")
    assert "has no record" in one_line(capsys, a, b)
    (Path(a) / "records.jsonl").write_text("broken\n" * 2)
    assert "line 1 is not JSON" in one_line(capsys, a, b)
    with pytest.raises(UnreadableRun):
        compare(Path(a), Path(b))


def test_runs_that_share_no_cell_cannot_be_compared(runs, capsys):
    a, b = runs(change=lambda record: setattr(record, "op", "rms_norm"))
    assert "no cell is in both" in one_line(capsys, str(a), str(b))


def test_the_page_is_one_file_and_runs_nothing_that_a_record_says(runs):
    def hostile(record):
        record.layout, record.provider, record.reason = HOSTILE, HOSTILE, HOSTILE

    def broken(record):
        hostile(record)
        record.status = "wrong"

    a, b = runs(change=broken, change_a=hostile, cases=2, b={"torch": HOSTILE})
    assert main([str(a), str(b)]) == 1
    page = Page((b / "compare.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1  # the button for dark paper
    page.assert_whole()
    assert page.text.count(" ".join(HOSTILE.split())) > 3


def test_the_page_lists_what_changed_and_says_what_it_leaves_out(runs, monkeypatch):
    monkeypatch.setattr("bench.compare.page.ROWS", 5)
    a, b = runs(slowed("normlib", 1.05))
    main([str(a), str(b)])
    page = Page((b / "compare.html").read_text(encoding="utf-8")).text
    assert f"5 of {CASES} are here" in page
    assert f"{CASES} of {CASES * len(PROVIDERS)}" in page


def test_a_folder_that_cannot_be_written_to_costs_the_page_alone(runs, capsys):
    a, b = runs()
    (b / "compare.html").mkdir()
    assert main([str(a), str(b)]) == 0
    assert "cannot be written" in capsys.readouterr().out


@pytest.mark.chance
def test_comparing_needs_neither_torch_nor_triton(runs):
    done = without_torch("bench.compare", *runs(slowed("normlib", 1.05)))
    assert (done.returncode, done.stderr) == (1, "")
    assert "SLOWER: layer_norm" in done.stdout


def test_only_the_subjects_cells_decide_the_exit_status(runs, capsys):
    a, b = map(str, runs(slowed("torch", 1.05)))
    assert main([a, b]) == 0
    assert "SLOWER: " in capsys.readouterr().out
    assert main([a, b, "--subject", "torch"]) == 1
    capsys.readouterr()
    assert "has no record of liger, only of torch, cudnn" in one_line(capsys, a, b, "--subject", "liger")


def test_a_run_compared_with_itself_is_said_to_be_one(runs, capsys):
    a, _ = map(str, runs())
    assert main([a, a]) == 0
    assert "A and B are one run" in capsys.readouterr().out
    assert "A and B are one run" in Page((Path(a) / "compare.html").read_text(encoding="utf-8")).text
