"""The transportation problem by the network simplex method, an instance at a time.

maximize <s, y> over y >= 0 with given row and column sums. The nodes are rows, columns and a root; the
first tree holds an artificial arc between each node and the root. An artificial arc's cost is a unit
that outweighs every score: costs and prices are pairs (units, number), compared in that order, so that
no large number ever meets a small one.

The tree stays strongly feasible (arcs without flow point to the root), which rules out cycling at
degenerate vertices: of the blocking arcs the last one leaves, seen from the cycle's apex along the
entering arc. The entering arc is the best of a block, and the blocks take turns.

Cunningham, "A network simplex method" (1976); Kelly and O'Neill, "The minimum cost flow problem and the
network simplex method" (1991).
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["transport"]

PARENT, CHILD, NEXT, PREVIOUS, DEPTH, UPWARD, UNITS, SPARE = 0, 1, 2, 3, 4, 5, 6, 7


@kernel
def transport(
    first: int,
    last: int,
    scores: np.ndarray,
    keep: np.ndarray,
    masked: bool,
    sizes: np.ndarray,
    row_mass: np.ndarray,
    column_mass: np.ndarray,
    value: np.ndarray,
    row_price: np.ndarray,
    column_price: np.ndarray,
    found: np.ndarray,
) -> None:
    """Best transport plans and their prices.

    Reads `scores` (n, N, M), `keep` (n, N, M) where `masked`, `sizes` (n, 2) and masses (n, N) and
    (n, M) of equal totals. Writes `value` (n, N, M), a vertex; prices with s_ij <= row_i + column_j,
    and equality where y_ij > 0; `found` (n,), whether a plan exists.
    """
    nodes = scores.shape[1] + scores.shape[2] + 1
    tree = np.empty((8, nodes), np.int64)
    flow, price = np.empty(nodes), np.empty(nodes)
    cost = np.empty((scores.shape[1], scores.shape[2]))
    for i in range(first, last):
        k, m = sizes[i, 0], sizes[i, 1]
        largest = 0.0
        for p in range(k):
            for q in range(m):
                cost[p, q] = -scores[i, p, q]
                largest = max(largest, abs(cost[p, q]))
                if masked and not keep[i, p, q]:
                    cost[p, q] = np.inf
        _start(k, m, row_mass[i], column_mass[i], tree, flow, price)
        _pivot(k, m, cost, 1e-14 * largest, tree, flow, price)
        found[i] = _finish(k, m, row_mass[i], column_mass[i], tree, flow, value[i])
        if found[i]:
            unit = _unit(k, m, cost, tree, price)
            for p in range(k):
                row_price[i, p] = price[p] + unit * tree[UNITS, p]
            for q in range(m):
                column_price[i, q] = -price[k + q] - unit * tree[UNITS, k + q]


@kernel
def _start(
    k: int,
    m: int,
    row_mass: np.ndarray,
    column_mass: np.ndarray,
    tree: np.ndarray,
    flow: np.ndarray,
    price: np.ndarray,
) -> None:
    """Artificial arcs: from rows to the root and on to the columns; empty columns' point to the root."""
    root = k + m
    tree[:, : root + 1] = -1
    tree[DEPTH, root] = tree[UNITS, root] = 0
    price[root] = 0.0
    for t in range(root):
        mass = row_mass[t] if t < k else column_mass[t - k]
        upward = t < k or mass == 0.0
        flow[t], price[t] = mass, 0.0
        tree[DEPTH, t] = 1
        tree[UPWARD, t] = 1 if upward else 0
        tree[UNITS, t] = -1 if upward else 1
        _hang(tree, t, root)


@kernel
def _hang(tree: np.ndarray, t: int, parent: int) -> None:
    """Makes t the first child of a node."""
    head = tree[CHILD, parent]
    tree[PARENT, t], tree[NEXT, t], tree[PREVIOUS, t] = parent, head, -1
    if head >= 0:
        tree[PREVIOUS, head] = t
    tree[CHILD, parent] = t


@kernel
def _cut(tree: np.ndarray, t: int) -> None:
    """Takes t out of its parent's children."""
    before, after = tree[PREVIOUS, t], tree[NEXT, t]
    if before >= 0:
        tree[NEXT, before] = after
    else:
        tree[CHILD, tree[PARENT, t]] = after
    if after >= 0:
        tree[PREVIOUS, after] = before


@kernel
def _pivot(
    k: int,
    m: int,
    cost: np.ndarray,
    tolerance: float,
    tree: np.ndarray,
    flow: np.ndarray,
    price: np.ndarray,
) -> None:
    """Pivots until no arc has a negative reduced cost."""
    arcs, units = k * m, tree[UNITS]
    block = max(int(np.sqrt(arcs)), 10)
    p, q, seen = 0, 0, 0
    while seen < arcs:
        best, best_units, source, target = -tolerance, 0, -1, -1
        stop = min(seen + block, arcs)
        while seen < stop:  # along rows, as far as the block goes
            end = min(q + stop - seen, m)
            seen += end - q
            row, row_units, row_price = cost[p], units[p], price[p]
            for c in range(q, end):
                lead, reduced = row_units - units[k + c], row[c] + row_price - price[k + c]
                if lead <= best_units and (lead < best_units or reduced < best) and reduced < np.inf:
                    best, best_units, source, target = reduced, lead, p, k + c
            q = end
            if q == m:
                p, q = (p + 1 if p + 1 < k else 0), 0
        if source >= 0:
            _exchange(source, target, cost[source, target - k], k, tree, flow, price)
            seen = 0


@kernel
def _exchange(
    source: int,
    target: int,
    entering: float,
    k: int,
    tree: np.ndarray,
    flow: np.ndarray,
    price: np.ndarray,
) -> None:
    """Sends what flow it can around the cycle of an entering arc; the arc that blocks it leaves."""
    parent, depth, upward = tree[PARENT], tree[DEPTH], tree[UPWARD]
    a, b = source, target
    amount, leaving, on_source_side = np.inf, -1, False
    while a != b:  # on the source's side upward arcs lose flow, on the target's side downward ones
        if depth[a] >= depth[b]:
            if upward[a] == 1 and flow[a] < amount:
                amount, leaving, on_source_side = flow[a], a, True
            a = parent[a]
        else:
            b = parent[b]
    apex = a
    b = target
    while b != apex:
        if upward[b] == 0 and flow[b] <= amount:
            amount, leaving, on_source_side = flow[b], b, False
        b = parent[b]
    a, b = source, target
    while a != apex:
        flow[a] += -amount if upward[a] == 1 else amount
        a = parent[a]
    while b != apex:
        flow[b] += amount if upward[b] == 1 else -amount
        b = parent[b]
    # the cut-off subtree hangs by the entering arc from now on: its arcs up to the leaving one turn
    node = source if on_source_side else target
    above = target if on_source_side else source
    up, carried = (1, amount) if on_source_side else (0, amount)
    moved = node
    while True:
        following, next_up, next_carried = parent[node], 1 - upward[node], flow[node]
        _cut(tree, node)
        upward[node], flow[node] = up, carried
        _hang(tree, node, above)
        if node == leaving:
            break
        above, node, up, carried = node, following, next_up, next_carried
    _relabel(moved, k, entering, tree, price)


@kernel
def _relabel(top: int, k: int, entering: float, tree: np.ndarray, price: np.ndarray) -> None:
    """Prices and depths of a subtree by its top's arc: the prices shift all alike."""
    parent, units, depth = tree[PARENT], tree[UNITS], tree[DEPTH]
    above = parent[top]
    target = price[above] - entering if top < k else price[above] + entering
    shift, lead = target - price[top], units[above] - units[top]
    node = top
    while True:
        price[node] += shift
        units[node] += lead
        depth[node] = depth[parent[node]] + 1
        if tree[CHILD, node] >= 0:
            node = tree[CHILD, node]
            continue
        while node != top and tree[NEXT, node] < 0:
            node = parent[node]
        if node == top:
            return
        node = tree[NEXT, node]


@kernel
def _finish(
    k: int,
    m: int,
    row_mass: np.ndarray,
    column_mass: np.ndarray,
    tree: np.ndarray,
    flow: np.ndarray,
    value: np.ndarray,
) -> bool:
    """The tree's flow anew from the masses, leaves first; false where an artificial arc needs some."""
    root, total = k + m, 0.0
    order, count = tree[SPARE], 0
    node = root
    while node >= 0:  # preorder
        order[count] = node
        count += 1
        following = tree[CHILD, node]
        while following < 0 and node != root:
            following = tree[NEXT, node]
            if following < 0:
                node = tree[PARENT, node]
        node = following
    for t in range(root):
        flow[t] = row_mass[t] if t < k else -column_mass[t - k]
        total += abs(flow[t])
    flow[root] = 0.0
    feasible = True
    for index in range(count - 1, 0, -1):
        t = order[index]
        parent = tree[PARENT, t]
        surplus = flow[t]
        flow[parent] += surplus
        amount = surplus if tree[UPWARD, t] == 1 else -surplus
        if abs(amount) <= 1e-14 * total:
            continue
        if parent == root:
            if abs(amount) > 1e-11 * total:
                feasible = False
        elif t < k:
            value[t, parent - k] = amount
        else:
            value[parent, t - k] = amount
    return feasible


@kernel
def _unit(k: int, m: int, cost: np.ndarray, tree: np.ndarray, price: np.ndarray) -> float:
    """The least value of an artificial arc's unit that keeps every reduced cost nonnegative."""
    unit = 0.0
    for p in range(k):
        for q in range(m):
            lead = tree[UNITS, p] - tree[UNITS, k + q]
            if lead > 0 and cost[p, q] < np.inf:
                unit = max(unit, -(cost[p, q] + price[p] - price[k + q]) / lead)
    return unit
