"""A function in a child process, so that neither its libraries nor its death reach this one."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable

__all__ = ["apart"]


def apart(function: Callable[[], object]) -> str:
    """Calls it in a fork of this process, and says how that died, if it did.

    This process must not have started threads: it should have imported, but not used, torch.
    """
    child = multiprocessing.get_context("fork").Process(target=function, daemon=True)
    child.start()
    child.join()
    status = child.exitcode
    assert status is not None
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"ended with status {status}" if status else ""
