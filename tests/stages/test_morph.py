import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from pipeline.film import Film
from pipeline.frames.cache import Made
from pipeline.stages import morph
from tests.project import HEIGHT, HILLS, WIDTH, edit, with_values
from tests.stages.test_check import checked

KINDS = ("frames", "no-lora", "cross-fade")
HELD = {"hills": (5, [0, 2, 4]), "dots": (4, [0, 3])}  # frames, and those of them that are keyframes


def picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.size == (WIDTH, HEIGHT)
        return np.asarray(image)


@pytest.mark.parametrize("key", HELD)
def test_everything_that_a_morph_leaves_is_there(ran: Path, key: str) -> None:
    folder = ran / "data/morphs" / key
    count, stops = HELD[key]
    assert sorted(path.name for path in folder.iterdir()) == [
        "cross-fade", "floor", "frames", "morph.json", "morph.mp4", "morph.webp", "no-lora", "strip.png",
    ]  # fmt: skip
    for kind, frames in (*((kind, count) for kind in KINDS), ("floor", len(stops))):
        assert sorted(path.name for path in (folder / kind).iterdir()) == [f"{n:04}.png" for n in range(frames)]
        for path in (folder / kind).iterdir():
            picture(path)


@pytest.mark.parametrize("key", HELD)
def test_the_clips_play_all_frames_and_rest_on_the_keyframes(ran: Path, key: str) -> None:
    folder = ran / "data/morphs" / key
    count, stops = HELD[key]
    with Image.open(folder / "morph.webp") as clip:
        assert (clip.n_frames, clip.size, clip.info["loop"]) == (count, (WIDTH, HEIGHT), 0)
    with av.open(str(folder / "morph.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(8)
        assert sum(1 for _ in container.decode(stream)) == count + 4 * len(stops)  # half a second at 8 a second


@pytest.mark.parametrize("key", HELD)
def test_morph_json_says_how_the_morph_was_made(ran: Path, key: str) -> None:
    facts = json.loads((ran / "data/morphs" / key / "morph.json").read_text(encoding="utf-8"))
    count, stops = HELD[key]
    assert list(facts) == ["set", "style", "base", "keyframes", "positions", "alphas", "inverted_noise_std", "settings"]
    assert facts["set"] == key and facts["base"] in (ran / "params.yaml").read_text(encoding="utf-8")
    names = {"hills": ["red hill.png", "großer See.png", "blue.png"], "dots": ["d3.png", "d1.png"]}[key]
    texts = {"hills": list(HILLS.values()), "dots": ["a red lake"] * 2}[key]
    assert facts["keyframes"] == [
        {"file_name": name, "text": text, "frame": frame} for name, text, frame in zip(names, texts, stops, strict=True)
    ]
    assert facts["positions"] == pytest.approx(np.linspace(0, len(stops) - 1, count).tolist())
    frames = {"hills": 3, "dots": 4}[key]
    shipped = YAML(typ="safe").load((ran / "params.yaml").read_text(encoding="utf-8"))["morph"]
    assert facts["settings"] == {**shipped, "frames": frames, "steps": 2}
    for segments in facts["alphas"].values():
        assert segments == [pytest.approx(np.linspace(0, 1, frames).tolist(), abs=1e-6)] * (len(stops) - 1)
    assert all(value > 0 for value in facts["inverted_noise_std"].values())


def test_the_cross_fade_lies_between_the_prepared_keyframes(ran: Path) -> None:
    prepared = [picture(ran / f"data/prepared/hills/{Path(name).stem}.png") for name in HILLS]
    fades = [picture(ran / f"data/morphs/hills/cross-fade/{number:04}.png") for number in range(5)]
    for keyframe, fade in zip(prepared, fades[::2], strict=True):
        assert np.array_equal(keyframe, fade)
    for first, second, fade in zip(prepared[:-1], prepared[1:], fades[1::2], strict=True):
        middle = (first.astype(float) + second) / 2
        assert np.abs(fade - middle).max() <= 0.51


def test_the_floor_is_what_the_autoencoder_makes_of_the_keyframes(ran: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(ran / "bases/tiny", subfolder="vae")
    for number, name in enumerate(HILLS):
        keyframe = picture(ran / f"data/prepared/hills/{Path(name).stem}.png")
        pixels = torch.from_numpy(keyframe.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample[0]
        expected = ((decoded.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).numpy()
        floor = picture(ran / f"data/morphs/hills/floor/{number:04}.png")
        assert np.abs(floor - expected).max() <= 0.51


@pytest.mark.parametrize("key", HELD)
def test_adapters_make_a_difference_in_every_frame(ran: Path, key: str) -> None:
    folder = ran / "data/morphs" / key
    for number in range(HELD[key][0]):
        name = f"{number:04}.png"
        assert not np.array_equal(picture(folder / "frames" / name), picture(folder / "no-lora" / name))


def test_the_strip_shows_all_three_ways(ran: Path) -> None:
    with Image.open(ran / "data/morphs/hills/strip.png") as strip:
        pixels = np.asarray(strip.convert("RGB"))
    height = pixels.shape[0] // 3
    for row, kind in enumerate(KINDS):
        frame = picture(ran / f"data/morphs/hills/{kind}/0001.png")  # no keyframe, so no border
        band = pixels[row * height : (row + 1) * height + 12]
        windows = np.lib.stride_tricks.sliding_window_view(band, frame.shape)
        assert (windows == frame).all(axis=(-1, -2, -3)).any(), f"{kind} is not in the strip"


def remade(project: Path, ran: Path, values: dict[str, object]) -> Path:
    """The morph `hills` made again with other params, from the adapters that are there."""
    for part in ("data/prepared/hills", "models/adapters/hills"):
        shutil.copytree(ran / part, project / part)
    edit(project / "params.yaml", lambda text: with_values(text, values))
    morph.run("hills")
    return project / "data/morphs/hills"


def test_a_loop_leads_back_and_ends_before_its_first_frame(project: Path, ran: Path) -> None:
    folder = remade(project, ran, {"morph.loop": "true"})
    facts = json.loads((folder / "morph.json").read_text(encoding="utf-8"))
    assert len(facts["positions"]) == 6 and [keyframe["frame"] for keyframe in facts["keyframes"]] == [0, 2, 4]
    assert len(facts["alphas"]["morph"]) == 3
    frames = [picture(folder / f"frames/{number:04}.png").astype(float) for number in range(6)]
    steps = [np.abs(a - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert steps[-1] < 2 * max(steps[:-1]), "a jump back to the start"
    for number in range(5):
        assert (folder / f"frames/{number:04}.png").read_bytes() == (
            ran / f"data/morphs/hills/frames/{number:04}.png"
        ).read_bytes()


def test_perceptual_pacing_evens_out_the_steps_and_a_list_is_taken_as_it_is(project: Path, ran: Path) -> None:
    folder = remade(project, ran, {"morph.pacing": "perceptual", "morph.pacing_spare": 12, "morph.frames": 5})
    alphas = json.loads((folder / "morph.json").read_text(encoding="utf-8"))["alphas"]["morph"]
    assert all(len(segment) == 5 and segment == sorted(segment) for segment in alphas)
    assert any(segment != pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.01) for segment in alphas)
    edit(project / "params.yaml", lambda text: with_values(text, {"morph.pacing": "[0, 0.1, 0.2, 1]"}))
    morph.run("hills")
    facts = json.loads((folder / "morph.json").read_text(encoding="utf-8"))
    assert facts["alphas"]["morph"] == [[0, 0.1, 0.2, 1]] * 2 and len(facts["positions"]) == 7


def test_corrected_ends_are_in_the_clips_and_never_in_the_frames(project: Path, ran: Path) -> None:
    folder = remade(project, ran, {"morph.correct_ends": 0.5})
    plain = ran / "data/morphs/hills"
    for number in range(5):
        assert (folder / f"frames/{number:04}.png").read_bytes() == (plain / f"frames/{number:04}.png").read_bytes()
    prepared = picture(ran / "data/prepared/hills/red hill.png").astype(float)
    gaps = []
    for clip in (folder, plain):
        with Image.open(clip / "morph.webp") as image:
            gaps.append(float(np.abs(np.asarray(image.convert("RGB")).astype(float) - prepared).mean()))
    assert gaps[0] < 3 < gaps[1]


def test_frames_without_adapters_are_made_once_and_the_same_for_all_trainings(
    project: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, made = ran / "data/morphs/hills", list[bool]()
    make = morph.make_frames

    def note(film: Film, folder: Path, count: int) -> Made:
        made.append(bool(film.keyframes[0].adapters))
        return make(film, folder, count)

    monkeypatch.setattr(morph, "make_frames", note)

    folder = remade(project, ran, {"morph.hold": 0.25})
    (other,) = (ran / "models/adapters/dots").glob("*.safetensors")
    for adapter in (project / "models/adapters/hills").glob("*.safetensors"):
        shutil.copyfile(other, adapter)
    morph.run("hills")
    assert made == [True, False, True]
    before = [(plain / f"no-lora/{number:04}.png").read_bytes() for number in range(5)]
    assert [(folder / f"no-lora/{number:04}.png").read_bytes() for number in range(5)] == before
    assert (folder / "frames/0001.png").read_bytes() != (plain / "frames/0001.png").read_bytes()
    facts = [json.loads((path / "morph.json").read_text(encoding="utf-8")) for path in (folder, plain)]
    for name in ("alphas", "inverted_noise_std"):
        assert facts[0][name]["without adapters"] == facts[1][name]["without adapters"]
    for values, expected in (
        ({"morph.fps": 9.0, "morph.hold": 1.0}, [True]),
        ({"morph.steps": 3}, [True, False]),
        ({"machine.reuse": "false"}, [True, False]),
    ):
        made.clear()
        edit(project / "params.yaml", lambda text, values=values: with_values(text, values))
        morph.run("hills")
        assert made == expected, values


def test_a_style_changes_every_frame_and_the_keyframes_too(project: Path, ran: Path) -> None:
    shutil.copytree(ran / "models/adapters/dots", project / "models/adapters/dots")
    edit(project / "params.yaml", lambda text: text.replace("{set: hills, style: none", "{set: hills, style: dots"))
    values = {"morph.style_from": 0.0, "morph.style_to": 2.0, "morph.without_adapters": "false"}
    now, before = remade(project, ran, values), ran / "data/morphs/hills"
    facts, plain = (json.loads((folder / "morph.json").read_text(encoding="utf-8")) for folder in (now, before))
    assert facts["style"] == "dots" and plain["style"] == "none"
    assert facts["inverted_noise_std"]["morph"] == plain["inverted_noise_std"]["morph"]
    same = [
        (now / f"frames/{number:04}.png").read_bytes() == (before / f"frames/{number:04}.png").read_bytes()
        for number in range(5)
    ]
    assert same == [True, False, False, False, False], "its weight is 0 at the first keyframe alone"


def test_a_style_of_a_set_with_an_adapter_a_picture_is_refused(project: Path) -> None:
    edit(project / "params.yaml", lambda text: text.replace("{set: hills, style: none", "{set: hills, style: hills"))
    (problem,) = checked()
    assert problem.startswith("params.yaml: morphs.hills.style: the set hills has an adapter for each picture.")
