"""The report, rendered from made-up records: its figures are test data and describe no machine."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from bench import results
from bench.report import UnreadableRun, facts, formatting, render
from bench.report.data import load
from bench.report.thresholds import BOUNDS
from bench.report.verdict import Verdict
from bench.results import Record, TensorError

ROOT = Path(__file__).parents[2]
PROVIDERS = ("normlib", "torch", "torch_compile", "cudnn")
SLOWNESS = {"normlib": 1.0, "torch": 1.6, "torch_compile": 1.15, "cudnn": 1.3}
TENSORS = {"fwd": ("y",), "bwd": ("dx", "dw", "db"), "fwd_bwd": ("y", "dx", "dw", "db"), "eval": ("y",)}
GRIDS: dict[str, list[dict[str, int | str]]] = {
    "batch_norm": [
        {"batch": n, "channels": c, "spatial": hw} for n in (1, 32, 256) for c in (64, 256) for hw in ("14x14", "56x56")
    ],
    "layer_norm": [{"tokens": m, "hidden": n} for m in (16, 1024, 16384) for n in (768, 4096)],
    "rms_norm": [{"tokens": m, "hidden": n} for m in (16, 1024, 16384) for n in (768, 4096)],
}


def shape_of(axes: dict[str, int | str]) -> list[int]:
    return [int(part) for value in axes.values() for part in str(value).split("x")]


def tensor_error(tensor: str, dtype: str, share: float, torch_share: float = 0.9, **changes: Any) -> TensorError:
    """An error at `share` of its bound."""
    fp32 = dtype == "fp32"
    bound = 2.0 if fp32 else 1.05
    rel = (6e-8 if fp32 else 2e-4 if dtype == "fp16" else 1.6e-3) * bound * share
    error = TensorError(
        tensor=tensor,
        dtype=dtype,
        rel_l2_error=rel,
        floor_ratio=None if fp32 else bound * share,
        error_vs_torch=share / torch_share,
        scale_error=3e-8 * share,
        max_ulp=1.5 * share,
        max_ulp_index=[0, 3],
        masks_match=True,
        ok=share <= 1,
        decided_by="error_vs_torch" if fp32 else "floor_ratio",
        bound=bound,
    )
    if fp32:
        error.error_vs_torch = bound * share
    for name, value in changes.items():
        setattr(error, name, value)
    return error


def record(
    op: str = "layer_norm",
    axes: dict[str, int | str] | None = None,
    dtype: str = "fp16",
    layout: str = "",
    mode: str = "fwd",
    provider: str = "normlib",
    *,
    status: str = "ok",
    reason: str = "",
    clock: str = "cuda_event",
    latency_us: float = 10.0,
    baseline_us: float = 16.0,
    share: float = 0.9,
    **changes: Any,
) -> Record:
    """One record as a runner writes it: figures of speed only from a GPU's clock, errors only of what ran."""
    axes = axes or {"tokens": 1024, "hidden": 4096}
    shape, ran, gpu = shape_of(axes), status in ("ok", "wrong"), clock == "cuda_event"
    moved = 2 * math.prod(shape) * (4 if dtype == "fp32" else 2)
    made = Record(
        op=op, shape=shape, axes=axes, dtype=dtype, layout=layout, mode=mode, eps=1e-5, provider=provider,
        backend="interpreter" if clock == "interpreter" else {"normlib": "triton"}.get(provider, provider),
        device="cuda" if gpu else "cpu", status=status, reason=reason, bytes_moved=moved, baseline="torch",
    )  # fmt: skip
    if ran:
        made.errors = [tensor_error(tensor, dtype, share) for tensor in TENSORS[mode]]
        made.clock, made.samples, made.compile_ms = clock, 120, 240.0
        made.latency_us, made.latency_us_min = latency_us, 0.97 * latency_us
        made.latency_us_p10, made.latency_us_p90 = 0.985 * latency_us, 1.02 * latency_us
        if gpu:
            made.gbps = moved / latency_us / 1e3
            made.roofline_fraction = made.gbps / 4000
            made.speedup = baseline_us / latency_us if status == "ok" else None
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def sweep(clock: str = "cuda_event", grids: dict[str, list[dict[str, int | str]]] | None = None) -> list[Record]:
    """Three operators over their grids, dtypes, layouts and modes for every provider, with every status in it."""
    dice = random.Random(7)
    made = []
    for op, grid in (grids or GRIDS).items():
        layouts = ("nchw", "nhwc") if op == "batch_norm" else ("",)
        for axes, dtype, layout, mode in product(grid, ("fp32", "fp16", "bf16"), layouts, ("fwd", "bwd")):
            case = {"op": op, "axes": axes, "dtype": dtype, "layout": layout, "mode": mode, "clock": clock}
            moved = 2 * math.prod(shape_of(axes)) * (4 if dtype == "fp32" else 2)
            floor_us = 4.0 + moved / 3.6e6 * (1 if mode == "fwd" else 1.8)
            times = {name: floor_us * SLOWNESS[name] * dice.uniform(0.8, 1.25) for name in PROVIDERS}
            for name in PROVIDERS:
                if name == "cudnn" and (op != "batch_norm" or dtype == "bf16"):
                    why = f"cuDNN has no {op} for {dtype}"
                    made.append(record(**case, provider=name, status="unsupported", reason=why))
                    continue
                share = 0.5 if name == "torch" else dice.uniform(0.3, 0.9)
                if dtype != "fp32":
                    share = dice.uniform(0.952, 0.97)
                made.append(
                    record(
                        **case,
                        provider=name,
                        latency_us=times[name],
                        baseline_us=times["torch"],
                        share=share,
                    )
                )
    made += [
        record(axes={"tokens": 65536, "hidden": 65536}, provider=name, status="oom", reason="out of memory: 8.00 GiB")
        for name in PROVIDERS
    ]
    for tokens in (3, 5):
        axes: dict[str, int | str] = {"tokens": tokens, "hidden": 1000}
        made.append(
            record(
                "rms_norm",
                axes,
                provider="normlib",
                status="wrong",
                reason="y: floor_ratio 1.7 is beyond 1.05",
                share=1.62,
                clock=clock,
            )
        )
    made.append(
        record(
            axes={"tokens": 7, "hidden": 8},
            provider="torch_compile",
            status="crash",
            reason="RuntimeError: device-side assert",
        )
    )
    made.append(record(axes={"tokens": 7, "hidden": 8}, provider="cudnn", status="timeout", reason="no answer in 60 s"))
    return made


def environment(clock: str = "cuda_event", **changes: Any) -> dict[str, Any]:
    gpu = clock == "cuda_event"
    described: dict[str, Any] = {
        "schema": 1,
        "run": "test-run",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:14:05+00:00",
        "command": "python -m bench.run --op all --preset quick --seed 0",
        "seed": 0,
        "interpreted": not gpu,
        "device": "cuda" if gpu else "cpu",
        "device_name": "Example GPU" if gpu else "Example CPU",
        "gpu": {
            "name": "Example GPU",
            "capability": "9.0",
            "driver": "1.2.3",
            "l2_bytes": 50 * 2**20,
            "clocks": {"clocks.sm": "1500"},
        }
        if gpu
        else None,
        "cpu": "Example CPU",
        "os": "Linux",
        "python": "3.12.0",
        "torch": "2.13.0",
        "triton": "3.7.1",
        "cuda": "13.0" if gpu else None,
        "cudnn": 91000 if gpu else None,
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
        "baseline": "torch",
        "providers": {name: {"version": "1.0", "unavailable": ""} for name in PROVIDERS}
        | {"liger": {"version": "", "unavailable": "its package is not installed"}},
        "copy_gbps": 4000.0 if gpu else None,
        "complete": True,
        "stopped_by": "",
        "cells_planned": None,
        "notes": ["clocks were not locked"],
    }
    return described | changes


def write(folder: Path, records: list[Record], **described: Any) -> Path:
    """Writes a run's two files."""
    (folder / "environment.json").write_text(json.dumps(environment(**described)))
    (folder / "records.jsonl").touch()
    for one in records:
        results.append(folder / "records.jsonl", one)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run into a folder of the test's own and returns the folder."""
    return partial(write, tmp_path)


class Page(HTMLParser):
    """A rendered report taken apart: the text that is shown, references, ids, and the table's data."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.shown: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.labels: list[str] = []
        self._hidden = ""
        self.feed(html)
        data = re.search(r'<script type="application/json" id="cells-data">(.*?)</script>', html, re.DOTALL)
        assert data
        self.data = json.loads(data[1])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("script", "style"):
            self._hidden = tag
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "aria-label":
                self.labels.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.shown))

    def section(self, name: str) -> str:
        """The text of one section, tags taken out."""
        part = re.search(rf'<section id="{name}">(.*?)</section>', self.html, re.DOTALL)
        assert part
        return re.sub(r"\s+", " ", re.sub(r"<script.*?</script>|<[^>]+>", " ", part[1], flags=re.DOTALL))

    def column(self, title: str) -> dict[str, Any]:
        """The values of one column of the table, by cell."""
        place = [column["title"] for column in self.data["columns"]].index(title)
        return {row["id"]: row["is"][place] for row in self.data["rows"]}


def page(folder: Path) -> Page:
    return Page(render(folder).read_text(encoding="utf-8"))


RUNS: dict[str, tuple[list[Record], dict[str, Any]]] = {
    "a run on a GPU": (sweep(), {}),
    "an interpreted run": (sweep("interpreter", {"layer_norm": GRIDS["layer_norm"][:2]}), {"clock": "interpreter"}),
    "an interrupted run": (sweep()[:31], {"complete": False, "stopped_by": "interrupt", "cells_planned": 900}),
    "a run with no ok cell": ([record(provider=p, status="oom", reason="out of memory") for p in PROVIDERS], {}),
    "a run without the subject": ([record(provider=p) for p in PROVIDERS[1:]], {}),
    "one record": ([record()], {"copy_gbps": None}),
    "no record": ([], {"complete": False, "stopped_by": "error"}),
}


@pytest.fixture(scope="module", params=RUNS)
def any_page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    records, described = RUNS[request.param]
    return page(write(tmp_path_factory.mktemp("run"), records, **described))


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(write(tmp_path_factory.mktemp("run"), sweep()))


def test_a_report_asks_for_nothing_from_outside(any_page: Page) -> None:
    assert all(reference.startswith(("#", "data:,")) for reference in any_page.references)
    assert "http:" not in any_page.html and "https:" not in any_page.html
    assert not re.search(r"@import|url\((?!#)", any_page.html)
    assert not {"iframe", "img", "object", "embed"} & set(any_page.tags)


def test_no_missing_value_is_shown_as_a_programmer_sees_it(any_page: Page) -> None:
    # An empty value of the table is null there, and a dash where the script shows it.
    table = json.dumps([[value for value in row["is"] if value is not None] for row in any_page.data["rows"]])
    prose = re.sub("NaN (and|or) Inf", "", any_page.text)
    for word in ("nan", "NaN", "None", "undefined", "inf", "Infinity", "null"):
        assert not re.search(rf"\b{word}\b", prose + table), word


def test_no_two_elements_share_an_id_and_links_lead_somewhere(any_page: Page) -> None:
    assert len(any_page.ids) == len(set(any_page.ids))
    inside = {reference[1:] for reference in any_page.references if reference.startswith("#") and "=" not in reference}
    assert inside <= set(any_page.ids)


def test_every_section_is_there_in_every_run(any_page: Page) -> None:
    for name in ("verdict", "throughput", "accuracy", "losses", "failed", "cells", "method"):
        assert name in any_page.ids
        assert len(any_page.section(name)) > 20


def test_the_same_records_give_the_same_bytes(run_dir: Callable[..., Path]) -> None:
    folder = run_dir(sweep()[:200])
    first = render(folder).read_bytes()
    assert render(folder).read_bytes() == first


def test_the_same_records_give_the_same_bytes_in_another_process(run_dir: Callable[..., Path]) -> None:
    folder = run_dir(sweep()[:60])
    first = render(folder).read_bytes()
    command = [sys.executable, "-m", "bench.report", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert (folder / "report.html").read_bytes() == first


def test_an_interpreted_run_shows_no_speed(run_dir: Callable[..., Path]) -> None:
    """Even where a record claims one."""
    claims = record(clock="interpreter", gbps=3000.0, speedup=2.5, roofline_fraction=0.75)
    slow = record(provider="torch", clock="interpreter", latency_us=90.0, gbps=333.0, speedup=1.0)
    shown = page(run_dir([claims, slow], clock="interpreter"))
    assert (
        "No GPU: the kernels ran in Triton's interpreter. The errors are real; nothing here says anything about speed."
        in shown.text
    )
    assert "need a GPU" in shown.section("throughput")
    for title in ("GB/s", "of copy", "speedup"):
        assert set(shown.column(title).values()) == {None}
    assert all("interpreter" in text for _, text in shown.column("time (p10–p90)").values())  # noqa: RUF001
    assert not any("GB/s against" in label or "speedup" in label for label in shown.labels)
    assert "×" not in shown.section("verdict") + shown.section("throughput")  # noqa: RUF001


def test_an_interpreted_run_has_no_speed_whatever_its_records_call_their_clock(run_dir: Callable[..., Path]) -> None:
    run = load(run_dir([record(), record(provider="torch")], interpreted=True))
    assert not run.has_speed
    assert run.cells["speedup"].isna().all()


def test_a_host_clock_supports_no_speed(run_dir: Callable[..., Path]) -> None:
    records = [record(provider=p, clock="host_cpu", speedup=3.0, gbps=50.0) for p in ("normlib", "torch")]
    shown = page(run_dir(records, clock="host_cpu", interpreted=False))
    assert "interpreter" not in shown.section("verdict")
    assert set(shown.column("speedup").values()) == {None}


def test_a_wrong_cell_has_no_speedup_even_if_its_record_claims_one(run_dir: Callable[..., Path]) -> None:
    wrong = record(status="wrong", reason="y: floor_ratio 1.7 is beyond 1.05", share=1.6, speedup=9.0, latency_us=1.0)
    folder = run_dir([wrong, record(provider="torch", latency_us=16.0)])
    shown = page(folder)
    assert shown.column("speedup")[wrong.cell] is None
    assert shown.column("GB/s")[wrong.cell] is None
    assert "9.0" not in shown.section("verdict")
    run = load(folder)
    assert len(run.duels) == 0
    assert "1 of 1 wrong" in shown.section("verdict")
    assert "Not right: 1 of 1 normlib cell" in shown.text


def test_an_impossible_time_is_a_red_card_and_no_speedup(run_dir: Callable[..., Path]) -> None:
    cached = record(status="impossible", reason="9000 GB/s of 4000", speedup=9.0, gbps=9e3, roofline_fraction=2.2)
    folder = run_dir([cached, record(provider="torch", latency_us=16.0)])
    shown, run = page(folder), load(folder)
    card = next(card for card in Verdict(run).cards() if card.title == "Impossible times")
    assert (card.value, card.tone) == ("1 cell", "bad") and "1 of normlib" in card.detail
    assert shown.column("speedup")[cached.cell] is None and shown.column("GB/s")[cached.cell] is None
    assert len(run.duels) == 0 and "9.0" not in shown.section("verdict")
    assert "9000 GB/s of 4000" in shown.section("losses")


def test_no_card_speaks_of_impossible_times_where_there_are_none(run_dir: Callable[..., Path]) -> None:
    assert "Impossible times" not in {card.title for card in Verdict(load(run_dir([record()]))).cards()}


def test_what_was_measured_beside_the_time_is_in_the_table_and_what_was_not_is_no_column(
    run_dir: Callable[..., Path],
) -> None:
    bare = page(run_dir([record()]))
    titles = {column["title"] for column in bare.data["columns"]}
    assert not titles & {"hot", "with host", "in a graph", "standard error", "SM MHz", "throttled by"}
    more = record(mode="bwd", hot_us=8.0, graph_us=9.0, noise=0.002, sm_clock_mhz=1512.0, retaken=3, throttle="power")
    shown = page(run_dir([more]))
    values = {title: shown.column(title)[more.cell] for title in ("hot", "in a graph", "SM MHz", "retaken")}
    assert values == {
        "hot": [8.0, "8.00 µs"], "in a graph": [9.0, "9.00 µs"], "SM MHz": [1512.0, "1,512"], "retaken": [3.0, "3"],
    }  # fmt: skip
    assert set(shown.column("throttled by").values()) == {"power", "–"}  # noqa: RUF001
    assert "with host" not in {column["title"] for column in shown.data["columns"]}


def test_a_wrong_peer_is_no_peer_to_beat_or_to_lose_to(run_dir: Callable[..., Path]) -> None:
    broken = record(provider="cudnn", status="wrong", reason="y: wrong", latency_us=1.0, share=3.0)
    run = load(run_dir([record(), record(provider="torch", latency_us=16.0), broken]))
    assert facts.slower(run) == []
    assert list(run.duels["provider_peer"]) == ["torch"]


def test_the_verdict_gives_the_geometric_mean_and_its_range(run_dir: Callable[..., Path]) -> None:
    records = []
    for tokens, speedup in ((8, 4.0), (16, 0.25), (32, 8.0)):
        axes: dict[str, int | str] = {"tokens": tokens, "hidden": 256}
        records.append(record(axes=axes, latency_us=10.0, baseline_us=10.0 * speedup))
        records.append(record(axes=axes, provider="torch", latency_us=10.0 * speedup, baseline_us=10.0 * speedup))
    cards = {card.title: card for card in Verdict(load(run_dir(records))).cards()}
    assert cards["Speed against torch"].value == "2.00×"  # noqa: RUF001
    assert "0.250× to 8.00×" in cards["Speed against torch"].detail  # noqa: RUF001
    assert cards["Cells where a peer is faster"].value == "1 of 3"


def test_every_cell_that_a_peer_wins_is_listed_widest_first(run_dir: Callable[..., Path]) -> None:
    records = []
    for place in range(60):
        axes: dict[str, int | str] = {"tokens": 8 + place, "hidden": 256}
        records.append(record(axes=axes, latency_us=10.0))
        records.append(record(axes=axes, provider="torch", latency_us=16.0))
        records.append(record(axes=axes, provider="torch_compile", latency_us=9.9 - 0.1 * place))
    folder = run_dir(records)
    losses = facts.slower(load(folder))
    assert [loss.ratio for loss in losses] == sorted(loss.ratio for loss in losses)
    assert {loss.peer for loss in losses} == {"torch_compile"}
    shown = page(folder)
    for place in range(60):
        assert f"layer_norm {8 + place}x256 fp16 fwd" in shown.section("losses")


def test_a_loss_inside_the_noise_is_said_to_be_so(run_dir: Callable[..., Path]) -> None:
    near, far = record(provider="torch", latency_us=9.95), record(provider="torch", dtype="fp32", latency_us=5.0)
    losses = facts.slower(load(run_dir([record(), record(dtype="fp32"), near, far])))
    assert [loss.clear for loss in losses] == [True, False]


def test_a_more_accurate_peer_is_a_loss_only_beyond_the_margin(run_dir: Callable[..., Path]) -> None:
    near = [record(share=0.95), record(provider="torch", share=0.93, latency_us=99.0)]
    far = [record(mode="bwd", share=0.98), record(mode="bwd", provider="torch", share=0.7, latency_us=99.0)]
    (loss,) = facts.less_accurate(load(run_dir(near + far)))
    assert loss.link.cell == far[0].cell
    assert loss.ratio == pytest.approx(1.4)
    assert loss.others == 2


def test_errors_below_the_unit_roundoff_of_fp32_are_no_loss(run_dir: Callable[..., Path]) -> None:
    ours, exact = record(dtype="fp32"), record(dtype="fp32", provider="torch", latency_us=99.0)
    ours.errors[0].rel_l2_error, exact.errors[0].rel_l2_error = 5e-8, 0.0
    assert facts.less_accurate(load(run_dir([ours, exact]))) == []


def test_the_worst_tensor_of_the_worst_cell_comes_first(run_dir: Callable[..., Path]) -> None:
    records = [record(mode="bwd", share=0.4), record(share=0.9), record(dtype="fp32", share=0.7)]
    records[0].errors[1] = tensor_error("dw", "fp16", 0.97)
    run = load(run_dir(records))
    assert list(facts.worst_errors(run)["tensor"]) == ["dw", "y", "y"]
    assert list(facts.worst_errors(run)["dtype"]) == ["fp16", "fp16", "fp32"]
    assert "nearest to its bound is dw floor_ratio 1.018 (bound 1.05)" in Verdict(run).sentences()[0]


def test_no_loss_is_said_in_a_sentence(run_dir: Callable[..., Path]) -> None:
    shown = page(run_dir([record(share=0.9), record(provider="torch", latency_us=16.0, share=0.92)]))
    assert "Nowhere in this run" in shown.section("losses")


def test_a_subject_that_cannot_serve_a_cell_is_a_loss(run_dir: Callable[..., Path]) -> None:
    shown = page(run_dir([record(status="unsupported", reason="hidden beyond 65536"), record(provider="torch")]))
    assert "hidden beyond 65536" in shown.section("losses")


def test_equal_reasons_become_one_line_with_a_count(run_dir: Callable[..., Path]) -> None:
    records = [
        record(axes={"tokens": n, "hidden": 64}, provider="cudnn", status="unsupported", reason="no bf16")
        for n in range(1, 201)
    ]
    records += [
        record(axes={"tokens": n, "hidden": 8}, status="oom", reason=f"tried to allocate {n}.00 GiB") for n in (2, 3)
    ]
    groups = facts.failures(load(run_dir(records)))
    assert [(group.status, len(group.links), group.alike) for group in groups] == [
        ("oom", 2, True),
        ("unsupported", 200, False),
    ]


def test_dtypes_in_reasons_are_kept_apart(run_dir: Callable[..., Path]) -> None:
    records = [record(dtype=d, status="unsupported", reason=f"no {d} here") for d in ("fp16", "fp32")]
    assert len(facts.failures(load(run_dir(records)))) == 2


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & {{ 7 * 7 }} $x^2$ ]]> -->"


def test_hostile_text_is_shown_and_never_run(run_dir: Callable[..., Path]) -> None:
    records = [
        record(status="crash", reason=HOSTILE),
        record(provider=HOSTILE, latency_us=16.0),
        record(op=HOSTILE, layout=HOSTILE),
        record(dtype="fp32", errors=[tensor_error(HOSTILE, "fp32", 0.5)]),
    ]
    described = {"notes": [HOSTILE], "command": HOSTILE, "device_name": HOSTILE, "baseline": HOSTILE}
    shown = page(run_dir(records, **described))
    clean = page(run_dir([record()]))
    assert shown.tags.count("script") == clean.tags.count("script") == 2
    assert "img" not in shown.tags
    assert "{{ 7 * 7 }}" in shown.text
    assert any(row["why"] == HOSTILE[:160] for row in shown.data["rows"])


def test_figures_that_are_not_finite_are_named_and_never_drawn(run_dir: Callable[..., Path]) -> None:
    broken = record(status="wrong", reason="y: floor_ratio nan is beyond 1.05".replace("nan", "not a number"))
    broken.errors = [tensor_error("y", "fp16", 2.0, floor_ratio=math.nan, scale_error=math.inf, rel_l2_error=math.nan)]
    masks = record(dtype="bf16", status="wrong", reason="y: NaN or Inf in other places than the reference")
    masks.errors = [tensor_error("y", "bf16", 0.5, masks_match=False, ok=False, decided_by="masks_match", bound=None)]
    missing = record(dtype="fp32", status="wrong", reason="y: missing")
    missing.errors = [TensorError("y", "fp32", None, None, None, None, None, None, False, False, "missing", None)]
    shown = page(run_dir([broken, masks, missing, record(provider="torch")]))
    figures = shown.column("worst figure")
    assert figures[broken.cell][1] == "y floor_ratio not finite (bound 1.05)"
    assert figures[masks.cell][1] == "y: NaN or Inf in other places than the reference"
    assert figures[missing.cell][1] == "y: missing"
    assert "1 value not finite, not drawn" in shown.section("accuracy")
    assert not re.search(r'="[^"]*\b(nan|inf)\b', shown.html)


def test_every_provider_is_in_the_figures(full_page: Page) -> None:
    for provider in ("normlib", "torch", "torch-compile", "cudnn"):
        assert any(re.fullmatch(rf"gbps-batch-norm-fwd-fp16-nhwc-line-{provider}", name) for name in full_page.ids)
        assert any(re.fullmatch(rf"error-batch-norm-fp16-floor-ratio-dots-{provider}", name) for name in full_page.ids)
    for op, mode, dtype in product(("layer-norm", "rms-norm"), ("fwd", "bwd"), ("fp32", "fp16", "bf16")):
        assert f"gbps-{op}-{mode}-{dtype}-line-normlib" in full_page.ids
        assert f"speedup-{op}-{mode}-{dtype}-figure_1" in full_page.ids


def test_a_provider_keeps_its_colour_in_every_figure(full_page: Page) -> None:
    for provider in ("normlib", "torch", "torch-compile"):
        drawn = re.findall(rf'<g id="gbps-[a-z0-9-]+-line-{provider}"><path [^>]*?stroke: (#[0-9a-f]+)', full_page.html)
        assert len(drawn) > 10 and len(set(drawn)) == 1


def test_the_table_holds_every_cell_and_links_lead_to_its_rows(full_page: Page) -> None:
    cells = [one.cell for one in sweep()]
    assert [row["id"] for row in full_page.data["rows"]] == cells
    linked = {unquote(reference[6:]) for reference in full_page.references if reference.startswith("#cell=")}
    assert linked and linked <= set(cells)


def test_a_cell_that_was_run_again_counts_once_with_its_last_record(run_dir: Callable[..., Path]) -> None:
    run = load(run_dir([record(status="skipped", reason="time budget"), record()]))
    assert list(run.cells["status"]) == ["ok"]


def test_three_thousand_cells_stay_under_five_megabytes(run_dir: Callable[..., Path]) -> None:
    tokens, hidden = [2**k for k in range(4, 16)], [768, 1024, 2048, 4096, 5120, 8192, 12288]
    spread: list[dict[str, int | str]] = [{"tokens": m, "hidden": n} for m, n in product(tokens, hidden)]
    images: list[dict[str, int | str]] = [
        {"batch": n, "channels": c, "spatial": s} for n, c, s in product((1, 8, 32), (64, 256), ("7x7", "28x28"))
    ]
    records = sweep(grids={"batch_norm": images, "layer_norm": spread, "rms_norm": spread[:30]})
    assert len(records) >= 3000
    path = render(run_dir(records[:3000]))
    assert path.stat().st_size < 5e6


def elements(html: str, start: str, tag: str) -> int:
    """How many elements of a kind the figures have whose ids begin so."""
    figures = re.findall(rf'<svg (?:(?!</svg>).)*?id="{start}.*?</svg>', html, re.DOTALL)
    assert figures
    return sum(figure.count(f"<{tag}") for figure in figures)


def test_figures_of_very_many_cells_draw_a_bar_a_size_and_write_no_numbers(
    run_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the page of a hundred thousand cells holds as many bars and words."""
    grid: list[dict[str, int | str]] = [{"tokens": 2**m, "hidden": 2**n} for m in range(4, 12) for n in range(5, 13)]
    records = [record(axes=axes, provider=name) for axes in grid for name in ("normlib", "torch")]
    every = render(run_dir(records)).read_text(encoding="utf-8")
    monkeypatch.setattr("bench.report.figures.BARS_DRAWN", len(records) - 1)
    monkeypatch.setattr("bench.report.figures.SQUARES_WRITTEN", len(grid) - 1)
    few = page(run_dir([])).html
    sizes = len({axes["tokens"] * axes["hidden"] for axes in grid})  # type: ignore[operator]
    drawn = [elements(html, "gbps-layer-norm-fwd", "path") for html in (every, few)]
    assert drawn[0] - drawn[1] == 2 * (len(grid) - sizes)
    words = [elements(html, "speedup-layer-norm-fwd", "text") for html in (every, few)]
    assert words[0] - words[1] >= len(grid)


def test_a_table_without_room_for_all_says_so_and_keeps_what_is_not_ok_and_the_subjects(
    run_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.report.cells_table.TABLE_ROWS", 3)
    monkeypatch.setattr("bench.report.thresholds.TABLE_ROWS", 3)
    monkeypatch.setattr("bench.report.thresholds.LISTED", 1)
    records = [
        record(dtype=dtype, provider=name, status="crash" if name == "cudnn" else "ok", reason="it fell")
        for dtype in ("fp16", "bf16")
        for name in ("torch", "normlib", "cudnn")
    ]
    shown = page(run_dir(records))
    assert [row["id"] for row in shown.data["rows"]] == [records[place].cell for place in (1, 2, 5)]
    assert "room for 3 of 6 cells" in shown.section("cells") and "records.jsonl" in shown.section("cells")
    assert "2 cells, of which 1 are here and all in records.jsonl" in shown.section("failed")


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"complete": False, "stopped_by": "interrupt"}, "interrupted by hand, having measured 1 of 9 planned cells"),
        ({"complete": False, "stopped_by": "time budget"}, "stopped by its time budget, having measured 1 of 9"),
        ({"complete": False, "stopped_by": "error"}, "stopped by an error"),
        ({"complete": False, "stopped_by": ""}, "has not finished"),
        ({"complete": True}, "says that it is complete, but the records hold 1 of 9"),
        ({"complete": True, "cells_planned": 1}, "The run is complete: 1 of 1 planned cell."),
        ({"git_dirty": True}, "uncommitted changes"),
        ({"copy_gbps": None}, "The copy bandwidth was not measured"),
    ],
)  # fmt: skip
def test_the_reader_is_told(described: dict[str, Any], expected: str, run_dir: Callable[..., Path]) -> None:
    assert expected in page(run_dir([record()], **{"cells_planned": 9} | described)).text


def test_noise_and_impossible_bandwidth_are_pointed_out(run_dir: Callable[..., Path]) -> None:
    noisy = record(latency_us_p10=8.0, latency_us_p90=12.0)
    cached = record(provider="torch", roofline_fraction=1.8)
    text = page(run_dir([noisy, cached])).section("verdict")
    assert (
        "1 timed cell of 2 scatter by more than 10%" in text
        and "normlib on layer_norm 1024x4096 fp16 fwd with 40%" in text
    )
    assert "faster than the measured copy (up to 180%, torch on" in text


def test_an_environment_that_lacks_most_keys_still_renders(run_dir: Callable[..., Path]) -> None:
    folder = run_dir(sweep()[:40])
    (folder / "environment.json").write_text("{}")
    assert "All cells" in page(folder).text


def test_families_of_inputs_are_counted_and_the_error_is_drawn_against_the_mean(run_dir: Callable[..., Path]) -> None:
    families = [("normal", 0.0), ("offset", 1e2), ("offset", 1e4), ("huge", 0.0)]
    made = [
        record(dtype="fp32", provider=name, inputs=inputs, offset=offset, status="wrong" if wrong else "ok")
        for (inputs, offset), name in product(families, ("normlib", "torch"))
        for wrong in [name == "torch" and offset == 1e4]
    ]
    made[-1].errors[0].rel_l2_error = math.nan
    folder = run_dir(made)
    shown = page(folder)
    text = shown.section("accuracy")
    assert "mean/std 1e4 in every statistic" in text and "0 of 1" in text
    assert any(label.startswith("rel_l2_error against the mean of x") for label in shown.labels)
    found = facts.families(load(folder), "layer_norm")
    assert [(f.name, f.right["torch"]) for f in found] == [
        ("normal", (1, 1)), ("offset", (1, 1)), ("offset", (0, 1)), ("huge", (1, 1)),
    ]  # fmt: skip


def test_a_run_of_normal_inputs_has_no_families(run_dir: Callable[..., Path]) -> None:
    folder = run_dir([record()])
    assert facts.families(load(folder), "layer_norm") == []
    assert "family of inputs" not in page(folder).section("accuracy")


def test_the_bounds_are_those_that_accuracy_judges_by() -> None:
    from bench import accuracy

    assert BOUNDS["floor_ratio", "fp16"] == BOUNDS["floor_ratio", "bf16"] == (accuracy.FLOOR_RATIO_BOUND,) * 2
    assert BOUNDS["error_vs_torch", "fp32"] == (accuracy.ERROR_VS_TORCH_BOUND,) * 2
    for dtype, least in accuracy.SCALE_BOUND.items():
        assert BOUNDS["scale_error", dtype][0] == least
    assert BOUNDS["scale_error", "fp32"][1] == accuracy.SCALE_BOUND["fp32"] + accuracy.STATISTIC_ROUNDING


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formatting.number(9.996), "10.0"),
        (formatting.number(1234567.0), "1,234,567"),
        (formatting.number(0.0), "0"),
        (formatting.interval(12.34, 11.9, 12.96), "12.3 µs (11.9–13.0)"),  # noqa: RUF001
        (formatting.duration(4560.0), "4.56 ms"),
        (formatting.size(3 * 2**19), "1.5 MiB"),
        (formatting.times(0.998), "0.998×"),  # noqa: RUF001
        (formatting.percent(0.05), "5%"),
        (formatting.percent(0.021), "2.1%"),
        (formatting.short(1e-5), "1e-5"),
        (formatting.figure("scale_error", 3.14e-8), "3.1e-8"),
        (formatting.figure("floor_ratio", math.inf), "not finite"),
        (formatting.number(math.nan), "–"),  # noqa: RUF001
        (formatting.times(None), "–"),  # noqa: RUF001
    ],
)
def test_numbers_are_written_with_three_digits_and_a_unit(written: str, expected: str) -> None:
    assert written == expected


def test_a_heat_map_shows_the_lowest_speedup_and_what_is_not_ok(run_dir: Callable[..., Path]) -> None:
    records = []
    for batch, channels, spatial, speedup in (
        (1, 64, "7x7", 1.9),
        (1, 64, "14x14", 0.81),
        (256, 64, "7x7", 1.3),
        (32, 128, "7x7", 1.5),
    ):
        axes: dict[str, int | str] = {"batch": batch, "channels": channels, "spatial": spatial}
        records.append(record("batch_norm", axes, layout="nchw", latency_us=10.0, baseline_us=10.0 * speedup))
    records.append(record("batch_norm", {"batch": 256, "channels": 128, "spatial": "7x7"}, layout="nchw", status="oom"))
    html = page(run_dir(records)).html
    drawn = re.search(r'<svg[^>]*aria-label="speedup of normlib over batch and channels".*?</svg>', html)
    assert drawn
    words = re.findall(r"<text[^>]*>([^<]+)</text>", drawn[0])
    assert words.index("1") < words.index("32") < words.index("256")
    assert {"0.810", "1.30", "1.50", "oom"} <= set(words) and "1.90" not in words


BLOCKED = """
import sys
for name in ("torch", "triton", "normlib", "numba", "requests"):
    sys.modules[name] = None
from bench.report.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench.report` on a machine that has neither torch nor triton."""
    run = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_report_is_made_without_torch_and_triton(run_dir: Callable[..., Path]) -> None:
    folder = run_dir([record(), record(provider="torch", latency_us=16.0)])
    done = command(str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(folder / "report.html")
    assert "1.60×" in (folder / "report.html").read_text(encoding="utf-8")  # noqa: RUF001


def broken_line(folder: Path) -> None:
    (folder / "records.jsonl").write_text("not json\n{}\n")


def foreign_record(folder: Path) -> None:
    (folder / "records.jsonl").write_text('{"op": "layer_norm"}\n{"op": "layer_norm"}\n')


def no_records(folder: Path) -> None:
    (folder / "records.jsonl").unlink()


def no_environment(folder: Path) -> None:
    (folder / "environment.json").unlink()


def broken_environment(folder: Path) -> None:
    (folder / "environment.json").write_text("[1,")


@pytest.mark.parametrize("spoil", [broken_line, foreign_record, no_records, no_environment, broken_environment])
def test_a_folder_that_cannot_be_read_is_one_line_and_status_2(
    spoil: Callable[[Path], None], run_dir: Callable[..., Path]
) -> None:
    folder = run_dir([record()])
    spoil(folder)
    done = command(str(folder))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "RUN_DIR" in done.stderr
    assert not (folder / "report.html").exists()
    with pytest.raises(UnreadableRun):
        render(folder)


@pytest.mark.parametrize("arguments", [[], ["no-such-folder"], ["a", "b"], ["--nonsense", "a"]])
def test_bad_arguments_are_one_line_and_status_2(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
