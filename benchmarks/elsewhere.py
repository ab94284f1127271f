"""A peer that needs another environment: its own interpreter, a child process at the end of a pipe.

    elsewhere = Elsewhere(interpreter, "qpth", arrays)
    elsewhere.run("forward")     # what a clock measures: a word each way
    elsewhere.answer("forward")  # the last answer

The child is this file, run by that interpreter, which needs numpy and the peer but nothing of ours:
arrays travel once, as bytes, so that the two may have different versions of numpy. It ends with us.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Elsewhere"]

Packed = tuple[tuple[int, ...], str, bytes]
Calls = Mapping[str, Callable[[], np.ndarray]]


class Elsewhere:
    """A job of `JOBS` in another interpreter.

    Args:
        python: the interpreter.
        job: the job's name.
        arrays: what it is handed.

    Raises:
        RuntimeError: the child died; with what it said.
    """

    def __init__(self, python: Path, job: str, arrays: Mapping[str, np.ndarray]) -> None:
        command = [str(python), "-P", __file__, job]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        weakref.finalize(self, _end, self._child)
        self._ask({name: _pack(array) for name, array in arrays.items()})

    def run(self, call: str, threads: int) -> None:
        """One call of the job's, over that many threads of torch."""
        self._ask((call, threads))

    def answer(self, call: str) -> np.ndarray:
        """What that call returned last."""
        return _unpack(self._ask((call, 0)))

    def _ask(self, message: Any) -> Any:
        child, said = self._child, self._child.args
        assert child.stdin is not None and child.stdout is not None
        try:
            pickle.dump(message, child.stdin)
            child.stdin.flush()
            return pickle.load(child.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"{said} ended with status {child.wait()}; see above.") from error


def _end(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()
    child.wait()


def _pack(array: np.ndarray) -> Packed:
    whole = np.ascontiguousarray(array)
    return whole.shape, whole.dtype.str, whole.tobytes()


def _unpack(packed: Packed) -> np.ndarray:
    shape, dtype, content = packed
    return np.frombuffer(content, dtype).reshape(shape).copy()


def _qpth(arrays: Mapping[str, np.ndarray]) -> Calls:
    """min |x|^2 / 2 - <scores, x> subject to G x <= h, a batch at once; backward with `upstream`."""
    import torch
    from qpth.qp import QPFunction

    given: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    scores, upstream = given["scores"].requires_grad_(), given["upstream"]
    square, none = torch.eye(scores.shape[1], dtype=scores.dtype), torch.empty(0, dtype=scores.dtype)
    layer: Any = QPFunction(verbose=-1)

    def solved() -> Any:
        return layer(square, -scores, given["G"], given["h"], none, none)

    def forward() -> np.ndarray:
        with torch.no_grad():
            return solved().numpy()

    def both() -> np.ndarray:
        (pulled,) = torch.autograd.grad(solved(), scores, upstream)
        return pulled.numpy()

    return {"forward": forward, "forward + backward": both}


JOBS: dict[str, Callable[[Mapping[str, np.ndarray]], Calls]] = {"qpth": _qpth}


def _serve(job: str) -> None:
    """Answers until the other end closes; what the peer prints goes to the error stream."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def reply(message: Any) -> None:
        pickle.dump(message, replies)
        replies.flush()

    import torch

    arrays: dict[str, Packed] = pickle.load(sys.stdin.buffer)
    calls = JOBS[job]({name: _unpack(packed) for name, packed in arrays.items()})
    reply(None)
    answers: dict[str, np.ndarray] = {}
    while True:
        try:
            call, threads = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if threads:
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)
            answers[call] = calls[call]()
            reply(None)
        else:
            reply(_pack(answers[call]))


if __name__ == "__main__":
    _serve(sys.argv[1])
