"""What a metric is over the seeds of a row: a centre, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from examples.experiments.experiment import Task

__all__ = ["centre", "error"]


def centre(task: Task, values: Sequence[float]) -> float:
    """The median or the mean, as the task says."""
    return statistics.median(values) if task.centre == "median" else statistics.fmean(values)


def error(values: Sequence[float]) -> float | None:
    """The standard error of the mean; None from one seed."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
