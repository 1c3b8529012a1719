"""The pocket's tokenizer: the world's own words are one token each, anything else falls back to its bytes."""

from collections import Counter
from collections.abc import Iterable

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 64


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level byte-pair encoding, lower-cased) for captions of at most 64 tokens."""
    alphabet = _byte_characters()
    merges = _learn_merges(sorted(set(words)), alphabet)
    tokens = [*alphabet, *(character + "</w>" for character in alphabet), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate([*dict.fromkeys(tokens), START, END])}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        model_max_length=MAX_TOKENS,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )


def _byte_characters() -> list[str]:
    """A printable character for each of the 256 bytes (Radford et al. 2019, GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [characters[byte] for byte in range(256)]


def _learn_merges(words: list[str], alphabet: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) until every word is one token.

    Merges are learned, not chained letter by letter, since a chain of one word can break up another's.
    """
    split = []
    for word in words:
        characters = [alphabet[byte] for byte in word.encode("utf-8")]
        split.append([*characters[:-1], characters[-1] + "</w>"])
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in split):
        counts = Counter(pair for parts in split for pair in zip(parts, parts[1:], strict=False))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [_merge(parts, best) for parts in split]
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
