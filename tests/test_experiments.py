"""The experiments: names and keys, runs that go on where they were killed, sweeps, reports."""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402

from examples import distributed  # noqa: E402
from examples.experiments import report as reports  # noqa: E402
from examples.experiments import summary as summaries  # noqa: E402
from examples.experiments import sweep as sweeps  # noqa: E402
from examples.experiments.__main__ import main  # noqa: E402
from examples.experiments.estimators import ESTIMATORS, choice, layer  # noqa: E402
from examples.experiments.experiment import Cell, Experiment, Metric, Study, Task, cells, minibatch  # noqa: E402
from examples.experiments.rewards import Push, pushes  # noqa: E402
from examples.experiments.run import Run, Settings, parsed, spelled  # noqa: E402
from examples.experiments.store import FINISHED, Result, Store  # noqa: E402
from examples.experiments.tasks import TASKS, task  # noqa: E402
from examples.experiments.training import Place, train  # noqa: E402
from spigot.polytopes import Simplex  # noqa: E402

STEPS, CHECK = 12, 3


class Killed(BaseException):
    """In the place of a kill."""


class Noisy(Experiment):
    """A line through noisy points, with dropout; killed before the step that its task names."""

    def __init__(self, run: Run, settings: Settings, kill_at: int | None, poison_at: int | None) -> None:
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizers = [torch.optim.Adam(self.model.parameters(), settings.number("rate"))]
        self.schedulers = [torch.optim.lr_scheduler.ExponentialLR(self.optimizers[0], 0.9)]
        self.steps, self.check_every = STEPS, CHECK
        self.kill_at, self.poison_at = kill_at, poison_at
        self.seen: list[int] = []

    def loss(self, step: int) -> Tensor:
        if step == self.kill_at:
            raise Killed
        self.seen.append(step)
        inputs = torch.randn(8, 3)
        loss = (self.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss * (math.nan if step == self.poison_at else 1.0)

    def evaluate(self, part: str) -> dict[str, float]:
        inputs = torch.linspace(-1, 1, 30).reshape(10, 3) + (part == "test")
        return {"error": (self.model(inputs) - inputs.sum(1, keepdim=True)).abs().mean().item()}


def small(
    made: list[Noisy] | None = None,
    kill_at: int | None = None,
    poison_at: int | None = None,
    **more: Any,
) -> Task:
    def make(run: Run, settings: Settings) -> Experiment:
        experiment = Noisy(run, settings, kill_at, poison_at)
        if made is not None:
            made.append(experiment)
        return experiment

    return Task(
        name="small",
        title="A small task",
        structures=("none",),
        studies=(
            Study("main", "Main", cells("linear", "gold"), curves=True),
            Study("rates", "Rates", cells("linear", "gold", rate=(0.01, 0.05, 0.2))),
        ),
        metrics=(Metric("error", "error", higher=False),),
        baseline="linear",
        make=make,
        options={"rate": 0.05},
        **more,
    )


def run_of(estimator: str = "linear", seed: int = 0) -> Run:
    return Run("small", estimator, "none", seed)


def quiet() -> Console:
    return Console(file=open(os.devnull, "w", encoding="utf-8"), width=200)


# Names


def test_a_run_reads_what_it_prints_and_its_key_tells_it_apart() -> None:
    run = Run("categorical", "spigot", "3-clusters", 4, "smoke", (("steps", 2), ("step_size", 0.1)))
    assert Run.parse(str(run)) == run
    assert Run.of(json.loads(json.dumps(run.fields()))) == run
    assert run.options == (("step_size", 0.1), ("steps", 2))
    others = [
        replace(run, **{name: value})
        for name, value in (
            ("task", "x"), ("estimator", "x"), ("structure", "x"), ("seed", 5), ("size", "full"),
            ("options", ()), ("options", (("steps", 2), ("step_size", 0.2))),
        )
    ]  # fmt: skip
    assert len({run.key, *(other.key for other in others)}) == 1 + len(others)
    assert replace(run, options=(("step_size", 0.1), ("steps", 2.0))).key == run.key
    assert run.key == "148a6ba07fa3"  # stored results are found again by it


@pytest.mark.parametrize("value", [0.1, 1e-7, 1 / 3, 3, True, False, "adaptive"])
def test_options_read_what_they_print(value: float | str) -> None:
    assert parsed(spelled(value)) == value


def test_what_is_usual_is_no_option_so_that_studies_share_runs() -> None:
    usual = task("categorical").run(Cell("spigot", (("step_size", 1), ("steps", 1))), "3-clusters", 0)
    assert usual.options == ()
    studies = {
        study.name: set(task("categorical").runs(study, [0])) for study in task("categorical").studies
    }
    assert usual in studies["main"] & studies["steps"] & studies["step-size"]


@pytest.mark.parametrize(
    ("argv", "known"),
    [
        (["run", "nothing"], "categorical"),
        (["run", "categorical", "--estimator", "nothing"], "spigot-eg"),
        (["run", "categorical", "--estimator", "spigot", "--structure", "nothing"], "10-clusters"),
        (["run", "categorical", "--estimator", "spigot", "--option", "nothing=1"], "step_size"),
        (["sweep", "categorical", "--study", "nothing"], "published-scale"),
        (["run", "categorical", "--option", "steps=2"], "--estimator"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(argv: list[str], known: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(known)):
        main([*argv, "--out", str(tmp_path)])


# Estimators


def test_every_row_makes_what_it_says() -> None:
    kinds = {row.kind for row in ESTIMATORS.values()}
    assert kinds == {"layer", "expectation", "loss", "baseline"}
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    target = torch.eye(4)[torch.arange(5) % 4]
    for row in ESTIMATORS.values():
        s = scores.clone().requires_grad_()
        if row.kind == "baseline":
            with pytest.raises(SystemExit, match=row.name):
                layer(row.name, Simplex(4), Settings(row.options))
            continue
        if row.kind == "loss":
            each = layer(row.name, Simplex(4), Settings(row.options))(s, target)
        else:
            each = choice(row.name, Simplex(4), Settings(row.options))(
                s, lambda mu: (mu - target).square().sum(-1)
            )
        assert each.shape == (5,), row.name
        each.mean().backward()
        assert s.grad is not None, row.name
        assert s.grad.isfinite().all(), row.name


def test_the_diagonal_row_is_the_softmax_jacobians_diagonal() -> None:
    scores = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(6, 3, dtype=torch.float64)
    layer("ste-softmax-diagonal", Simplex(3), Settings({}))(scores).backward(g)
    jacobian: Any = torch.func.vmap(torch.func.jacrev(lambda s: s.softmax(-1)))(scores.detach())
    torch.testing.assert_close(scores.grad, g * jacobian.diagonal(dim1=1, dim2=2))


def test_the_gradient_is_taken_where_the_steps_begin_if_asked() -> None:
    # l(mu) = |mu|^2 / 2 has gradient mu: at the marginals p, not at the vertex
    scores = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    settings = Settings({**ESTIMATORS["spigot-eg"].options, "gradient_at": "start", "step_size": 0.5})
    choice("spigot-eg", Simplex(3), settings)(
        scores, lambda mu: mu.square().sum(-1) / 2
    ).mean().backward()
    p = scores.detach().softmax(-1)
    expected = (p - (scores.detach() - 0.5 * p).softmax(-1)) / 4
    torch.testing.assert_close(scores.grad, expected)


# The loop


def test_a_killed_run_goes_on_and_ends_the_same_to_the_bit(tmp_path: Path) -> None:
    whole, first, second = list[Noisy](), list[Noisy](), list[Noisy]()
    expected = train(run_of(), small(whole), Place(tmp_path / "whole"))
    place = Place(tmp_path / "killed", every=0.0)
    with pytest.raises(Killed):
        train(run_of(), small(first, kill_at=8), place)
    assert not place.store.results()
    found = train(run_of(), small(second), place)
    assert first[0].seen == list(range(8))
    assert second[0].seen == list(range(6, STEPS))  # from the checkpoint at 6
    for one, other in zip(whole[0].model.parameters(), second[0].model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (found.test, found.curve, found.steps) == (expected.test, expected.curve, STEPS)
    logs = [
        [json.loads(line) for line in p.log(run_of()).open()] for p in (Place(tmp_path / "whole"), place)
    ]
    for lines in logs:
        assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]


def test_a_finished_run_is_read_and_not_repeated(tmp_path: Path) -> None:
    made = list[Noisy]()
    first = train(run_of(), small(made), Place(tmp_path))
    second = train(run_of(), small(made), Place(tmp_path))
    assert len(made) == 1
    assert second == first
    assert not list(tmp_path.glob("checkpoints/*.pt"))


def test_a_usual_value_that_has_changed_makes_another_run(tmp_path: Path) -> None:
    """Its key is the same, for it names what is unusual: all options of the record are looked at."""
    made = list[Noisy]()
    slower: dict[str, Any] = {"usual": {"linear": {"rate": 0.01}}}
    place = Place(tmp_path, every=0.0)
    first = train(run_of(), small(made), place)
    assert not [
        s for s in reports.sections(small(**slower), place.store.results()) if s.study.name == "main"
    ]
    with pytest.raises(Killed):
        train(run_of(seed=1), small(kill_at=8), place)
    second = [train(run_of(seed=seed), small(made, **slower), place) for seed in (0, 1)]
    assert second[0].test != first.test
    assert [experiment.seen for experiment in made] == 3 * [list(range(STEPS))]
    assert [result.settings["rate"] for result in place.store.results()] == [0.01, 0.01]
    younger = replace(small(made, **slower), options={"rate": 0.05, "more": 1})
    assert train(run_of(), younger, place) == second[0]
    assert len(made) == 3


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    results = [
        train(run_of(seed=seed), small(), Place(tmp_path / name))
        for seed, name in ((0, "a"), (0, "b"), (1, "a"))
    ]
    assert results[0].test == results[1].test != results[2].test


def test_a_loss_that_is_no_number_is_recorded_as_divergence(tmp_path: Path) -> None:
    result = train(run_of(), small(poison_at=7), Place(tmp_path))
    assert (result.status, result.steps, result.test) == ("diverged", 7, {})
    assert "step 7" in result.message
    assert [result.run for result in Store(tmp_path).results()] == [run_of()]


def test_the_best_model_by_validation_is_tested_also_after_a_kill(tmp_path: Path) -> None:
    plain = train(run_of(), small(select="error"), Place(tmp_path / "plain"))
    assert plain.validation["error"] == min(point["error"] for point in plain.curve)
    place = Place(tmp_path / "killed", every=0.0)
    with pytest.raises(Killed):
        train(run_of(), small(kill_at=10, select="error"), place)
    assert train(run_of(), small(select="error"), place).test == plain.test


def test_minibatches_are_permutations_and_the_same_for_all() -> None:
    batches = [minibatch(3, step, 10, 3) for step in range(6)]
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    for epoch in (first, second):
        assert len(set(epoch.tolist())) == 9
    assert first.tolist() != second.tolist()
    assert torch.equal(minibatch(3, 4, 10, 3), batches[4])


# Results


def some(estimator: str, seed: int, error: float, status: str = FINISHED, **options: float) -> Result:
    run = Run("small", estimator, "none", seed, "full", tuple(options.items()))
    test = {"error": error} if status == FINISHED else {}
    curve = ({"step": 1.0, "error": error + 1}, {"step": 2.0, "error": error})
    settings = {"rate": 0.05, **options}
    return Result(
        run, status, test, test, 10, 0.5, {"MAP": 100, "Gibbs": 50}, curve, settings, message="why"
    )


def test_results_survive_a_line_cut_short(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(some("linear", 0, 0.5))
    with store.path.open("a") as file:
        file.write(some("gold", 0, 0.5).line()[:50])
    assert store.results() == [some("linear", 0, 0.5)]
    store.add(some("gold", 1, 0.25))
    assert store.results() == [some("linear", 0, 0.5), some("gold", 1, 0.25)]


def test_the_report_computes_from_the_results_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ours, theirs = [0.1, 0.2, 0.6], [0.5, 0.7, 0.9]
    for seed in (2, 0, 1):
        store.add(some("gold", seed, ours[seed]))
        store.add(some("linear", seed, theirs[seed]))
    store.add(some("gold", 3, 0.0, status="diverged"))
    (section,) = [s for s in reports.sections(small(), store.results()) if s.study.name == "main"]
    head, rows = reports.rows(section)
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["estimator"] for row in table] == ["linear", "gold"]
    # mean 0.3, standard deviation sqrt((0.04 + 0.01 + 0.09) / 2), over sqrt(3)
    assert table[1]["error"] == f"0.300 ± {math.sqrt(0.14 / 2 / 3):.3f}"
    # differences -0.4, -0.5, -0.3: t = -0.4 / (0.1 / sqrt(3)), with 2 degrees of freedom
    t = 0.4 / (0.1 / math.sqrt(3))
    p = 1 - t / math.sqrt(2 + t * t)
    assert table[1]["p"] == f"- {p:.3f}"
    assert table[1]["seeds"] == "4, 1 diverged"
    assert table[1]["solved"] == "10 MAP + 5 Gibbs"
    assert table[1]["ms"] == "50"
    assert any("gold diverged: why" in note for note in reports.notes(section))
    (middle,) = [
        s for s in reports.sections(small(centre="median"), store.results()) if s.study.name == "main"
    ]
    assert reports.rows(middle)[1][1][1].startswith("0.200 ±")
    told = small(published={("none", "gold"): "0.4 (theirs)"})
    (beside,) = [s for s in reports.sections(told, store.results()) if s.study.name == "main"]
    head, rows = reports.rows(beside)
    assert [row[head.index("published")] for row in rows] == ["", "0.4 (theirs)"]


def test_a_page_is_written_anew_between_its_marks_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    for seed in range(3):
        for rate in (0.01, 0.2):
            store.add(some("linear", seed, 0.1 * seed, rate=rate))
            store.add(some("gold", seed, 0.2 * seed, rate=rate))
        store.add(some("linear", seed, 0.3 * seed))
        store.add(some("gold", seed, 0.4 * seed))
    page = tmp_path / "page.md"
    begin, end = reports.BEGIN.format(name="small"), reports.END.format(name="small")
    page.write_text(f"Before.\n\n{begin}\nstale\n{end}\n\nAfter.\n")
    text, written = "", list[Path]()
    for _ in range(2):
        written = reports.report(small(), store, quiet(), docs=page)
        text = page.read_text()
        assert text.startswith(f"Before.\n\n{begin}\n")
        assert text.endswith(f"{end}\n\nAfter.\n")
        assert "stale" not in text
        assert text.count("**Main: none**") == 1
        assert "| gold, rate 0.2 |" in text
    pictures = [path for path in written if path.suffix == ".png"]
    assert [path.name for path in pictures] == [
        "small-main.png",
        "small-main-curves.png",
        "small-rates.png",
    ]
    for path in pictures:
        assert path.stat().st_size > 5000
        assert f"(images/{path.name})" in text
    page.write_text("No marks.")
    with pytest.raises(SystemExit, match="results: small"):
        reports.report(small(), store, quiet(), docs=page)


def test_a_study_that_lacks_rows_is_told_and_left_out_of_a_page(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    for seed in range(2):
        store.add(some("linear", seed, 0.1 + seed))
        store.add(some("gold", seed, 0.2 + seed))
    page = tmp_path / "page.md"
    page.write_text(f"{reports.BEGIN.format(name='small')}\n{reports.END.format(name='small')}\n")
    reports.report(small(), store, quiet(), docs=page)
    assert "**Main: none**" in page.read_text()
    assert "**Rates: none**" not in page.read_text()
    main_study, rates = reports.sections(small(), store.results())
    assert not main_study.lacking
    assert len(rates.lacking) == 4
    assert any(note.startswith("No results yet: linear, rate 0.01; ") for note in reports.notes(rates))


def test_the_summary_has_the_estimators_that_several_tasks_have(tmp_path: Path) -> None:
    store, page = Store(tmp_path / "out"), tmp_path / "page.md"
    page.write_text("<!-- results: summary -->\n<!-- end of results: summary -->\n")
    tasks: list[Task] = []
    for name in ("one", "two", "three"):
        study = Study("main", "Main", cells("linear", "spigot", *(["imle"] if name == "one" else [])))
        tasks.append(replace(small(), name=name, studies=(study,)))
        for cell in study.cells:
            for seed, value in enumerate((0.25, 0.5)):
                run = Run(name, cell.estimator, "none", seed)
                store.add(replace(some("linear", seed, value), run=run))
    summaries.summary([*tasks, replace(small(), name="four")], store, quiet(), page)
    told = page.read_text()
    assert "| baseline | 0.375 (linear) | 0.375 (linear) | 0.375 (linear) |" in told
    assert "| spigot | 0.375 | 0.375 | 0.375 |" in told
    assert "imle" not in told
    assert "four" not in told
    assert "less is better" in told


def test_a_report_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "categorical", "--out", str(tmp_path)]) == 0
    assert "no results" in capsys.readouterr().out


def test_the_command_line_runs_lists_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--size", "smoke", "--out", str(tmp_path)]
    words = ["categorical", "--structure", "3-clusters", "--seeds", "1,", *out]
    assert main(["run", *words, "--estimator", "spigot", "--option", "step-size=0.1,1"]) == 0
    assert main(["run", *words, "--study", "main", "--estimator", "spigot,linear"]) == 0
    runs = [result.run for result in Store(tmp_path).results()]
    assert [run.label for run in runs] == ["spigot, step size 0.1", "spigot", "linear"]
    assert {run.seed for run in runs} == {1}
    assert main(["report", "categorical", *out]) == 0
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "--study main --structure 3-clusters --seeds 1, --size smoke" in " ".join(printed.split())
    assert all(name in printed for name in (*TASKS, *ESTIMATORS))
    assert (tmp_path / "report" / "categorical.md").read_text().count("| spigot |") == 4


# Tasks


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_smoke_run_of_every_row_of_every_task(name: str, tmp_path: Path) -> None:
    chosen = task(name)
    every = [run for study in chosen.studies for run in chosen.runs(study, [0], "smoke")]
    first = {run.estimator: run for run in reversed(every)}  # as the first study that names it has it
    assert set(first) == set(chosen.estimators)
    for run in first.values():
        result = train(run, chosen, Place(tmp_path))
        assert result.status == FINISHED, (run, result.message)
        assert set(result.test) <= {metric.name for metric in chosen.metrics}
        assert all(math.isfinite(value) for value in result.test.values())
        assert chosen.metrics[0].name in result.test
        assert bool(result.curve) == (result.steps > 0)


def test_the_categorical_points_are_balanced_and_the_decoder_is_bilinear() -> None:
    from examples.experiments.tasks import categorical

    size = categorical.Size(20, 400, 200, 400, 100)
    points = categorical.drawn(0, 3, size)["train"]
    for cluster in range(3):
        signs = points.signs[points.clusters == cluster]
        assert abs(float(signs.sum())) <= 1  # half on either side of the median
    chosen = task("categorical")
    experiment: Any = chosen.experiment(chosen.run(Cell("gold"), "3-clusters", 0, "smoke"))
    network = experiment.network
    scores, logits = network(points.inputs)
    torch.testing.assert_close(scores, network.encoder(points.inputs))
    one = torch.eye(3)[points.clusters]
    two = network.decoder(one, points.inputs)
    torch.testing.assert_close(network.decide(one, logits), two[:, 1] - two[:, 0])
    labels = (points.signs > 0).long()
    torch.testing.assert_close(
        categorical.costs(two[:, 1] - two[:, 0], points.signs),
        torch.nn.functional.cross_entropy(two, labels, reduction="none"),
    )


def sparsemax(scores: Tensor) -> Tensor:
    """By sorting: Martins and Astudillo (2016), algorithm 1."""
    ordered = scores.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, scores.shape[-1] + 1)
    excess = ordered.cumsum(-1) - 1
    size = (ordered * ranks > excess).sum(-1, keepdim=True)
    return (scores - excess.gather(-1, size - 1) / size).clamp(min=0)


WRITTEN = ["ste-identity", "ste-softmax-diagonal", "spigot", "spigot-ce", "spigot-eg"]


def test_a_run_from_the_gold_clusters_begins_nearer_to_them() -> None:
    run = TASKS["categorical"].run(Cell("spigot", (("from_gold", True),)), "3-clusters", 0, "smoke")
    losses: list[float] = []
    for each in (run, replace(run, options=())):
        begun: Any = TASKS["categorical"].experiment(each)
        points = begun.points["train"]
        losses.append(cross_entropy(begun.network(points.inputs)[0], points.clusters).item())
    assert losses[0] < 0.9 * losses[1]


def test_who_rewards_a_choice() -> None:
    """A vertex less a point of the simplex is not negative at the vertex, nor positive elsewhere."""
    surrogate = torch.tensor([[-1.0, 0.5, 0.5], [0.5, -0.25, -0.25], [0.0, 0.0, 0.0], [2.0, 1.0, 1.0]])
    push = Push.of(surrogate, torch.tensor([0, 0, 1, 0]))
    assert (push.rewarded, push.punished, push.silent) == (0.25, 0.5, 0.25)
    assert push.net == pytest.approx((1.5 - 0.75 - 1.0) / (1.5 + 0.75 + 1.0))
    for name, both in pushes(0, "smoke").items():
        for found in both:
            assert found.rewarded + found.punished + found.silent <= 1 + 1e-9
            assert (found.rewarded == 0) == (name in ("spigot", "frank-wolfe", "blackbox"))


@pytest.mark.parametrize("name", WRITTEN)
def test_the_categorical_task_is_the_training_written_out(name: str) -> None:
    chosen = task("categorical")
    run = chosen.run(Cell(name), "3-clusters", 0, "smoke")
    experiment: Any = chosen.experiment(run)
    points = experiment.points["train"]
    torch.manual_seed(run.seed)
    encoder, decoder = nn.Linear(20, 3), nn.Bilinear(3, 20, 2)
    rate = chosen.settings(run).number("learning_rate")
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], rate)
    labels, count = (points.signs > 0).long(), len(points.signs)

    def loss(mu: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(decoder(mu, points.inputs), labels)

    def slope(mu: Tensor) -> Tensor:  # of each point's own loss
        mu = mu.detach().requires_grad_()
        return count * torch.autograd.grad(loss(mu), mu)[0]

    for step in range(20):
        scores = encoder(points.inputs)
        z, p = torch.eye(3)[scores.argmax(1)], scores.detach().softmax(1)
        g, at_p = slope(z), slope(p)
        surrogate = {
            "ste-identity": g,
            "ste-softmax-diagonal": p * (1 - p) * g,
            "spigot": z - sparsemax(z - g),
            "spigot-ce": p - sparsemax(p - at_p),
            "spigot-eg": p - (p.log() - at_p).softmax(1),
        }[name]
        optimizer.zero_grad()
        loss(z).backward()
        scores.backward(surrogate / count)
        optimizer.step()
        experiment.optimizers[0].zero_grad()
        experiment.loss(step).backward()
        experiment.optimizers[0].step()
    torch.testing.assert_close(experiment.network.encoder.weight, encoder.weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(experiment.network.decoder.weight, decoder.weight, rtol=0, atol=1e-4)


# Sweeps

SWEPT = ("gold", "spigot", "gumbel-ste", "reinforce-baseline")


def swept() -> list[Run]:
    chosen = task("categorical")
    return [chosen.run(Cell(name), "3-clusters", seed, "smoke") for seed in (0, 1) for name in SWEPT]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What comes of the sweep where nobody kills anything, in this process."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    return {run.key: train(run, task("categorical"), place) for run in swept()}


def same(found: list[Result], expected: dict[str, Result]) -> bool:
    def core(result: Result) -> tuple[Any, ...]:
        return result.status, result.test, result.curve, result.calls

    return {r.run.key: core(r) for r in found} == {key: core(r) for key, r in expected.items()}


def command(folder: Path) -> list[str]:
    words = ["sweep", "categorical", "--size", "smoke", "--estimator", ",".join(SWEPT), "--seeds", "2"]
    words += ["--structure", "3-clusters", "--workers", "2", "--checkpoint-seconds", "0"]
    return [sys.executable, "-m", "examples.experiments", *words, "--out", str(folder)]


def lines(folder: Path) -> list[str]:
    path = folder / "results.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_a_sweep_killed_half_way_and_started_again_repeats_nothing(
    tmp_path: Path, undisturbed: dict[str, Result]
) -> None:
    first = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while len(lines(tmp_path)) < 3 and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(1)  # its workers leave with it
    before = lines(tmp_path)
    assert 3 <= len(before) < len(undisturbed)
    time.sleep(1)
    assert lines(tmp_path) == before
    again = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{len(undisturbed)} runs, {len(before)} of them done already" in again.stdout
    after = lines(tmp_path)
    assert after[: len(before)] == before
    assert len(after) == len(undisturbed)
    assert same(Store(tmp_path).results(), undisturbed)


def test_a_killed_worker_is_replaced(tmp_path: Path, undisturbed: dict[str, Result]) -> None:
    found, killed = list[Result](), None
    for outcome in sweeps.processes(swept(), Place(tmp_path, every=0.0), 2):
        if isinstance(outcome, Result):
            found.append(outcome)
        if len(found) == 2 and not killed:
            killed = multiprocessing.active_children()[0].pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
    assert same(found, undisturbed)
    assert len(lines(tmp_path)) == len(undisturbed)


def test_ray_runs_the_same_or_the_sweep_says_what_is_missing(
    tmp_path: Path, undisturbed: dict[str, Result]
) -> None:
    arguments: dict[str, Any] = {"workers": 2, "backend": "ray"}
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(SystemExit, match=r"pip install .*ray"):
            sweeps.sweep(swept(), Place(tmp_path), quiet(), **arguments)
        return
    outcomes = sweeps.sweep(swept(), Place(tmp_path), quiet(), **arguments)
    assert same([outcome for outcome in outcomes if isinstance(outcome, Result)], undisturbed)
    assert sweeps.sweep(swept(), Place(tmp_path), quiet(), **arguments) == []


def test_an_error_is_told_and_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Result:
        raise RuntimeError("no memory")

    monkeypatch.setattr(sweeps, "train", broken)
    outcome = sweeps.work(swept()[0], Place(tmp_path))
    assert isinstance(outcome, sweeps.Failure)
    assert "no memory" in sweeps.described(outcome)
    assert str(swept()[0]) in str(outcome)
    assert Store(tmp_path).results() == []


# Several processes for one model


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    saved = tmp_path / "two.pt"
    loopback = any(name == "lo" for _, name in socket.if_nameindex())
    here = {"GLOO_SOCKET_IFNAME": "lo"} if loopback else {}
    words = [
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "--local-addr",
        "127.0.0.1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *words, "examples/distributed.py", "--steps", "5", "--save", str(saved)],
        cwd=ROOT,
        env={**os.environ, **here},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    two = torch.load(saved, weights_only=True)
    one = vars(distributed.train(distributed.Share(), 5))
    for name in ("gradients", "weights"):
        assert len(one[name]) == 4
        for ours, theirs in zip(one[name], two[name], strict=True):
            assert ours.abs().max() > 1e-3
            torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(two["losses"], one["losses"])
    # and it matters what the estimator is told: each process's own share is another step size
    wrong = distributed.Share()
    model = distributed.Model(wrong).double()
    model.load_state_dict(dict(zip(model.state_dict(), one["weights"], strict=True)))
    inputs, targets = distributed.batch(0)
    found: list[Tensor] = []
    for divisor in (distributed.BATCH, 12):
        model.zero_grad()
        model.choose.pullback = replace(model.choose.pullback, reduction=float(divisor))
        (model(inputs, targets).sum() / distributed.BATCH).backward()
        weight = model.encoder.weight.grad
        assert weight is not None
        found.append(weight.clone())
    assert not torch.allclose(*found, rtol=1e-3)
