"""Captions that are longer than a base reads: what is beyond would be cut off without a word."""

from collections.abc import Callable, Iterable

from pipeline.errors import Problem, UserError

CaptionLength = Callable[[str], tuple[int, int]]
"""A caption to (tokens it has, tokens that the base reads)."""


def length_problems(
    where: str, caption: str, caption_length: CaptionLength, what: str = "the caption"
) -> list[Problem]:
    """The problem of a caption, if it is too long. what: it is, as the message begins."""
    tokens, read = caption_length(caption)
    if tokens <= read:
        return []
    found = f"{what} has {tokens} tokens, the base reads {read}"
    return [Problem(where, found, f"Shorten it by {tokens - read} or more.")]


def require_short(captions: Iterable[tuple[str, str]], caption_length: CaptionLength) -> None:
    """Let captions pass of which all is read. captions: where each stands, for the message, and its text.

    Raises:
        UserError: with each that is too long.
    """
    problems = [one for where, text in captions for one in length_problems(where, text, caption_length)]
    if problems:
        raise UserError(*problems)
