"""The table at the end."""

import io

from rich.console import Console

from bench.measure.runner import RunOutcome
from bench.results.records import Record, TensorError
from bench.summary import summary


def record(provider, status="ok", speedup=None, width=8, errors=()):
    return Record(
        op="layer_norm",
        shape=[4, width],
        axes={"tokens": 4, "hidden": width},
        dtype="fp32",
        layout="rows",
        mode="fwd",
        eps=1e-5,
        provider=provider,
        backend=provider,
        device="cuda",
        status=status,
        speedup=speedup,
        errors=list(errors),
    )


def error(decided_by, value, bound, ok, tensor="y"):
    figures = dict.fromkeys(
        ("rel_l2_error", "floor_ratio", "error_vs_torch", "scale_error", "max_ulp", "max_ulp_index")
    )
    figures |= {decided_by: value} if decided_by in figures else {}
    return TensorError(tensor, "fp32", masks_match=True, ok=ok, decided_by=decided_by, bound=bound, **figures)


def shown(*records, stopped_by=""):
    console = Console(file=io.StringIO(), width=160)
    summary(console, RunOutcome(list(records), stopped_by), "torch", "normlib")
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_a_row_counts_how_a_providers_cells_ended():
    lines = shown(record("torch"), record("torch", "oom"), record("normlib"), record("normlib", width=9))
    assert lines[0] == "operator provider ok oom worst figure"
    assert lines[1:3] == ["layer_norm torch 1 1", "layer_norm normlib 2"]


def test_speedups_are_their_geometric_mean_with_their_number():
    lines = shown(record("torch", speedup=1.0), record("normlib", speedup=4.0), record("normlib", speedup=1.0, width=9))
    assert "speedup over torch (geometric mean; won, tied, lost; worst)" in lines[0]
    assert lines[2] == "layer_norm normlib 2 2.00x; 1 won, 1 tied, 0 lost; worst 1.00x"


def test_without_a_speedup_there_is_no_word_of_speed():
    assert not any("speedup" in line or "slower" in line for line in shown(record("torch"), record("normlib")))


def test_our_losses_are_named_slowest_first_and_a_peers_are_not():
    lines = shown(
        record("normlib", speedup=0.9),
        record("normlib", speedup=0.5, width=9),
        record("normlib", speedup=2.0, width=10),
        record("peer", speedup=0.1),
        record("normlib", "wrong", width=11),
    )
    assert lines[1] == "layer_norm normlib 3 1 0.97x; 1 won, 0 tied, 2 lost; worst 0.50x"
    assert lines[3:] == [
        "wrong: layer_norm 4x11 fp32 rows fwd normlib",
        "slower than torch: layer_norm 4x9 fp32 rows fwd normlib 0.50x",
        "slower than torch: layer_norm 4x8 fp32 rows fwd normlib 0.90x",
    ]


def test_of_many_losses_the_worst_ten_are_named_and_the_rest_counted():
    lines = shown(*(record("normlib", speedup=0.5, width=width) for width in range(1, 16)))
    assert sum(line.startswith("slower") for line in lines) == 10
    assert lines[-1] == "... and 5 more, all of them in the report"


def test_the_worst_figure_is_the_one_furthest_beyond_its_bound():
    near = error("floor_ratio", 1.04, 1.05, True)
    beyond = error("scale_error", 3e-5, 1e-5, False, "dw")
    assert shown(record("a", errors=[near]), record("a", errors=[beyond]))[1].endswith(
        "dw scale_error 3.0e-5 (bound 1e-5)"
    )
    assert shown(record("a", errors=[near]))[1].endswith("y floor_ratio 1.040 (bound 1.05)")


def test_what_is_no_number_at_all_is_worse_than_any_number():
    beyond = error("scale_error", 9.0, 1e-5, False)
    missing = error("missing", None, None, False, "dx")
    assert shown(record("a", errors=[missing, beyond]))[1].endswith("dx: missing")


def test_a_run_that_was_stopped_says_by_what():
    assert shown(record("torch"), stopped_by="interrupt")[-1].startswith("not complete: stopped by interrupt")


def test_a_run_without_records_says_so():
    assert shown() == ["no cell was measured"]
