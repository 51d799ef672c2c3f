"""Headless Chromium, one for all tests of a file. Without Chromium, its driver or selenium they are skipped."""

import shutil

import pytest
from pages import Browser

# Nothing that Chromium does by itself may look like a request of the page.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--force-device-scale-factor=1", "--disable-features=Translate,OptimizationHints,MediaRouter"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium without a network, which keeps what its console says and what it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"no {' and no '.join(missing)} on this machine: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the pages of these tests lie."""
    return tmp_path_factory.mktemp("pages")
