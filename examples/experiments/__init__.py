"""Reproducible experiments: an estimator, a structure and a task, and what learns.

    python -m examples.experiments run categorical --estimator spigot --structure 3-clusters --seeds 3
    python -m examples.experiments sweep categorical --seeds 5
    python -m examples.experiments report categorical

A run is a `Run`'s fields; what comes of it is a line of results.jsonl; tables and figures are made from
those lines alone.
"""
