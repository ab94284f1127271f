"""Dynamic programmes: chains and hypergraphs, and projections onto chains."""
