"""Captions as a text encoder reads them: in tokens, and not beyond a number of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def count_tokens(tokenizer: "CLIPTokenizer", caption: str) -> tuple[int, int]:
    """How many tokens a caption has, those that begin and end it counted in, and how many are read of it."""
    return len(tokenizer(caption).input_ids), tokenizer.model_max_length
