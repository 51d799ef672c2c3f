"""The description of the machine names versions and device, and nothing private."""

import getpass
import json
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from bench.measure import environment
from bench.measure.providers import providers

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def described():
    return environment.collect(CPU, providers())


def test_the_description_is_json_and_names_the_versions(described):
    assert json.loads(json.dumps(described)) == described
    assert described["schema"] == 1
    assert described["device"] == "cpu"
    assert described["device_name"] == described["cpu"] != ""
    assert described["gpu"] is None
    assert described["torch"] == torch.__version__
    assert set(described["providers"]) == set(providers())


def test_no_host_no_user_and_no_path_of_this_machine_is_told(described):
    text = json.dumps(described)
    for private in (socket.gethostname(), str(Path.home()), str(ROOT)):
        assert private not in text
    if getpass.getuser() not in ("root", "user"):
        assert getpass.getuser() not in text


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--op", "bn", "--batch", "1,2"], "python -m bench.run --op bn --batch 1,2"),
        (["--out", "/home/somebody/runs/a"], "python -m bench.run --out a"),
        (["--out=/home/somebody/runs/a"], "python -m bench.run --out=a"),
        (["--out", "runs/a b"], "python -m bench.run --out 'runs/a b'"),
        ([], "python -m bench.run"),
    ],
)
def test_the_command_is_shown_as_typed_without_absolute_folders(typed, shown):
    assert environment.command(typed) == shown


def test_the_time_is_utc_in_iso_8601():
    now = datetime.fromisoformat(environment.now())
    assert now.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - now) < timedelta(minutes=1)


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)


def test_the_commit_is_known_and_a_changed_file_makes_it_dirty(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = environment._git(tmp_path)
    assert len(clean["git_commit"]) == 40
    assert clean["git_dirty"] is False
    (tmp_path / "file").write_text("2")
    assert environment._git(tmp_path) == {"git_commit": clean["git_commit"], "git_dirty": True}


def test_outside_any_checkout_and_in_an_archive_inside_somebody_elses_there_is_no_commit(tmp_path):
    assert environment._git(tmp_path) == {"git_commit": None, "git_dirty": None}
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    (tmp_path / "unpacked").mkdir()
    assert environment._git(tmp_path / "unpacked") == {"git_commit": None, "git_dirty": None}


def test_another_version_device_or_commit_is_told(described):
    other = {**described, "torch": "1.0", "device_name": "another", "git_commit": "0" * 40}
    found = environment.differences(described, other, [])
    assert [line.split(" was ")[0] for line in found] == ["device name", "torch", "git commit"]
    assert f"torch was {torch.__version__!r}, is '1.0'" in found


def test_only_the_providers_of_the_run_are_compared(described):
    changed = {name: {**known, "version": "0"} for name, known in described["providers"].items()}
    other = {**described, "providers": changed}
    assert environment.differences(described, other, []) == []
    assert environment.differences(described, other, ["torch"]) == [
        f"torch's version was {described['providers']['torch']['version']!r}, is '0'"
    ]


def test_clocks_notes_and_a_dirty_tree_do_not_keep_a_run_from_being_continued(described):
    other = {**described, "gpu": {"clocks": {"clocks.sm": "1"}}, "notes": ["a"], "git_dirty": "x"}
    assert environment.differences(described, other, list(providers())) == []


def test_what_is_written_is_read_back_and_replaced_as_a_whole(tmp_path):
    environment.write(tmp_path, {"a": 1, "b": 2})
    environment.write(tmp_path, {"a": 3})
    assert environment.read(tmp_path) == {"a": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


@pytest.mark.parametrize("text", ["", "[]", "{broken"])
def test_what_is_no_description_is_refused(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(ValueError):
        environment.read(tmp_path)


@pytest.mark.parametrize(("value", "asked"), [("1", True), ("TRUE", True), ("on", True), ("0", False), ("", False)])
def test_the_interpreter_is_asked_for_by_tritons_own_words(monkeypatch, value, asked):
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert environment.interpreting() is asked


@pytest.mark.gpu
def test_a_gpu_is_described():
    described = environment.collect(torch.device("cuda", torch.cuda.current_device()), {})
    assert described["device_name"] == described["gpu"]["name"]
    assert described["gpu"]["multiprocessors"] > 0
    assert described["gpu"]["memory_bytes"] > 0


def _repository(folder):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    return folder


def test_git_is_asked_about_this_repository_whatever_a_hooks_environment_says(tmp_path, monkeypatch):
    ours, other = _repository(tmp_path / "ours"), _repository(tmp_path / "other")
    (ours / "new").touch()
    found = environment._git(ours)
    assert found["git_commit"] and found["git_dirty"] is True
    for name, value in (("GIT_DIR", other / ".git"), ("GIT_WORK_TREE", other), ("GIT_INDEX_FILE", other / "index")):
        monkeypatch.setenv(name, str(value))
        assert environment._git(ours) == found


def test_a_file_name_that_is_not_utf8_makes_the_tree_dirty_and_no_error(tmp_path):
    ours = _repository(tmp_path)
    with open(bytes(ours) + b"/caf\xe9.txt", "w"):  # noqa: PTH123  a name that pathlib's text cannot spell
        pass
    subprocess.run(["git", "-C", str(ours), "config", "core.quotePath", "false"], check=True)
    assert environment._git(ours)["git_dirty"] is True
