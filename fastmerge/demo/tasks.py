"""Translation of three made-up languages: words of a language, ``=``, and their meanings, word by word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LANGUAGES = ("red", "green", "blue")
WORDS = 32
LENGTH = 4
# Tokens: the meanings, then ``=``, then the words of each language.
EQUALS = WORDS
VOCAB = WORDS + 1 + len(LANGUAGES) * WORDS

_MEANINGS = """
sun moon star sky rain snow wind fire water stone sand sea lake hill tree leaf seed root bird fish bear wolf horse bread
milk salt house door road boat song name
"""
# A word is a syllable of each row; languages differ in the letters that they use.
_SYLLABLES = {
    "red": ("ra ro re ri ka ko ke ki", "dan don den din"),
    "green": ("ga go ge gu la lo le lu", "nis nos nes nus"),
    "blue": ("ba bo bu bi fa fo fu fi", "lim lom lum lam"),
}


def vocabulary() -> list[str]:
    """Return the word of every token."""
    spoken = [first + last for begin, end in _SYLLABLES.values() for first in begin.split() for last in end.split()]
    return [*_MEANINGS.split(), "=", *spoken]


class Dictionaries:
    """The meaning of every word, and the half of each language that the base model gets to see."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.meanings = [torch.randperm(WORDS, generator=generator) for _ in LANGUAGES]
        self.common = [torch.randperm(WORDS, generator=generator)[: WORDS // 2] for _ in LANGUAGES]

    def sentences(self, language: int, count: int, generator: torch.Generator, only_common: bool = False) -> Tensor:
        """Return ``count`` random sentences with their translations [count, 2 * LENGTH + 1]."""
        words = self.common[language] if only_common else torch.arange(WORDS)
        chosen = words[torch.randint(len(words), (count, LENGTH), generator=generator)]
        tokens = WORDS + 1 + language * WORDS + chosen
        return torch.cat((tokens, torch.full((count, 1), EQUALS), self.meanings[language][chosen]), dim=1)

    def unknown(self, language: int) -> list[int]:
        """Return a sentence of words that are not common."""
        known = set(self.common[language].tolist())
        return [WORDS + 1 + language * WORDS + word for word in range(WORDS) if word not in known][:LENGTH]

    def meaning(self, tokens: Sequence[int]) -> list[int]:
        """Return the meanings of words."""
        places = [divmod(token - WORDS - 1, WORDS) for token in tokens]
        return [int(self.meanings[language][word]) for language, word in places]
