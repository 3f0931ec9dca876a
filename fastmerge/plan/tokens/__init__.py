"""Vocabularies: one of several models, and embeddings and heads whose rows are merged by token."""

from .files import write_vocabulary
from .merging import MergedVocabulary, merge_vocabularies
from .rows import rows_by_token

__all__ = ["MergedVocabulary", "merge_vocabularies", "rows_by_token", "write_vocabulary"]
