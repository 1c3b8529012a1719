"""Captions as a text encoder reads them: in tokens, and not beyond a number of them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pipeline.base.checking import config_folder
from pipeline.sections import BaseSection

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def count_tokens(tokenizer: "CLIPTokenizer", caption: str) -> tuple[int, int]:
    """How many tokens a caption has, those that begin and end it counted in, and how many are read of it."""
    return len(tokenizer(caption).input_ids), tokenizer.model_max_length


def caption_length_of(section: BaseSection) -> Callable[[str], tuple[int, int]]:
    """`count_tokens` of a base whose files are in order."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(config_folder(section, "tokenizer"), subfolder="tokenizer")
    return partial(count_tokens, tokenizer)
