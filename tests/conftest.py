"""Hypothesis: no deadlines on shared machines, and the same examples in every CI run. Fixtures that
several files use."""

import logging
import os

import pytest
from hypothesis import HealthCheck, settings

from tests.mindformers_oracle.fixtures import mindformers, mindformers_release

__all__ = ["mindformers", "mindformers_release"]

settings.register_profile(
    "ckptforge",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("ckptforge")


@pytest.fixture(autouse=True)
def quiet_logger():
    """What --verbose adds to the package's logger is gone after a test."""
    logger = logging.getLogger("ckptforge")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def pytest_terminal_summary(terminalreporter):
    """How soon the pages that were opened in a browser could be used: shown, as it is the
    machine's time."""
    for report in terminalreporter.getreports("passed"):
        found = dict(report.user_properties)
        if report.when == "call" and "interactive" in found:
            terminalreporter.write_line(
                f"{found['page']}: {found['bytes']:,} bytes, interactive in "
                f"{found['interactive']:,} ms"
            )
