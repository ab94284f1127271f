"""Paths and flows on graphs and grids."""
