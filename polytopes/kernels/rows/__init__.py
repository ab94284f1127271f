"""Projections onto what linear rows and bounds cut out."""
