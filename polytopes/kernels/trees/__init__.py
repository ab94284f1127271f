"""Trees: best ones, sums over them, projections."""
