import pytest

from pipeline.landscapes.world import VOCABULARY, caption, draw_scene
from pipeline.pocket.tokenizer import END, MAX_TOKENS, START, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():  # noqa: ANN201
    return build_tokenizer(VOCABULARY)


def test_every_word_of_the_world_is_one_token(tokenizer) -> None:  # noqa: ANN001
    assert {word: len(tokenizer.tokenize(word)) for word in VOCABULARY} == dict.fromkeys(VOCABULARY, 1)
    text = caption(draw_scene(7))
    assert tokenizer.tokenize(text) == [f"{word}</w>" for word in text.replace(",", " ,").split()]


@pytest.mark.parametrize("text", ["ein Häuschen", "山と湖", "🏔 at 5 o'clock", "", "snowymountains", "a\tb\x00c"])
def test_any_caption_tokenizes_without_an_unknown(tokenizer, text: str) -> None:  # noqa: ANN001
    ids = tokenizer(text).input_ids
    inner = tokenizer.convert_ids_to_tokens(ids)
    assert inner[0] == START and inner[-1] == END and END not in inner[1:-1]


def test_different_captions_stay_different(tokenizer) -> None:  # noqa: ANN001
    texts = ["a lake", "a lakee", "ä lake", "lake a", "山", "川"]
    assert len({tuple(tokenizer(text).input_ids) for text in texts}) == len(texts)


def test_it_pads_cuts_and_reloads(tokenizer, tmp_path) -> None:  # noqa: ANN001
    assert tokenizer.model_max_length == MAX_TOKENS
    padded = tokenizer("a lake", padding="max_length", truncation=True).input_ids
    assert len(padded) == MAX_TOKENS == len(tokenizer("x " * 500, padding="max_length", truncation=True).input_ids)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("Snowy mountains, Ä").input_ids == tokenizer("Snowy mountains, Ä").input_ids
