"""Spectral operations on a CPU, where they save work: leading triplets, and boosting of factored deltas."""
