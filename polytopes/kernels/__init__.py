"""Compiled inner loops over arrays, an instance at a time: no torch, no autograd."""
