r"""Euclidean projection onto unit flows, and its derivative.

    minimise  sum over parts of (x_k - s_k)^2 / 2   subject to  A x = b,  0 <= x,  x_k <= 1 on parts

with A the incidence matrix (leaving less entering). Arcs that are no part cost nothing and have no
upper bound. Every linear system is a weighted graph Laplacian A diag(theta) A' on one pattern.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.flows.components import strong_components
from spigot.polytopes.kernels.flows.min_cost_flow import Flow, cheapest_flow, new_flow
from spigot.polytopes.kernels.flows.network import Network, Search, new_search
from spigot.polytopes.kernels.flows.shortest_path import UNREACHABLE, cheapest_path
from spigot.polytopes.kernels.laplacian import Pattern, factor, substitute

__all__ = ["project", "pull"]

JOINED = 1e30  # the weight of a free arc without cost: its ends are one node
STEPS = 60
CENTRED = 1e-17  # the mean product of a variable and its multiplier that ends the interior steps,
NEARLY = 1e-12  # or this one where rounding takes over; both relative to the scores
DRIFT = 1e-3  # and what then is missing at a node
ROUGHLY = 1e-10  # enough for a problem that is then solved again around its answer
LEAST = 1e-12  # no multiplier is smaller
BROKEN = 1e-9  # how far an answer lies beyond a bound that it breaks
LARGE = 5.0  # the scores that a problem around its own answer needs


class Flows(NamedTuple):
    """A network whose arcs are parts or free of cost, with the pattern of its Laplacians."""

    network: Network
    pattern: Pattern
    part: np.ndarray  # (arcs,): which part an arc is, -1 for none
    leave: np.ndarray  # (arcs,): its tail, in the order of elimination
    enter: np.ndarray  # (arcs,): its head


class Point(NamedTuple):
    """An interior point and a direction."""

    own: np.ndarray  # (arcs,), the scores
    scores: np.ndarray  # (arcs,), those of the same problem around its answer
    x: np.ndarray  # (arcs,)
    room: np.ndarray  # (arcs,), 1 - x, which has digits of its own
    below: np.ndarray  # (arcs,), multipliers of x >= 0
    above: np.ndarray  # (arcs,), and of x <= 1
    potential: np.ndarray  # (nodes,)
    balance: np.ndarray  # (nodes,), b, in the order of elimination as all below
    missing: np.ndarray  # (nodes,), b - A x
    dx: np.ndarray
    dbelow: np.ndarray
    dabove: np.ndarray
    dpotential: np.ndarray


class Face(NamedTuple):
    """Which arcs may vary, and what finds them."""

    free: np.ndarray  # (arcs,), bool
    forward: np.ndarray
    backward: np.ndarray
    label: np.ndarray  # (nodes,)
    work: np.ndarray  # (5, nodes)


class System(NamedTuple):
    """A factored Laplacian and its weights."""

    weights: np.ndarray  # (arcs,)
    values: np.ndarray
    pivots: np.ndarray  # (nodes,)
    work: np.ndarray  # (3, nodes)
    shift: np.ndarray  # (arcs,)


@kernel
def _new_point(arcs: int, nodes: int) -> Point:
    """An empty workspace."""
    return Point(
        np.zeros(arcs),
        np.zeros(arcs),
        np.zeros(arcs),
        np.zeros(arcs),
        np.zeros(arcs),
        np.zeros(arcs),
        np.zeros(nodes),
        np.zeros(nodes),
        np.zeros(nodes),
        np.zeros(arcs),
        np.zeros(arcs),
        np.zeros(arcs),
        np.zeros(nodes),
    )


@kernel
def _new_face(arcs: int, nodes: int) -> Face:
    """An empty workspace."""
    return Face(
        np.zeros(arcs, np.bool_),
        np.zeros(arcs, np.bool_),
        np.zeros(arcs, np.bool_),
        np.zeros(nodes, np.int64),
        np.zeros((5, nodes), np.int64),
    )


@kernel
def _new_system(arcs: int, nodes: int, entries: int) -> System:
    """An empty workspace."""
    return System(
        np.zeros(arcs), np.zeros(entries), np.zeros(nodes), np.zeros((3, nodes)), np.zeros(arcs)
    )


@kernel
def _connect(flows: Flows, face: Face) -> None:
    """The arcs that can vary: those whose ends lie in one component of the residual network."""
    network = flows.network
    strong_components(network, face.forward, face.backward, face.label, face.work)
    for k in range(len(face.free)):
        same = face.label[network.tails[k]] == face.label[network.heads[k]]
        face.free[k] = same and (face.forward[k] or face.backward[k])


@kernel
def _begin(
    flows: Flows, s: int, t: int, cost: np.ndarray, search: Search, face: Face, point: Point
) -> bool:
    """A flow of the arcs of finite cost in x, and those that can differ from it; False if none.

    No flow is asked for where s is -1. The free arcs then have flows strictly within their bounds.
    """
    leave, enter = flows.leave, flows.enter
    network, x = flows.network, point.x
    x[:] = 0.0
    if s >= 0:
        if cheapest_path(len(face.label), face.label[:0], s, t, network, cost, search) == UNREACHABLE:
            return False
        v = t
        while v != s:
            x[search.pred[v]] = 1.0
            v = network.tails[search.pred[v]]
    for k in range(len(x)):
        usable = cost[k] < np.inf
        face.forward[k] = usable and (x[k] == 0.0 or flows.part[k] < 0)
        face.backward[k] = usable and x[k] > 0.0
    _connect(flows, face)
    point.balance[:] = 0.0
    for k in range(len(x)):
        if face.free[k]:
            amount = x[k]
            point.balance[leave[k]] += amount
            point.balance[enter[k]] -= amount
    return True


@kernel
def _direct(flows: Flows, face: Face, point: Point, system: System, centre: float, again: bool) -> None:
    """The Newton direction towards products equal to `centre`; the factor stands already.

    `again` takes in the second-order terms of the direction that stands.
    """
    leave, enter = flows.leave, flows.enter
    x, rhs = point.x, point.dpotential
    rhs[:] = point.missing
    for k in range(len(x)):
        if face.free[k]:
            curve = point.dx[k] if again else 0.0
            shift = point.scores[k] + (point.potential[leave[k]] - point.potential[enter[k]])
            shift += (centre - curve * point.dbelow[k]) / x[k]
            if flows.part[k] >= 0:
                shift -= x[k] + (centre + curve * point.dabove[k]) / point.room[k]
            system.shift[k] = shift
            amount = -system.weights[k] * shift
            rhs[leave[k]] += amount
            rhs[enter[k]] -= amount
    substitute(flows.pattern, system.values, system.pivots, rhs)
    for k in range(len(x)):
        if face.free[k]:
            curve = point.dx[k] if again else 0.0
            first = centre - curve * point.dbelow[k]
            second = centre + curve * point.dabove[k]
            move = system.weights[k] * ((rhs[leave[k]] - rhs[enter[k]]) + system.shift[k])
            point.dx[k] = move
            point.dbelow[k] = (first - point.below[k] * move) / x[k] - point.below[k]
            if flows.part[k] >= 0:
                point.dabove[k] = (second + point.above[k] * move) / point.room[k] - point.above[k]


@kernel
def _length(flows: Flows, face: Face, point: Point) -> float:
    """The longest step, at most 1, that leaves everything nonnegative."""
    shortest = 1.0
    for k in range(len(point.x)):
        if face.free[k]:
            if point.x[k] + shortest * point.dx[k] < 0.0:
                shortest = -point.x[k] / point.dx[k]
            if point.below[k] + shortest * point.dbelow[k] < 0.0:
                shortest = -point.below[k] / point.dbelow[k]
            if flows.part[k] >= 0:
                if point.room[k] - shortest * point.dx[k] < 0.0:
                    shortest = point.room[k] / point.dx[k]
                if point.above[k] + shortest * point.dabove[k] < 0.0:
                    shortest = -point.above[k] / point.dabove[k]
    return shortest


@kernel
def _products(flows: Flows, face: Face, point: Point, step: float) -> float:
    """The mean product of variables and multipliers after that step."""
    total, count = 0.0, 0
    for k in range(len(point.x)):
        if face.free[k]:
            move = step * point.dx[k]
            total += (point.x[k] + move) * (point.below[k] + step * point.dbelow[k])
            count += 1
            if flows.part[k] >= 0:
                total += (point.room[k] - move) * (point.above[k] + step * point.dabove[k])
                count += 1
    return total / count if count else 0.0


@kernel
def _drifted(flows: Flows, face: Face, point: Point) -> bool:
    """Whether rounding has brought the flow out of balance, as it does where multipliers vanish."""
    leave, enter = flows.leave, flows.enter
    gap = point.dpotential
    gap[:] = point.balance
    for k in range(len(point.x)):
        if face.free[k]:
            amount = -point.x[k]
            gap[leave[k]] += amount
            gap[enter[k]] -= amount
    largest = 0.0
    for v in range(len(gap)):
        largest = max(largest, abs(gap[v]))
    return largest > DRIFT


@kernel
def _interior(
    flows: Flows, face: Face, point: Point, system: System, scale: float, centred: float
) -> int:
    """Mehrotra's predictor and corrector on the free arcs; the steps taken.

    What is missing at the nodes shrinks with every step and is never computed anew: the rounding of
    A x would be divided by the weights of all but empty arcs.
    """
    leave, enter = flows.leave, flows.enter
    arcs = len(point.x)
    point.potential[:] = 0.0
    point.missing[:] = point.balance
    point.dx[:] = 0.0
    for k in range(arcs):
        if face.free[k]:
            point.x[k] = point.room[k] = 0.5 if flows.part[k] >= 0 else 0.25
            point.below[k] = point.above[k] = scale
            amount = -point.x[k]
            point.missing[leave[k]] += amount
            point.missing[enter[k]] -= amount
    for step in range(STEPS):
        mean = _products(flows, face, point, 0.0)
        if mean <= centred * scale or (mean <= NEARLY * scale and _drifted(flows, face, point)):
            return step
        for k in range(arcs):
            system.weights[k] = 0.0
            if face.free[k]:
                curvature = point.below[k] / point.x[k]
                if flows.part[k] >= 0:
                    curvature += 1.0 + point.above[k] / point.room[k]
                system.weights[k] = 1.0 / curvature
        factor(flows.pattern, system.weights, system.values, system.pivots, system.work)
        centre, length = 0.0, 0.0
        for again in range(2):
            _direct(flows, face, point, system, centre, again == 1)
            length = _length(flows, face, point)
            if again == 0:
                centre = mean * (_products(flows, face, point, length) / mean) ** 3
        length *= max(0.99, min(1.0 - mean / scale, 0.99999))
        for k in range(arcs):
            if face.free[k]:
                point.x[k] += length * point.dx[k]
                point.below[k] += length * point.dbelow[k]
                if flows.part[k] >= 0:
                    point.room[k] -= length * point.dx[k]
                    point.above[k] += length * point.dabove[k]
        for v in range(len(point.potential)):
            point.potential[v] += length * point.dpotential[v]
            point.missing[v] *= 1.0 - length
    return STEPS


@kernel
def _bind(flows: Flows, face: Face, point: Point, system: System) -> None:
    """Weight 0 and the value in `shift` where a bound binds: its multiplier is far above its slack."""
    for k in range(len(point.x)):
        is_part = flows.part[k] >= 0
        empty = point.below[k] > max(1e3 * point.x[k], LEAST)
        full = is_part and point.above[k] > max(1e3 * point.room[k], LEAST)
        system.shift[k] = 1.0 if full else 0.0
        system.weights[k] = 0.0
        if face.free[k] and not empty and not full:
            system.weights[k] = 1.0 if is_part else JOINED


@kernel
def _balance(flows: Flows, face: Face, point: Point, system: System) -> None:
    """Moves x by differences of potentials, on the parts of weight 1, so that nothing is missing."""
    leave, enter = flows.leave, flows.enter
    rhs = point.dpotential
    rhs[:] = point.balance
    for k in range(len(point.x)):
        if face.free[k] and flows.part[k] >= 0:
            rhs[leave[k]] -= point.x[k]
            rhs[enter[k]] += point.x[k]
    substitute(flows.pattern, system.values, system.pivots, rhs)
    for k in range(len(point.x)):
        if system.weights[k] > 0.0 and flows.part[k] >= 0:
            point.x[k] += rhs[leave[k]] - rhs[enter[k]]


@kernel
def _exact(flows: Flows, face: Face, point: Point, system: System) -> None:
    """The answer on the face of the bounds that bind, into x.

    There it is the scores moved by potentials, one Laplacian away. A bound that it breaks binds.
    """
    x = point.x
    _bind(flows, face, point, system)
    broken = True
    while broken:
        broken = False
        factor(flows.pattern, system.weights, system.values, system.pivots, system.work)
        for k in range(len(x)):
            if face.free[k] and flows.part[k] >= 0:
                x[k] = point.own[k] if system.weights[k] > 0.0 else system.shift[k]
        for _ in range(2):  # the second time for the digits that large scores have cost
            _balance(flows, face, point, system)
        for k in range(len(x)):
            if face.free[k] and flows.part[k] >= 0:
                beyond = max(-x[k], x[k] - 1.0)
                x[k] = min(max(x[k], 0.0), 1.0)
                if beyond > BROKEN:
                    system.weights[k] = 0.0
                    system.shift[k] = x[k]
                    broken = True


@kernel
def _recentre(flows: Flows, point: Point) -> None:
    """The same problem around its answer: potentials move into the scores, which become small.

    <A' p, x> is the same for all flows. An arc far beyond its bound is as well a little beyond it.
    """
    leave, enter = flows.leave, flows.enter
    for k in range(len(point.x)):
        near = point.scores[k] + (point.potential[leave[k]] - point.potential[enter[k]])
        point.scores[k] = min(max(near, -LARGE), 1.0 + LARGE)


@kernel
def _certify(
    flows: Flows,
    s: int,
    t: int,
    cost: np.ndarray,
    tie: float,
    face: Face,
    point: Point,
    state: Flow,
) -> float:
    """max over flows v of <s - x, v - x>, and the arcs that vary on the face of the best v.

    A best v, with its potentials, is a minimum-cost flow; the others differ from it on cycles of its
    residual network whose arcs have no reduced cost. Costs are read for their inf alone.
    """
    network, part = flows.network, flows.part
    for k in range(len(part)):
        if cost[k] < np.inf:
            cost[k] = point.x[k] - point.own[k] if part[k] >= 0 else 0.0
    state.excess[:] = 0
    if s >= 0:
        state.excess[s] += 1
        state.excess[t] -= 1
    cheapest_flow(len(face.label), network, cost, state)
    gap = 0.0
    for k in range(len(part)):
        usable = cost[k] < np.inf
        if usable and part[k] >= 0:
            gap += cost[k] * (point.x[k] - state.flow[k])
        u, v = network.tails[k], network.heads[k]
        level = usable and abs(cost[k] + state.potential[u] - state.potential[v]) <= tie
        face.forward[k] = level and state.flow[k] == 0
        face.backward[k] = level and state.flow[k] == 1
    _connect(flows, face)
    return gap


@kernel
def project(
    first: int,
    last: int,
    flows: Flows,
    source: np.ndarray,
    target: np.ndarray,
    closed: np.ndarray,
    tie: float,
    rounding: float,
    scores: np.ndarray,
    keep: np.ndarray,
    out: np.ndarray,
    free: np.ndarray,
    steps: np.ndarray,
    gap: np.ndarray,
) -> None:
    """Projections, the arcs that vary on their exposed faces, steps, -1 where no flow is, and gaps.

    No unit is sent where `source` is -1; the arcs `closed[i]` are left out; `keep` may have no rows.
    """
    part = flows.part
    arcs, nodes = len(part), len(flows.pattern.place)
    cost = np.empty(arcs)
    search, state = new_search(nodes), new_flow(nodes, arcs)
    face, point = _new_face(arcs, nodes), _new_point(arcs, nodes)
    system = _new_system(arcs, nodes, len(flows.pattern.rows))
    for i in range(first, last):
        scale = 1.0
        for k in range(arcs):
            p = part[k]
            kept = p < 0 or keep.shape[0] == 0 or keep[i, p]
            cost[k] = 0.0 if kept else np.inf
            point.own[k] = point.scores[k] = scores[i, p] if p >= 0 else 0.0
            scale = max(scale, abs(point.own[k]))
        for j in range(closed.shape[1]):
            cost[closed[i, j]] = np.inf
        steps[i] = -1
        if not _begin(flows, source[i], target[i], cost, search, face, point):
            continue
        for k in range(arcs):
            if part[k] >= 0:
                out[i, part[k]] = point.x[k]
        steps[i] = 0
        size = scale
        while True:
            steps[i] += _interior(
                flows, face, point, system, size, CENTRED if size <= LARGE else ROUGHLY
            )
            if size <= LARGE:
                break
            _recentre(flows, point)
            size = LARGE
        _exact(flows, face, point, system)
        for k in range(arcs):
            if part[k] >= 0:
                if face.free[k]:
                    out[i, part[k]] = point.x[k]
                point.x[k] = out[i, part[k]]
        gap[i] = _certify(flows, source[i], target[i], cost, tie + rounding * scale, face, point, state)
        free[i] = face.free


@kernel
def pull(flows: Flows, free: np.ndarray, grad: np.ndarray, out: np.ndarray) -> None:
    """The orthogonal projection of grad onto the circulations of the free arcs."""
    leave, enter = flows.leave, flows.enter
    part = flows.part
    arcs, nodes = len(part), len(flows.pattern.place)
    system = _new_system(arcs, nodes, len(flows.pattern.rows))
    rhs = np.zeros(nodes)
    for k in range(arcs):
        if free[k]:
            system.weights[k] = 1.0 if part[k] >= 0 else JOINED
            if part[k] >= 0:
                amount = float(grad[part[k]])
                rhs[leave[k]] += amount
                rhs[enter[k]] -= amount
    factor(flows.pattern, system.weights, system.values, system.pivots, system.work)
    substitute(flows.pattern, system.values, system.pivots, rhs)
    for k in range(arcs):
        if free[k] and part[k] >= 0:
            out[part[k]] = grad[part[k]] - (rhs[leave[k]] - rhs[enter[k]])
