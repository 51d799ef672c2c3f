"""`python -m bench.report`: what it writes and says, and that it needs neither torch nor triton."""

import pytest
from report_runs import record, without_torch

from bench.report import render
from bench.report.__main__ import main
from bench.results.load import UnreadableRun


def refused(capsys, *arguments):
    """Returns the one line that says what is wrong."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.chance
def test_a_report_is_made_without_torch_and_triton(run_dir):
    folder = run_dir([record(), record(provider="torch", latency_us=16.0)])
    done = without_torch("bench.report", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(folder / "report.html")
    assert "1.60×" in (folder / "report.html").read_text(encoding="utf-8")  # noqa: RUF001


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("records.jsonl", "not json\n{}\n"),
        ("records.jsonl", '{"op": "layer_norm"}\n{"op": "layer_norm"}\n'),
        ("records.jsonl", None),
        ("environment.json", None),
        ("environment.json", "[1,"),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line_and_status_2(file, text, run_dir, capsys):
    folder = run_dir([record()])
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    assert "RUN_DIR" in refused(capsys, str(folder))
    assert not (folder / "report.html").exists()
    with pytest.raises(UnreadableRun):
        render(folder)


@pytest.mark.parametrize(("broken", "said"), [("{,}", "is not JSON"), ('{"op": "layer_norm"}', "cannot be used")])
def test_an_unreadable_record_is_named_by_its_line_in_the_file(broken, said, run_dir, capsys):
    folder = run_dir([record(), record(mode="bwd"), record(dtype="fp32")])
    lines = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("\n".join([*lines[:2], broken, lines[2]]) + "\n")
    line = refused(capsys, str(folder))
    assert f"records.jsonl: line 3 {said}" in line and "column" not in line


def test_a_file_given_for_a_folder_is_said_to_be_one(run_dir, capsys):
    file = str(run_dir([record()]) / "records.jsonl")
    assert f"{file}: a file; give the folder of a run" in refused(capsys, file)
    assert f"{file} is a file; give the folder of runs" in refused(capsys, "--index", file)


@pytest.mark.parametrize(
    "arguments", [["no-such-folder"], ["--index", "no-such-folder"], ["--figures"], ["--nonsense", "a"]]
)
def test_bad_arguments_are_one_line_and_status_2(arguments, capsys):
    assert refused(capsys, *arguments).startswith("bench.report: error: ")


def test_without_a_run_the_list_of_all_runs_is_made_again(run_dir):
    folder = run_dir([record()])
    assert main(["--index", str(folder.parent)]) == 0
    assert folder.name in (folder.parent / "index.html").read_text(encoding="utf-8")


def test_from_python_a_folder_may_be_a_text_and_what_cannot_be_read_is_one_line(run_dir):
    folder = run_dir([record()])
    assert render(str(folder)) == folder / "report.html"
    with pytest.raises(UnreadableRun, match="no such folder; give the folder of a run") as refused:
        render("nowhere")
    assert "\n" not in str(refused.value)
