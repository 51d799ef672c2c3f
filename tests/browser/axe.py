"""axe-core, the accessibility checker, fetched from npm when a test wants it."""

import shutil
import subprocess
import tarfile

import pytest

VERSION = "4.14.1"
# What WCAG 2.2 AA asks for, and what its authors call best practice.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def source(folder):
    """The checker's script; the test is skipped where npm is not installed or does not reach its registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core comes from npm, which is not installed")
    command = [npm, "pack", "--silent", f"axe-core@{VERSION}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("npm has not brought axe-core in a minute")
    if done.returncode:
        pytest.skip(f"npm cannot bring axe-core: {(done.stderr.strip().splitlines() or ['no reason given'])[0]}")
    with tarfile.open(folder / f"axe-core-{VERSION}.tgz") as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member
        return member.read().decode()


def findings(browser, script):
    """Serious and critical findings on the open page, one line each with the first element concerned."""
    browser.run(script)
    run = "return axe.run(document, { runOnly: arguments[0], resultTypes: ['violations'] }).then((r) => r.violations)"
    found = browser.run(run, RULES)
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    return [
        f"{one['id']}: {one['help']} ({len(one['nodes'])}): {[node['html'][:150] for node in one['nodes'][:6]]}"
        for one in grave
    ]
