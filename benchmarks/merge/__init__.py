"""Whole merges from disk to disk: the commands, beside the bare cost of reading the inputs and writing the output once."""
