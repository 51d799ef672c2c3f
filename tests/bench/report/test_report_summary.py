"""summary.md, the list of all runs, and the figures as files."""

import xml.etree.ElementTree as ET
from urllib.parse import unquote

from report_runs import record, resnet50, write

from bench.report import index, render

HOSTILE = "<img src=x onerror=alert(1)> | `x` [a](http://x) @someone\n# head"


def test_the_summary_has_verdict_model_losses_and_command(run_dir):
    records = resnet50()
    peer = next(one for one in records if one.provider == "cudnn")
    peer.latency_us = 1.0
    text = summary(run_dir(records, arguments={"preset": "resnet50"}))
    assert "- Right: 12 normlib cells compared with float64, none wrong" in text
    assert "- all 53 batch norms of one resnet50 training step" in text
    assert "Where normlib loses most time:" in text and "| cudnn |" in text
    assert text.rstrip().endswith("    python -m bench.run --op all --preset quick --seed 0")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def summary(folder):
    render(folder)
    return (folder / "summary.md").read_text(encoding="utf-8")


def test_an_interpreted_summary_claims_no_speed(run_dir):
    text = summary(run_dir([record(clock="interpreter")], clock="interpreter"))
    assert "nothing here says anything about speed" in text and "×" not in text  # noqa: RUF001


def test_hostile_names_stay_text_in_the_summary_and_in_the_list(run_dir):
    records = [record(status="crash", reason=HOSTILE), record(op=HOSTILE), record(provider=HOSTILE, latency_us=5.0)]
    folder = run_dir(records, device_name=HOSTILE, baseline=HOSTILE)
    text = summary(folder)
    assert "<img" not in text and "](http" not in text and "@someone" not in text and "\n# head" not in text
    listed = index.write(folder.parent).read_text(encoding="utf-8")
    assert "<img" not in listed and "&lt;img" in listed


def test_the_list_has_every_run_the_newest_first_and_says_which_cannot_be_read(tmp_path):
    write(tmp_path / "old", [record()], started="2026-01-01T00:00:00+00:00")
    new = write(tmp_path / "new one", resnet50(), started="2026-02-01T00:00:00+00:00", arguments={"preset": "resnet50"})
    render(new)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "records.jsonl").write_text("not json\n{}\n")
    (tmp_path / "no run").mkdir()
    text = index.write(tmp_path).read_text(encoding="utf-8")
    assert text.index(">new one<") < text.index(">old<") < text.index(">broken<")
    assert "no run" not in text
    href = text.partition('<a class="cell" href="')[2].partition('"')[0]
    assert (tmp_path / unquote(href)).exists()
    assert "12 of 12 right" in text and "against torch 1.60×; 12 won, 0 tied, 0 lost; worst 1.60×" in text  # noqa: RUF001
    assert "all 53 batch norms of one resnet50 training step" in text
    assert "environment.json: no such file" in text


def test_an_audit_stands_in_the_list_by_its_command(tmp_path):
    write(tmp_path / "run", [record()], started="2026-01-01T00:00:00+00:00")
    for name, described in (("audit", '{"command": "python -m bench.audit", "taken": "2026-02-01"}'), ("torn", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.jsonl").write_text('{"record": "pass"}\n')
        (tmp_path / name / "audit.html").touch()
        (tmp_path / name / "environment.json").write_text(described)
    listed = index.write(tmp_path).read_text(encoding="utf-8")
    assert 'href="audit/audit.html"' in listed and "an audit of the kernels: python -m bench.audit" in listed
    assert listed.index(">audit<") < listed.index('row">run<') < listed.index(">torn<")
    assert "environment.json: cannot be read" in listed


def test_figures_are_left_as_files_where_they_are_asked_for(run_dir):
    axes = [{"tokens": n, "hidden": 64} for n in (8, 512)]
    folder = run_dir([record(axes=one, provider=name) for one in axes for name in ("normlib", "torch")])
    html = render(folder).read_bytes()
    assert not (folder / "figures").exists()
    assert render(folder, figures=True).read_bytes() == html
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert {"gbps-layer-norm-fwd-fp16", "time-layer-norm-fwd-fp16", "roofline-layer-norm-fwd-fp16"} <= names
    drawn = (folder / "figures" / "gbps-layer-norm-fwd-fp16.svg").read_text(encoding="utf-8")
    assert "var(--" not in drawn and 'fill="#ffffff"' in drawn
    assert {element.tag.rpartition("}")[2] for element in ET.fromstring(drawn).iter()} >= {
        "svg",
        "style",
        "marker",
        "path",
    }
