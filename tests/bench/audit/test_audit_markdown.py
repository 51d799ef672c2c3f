"""Every table of an audit that stands in a document is what its kept records say, to the letter."""

import json
import re
from pathlib import Path

import pytest

from bench.audit import groups, markdown

ROOT = Path(__file__).parents[3]
TABLE = re.compile(r"<!-- python -m bench\.audit\.markdown (\S+) -->\n.*?<!-- end -->", re.DOTALL)
TABLES = [
    pytest.param(found[1], found[0], id=f"{document}: {found[1]}")
    for document in ("docs/audit.md", "reports/README.md")
    for found in TABLE.finditer((ROOT / document).read_text(encoding="utf-8"))
]


def test_a_table_stands_in_a_document():
    assert TABLES


@pytest.mark.parametrize(("folder", "stands"), TABLES)
def test_a_documents_table_is_what_its_records_say(folder, stands):
    assert markdown.block(folder, markdown.read(ROOT / folder)) == stands


@pytest.mark.parametrize("folder", dict.fromkeys(each.values[0] for each in TABLES))
def test_a_kept_audit_found_nothing_wrong_and_is_small(folder):
    rows = markdown.read(ROOT / folder)
    assert groups.problems(rows) == []
    assert {"pass", "count", "pair"} <= {row["record"] for row in rows}
    size = sum(file.stat().st_size for file in (ROOT / folder).iterdir())
    assert size < 4e5 * len({row["op"] for row in groups.passes(rows)})  # page and records; git keeps every one of them
    assert json.loads((ROOT / folder / "environment.json").read_text())["git_dirty"] is False


def test_a_table_is_made_of_an_audits_folder_alone(tmp_path, capsys):
    assert markdown.main([str(tmp_path)]) == 2
    said = "bench.audit.markdown: error: arguments: give one folder that bench.audit --out has written\n"
    assert capsys.readouterr().err == said
