"""Whole merges from disk to disk: the commands, beside the bare cost of moving the same bytes."""
