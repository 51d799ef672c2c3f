"""The library is reached as `normlib`, from anywhere, and leaves the name `kernels` to Hugging Face's package."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORT_BOTH = "import kernels, normlib, normlib.kernels.plan; print(kernels.OWNER, normlib.__name__)"


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def elsewhere(tmp_path):
    """A folder, away from the checkout, with an installed package called `kernels`."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("OWNER = 'somebody else'")
    return tmp_path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(folder), str(ROOT)),
        cwd=folder,
    )
    return next(folder.glob("*.whl"))


def test_the_link_is_intact():
    link = ROOT / "normlib" / "kernels"
    assert link.is_symlink() and link.readlink() == Path("../kernels")
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_wheel_holds_normlib_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"normlib"}
    assert {
        "normlib/py.typed",
        "normlib/kernels/plan.py",
        "normlib/kernels/batch_norm/launch.py",
        "normlib/layer_norm.py",
    } <= set(names)


@pytest.mark.parametrize("way", ["checkout", "wheel"])
def test_normlib_imports_beside_a_package_called_kernels(way, elsewhere, wheel):
    if way == "wheel":
        zipfile.ZipFile(wheel).extractall(elsewhere / "site")
    path = [str(elsewhere / "site"), *([str(ROOT)] if way == "checkout" else [])]
    # -I -S would lose torch; what is tested is that neither package hides the other, whichever comes first.
    for order in (path, path[::-1]):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(order)}
        assert run(sys.executable, "-c", IMPORT_BOTH, cwd=elsewhere, env=environment) == "somebody else normlib\n"


def test_an_installed_normlib_imports_from_any_folder(tmp_path):
    code = "import normlib, normlib.kernels.row_norm.launch; print(normlib.LayerNorm(4))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    assert run(sys.executable, "-c", code, cwd=tmp_path, env=environment).startswith("LayerNorm((4,)")
