"""Many runs: the leaderboard and the history in reports/index.html."""

import pytest
from report_runs import Page, record, write

from bench.report import index
from bench.report.across import histories, leaderboard, steps
from bench.results.load import load


def run(folder, name, started, device="Example GPU", sizes=(8, 512), preset="quick", **times):
    """A run in which each provider takes so many microseconds for 8 tokens, and as much more for more."""
    records = [
        record(axes={"tokens": n, "hidden": 64}, provider=provider, latency_us=us * n / 8)
        for n in sizes
        for provider, us in times.items()
    ]
    described = {"started": started, "device_name": device, "arguments": {"preset": preset}, "git_commit": name * 8}
    return load(write(folder / name, records, **described))


@pytest.fixture
def three(tmp_path):
    return [
        run(tmp_path, "first", "2026-01-01T00:00:00+00:00", normlib=10.0, torch=16.0),
        run(tmp_path, "second", "2026-02-01T00:00:00+00:00", normlib=8.0, torch=16.0),
        run(tmp_path, "third", "2026-03-01T00:00:00+00:00", sizes=(512, 1024), normlib=10.0, torch=16.0),
    ]


def test_a_history_follows_the_cells_that_two_runs_share_and_marks_where_intervals_part(three):
    found = steps(three, "normlib")
    assert [step.level for step in found] == pytest.approx([1.0, 1.25, 1.0])
    assert [step.word for step in found] == ["", "faster", "slower"] and [step.cells for step in found] == [2, 2, 1]
    assert [step.word for step in steps(three, "torch")] == ["", "", ""]
    (panel,), _, names = histories(three)
    assert panel.title == "Example GPU · quick · layer_norm" and names == ["normlib", "torch"]
    assert (panel.image.count("▲"), panel.image.count("▼")) == (1, 1)
    assert panel.note == "In third, since the run before: normlib slower by 20%."
    told = [text for _, _, provider, text, _ in panel.points if provider == "normlib"]
    assert told[0].startswith("1.00×; first, 2026-01-01 00:00 UTC, commit firstfirstfi")  # noqa: RUF001
    assert "1.25× of the run before" in told[1] and "faster; second" in told[1]  # noqa: RUF001


def test_other_devices_and_presets_are_other_histories_and_a_single_run_has_none(three, tmp_path):
    other = run(tmp_path, "other", "2026-02-02T00:00:00+00:00", device="Another GPU", normlib=1.0)
    preset = run(tmp_path, "preset", "2026-02-03T00:00:00+00:00", preset="full", normlib=1.0)
    assert len(histories([*three, other, preset])[0]) == 1
    assert histories([other, preset])[0] == []


def test_the_leaderboard_ranks_by_the_share_of_the_fastest_in_the_newest_run(three, tmp_path):
    newest = run(tmp_path, "newest", "2026-04-01T00:00:00+00:00", normlib=8.0, torch=16.0, cudnn=4.0)
    rows = leaderboard([newest, *three])
    assert [(row["rank"], row["provider"], row["share"]) for row in rows] == [
        (1, "cudnn", 1.0), (2, "normlib", pytest.approx(0.5)), (3, "torch", pytest.approx(0.25)),
    ]  # fmt: skip
    assert {row["run"] for row in rows} == {"newest"} and [row["fastest"] for row in rows] == [2, 0, 0]


def test_a_wrong_provider_leads_nothing_and_its_wrong_cells_are_counted(tmp_path):
    records = [record(provider=name, latency_us=us) for name, us in (("normlib", 10.0), ("torch", 16.0))]
    records += [record(provider="cudnn", latency_us=1.0, status="wrong"), record(mode="bwd", provider="cudnn")]
    rows = leaderboard([load(write(tmp_path / "run", records))])
    assert {row["provider"]: (row["fastest"], row["wrong"]) for row in rows} == {
        "normlib": (1, 0), "torch": (0, 0), "cudnn": (1, 1),
    }  # fmt: skip


def test_the_list_has_both(three, tmp_path):
    shown = Page(index.write(tmp_path).read_text(encoding="utf-8"))
    assert "speed over 3 runs" in " ".join(shown.labels)
    assert "Example GPU layer norm 1 normlib 100%" in shown.section("leaders")
    assert all(reference.startswith(("#", "data:,", *("first", "second", "third"))) for reference in shown.references)


def test_runs_without_a_gpu_lead_nothing(tmp_path):
    write(tmp_path / "cpu", [record(clock="interpreter")], clock="interpreter")
    shown = Page(index.write(tmp_path).read_text(encoding="utf-8"))
    assert "leaders" not in shown.ids and "history" not in shown.ids
