"""The page of a study: what reproduced beside what did not, diverged runs in sight, nothing from outside."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import HOSTILE, Page, without_torch
from study_runs import runs, write

from bench.report import index
from bench.results.load import UnreadableRun
from bench.study.experiments import BY_NAME
from bench.study.page import render
from bench.study.study import load


def page(folder: Path) -> Page:
    return Page(render(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(write(tmp_path_factory.mktemp("study"), runs()))


def found(pattern: str, shown: Page) -> str:
    """The one place of the page with this pattern, or its group."""
    (part,) = re.findall(pattern, shown.html, re.DOTALL)
    return str(part)


def article(shown: Page, name: str) -> str:
    """The text of one experiment."""
    part = found(rf'<article class="experiment" id="{name}">(.*?)</article>', shown)
    return " ".join(re.sub(r"<[^>]+>", " ", part).split())


def label(shown: Page, start: str) -> str:
    (found,) = [label for label in shown.labels if label.startswith(start)]
    return found


def test_every_verdict_stands_with_its_experiment_and_is_counted_at_the_top(shown: Page) -> None:
    words = {"landscape": "reproduced", "learning_rate": "reproduced", "noisy_bn": "not reproduced"}
    words |= {"sigmoid": "not decided", "predictiveness": "not decided", "dropout": "reported"}
    for name, word in words.items():
        assert article(shown, name).startswith(f"{BY_NAME[name].title}: {word} ")
    of = Counter(words.values())
    for word in ("reproduced", "not reproduced", "not decided"):
        assert f"{word.capitalize()} {of[word]} of 5" in shown.section("verdict")
    # What did not reproduce is said in plain words, as large as what did.
    assert "“auc(noisy BN) < 1/2 auc(plain)” holds in 0 of 3 seeds" in article(shown, "noisy_bn").replace("&lt;", "<")
    assert "The gate holds in every seed." in article(shown, "landscape")
    heads = re.findall(r"<h3>[^<]*: <span class=\"([^\"]*)\">(reproduced|not reproduced)</span></h3>", shown.html)
    assert {("tone good", "reproduced"), ("tone bad", "not reproduced")} <= set(heads)


def test_each_seed_has_its_outcome_with_the_values_that_were_compared(shown: Page) -> None:
    text = article(shown, "sigmoid")
    assert "0 yes 0.950 0.500 1 yes 0.950 0.600 2 no 0.950 0.900" in text
    assert "holds in 2 of 3 seeds" in text


def test_diverged_runs_are_crosses_in_the_figure_and_words_beside_it_as_failed_ones_are(shown: Page) -> None:
    assert "study-noisy-bn-diverged-plain-noise" in shown.ids
    said = "Diverged: plain + noise in 3 of 3 runs: the loss is not finite from step 45 on."
    assert said in article(shown, "noisy_bn")
    assert "and 3 of 3 runs diverged" in label(shown, "training loss against step")
    values = "plain 2.30 at 0.001, 2.20 at 0.01, 2.00 at 0.1, diverged at 1, diverged at 10"
    assert values in label(shown, "training loss at the end against learning rate")
    failed = article(shown, "predictiveness")
    assert "in 1 a run failed or is missing" in failed
    assert "Failed: plain in 1 of 1 run: RuntimeError: out of memory." in failed
    assert "Runs that failed 1 of " in shown.section("verdict")


def test_an_experiment_without_a_gate_shows_its_values_and_concludes_nothing(shown: Page) -> None:
    text = article(shown, "dropout")
    assert "Reported, and not judged" in text and "BN + dropout 0.961 (0.960 to 0.962)" in text
    assert label(shown, "test accuracy:").endswith("BN + dropout 0.961")


def test_every_condition_is_drawn_and_keeps_its_colour_from_figure_to_figure(shown: Page) -> None:
    assert {f"study-noisy-bn-line-{name}" for name in ("plain", "bn", "noisy-bn", "plain-noise")} <= set(shown.ids)
    assert {"study-landscape-band-plain", "study-landscape-band-bn", "study-dropout-bar-bn"} <= set(shown.ids)
    line = r'<g id="study-(?:noisy-bn|sigmoid|learning-rate)-line-bn"><path [^>]*?stroke: (var\(--p\d\))'
    drawn = re.findall(line, shown.html)
    assert len(drawn) == 3 and len(set(drawn)) == 1


def figure(shown: Page, name: str) -> str:
    """The SVG of a figure."""
    return found(rf'id="study-{name}-figure_1".*?</svg>', shown)


def test_a_run_that_blows_up_does_not_press_the_others_onto_the_axis(tmp_path: Path) -> None:
    made = [one for one in runs() if one.experiment == "noisy_bn"]
    for one in made:
        if one.condition == "plain + noise":
            one.series["loss"]["y"][8] = 1e30
    ticks = re.findall(r"<text[^>]*>([\d.e+]+)</text>", figure(page(write(tmp_path, made)), "noisy-bn"))
    assert len(ticks) > 5 and max(map(float, ticks)) <= 100


def test_a_setting_of_a_sweep_that_diverged_hides_no_other_setting(shown: Page) -> None:
    """Plain's losses are several times batch norm's, and its last two settings have none."""
    line = re.search(r'-line-plain"><path d="([^"]*)"', figure(shown, "learning-rate"))
    assert line
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", line[1])]
    assert len(heights) == 3 and min(heights) > 8.4  # points from the top, where the axes end


def test_every_value_of_every_run_is_in_the_table_and_infinity_is_written_as_csv_has_it(shown: Page) -> None:
    rows = shown.data["rows"]
    assert len(rows) == sum(max(1, len(one.values)) for one in runs())
    assert len({row["id"] for row in rows}) == len(rows)
    assert shown.column("figure")["noisy_bn/plain + noise/0/loss"] == [1e300, "inf"]
    assert set(shown.column("status").values()) == {"ok", "diverged", "failed"}


def test_a_claim_is_linked_with_its_source_and_nothing_else_leads_outside(shown: Page) -> None:
    sources = {experiment.source.url for experiment in BY_NAME.values()}
    assert sources & set(shown.references)
    shown.assert_whole(sources)


def test_no_missing_value_is_shown_as_a_programmer_sees_it(shown: Page) -> None:
    shown.assert_no_word_of_a_programmers()


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path, runs()[:8])
    first = render(folder).read_bytes()
    assert render(folder).read_bytes() == first


def test_the_setting_says_what_was_trained_by_what_and_how_long_it_took(shown: Page) -> None:
    assert (
        "data digits · network mlp · scale pilot · seeds 3 · layers by PyTorch's operators · time 2 min" in shown.text
    )


@pytest.mark.parametrize("have", [0, 1])
def test_a_study_that_was_stopped_is_a_page_that_says_so(tmp_path: Path, have: int) -> None:
    text = page(write(tmp_path, runs()[:have], complete=False)).text
    assert f"The study is not complete: it has {have} of {len(runs())} planned runs." in text


def test_of_two_runs_of_the_same_the_later_counts(tmp_path: Path) -> None:
    (first,) = made = runs()[:1]
    again = replace(first, values={"auc": 0.25}, series={})
    assert load(write(tmp_path, [*made, again])).runs == (again,)


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    made = runs()[:4]
    hostile = [type(one)(one.experiment, one.condition, 7, {HOSTILE: 1.0}, {}, "failed", HOSTILE) for one in made]
    shown = page(write(tmp_path, [*made, *hostile], command=HOSTILE, notes=[HOSTILE], study={"data": HOSTILE}))
    assert shown.tags.count("script") == 2 and "img" not in shown.tags
    assert "{{ 7 * 7 }}" in shown.text


def test_the_page_is_made_again_without_torch_and_with_its_figures_as_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "study", runs()[:6])
    done = without_torch("bench.report", str(folder), "--figures")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(folder / "report.html")
    assert {path.name for path in (folder / "figures").iterdir()} >= {"study-noisy-bn.svg", "study-noisy-bn.png"}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("study.jsonl", "not json\n{}\n"),
        ("study.jsonl", '{"op": "layer_norm"}\n{"op": "layer_norm"}\n'),
        ("environment.json", "[1,"),
    ],
)
def test_a_study_that_cannot_be_read_is_one_line_and_stays_in_the_list(file: str, content: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "broken", runs()[:1])
    (folder / file).write_text(content)
    with pytest.raises(UnreadableRun) as error:
        render(folder)
    assert len(str(error.value).splitlines()) == 1 and not (folder / "report.html").exists()
    assert "broken" in index.write(tmp_path).read_text(encoding="utf-8")


def test_the_list_of_runs_has_a_study_with_what_it_came_to(tmp_path: Path) -> None:
    (write(tmp_path / "a-study", runs()) / "report.html").touch()
    listed = index.write(tmp_path).read_text(encoding="utf-8")
    assert 'href="a-study/report.html"' in listed
    assert "2 of 5 claims reproduced" in listed and "Not reproduced: Noise behind batch norm" in listed
    assert "speed:" not in listed and json.dumps("nan") not in listed
