"""Checks a polytope: every fact and every road against the others and against cvxpy.

From a shell: `python -m spigot.testing package.module:Name --args 8 8 12`.
"""

from spigot.testing.checks import check
from spigot.testing.report import Finding, Report

__all__ = ["Finding", "Report", "check"]
