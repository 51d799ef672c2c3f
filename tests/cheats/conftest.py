"""`--cheats` prints what was said of each cheat, and how many were refused and how many of the honest passed."""


def pytest_addoption(parser):
    parser.addoption("--cheats", action="store_true", help="print what was said of each cheat")


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--cheats"):
        return
    reports = [report for status in ("passed", "failed") for report in terminalreporter.stats.get(status, ())]
    told = [(name, text, report.nodeid) for report in reports for name, text in report.user_properties]
    for name, text, _ in told:
        if name == "refused":
            terminalreporter.write_line(text)
    for word, test in (("refused", "test_a_cheat_is_refused["), ("passed", "test_an_honest_provider_passes")):
        of_all = sum(test in report.nodeid for report in reports)
        terminalreporter.write_line(f"{sum(name == word for name, *_ in told)} of {of_all} {word}")
