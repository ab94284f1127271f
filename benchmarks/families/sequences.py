"""Chains of tags: the best sequence, log-partition, marginals and projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import peer
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
    largest,
)
from spigot.layers import FenchelYoungLoss
from spigot.polytopes import Euclidean, Gibbs, Regularizer, Sequence, Tagging

BATCH = 64
SIZES = ((20, 5), (20, 20), (20, 50), (50, 20), (100, 5), (100, 20), (100, 50))  # length, tags
STRUCT = {5: 40, 20: 150, 50: 500}  # times faster than torch-struct, by the number of tags
DECODE = "emissions to tags"
LIKELIHOOD = "likelihood of emissions, forward + backward"
LP_SPARSEMAP = 151 / 5.4  # of pytorch-crf's decode: both measured at length 20, 20 tags, gap 1e-8


@dataclass(frozen=True)
class Chains:
    """A batch of chains, and the parts of a tagger's scores that they are made of: all N(0, scale^2)."""

    length: int
    tags: int
    batch: int
    scale: float = 1.0

    def _normal(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(100 * self.length + self.tags + len(shape))
        return self.scale * torch.randn(*shape, generator=generator)

    @property
    def polytope(self) -> Sequence:
        """The structure."""
        return Sequence(self.length, self.tags)

    @cached_property
    def parts(self) -> tuple[Tensor, ...]:
        """Unary scores, transitions, and scores of the first and the last tag."""
        ends = self._normal(2, self.tags, 1)[..., 0]
        shared = self._normal(self.tags, self.tags)
        return self._normal(self.batch, self.length, self.tags), shared, ends[0], ends[1]

    @cached_property
    def arcs(self) -> Tensor:
        """Scores `(batch, length, tags, tags)` of every arc, as a network over pairs makes them."""
        return self._normal(self.batch, self.length, self.tags, self.tags)

    @cached_property
    def packed(self) -> Tensor:
        """Scores of arcs made of a tagger's parts."""
        return Sequence.pack(*self.parts)

    @cached_property
    def labels(self) -> Tensor:
        """Tags `(batch, length)`."""
        generator = torch.Generator().manual_seed(self.length + self.tags)
        return torch.randint(self.tags, (self.batch, self.length), generator=generator)

    @cached_property
    def crf(self) -> Any | None:
        """pytorch-crf's module with these transitions."""
        module = peer("pytorch-crf")
        if module is None:
            return None
        made = module.CRF(self.tags, batch_first=True)
        with torch.no_grad():
            for name, part in zip(("", "start_", "end_"), self.parts[1:], strict=True):
                getattr(made, f"{name}transitions").copy_(part)
        return made

    @cached_property
    def wide(self) -> Tensor | None:
        """The same in float64, measured with 20 tags alone."""
        return self.arcs.double() if self.tags == 20 else None

    @property
    def slow(self) -> int:
        """How many chains torch-struct gets: it takes seconds and gigabytes for a whole batch."""
        return max(1, min(self.batch, 4_000_000 // (self.length * self.tags**3)))


def _struct_scores(arcs: Tensor) -> Tensor:
    """torch-struct's (batch, length - 1, tags, tags): the later tag first, no arc into the first."""
    later = arcs[:, 1:].transpose(2, 3)
    first = later[:, :1] + arcs[:, :1, :1]
    return torch.cat([first, later[:, 1:]], 1).contiguous()


def _struct_chain(potentials: Tensor) -> Any:
    module = peer("torch-struct")
    assert module is not None
    return module.LinearChainCRF(potentials)


def _pairs(arcs: Tensor) -> Tensor:
    """Our arcs in the layout of torch-struct's answers, to compare them."""
    return arcs[:, 1:].transpose(2, 3)


def _folded(arcs: Tensor, add: Callable[[Tensor], Tensor]) -> Tensor:  # (n,)
    """The plain recursion over a chain in float64; `add` sums over dimension 1."""
    arcs = arcs.double()
    message = arcs[:, 0, 0]
    for t in range(1, arcs.shape[1]):
        message = add(message[:, :, None] + arcs[:, t])
    return add(message)


def _marginals(arcs: Tensor) -> Tensor:
    """By the recursion's own derivative."""
    leaf = arcs.detach().clone().double().requires_grad_()
    (found,) = torch.autograd.grad(_folded(leaf, lambda x: x.logsumexp(1)).sum(), leaf)
    return found


def _lost(arcs: Tensor, vertices: Tensor) -> float:
    """How much less than the best sequences these score, relative to 1 + the best."""
    best = _folded(arcs, lambda x: x.amax(1))
    own = (arcs.double() * vertices.double()).flatten(1).sum(1)
    return largest((best - own) / (1 + best.abs()))


def _map(chains: Chains) -> Iterator[Method]:
    """Arcs to vertices; and from a tagger's parts to tags."""
    polytope, arcs, n = chains.polytope, chains.arcs, chains.batch
    tagging = Tagging(chains.length, chains.tags)

    def decoded() -> Tensor:
        return tagging.decode(tagging.maximize(Tagging.pack(*chains.parts)))

    yield Method(
        "spigot",
        Kind.OURS,
        {**calls(polytope.maximize, arcs, backward=False), DECODE: decoded},
        n,
        lambda: max(
            _lost(arcs, polytope.maximize(arcs)), _lost(chains.packed, polytope.encode(decoded()))
        ),
    )
    wide = chains.wide
    if wide is not None:
        yield Method(
            "spigot, float64",
            Kind.OURS,
            calls(polytope.maximize, wide, backward=False),
            n,
            lambda: _lost(wide, polytope.maximize(wide)),
        )
    if peer("torch-struct"):
        few = arcs[: chains.slow]
        theirs = _struct_scores(few)

        def best(potentials: Tensor) -> Tensor:
            return _struct_chain(potentials).argmax

        def lost() -> float:
            expected = _struct_scores(few).double()
            own = (expected * best(theirs).double()).flatten(1).sum(1)
            found = _folded(few, lambda x: x.amax(1))
            return largest((found - own) / (1 + found.abs()))

        yield Method("torch-struct", Kind.PEER, calls(best, theirs, backward=False), len(few), lost)
    crf = chains.crf
    if crf is not None:

        def tags() -> list[list[int]]:
            with torch.no_grad():
                return crf.decode(chains.parts[0])

        yield Method(
            "pytorch-crf",
            Kind.PEER,
            {DECODE: tags},
            n,
            lambda: _lost(chains.packed, polytope.encode(torch.tensor(tags()))),
        )


def _log_partition(chains: Chains) -> Iterator[Method]:
    """Arcs to log Z; and from a tagger's parts to the gradient of their likelihood."""
    polytope, arcs, n = chains.polytope, chains.arcs, chains.batch
    tagging = Tagging(chains.length, chains.tags)
    loss = FenchelYoungLoss(tagging, Gibbs(), reduction="sum", validate=False)
    leaves = tuple(part.clone().requires_grad_() for part in chains.parts)

    def likelihood() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        loss(Tagging.pack(*leaves), labels=chains.labels).backward()
        assert leaves[0].grad is not None
        return leaves[0].grad

    def expected() -> Tensor:
        exact = tuple(part.double().requires_grad_() for part in chains.parts)
        scores = Sequence.pack(*exact)
        value = _folded(scores, lambda x: x.logsumexp(1)).sum()
        (value - (scores * polytope.encode(chains.labels)).sum()).backward()
        assert exact[0].grad is not None
        return exact[0].grad

    def wrong(scores: Tensor, log_z: Callable[[Tensor], Tensor], of: Tensor) -> float:
        right = _folded(of, lambda x: x.logsumexp(1))
        return largest((log_z(scores).double() - right) / (1 + right.abs()))

    yield Method(
        "spigot",
        Kind.OURS,
        {**calls(polytope.log_partition, arcs), LIKELIHOOD: likelihood},
        n,
        lambda: max(
            wrong(arcs, polytope.log_partition, arcs), largest(likelihood().double() - expected())
        ),
    )
    wide = chains.wide
    if wide is not None:
        yield Method(
            "spigot, float64",
            Kind.OURS,
            calls(polytope.log_partition, wide),
            n,
            lambda: wrong(wide, polytope.log_partition, wide),
        )
    if peer("torch-struct"):
        few = arcs[: chains.slow]
        theirs = _struct_scores(few)

        def log_z(potentials: Tensor) -> Tensor:
            return _struct_chain(potentials).partition

        yield Method(
            "torch-struct", Kind.PEER, calls(log_z, theirs), len(few), lambda: wrong(theirs, log_z, few)
        )
    crf = chains.crf
    if crf is not None:
        emissions = chains.parts[0].clone().requires_grad_()

        def their_likelihood() -> Tensor:
            crf.zero_grad()
            emissions.grad = None
            (-crf(emissions, chains.labels)).backward()
            assert emissions.grad is not None
            return emissions.grad

        yield Method(
            "pytorch-crf",
            Kind.PEER,
            {LIKELIHOOD: their_likelihood},
            n,
            lambda: largest(their_likelihood().double() - expected()),
        )


def _marginal_methods(chains: Chains) -> Iterator[Method]:
    """Arcs to their marginals."""
    polytope, arcs = chains.polytope, chains.arcs
    few = arcs[: chains.slow]

    def wrong(scores: Tensor, ours: bool = True) -> float:
        right = _marginals(few)
        if ours:
            return largest(polytope.marginals(scores).double() - right)
        return largest(_struct_chain(scores).marginals.double() - _pairs(right))

    yield Method("spigot", Kind.OURS, calls(polytope.marginals, arcs), chains.batch, lambda: wrong(few))
    wide = chains.wide
    if wide is not None:
        yield Method(
            "spigot, float64",
            Kind.OURS,
            calls(polytope.marginals, wide),
            chains.batch,
            lambda: wrong(few.double()),
        )
    if peer("torch-struct"):
        theirs = _struct_scores(few)
        yield Method(
            "torch-struct",
            Kind.PEER,
            calls(lambda s: _struct_chain(s).marginals, theirs),
            len(few),
            lambda: wrong(theirs, ours=False),
        )


def _workloads(
    methods: Callable[[Chains], Iterator[Method]], own: Mapping[str, str], *measures: str
) -> Callable[[bool], Iterator[Workload]]:
    """All lengths and numbers of tags; `own` is pytorch-crf's measure, `measures` torch-struct's."""

    def workloads(smoke: bool) -> Iterator[Workload]:
        for length, tags in ((6, 20),) if smoke else SIZES:
            targets = [
                Target("torch-struct", measure, at_least=STRUCT[tags])
                for measure in measures
                if tags in STRUCT
            ]
            targets += [Target(name, measure, at_least=3) for name, measure in own.items()]
            chains = Chains(length, tags, 3 if smoke else BATCH)
            yield Workload({"length": length, "tags": tags}, tuple(methods(chains)), tuple(targets))

    return workloads


NORMS: dict[str, Regularizer] = {"arcs": Euclidean(), "tags": Euclidean(of=Sequence.tags)}
"""What the projection is nearest in: lp-sparsemap's norm is that of the tags."""


def _projection(chains: Chains, omega: Regularizer) -> Iterator[Method]:
    polytope, scores = chains.polytope, chains.packed.double()

    def certificate() -> float:
        answer = polytope.solve(scores, omega)
        assert answer.gap is not None
        energy = (scores * answer.value).flatten(1).sum(1)
        return largest(answer.gap / (1 + energy.abs()))

    def project(s: Tensor) -> Tensor:
        return polytope.maximize(s, omega)

    yield Method("spigot", Kind.OURS, calls(project, scores), chains.batch, certificate)
    crf = chains.crf
    if crf is not None:
        decode = {FORWARD: lambda: crf.decode(chains.parts[0])}
        yield Method("pytorch-crf's decode", Kind.PEER, decode, chains.batch)


def _projections(smoke: bool) -> Iterator[Workload]:
    sizes = [(5, 3)] if smoke else [(20, 5), (20, 20), (50, 20), (100, 20), (20, 50)]
    for norm, scale, (length, tags) in product(NORMS, (1, 4), sizes):
        if scale > 1 and tags != 20:  # peaked: lengths alone
            continue
        chains = Chains(length, tags, 3 if smoke else BATCH, scale)
        known = (length, tags) == (20, 20)
        yield Workload(
            {"norm": norm, "scale": scale, "length": length, "tags": tags},
            tuple(_projection(chains, NORMS[norm])),
            (Target("lp-sparsemap", at_least=10),) if known else (),
            (Scaled("lp-sparsemap", "pytorch-crf's decode", LP_SPARSEMAP),) if known else (),
        )


def _growth(*measures: str) -> tuple[Growth, ...]:
    axes = (("length", 1.0, LONG), ("tags", 2.0, WIDE))
    return tuple(
        Growth(axis, power, measure, note) for measure in measures for axis, power, note in axes
    )


LONG = "a call's own cost weighs at 20; what a backward reads again outgrows the caches by 100"
WIDE = "at 5 tags a row fills part of a vector, and a call's and a position's own costs weigh"
MIXED = (
    "an answer mixes about as many sequences as its face has directions; these grow with the length, "
    "and a step costs the square of their number"
)


FAMILIES = (
    Family(
        "sequence-map",
        (
            Check(
                "error",
                "what the sequence's score lacks to the best one's, relative, by a plain recursion"
                " in float64",
                1e-5,
            ),
        ),
        _workloads(_map, {"pytorch-crf": DECODE}, FORWARD),
        _growth(FORWARD, DECODE),
        seconds=100,
    ),
    Family(
        "sequence-log-partition",
        (
            Check(
                "error",
                "of log Z, relative, and of the likelihood's gradient, against a plain recursion "
                "in float64",
                1e-5,
            ),
        ),
        _workloads(_log_partition, {"pytorch-crf": LIKELIHOOD}, FORWARD, BOTH),
        _growth(FORWARD, BOTH, LIKELIHOOD),
        seconds=160,
    ),
    Family(
        "sequence-marginals",
        (Check("error", "largest |mu - mu64|, mu64 a plain recursion's derivative in float64", 1e-5),),
        _workloads(_marginal_methods, {}, FORWARD, BOTH),
        _growth(FORWARD, BOTH),
        seconds=110,
    ),
    Family(
        "sequence-projection",
        (Check("certificate", "certificate relative to 1 + |<s, y>|, float64", 1e-8),),
        _projections,
        (Growth("length", 1.0, note=MIXED), Growth("length", 1.0, BOTH, MIXED)),
        seconds=160,
    ),
)
