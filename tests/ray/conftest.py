"""Shows what was measured, also when all went well."""

from tests.ray.measurements import FOUND


def pytest_terminal_summary(terminalreporter):
    if FOUND:
        terminalreporter.section("measured")
        for line in FOUND:
            terminalreporter.write_line(line)
