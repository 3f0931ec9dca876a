"""The report of a merge: what it did to every tensor, from a second read of inputs and output."""

from .measuring import check_budget
from .run import bytes_to_read, write_report
from .written import NAMES

__all__ = ["NAMES", "bytes_to_read", "check_budget", "write_report"]
