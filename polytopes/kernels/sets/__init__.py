"""Subsets, rankings and logic: vectors without a graph."""
