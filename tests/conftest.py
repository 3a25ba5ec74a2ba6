"""Hypothesis: no deadlines on shared machines, and the same examples in every CI run. Fixtures that
several files use."""

import os

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
