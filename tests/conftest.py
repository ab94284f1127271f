"""Settings shared by all tests."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "agg")  # no windows

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # many small calls: two threads only wait for each other

# The same examples in every run; HYPOTHESIS_PROFILE=thorough looks for new ones.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=200
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
