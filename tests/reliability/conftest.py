"""Print at the end how many bad inputs were tried."""

from collections import Counter

import pytest
from bad_inputs import TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY:
        terminalreporter.section("bad inputs")
        for name, tally in TALLY.items():
            terminalreporter.write_line(f"{name}: {tally.total()} ({said(tally)})")
        terminalreporter.write_line(
            f"{sum(t.total() for t in TALLY.values())} ({said(sum(TALLY.values(), Counter()))})"
        )


def said(tally: Counter) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(tally.items()))
