"""Measurements against peers: `python -m benchmarks --help`; the rest are commands of their own."""
