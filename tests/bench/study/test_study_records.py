"""Records of a study survive a kill and figures that JSON has not; verdicts say no more than the seeds do."""

import json
from dataclasses import replace
from math import inf, isnan, nan

import pytest
from report_runs import without_torch

from bench.cases.operators import operators
from bench.study import records
from bench.study.experiments import BY_NAME
from bench.study.records import StudyRun
from bench.study.study import judged, overall

LANDSCAPE, SWEPT = BY_NAME["landscape"], BY_NAME["learning_rate"]


def landscape(seed, bn, plain=3.0, **rest):
    """Both conditions of one seed: the claim is that BN's range is below a third of plain's."""
    return [StudyRun("landscape", c, seed, {"mean range": v}, **rest) for c, v in (("BN", bn), ("plain", plain))]


def word(experiment, *seeds):
    (verdict, *_) = judged(experiment, [run for runs in seeds for run in runs])
    return verdict.word


def test_figures_that_json_lacks_come_back_and_the_file_is_strict_json(tmp_path):
    points = {"loss": {"x": [0.0, 1.0], "y": [2.5, inf]}}
    run = StudyRun(
        "noisy_bn", "plain", 0, {"auc": inf, "least": -inf, "none": nan, "loss": 0.1}, points, "diverged", "so"
    )
    records.append(tmp_path, run)
    (line,) = (tmp_path / records.FILE).read_text().splitlines()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (read,) = records.read(tmp_path)
    assert isnan(read.values["none"])
    assert replace(read, values=dict(read.values) | {"none": 0}) == replace(run, values=dict(run.values) | {"none": 0})


def test_a_last_line_that_was_cut_short_costs_that_run_alone(tmp_path):
    for seed in range(2):
        records.append(tmp_path, StudyRun("selu", "SELU", seed, {"variance": 1.0}))
    path = tmp_path / records.FILE
    path.write_text(path.read_text()[:-9])
    assert [run.seed for run in records.read(tmp_path)] == [0]


@pytest.mark.parametrize(
    ("ranges", "plain", "expected"),
    [
        ([0.5, 0.6, 0.7], 3.0, "reproduced"),
        ([0.5, 0.6], 3.0, "not decided"),  # too few seeds
        ([0.5, 1.2, 0.7], 3.0, "not decided"),
        ([1.2, 1.3, 0.7], 3.0, "not reproduced"),
        ([inf], 3.0, "not reproduced"),  # a loss that diverged counts as infinitely large
        ([nan, 0.5, 0.6], 3.0, "not decided"),
        ([1e6, 1e6, 1e6], inf, "reproduced"),  # so does plain's
        ([inf, inf, inf], inf, "not reproduced"),
    ],
)
def test_a_claim_is_reproduced_only_where_its_gate_holds_in_every_one_of_three_seeds(ranges, plain, expected):
    assert word(LANDSCAPE, *(landscape(seed, bn, plain) for seed, bn in enumerate(ranges))) == expected


def test_a_run_that_failed_leaves_the_claim_undecided():
    failed = landscape(2, 0.5, state="failed")
    assert word(LANDSCAPE, landscape(0, 0.5), landscape(1, 0.5), failed) == "not decided"
    assert word(LANDSCAPE, landscape(0, 0.5), landscape(1, 0.5), landscape(2, 0.5)[:1]) == "not decided"


def test_one_seed_is_enough_for_a_sweep():
    runs = [StudyRun("learning_rate", c, 0, {"decades": d}) for c, d in (("BN", 2.0), ("plain", 0.0))]
    verdicts = list(judged(SWEPT, runs))
    assert [verdict.word for verdict in verdicts] == ["reproduced", "reproduced"]
    assert overall(verdicts) == "reproduced"
    assert overall([verdicts[0], replace(verdicts[1], word="not reproduced")]) == "not reproduced"
    assert overall([]) is None


def test_every_experiment_runs_and_its_gates_compare_its_conditions():
    for experiment in BY_NAME.values():
        assert callable(experiment.run)
        assert {condition for gate in experiment.gates for condition, _ in gate.shows} <= set(experiment.conditions)


def test_every_operator_that_a_claim_names_is_measured_too():
    assert {name for experiment in BY_NAME.values() for name in experiment.operators} <= set(operators())


@pytest.mark.parametrize(("argument", "said"), [("--list", "landscape"), ("--help", "exit status: 0 done")])
def test_claims_are_listed_and_explained_where_there_is_no_torch(argument, said):
    done = without_torch("bench.study", argument)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
