"""Made-up runs, whose figures describe no machine, and their rendered reports taken apart."""

import base64
import gzip
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

from bench.cases import models
from bench.report import render
from bench.results import records as results
from bench.results import samples
from bench.results.records import Record, TensorError

ROOT = Path(__file__).parents[1]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & {{ 7 * 7 }} $x^2$ ]]> -->"
WITHOUT_TORCH = """
import runpy, sys
class Absent:
    # Not None in sys.modules, where SciPy takes any entry of that name for PyTorch.
    def find_spec(name, *_):
        if name.partition(".")[0] in ("torch", "triton", "normlib", "numba", "requests"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__")
"""
PROVIDERS = ("normlib", "torch", "torch_compile", "cudnn")
SLOWNESS = {"normlib": 1.0, "torch": 1.6, "torch_compile": 1.15, "cudnn": 1.3}
TENSORS = {"fwd": ("y",), "bwd": ("dx", "dw", "db"), "fwd_bwd": ("y", "dx", "dw", "db"), "eval": ("y",)}
GRIDS = {
    "batch_norm": [{"batch": n, "channels": c, "spatial": "14x14"} for n in (1, 256) for c in (64, 256)],
    "layer_norm": [{"tokens": m, "hidden": n} for m in (16, 16384) for n in (768, 4096)],
    "rms_norm": [{"tokens": m, "hidden": n} for m in (16, 16384) for n in (768, 4096)],
}


def shape_of(axes):
    return [int(part) for value in axes.values() for part in str(value).split("x")]


def tensor_error(tensor, dtype, share, torch_share=0.9, **changes):
    """An error at `share` of its bound."""
    fp32 = dtype == "fp32"
    bound = 2.0 if fp32 else 1.05
    rel = (6e-8 if fp32 else 2e-4 if dtype == "fp16" else 1.6e-3) * bound * share
    error = TensorError(
        tensor=tensor, dtype=dtype, rel_l2_error=rel, floor_ratio=None if fp32 else bound * share,
        error_vs_torch=bound * share if fp32 else share / torch_share, scale_error=3e-8 * share, max_ulp=1.5 * share,
        max_ulp_index=[0, 3], masks_match=True, ok=share <= 1, bound=bound,
        decided_by="error_vs_torch" if fp32 else "floor_ratio",
    )  # fmt: skip
    return replace(error, **changes)


def record(
    op="layer_norm", axes=None, dtype="fp16", layout="", mode="fwd", provider="normlib", *, status="ok", reason="",
    clock="cuda_event", latency_us=10.0, baseline_us=16.0, share=0.9, **changes,
):  # fmt: skip
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
            made.latency_us_low, made.latency_us_high = 0.998 * latency_us, 1.002 * latency_us
            made.noise, made.stopped, made.retaken = 0.004, "noise", 0
            made.sm_clock_mhz, made.mem_clock_mhz, made.power_w, made.temperature_c = 1500.0, 2600.0, 400.0, 50.0
    return replace(made, **changes)


def sweep(clock="cuda_event", grids=None):
    """Three operators over their grids, dtypes, layouts and modes for every provider, with every status in it."""
    dice = random.Random(7)
    made = []
    for op, grid in (grids or GRIDS).items():
        layouts = ("nchw", "nhwc") if op == "batch_norm" else ("",)
        for axes, dtype, layout, mode in product(grid, ("fp32", "fp16"), layouts, ("fwd", "bwd")):
            case = {"op": op, "axes": axes, "dtype": dtype, "layout": layout, "mode": mode, "clock": clock}
            moved = 2 * math.prod(shape_of(axes)) * (4 if dtype == "fp32" else 2)
            floor_us = 4.0 + moved / 3.6e6 * (1 if mode == "fwd" else 1.8)
            times = {name: floor_us * SLOWNESS[name] * dice.uniform(0.8, 1.25) for name in PROVIDERS}
            for name in PROVIDERS:
                if name == "cudnn" and op != "batch_norm":
                    why = f"cuDNN has no {op} for {dtype}"
                    made.append(record(**case, provider=name, status="unsupported", reason=why))
                    continue
                share = 0.5 if name == "torch" else dice.uniform(0.3, 0.9)
                share = share if dtype == "fp32" else dice.uniform(0.952, 0.97)
                timed = {"latency_us": times[name], "baseline_us": times["torch"]}
                made.append(record(**case, provider=name, share=share, **timed))
    huge, small = {"tokens": 65536, "hidden": 65536}, {"tokens": 7, "hidden": 8}
    made += [record(axes=huge, provider=name, status="oom", reason="out of memory: 8.00 GiB") for name in PROVIDERS]
    wrong = {"status": "wrong", "reason": "y: floor_ratio 1.7 is beyond 1.05", "share": 1.62, "clock": clock}
    made += [record("rms_norm", {"tokens": tokens, "hidden": 1000}, **wrong) for tokens in (3, 5)]
    crash = "RuntimeError: device-side assert"
    made.append(record(axes=small, provider="torch_compile", status="crash", reason=crash))
    made.append(record(axes=small, provider="cudnn", status="timeout", reason="no answer in 60 s"))
    return made


def resnet50():
    """The training step of ResNet-50, for every provider."""
    return [
        record(
            "batch_norm", {"batch": 32, **norm.size}, dtype="fp16", layout="nhwc", mode="fwd_bwd", provider=name,
            latency_us=SLOWNESS[name] * floor_us, baseline_us=SLOWNESS["torch"] * floor_us,
        )
        for norm in models.norms("resnet50", "batch_norm")
        for floor_us in [5 + math.prod(shape_of({"batch": 32, **norm.size})) / 4e5]
        for name in PROVIDERS
    ]  # fmt: skip


def environment(clock="cuda_event", **changes):
    gpu = clock == "cuda_event"
    before = {
        "taken": "2026-01-02T03:04:05+00:00", "sm_clock_mhz": 1500, "temperature_c": 41, "driver": "1.2.3",
        "max_sm_clock_mhz": 1980, "power_limit_w": 700.0,
    }  # fmt: skip
    after = before | {"taken": "2026-01-02T03:14:05+00:00", "sm_clock_mhz": 1480, "temperature_c": 63}
    clocks = {"clocks.sm": "1500"}
    described = {"name": "Example GPU", "capability": "9.0", "driver": "1.2.3", "l2_bytes": 50 * 2**20}
    providers = {name: {"version": "1.0", "unavailable": ""} for name in PROVIDERS}
    providers["liger"] = {"version": "", "unavailable": "its package is not installed"}
    return {
        "schema": 1,
        "run": "test-run",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:14:05+00:00",
        "command": "python -m bench.run --op all --preset quick --seed 0",
        "seed": 0,
        "interpreted": not gpu,
        "device": "cuda" if gpu else "cpu",
        "device_name": "Example GPU" if gpu else "Example CPU",
        "gpu": described | {"clocks": clocks} if gpu else None,
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
        "providers": providers,
        "copy_gbps": 4000.0 if gpu else None,
        "complete": True,
        "stopped_by": "",
        "cells_planned": None,
        "conditions": {"before": before, "after": after} if gpu else None,
        "notes": ["clocks were not locked"],
    } | changes


def measured(records, seed=3):
    """Samples of each timed cell that scatter about its median, a few of them far above."""
    dice = random.Random(seed)
    return [
        samples.Samples(
            one.key, {"cold_us": [one.latency_us * dice.choice((1, 1, 1.3)) * dice.gauss(1, 0.01) for _ in range(40)]}
        )
        for one in records
        if one.latency_us and one.clock == "cuda_event"
    ]


def write(folder, records, taken=None, **described):
    """Writes a run's files; samples of what a GPU's clock timed, if no others are given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text(json.dumps(environment(**described)))
    results.rewrite(folder / "records.jsonl", records)
    (folder / "samples.jsonl").unlink(missing_ok=True)
    for one in measured(records) if taken is None else taken:
        samples.append(folder / "samples.jsonl", one)
    return folder


def unpacked(text):
    """Undoes bench.page.templating.packed."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


def by_row(data):
    """Undoes what packed_table does to rows."""
    columns = data["rows"]
    values = zip(*columns["is"], strict=True) if columns["is"] else ()
    rows = [
        {**{key: columns[key][at] for key in columns if key != "is"}, "is": is_}
        for at, is_ in enumerate(map(list, values))
    ]
    return {**data, "rows": rows}


class Page(HTMLParser):
    """A rendered page taken apart: the text that is shown, references, ids, and the data of a report's table."""

    def __init__(self, html):
        super().__init__()
        points, self.data = (
            unpacked(found[1]) if (found := re.search(rf'id="{name}-data">(.*?)</script>', html, re.DOTALL)) else None
            for name in ("points", "cells")
        )
        if self.data:
            self.data = by_row(self.data)
        self.html, self.points = html, points
        self.shown, self.references, self.ids, self.tags, self.labels = [], [], [], [], []
        self._hidden = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
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

    def handle_endtag(self, tag):
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data):
        if not self._hidden:
            self.shown.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.shown))

    def section(self, name):
        """The text of one section, tags taken out."""
        part = re.search(rf'<section id="{name}">(.*?)</section>', self.html, re.DOTALL)
        assert part
        return re.sub(r"\s+", " ", re.sub(r"<script.*?</script>|<[^>]+>", " ", part[1], flags=re.DOTALL))

    def assert_whole(self, sources=()):
        """Asserts that the page loads nothing, and that its links lead to places in it, or to `sources`."""
        inside = {reference for reference in self.references if reference.startswith(("#", "data:,"))}
        assert set(self.references) - inside <= set(sources)
        assert {link[1:] for link in inside if link[0] == "#" and "=" not in link} <= set(self.ids)
        assert len(self.ids) == len(set(self.ids))
        assert not {"iframe", "img", "object", "embed"} & set(self.tags)
        # But for a namespace, which nobody asks for.
        known = re.sub("|".join(map(re.escape, ("http://www.w3.org/2000/svg", *sources))), "", self.html)
        assert not re.search(r"https?:|@import|url\((?!#)", known)

    def assert_no_word_of_a_programmers(self, more=""):
        """Asserts that no missing value is shown as Python or JavaScript writes it, here and in `more`."""
        prose = re.sub("NaN (and|or) Inf", "", self.text)
        for word in ("nan", "NaN", "None", "undefined", "inf", "Infinity", "null"):
            assert not re.search(rf"\b{word}\b", prose + more), word

    @property
    def titles(self):
        """The columns of the table."""
        return {column["title"] for column in self.data["columns"]}

    def column(self, title):
        """The values of one column of the table, by cell."""
        place = [column["title"] for column in self.data["columns"]].index(title)
        return {row["id"]: row["is"][place] for row in self.data["rows"]}


def page(folder):
    return Page(render(folder).read_text(encoding="utf-8"))


def without_torch(*arguments):
    """Runs `python -m` with a module and its arguments on a machine that has neither torch nor triton."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
