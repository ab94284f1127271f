"""The benchmark harness: its clock, its ratios, verdicts and fits, and that every workload runs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import clock
from benchmarks.apart import apart
from benchmarks.clock import Patience, ratios, take_turns
from benchmarks.elsewhere import Elsewhere
from benchmarks.peers import PEERS, interpreter, missing
from benchmarks.random_polytopes import KINDS, Drawn, certificate, drawn, outside, run
from benchmarks.report import (
    BEGIN,
    END,
    fit_rows,
    insert,
    markdown,
    page,
    reading_rows,
    times,
    verdict_rows,
)
from benchmarks.results import Reading, fits, measure, verdicts, wrong
from benchmarks.store import Record, Store
from benchmarks.workload import (
    BOTH,
    FORWARD,
    Check,
    Family,
    Growth,
    Kind,
    Method,
    Scaled,
    Target,
    Workload,
    calls,
)


class FakeTime:
    """A clock that moves only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """A method that takes these seconds in turn, the last ones for ever."""
        left = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(clock, "time", fake)
    return fake


def test_turns_are_interleaved_and_fill_the_window(time: FakeTime) -> None:
    """Warm-up, then turns of as many calls as fit, one method after the other, until ratios settle."""
    methods = {"a": time.work("a", 5.0, 0.125), "b": time.work("b", 0.25)}
    taken = take_turns(methods, Patience(window=0.5, rounds=3, budget=100.0))
    assert taken["a"].tolist() == [0.125] * 3  # the first call, which compiles, is not counted
    assert taken["b"].tolist() == [0.25] * 3
    assert "".join(time.log) == "aabb" + ("aaaa" + "bb") * 3


def test_unsettled_ratios_take_more_rounds(time: FakeTime) -> None:
    seconds = [1.0, 1.0, *([1.0, 3.0] * 10)]
    methods = {"a": time.work("a", 1.0), "b": time.work("b", *seconds)}
    taken = take_turns(methods, Patience(window=0.0, rounds=4, budget=100.0))
    assert len(taken["a"]) == len(taken["b"]) == 8


def test_slow_methods_get_fewer_rounds(time: FakeTime) -> None:
    """As many turns as the budget holds, but three."""
    methods = {"a": time.work("a", 0.5), "b": time.work("b", 10.0), "c": time.work("c", 60.0)}
    taken = take_turns(methods, Patience(window=0.5, rounds=9, budget=50.0))
    assert [len(taken[name]) for name in "abc"] == [18, 5, 3]


def test_ratios_are_of_the_same_round() -> None:
    """A round in which everything is slow does not count: ratios within rounds are all 2."""
    below = np.array([1.0, 1.0, 10.0, 1.0])
    assert ratios(2 * below, below) == (2.0, 2.0, 2.0)
    assert ratios(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 99.0]), np.ones(5)) == (2.0, 3.0, 4.0)


def family_of(*workloads: Workload, growth: tuple[Growth, ...] = ()) -> Family:
    return Family("test", (Check("error", "none", 1e-6),), lambda _: iter(workloads), growth)


def test_readings_are_an_instances(time: FakeTime) -> None:
    """Times are divided by the instances, errors read once, and what stands for a peer is scaled."""
    workload = Workload(
        {"d": 3},
        (
            Method("spigot", Kind.OURS, {FORWARD: time.work("o", 1.0)}, 10, lambda: 1e-9),
            Method("peer", Kind.PEER, {FORWARD: time.work("p", 1.0)}, 2, lambda: 1e-3),
            Method("copy", Kind.BOUND, {FORWARD: time.work("c", 0.5)}, 10),
        ),
        (
            Target("peer", at_least=4.0),
            Target("peer", at_least=6.0),
            Target("copy", at_most=2.0),
            Target("copy", at_most=1.5),
            Target("distant", at_least=25.0),
            Target("absent", at_least=1.0),
            Target("peer", BOTH, at_least=1.0),
        ),
        (Scaled("distant", "peer", 6.0),),
    )
    family = family_of(workload)
    readings = measure(family, workload, 1, Patience(0.0, 2, 10.0))
    seconds = {reading.method: float(np.median(reading.seconds)) for reading in readings}
    assert seconds == pytest.approx({"spigot": 0.1, "peer": 0.5, "copy": 0.05, "distant": 3.0})
    errors = {reading.method: reading.errors for reading in readings}
    assert errors == {"spigot": {"error": 1e-9}, "peer": {"error": 1e-3}, "copy": {}, "distant": {}}
    assert [reading.kind for reading in readings][-1] is Kind.SCALED
    judged = list(verdicts(family, workload, readings))
    words = [(verdict.target.method, verdict.word) for verdict in judged]
    assert words == [
        ("peer", "met"),
        ("peer", "MISSED"),
        ("copy", "met"),
        ("copy", "MISSED"),
        ("distant", "met"),
    ]
    assert judged[2].ratio == pytest.approx((2.0, 2.0, 2.0))  # ours over the bound's


def reading(sizes: dict[str, float], seconds: float, *, ratio: tuple[float, float, float]) -> Reading:
    name = ", ".join(f"{key} = {size}" for key, size in sizes.items())
    taken = np.array([seconds])
    errors = {"error": 1e-9}
    return Reading("test", name, sizes, 1, FORWARD, "spigot", Kind.OURS, taken, errors, ratio)


@pytest.mark.parametrize(
    ("goal", "ratio", "word"),
    [
        (1.5, (1.2, 1.6, 1.9), "undecided"),
        (1.5, (1.55, 1.6, 1.9), "met"),
        (1.5, (1.2, 1.3, 1.4), "MISSED"),
        (3.0, (1.0, 1.9, 3.5), "undecided"),
        (3.0, (2.0, 2.9, 3.5), "MISSED"),
        (3.0, (2.0, 3.1, 3.5), "met"),
    ],
)
def test_small_ratios_need_quartiles_apart(
    goal: float, ratio: tuple[float, float, float], word: str
) -> None:
    own = reading({"d": 1.0}, 1.0, ratio=ratio)
    workload = Workload({"d": 1}, (), (Target("spigot", at_least=goal),))
    (verdict,) = verdicts(family_of(workload), workload, [own])
    assert verdict.word == word


def test_exponents() -> None:
    """Three sizes of an axis make a fit, the other sizes held; two do not."""
    even = (1.0, 1.0, 1.0)
    own = [reading({"n": n, "s": 2.0}, 3e-6 * n**2, ratio=even) for n in (10.0, 20.0, 40.0)]
    own += [reading({"n": n, "s": 5.0}, 1e-6 * n, ratio=even) for n in (10.0, 20.0)]
    family = family_of(growth=(Growth("n", 2.0), Growth("s", 1.0), Growth("n", 2.0, BOTH)))
    (fit,) = fits(family, own)
    assert fit.exponent == pytest.approx(2.0)
    assert (fit.growth.axis, fit.others, fit.sizes) == ("n", "s = 2.0", (10.0, 20.0, 40.0))


def test_a_second_column_says_another_thing(time: FakeTime) -> None:
    """A method's figures go to the family's columns in order, and each has its own limit."""
    checks = (Check("error", "one", 1e-7), Check("certificate", "two", 1e-8))
    method = Method("spigot", Kind.OURS, {FORWARD: time.work("o", 1.0)}, error=lambda: (5e-8, 5e-8))
    workload = Workload({"d": 1}, (method,))
    family = Family("test", checks, lambda _: iter((workload,)))
    readings = measure(family, workload, 1, Patience(0.0, 1, 1.0))
    assert readings[0].errors == {"error": 5e-8, "certificate": 5e-8}
    assert list(wrong(family, readings)) == ["test, d = 1, spigot: certificate 5.0e-08, over 1e-08"]


def grown() -> tuple[Family, Store]:
    """Three sizes with one and two threads, their targets and what is missing."""
    family = family_of(growth=(Growth("n", 1.0, note="because"),))
    store = Store(missing={"peer": "pip install peer"})
    for n in (1.0, 2.0, 4.0):
        for threads in (1, 2):
            own = reading({"n": n}, 2e-3 * n**threads, ratio=(0.9, 1.0, 1.1))
            own = replace(own, threads=threads)
            workload = Workload({"n": n}, (), (Target("spigot", at_least=0.5),))
            judged = list(verdicts(family, workload, [own]))
            record = Record("test", own.workload, threads, 1.5, [own], judged)
            store.records[record.key] = record
    return family, store


def test_tables() -> None:
    """Aligned; a ratio near 1 is undecided; a note stands where an exponent differs."""
    family, store = grown()
    own = [replace(row, errors={"error": math.nan}) for row in store.readings()[:1]]
    own.append(store.readings()[4])
    lines = markdown(*reading_rows(own)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "2 ms" in lines[2] and "not finite" in lines[2]
    assert "8 ms" in lines[3] and "1e-09" in lines[3] and "1 (0.9-1.1) undecided" in lines[3]
    head, rows = verdict_rows(store.verdicts())
    assert head[-2:] == ("1 thread", "2 threads") and len(rows) == 3
    assert rows[0][-1] == "1 (0.9-1.1) met"
    _, (row,) = fit_rows(fits(family, store.readings()))
    assert row[-4:] == ("1.00", "2.00", "1", "because")
    straight = [fit for fit in fits(family, store.readings()) if fit.threads == 1]
    assert fit_rows(straight)[1][0][-1] == ""
    unexplained = [replace(fit, growth=Growth("n", 3.0)) for fit in straight]
    assert fit_rows(unexplained)[1][0][-1] == "NOT EXPLAINED"


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Two files are one, without NaN; a family that failed says so until it is measured."""
    _, store = grown()
    one, two = (
        Store({key: own for key, own in store.records.items() if own.threads == threads})
        for threads in (1, 2)
    )
    infinite = replace(store.readings()[0], errors={"error": math.inf})
    own = replace(next(iter(one.records.values())), readings=[infinite])
    one.records[own.key] = own
    one.failed["other"] = "ended by SIGSEGV"
    one.save(tmp_path / "1.json")
    two.save(tmp_path / "2.json")
    json.loads((tmp_path / "1.json").read_text(), parse_constant=pytest.fail)
    both = Store.load(tmp_path / "1.json", tmp_path / "2.json")
    assert set(both.records) == set(store.records)
    assert both.failed == one.failed
    found = both.records[own.key].readings[0]
    assert math.isnan(found.errors["error"]) and found.kind is Kind.OURS
    assert found.seconds.tolist() == [2e-3] and found.ratio == (0.9, 1.0, 1.1)
    assert list(both.verdicts())[:1] == list(one.verdicts())[:1]


def test_pages(tmp_path: Path) -> None:
    """Results stand between two markers, what is around them stays, and figures are drawn."""
    pytest.importorskip("matplotlib")
    family, store = grown()
    at = tmp_path / "page.md"
    at.write_text("before\n")
    with pytest.raises(ValueError, match="needs the lines"):
        insert(at, "text")
    at.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        insert(at, page(store, [family], at, tmp_path / "images"))
    said = at.read_text()
    assert said.startswith(f"before\n{BEGIN}\n") and said.endswith(f"{END}\nafter\n")
    assert "old" not in said and said.count("### Targets") == 1 and "pip install peer" in said
    assert "6 met, 0 undecided, 0 MISSED." in said
    assert "(images/benchmarks.png)" in said
    assert (tmp_path / "images" / "benchmarks.png").stat().st_size > 1000
    assert "### test" in times(store, [family])


def alone(name: str, call: Callable[[], None], sizes: int = 1) -> Family:
    """A family of our own method alone."""

    def workloads(_: bool) -> Iterator[Workload]:
        for d in range(sizes):
            method = Method("spigot", Kind.OURS, {FORWARD: call}, error=lambda: 0.0)
            yield Workload({"d": d}, (method,))

    return Family(name, (Check("error", "none", 1e-6),), workloads)


def test_families_die_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that crashes and one that raises are rows; resumed, only what lacks is measured."""
    log = tmp_path / "log"

    def note(name: str) -> Callable[[], None]:
        def call() -> None:
            with log.open("a") as file:
                file.write(name)

        return call

    def crash() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        raise RuntimeError("no such luck\nmore")

    families = (alone("a", note("a"), 2), alone("b", crash), alone("c", fail), alone("d", note("d")))
    monkeypatch.setattr(command, "FAMILIES", families)
    out = str(tmp_path / "out")
    arguments = ["--window", "0", "--rounds", "1", "--threads", "1", "--out", out]
    assert command.main(arguments) == 1
    store = Store.load(tmp_path / "out" / "results.json")
    assert {key[:2] for key in store.records} == {("a", "d = 0"), ("a", "d = 1"), ("d", "d = 0")}
    assert store.failed == {"b": "ended by SIGKILL", "c": "RuntimeError: no such luck"}
    said = capfd.readouterr().out
    assert "[4 of 4]" in said and "ended by SIGKILL" in said
    monkeypatch.setattr(command, "FAMILIES", (*families[:1], alone("b", note("b")), *families[3:]))
    before = log.read_text()
    assert command.main([*arguments, "--resume", "--only", "a", "b", "d"]) == 1  # c is as it was
    assert set(log.read_text().removeprefix(before)) == {"b"}
    store = Store.load(tmp_path / "out" / "results.json")
    assert set(store.failed) == {"c"} and len(store.records) == 4


def test_apart() -> None:
    assert apart(lambda: None) == ""
    assert apart(lambda: os._exit(3)) == "ended with status 3"


def test_calls_differentiate() -> None:
    scores = torch.arange(3.0)
    both = calls(lambda s: s * s, scores)
    assert both[FORWARD]() is not None
    gradient = both[BOTH]()
    upstream = torch.randn(3, generator=torch.Generator().manual_seed(1))
    assert isinstance(gradient, torch.Tensor)
    torch.testing.assert_close(gradient, 2 * scores * upstream)
    assert list(calls(torch.sort, scores, backward=False)) == [FORWARD]


@pytest.mark.parametrize("error", [1e-3, math.nan])
def test_an_answer_that_is_off_fails_the_run(
    error: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ours(off: float) -> Workload:
        calls = {FORWARD: lambda: None}
        return Workload({"d": 1}, (Method("spigot", Kind.OURS, calls, error=lambda: off),))

    threads = torch.get_num_threads()
    monkeypatch.setattr(command, "FAMILIES", (family_of(ours(1e-9)),))
    assert command.main(["--smoke"]) == 0
    monkeypatch.setattr(command, "FAMILIES", (family_of(ours(error)),))
    assert command.main(["--smoke"]) == 1
    torch.set_num_threads(threads)
    assert "- test, d = 1, spigot: error" in capsys.readouterr().out


def test_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One with an environment of its own where there is no interpreter, too."""
    monkeypatch.setenv("SPIGOT_QPTH", str(tmp_path / "python"))
    assert interpreter("qpth") is None
    assert missing()["qpth"] == PEERS["qpth"].install
    monkeypatch.setenv("SPIGOT_QPTH", sys.executable)
    assert interpreter("qpth") == Path(sys.executable)
    assert "qpth" not in missing()


def test_a_peer_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Arrays there and back, what it prints not in between, its death in words."""
    folder = tmp_path / "qpth"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "qp.py").write_text(
        "def QPFunction(verbose):\n"
        "    def solve(Q, p, G, h, A, b):\n"
        "        print('noise')\n"
        "        if float(h[0]) < 0:\n"
        "            raise SystemExit(3)\n"
        "        return p @ Q * -2.0\n"
        "    return solve\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scores = np.arange(6.0).reshape(3, 2).T
    arrays = {"scores": scores, "upstream": np.ones((2, 3)), "G": np.eye(3), "h": np.ones(3)}
    there = Elsewhere(Path(sys.executable), "qpth", arrays)
    for call, expected in ((FORWARD, 2 * scores), (BOTH, np.full((2, 3), 2.0))):
        there.run(call, 1)
        assert there.answer(call).tolist() == expected.tolist()
    broken = Elsewhere(Path(sys.executable), "qpth", {**arrays, "h": -np.ones(3)})
    with pytest.raises(RuntimeError, match="ended with status 3"):
        broken.run(FORWARD, 1)


def test_every_workload_runs() -> None:
    """All families, small, once: our errors are what each family allows."""
    smoke = [sys.executable, "-m", "benchmarks", "--smoke"]
    done = subprocess.run(smoke, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"## {family.name}\n" in done.stdout for family in command.FAMILIES)


def triangle() -> Drawn:
    """{x + y <= 1} in the unit box."""
    none = np.zeros((0, 2)), np.zeros(0)
    return Drawn(*none, np.ones((1, 2)), np.ones(1), np.zeros(2), np.ones(2))


def test_certificates_of_random_polytopes() -> None:
    """(1, 1) goes to (1/2, 1/2); for another point the bound is max <s - y, v - y> or more."""
    found, scores = triangle(), np.ones(2)
    assert certificate(found, scores, np.array([0.5, 0.5])) < 1e-12
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for y in (np.array([0.75, 0.25]), np.array([0.25, 0.25]), np.array([1.0, 0.0])):
        gap = ((corners - y) @ (scores - y)).max() / (1 + abs(scores @ y))
        assert certificate(found, scores, y) >= gap - 1e-12 > 0
    assert outside(found, np.array([0.75, 0.75])) == pytest.approx(0.25)
    assert outside(found, np.array([0.75, -0.5])) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_random_polytopes(kind: str) -> None:
    """The command's polytopes, few and small: certified, and right derivatives."""
    (tally,) = run([kind], 3, 7, 12).values()
    assert not tally.failures
    assert tally.seeds == [7, 8, 9] and tally.instances == 18 and tally.checked == 12
    assert sum(tally.roads.values()) == tally.instances
    assert tally.smooth > 6


def test_random_polytopes_are_what_their_kind_says() -> None:
    """Points are points, flat ones are flat, degenerate vertices have more rows than parts."""
    for seed in range(5):
        flat = drawn("flat", seed, 20)
        assert np.linalg.matrix_rank(flat.A) < len(flat.A)
        point = drawn("point", seed, 20)
        free = point.low < point.high
        assert np.linalg.matrix_rank(point.A[:, free]) == free.sum()
        table = drawn("transport", seed, 20)
        assert np.linalg.matrix_rank(table.A) < len(table.A)
