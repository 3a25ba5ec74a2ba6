"""A short run of every fuzz target, the same in every run; docs/safety.md has the long one."""

import pytest

from fuzz import SHARES
from fuzz.run import Runner
from fuzz.targets import TARGETS


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_every_input_is_read_or_refused(name):
    runs = SHARES[name] * 150
    report = Runner(name, seed=1, hang=10).loop(runs)
    assert report.failures == [] and report.runs == runs and set(SHARES) == set(TARGETS)
    # The mutations neither break everything nor nothing; a journal is read as far as it goes.
    assert report.refused < report.runs and (report.refused > 0 or name == "journal")
