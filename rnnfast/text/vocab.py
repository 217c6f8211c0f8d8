"""A vocabulary: tokens to indices and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

UNKNOWN = "<unk>"


class Vocabulary:
    """Token <-> index; index 0 is ``<unk>``, then the reserved tokens, then by falling frequency.

    Tokens of equal frequency are ordered alphabetically, so the same text gives the same indices.

    Args:
        tokens: the text, token by token.
        min_freq: a token seen less often than this is left out and so reads as ``<unk>``.
        reserved: tokens that exist whatever the text holds, such as ``<pad>``.

    Raises:
        ValueError: a reserved token is given twice, or is ``<unk>``.
    """

    def __init__(
        self, tokens: Iterable[str], *, min_freq: int = 1, reserved: Sequence[str] = ()
    ) -> None:
        counts = Counter(tokens)
        fixed = [UNKNOWN, *reserved]
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept = [token for token, count in ranked if count >= min_freq and token not in fixed]
        self._set(fixed + kept)

    @classmethod
    def from_list(cls, tokens: Sequence[str]) -> Vocabulary:
        """Rebuild the vocabulary whose `to_list` gave ``tokens``."""
        if not tokens or tokens[0] != UNKNOWN:
            raise ValueError(f"a vocabulary's first token must be {UNKNOWN!r}")
        vocabulary = cls(())
        vocabulary._set(list(tokens))
        return vocabulary

    def _set(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._index = {token: index for index, token in enumerate(tokens)}
        if len(self._index) != len(tokens):
            twice = [token for token, count in Counter(tokens).items() if count > 1]
            raise ValueError(f"tokens given twice: {twice}")

    def to_list(self) -> list[str]:
        """The tokens in the order of their indices."""
        return list(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._tokens == other._tokens

    __hash__ = None  # type: ignore[assignment]

    def index(self, token: str) -> int:
        """The index of ``token``; 0 (``<unk>``) for one that is not in the vocabulary."""
        return self._index.get(token, 0)

    def token(self, index: int) -> str:
        """The token at ``index``; raises IndexError outside 0 ... len - 1."""
        if not 0 <= index < len(self._tokens):
            raise IndexError(f"index {index} is outside a vocabulary of {len(self._tokens)}")
        return self._tokens[index]

    def encode(self, tokens: Iterable[str]) -> Tensor:
        """Indices of ``tokens``: int64 [N]."""
        indices = [self.index(token) for token in tokens]
        return torch.tensor(indices, dtype=torch.int64, device="cpu")

    def decode(self, indices: Iterable[int]) -> str:
        """The tokens at ``indices``, joined without a separator."""
        return "".join(self.token(int(index)) for index in indices)
