"""Mixtures of an oracle's vertices."""
