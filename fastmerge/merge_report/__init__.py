"""A report of a merge."""
