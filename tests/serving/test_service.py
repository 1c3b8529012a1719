"""A served model answers with the very frames of the pipeline, and a wrong request with one sentence."""

import base64
import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.adapters.lora import read_adapter
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.film import Film, Keyframe, settings_of
from pipeline.frames.tensors import from_arrays, to_arrays
from pipeline.grid import sample_grid
from pipeline.params import load_params
from pipeline.pictures.preparing import prepare_picture
from pipeline.pictures.rows import Row
from pipeline.serving import service as service_module
from pipeline.serving.package import read_package
from pipeline.serving.service import Busy, Service
from tests.project import paint

KEYFRAMES = ["red hill", "großer See", "blue"]


@pytest.fixture
def hills(packages: dict[str, Path], base: Path) -> Service:
    return Service(packages["morph@hills"])


@pytest.fixture
def dots(packages: dict[str, Path], base: Path) -> Service:
    return Service(packages["train@dots"])


@pytest.fixture
def own(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for number, path in enumerate(paths):
        paint(path, 50 + number, (120, 80))
    return paths


def text(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def pixels(content: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def refused(service: Service, request: Any) -> str:
    with pytest.raises(UserError) as caught:
        service.answer(request)
    (problem,) = caught.value.problems
    return str(problem)


def test_the_keyframes_of_a_morph_give_the_frames_and_the_clip_of_the_pipeline(hills: Service, ran: Path) -> None:
    frames = hills.answer({"pictures": KEYFRAMES, "format": "frames"})
    made = sorted((ran / "data/morphs/hills/frames").iterdir())
    assert frames["count"] == len(made) == 5
    assert [base64.b64decode(frame) for frame in frames["frames"]] == [path.read_bytes() for path in made]
    clip = hills.answer({"pictures": KEYFRAMES})
    assert base64.b64decode(clip["mp4"]) == (ran / "data/morphs/hills/morph.mp4").read_bytes()


def test_pictures_of_ones_own_are_prepared_and_morphed_by_the_base_and_the_style(
    dots: Service, own: list[Path], ran: Path
) -> None:
    request = {
        "pictures": [text(own[0]), "data:image/jpeg;base64," + text(own[1])],
        "captions": ["a red hill", ""],
        "adapters": {"dots": 0.5},
        "frames": 4,
        "steps": 3,
        "loop": True,
        "format": "frames",
    }
    answer = dots.answer(request)

    prepare, morph = dots.package.prepare, dots.package.morph
    adapter = read_adapter(ran / "models/adapters/dots/set.safetensors", dots.base.digest, dots.base.device)
    keyframes = []
    for path, caption in zip(own, ("a red hill", ""), strict=True):
        prepared = np.asarray(prepare_picture(path, Row(file_name=path.name, text=""), prepare)[0])
        keyframes.append(Keyframe(from_arrays([prepared])[0], caption, (), ((adapter, 0.5),)))
    asked = {"frames": 4, "steps": 3, "inversion_steps": 3, "loop": True}
    film = Film(dots.base, keyframes, settings_of(morph.model_copy(update=asked)))
    expected = [to_arrays(frame.picture[None])[0] for frame in film]
    assert len(expected) == answer["count"] == 6
    assert all((pixels(one) == other).all() for one, other in zip(answer["frames"], expected, strict=True))


def test_unasked_the_style_of_a_package_lies_over_all(dots: Service, own: list[Path]) -> None:
    request = {"pictures": [text(path) for path in own], "captions": ["a", "a"], "format": "frames"}
    first, last = dots.package.morph.style_from, dots.package.morph.style_to
    assert first == last
    assert dots.answer(request) == dots.answer({**request, "adapters": {"dots": first}})
    assert dots.answer(request) != dots.answer({**request, "adapters": {}})


def test_a_caption_is_painted_as_in_the_sets_samples(dots: Service, ran: Path) -> None:
    answer = dots.answer({"captions": ["a red lake"], "seed": 3, "steps": 4, "guidance": 2.0})
    adapter = read_adapter(ran / "models/adapters/dots/set.safetensors", dots.base.digest, dots.base.device)
    size = (dots.package.prepare.height, dots.package.prepare.width)
    expected = sample_grid(
        dots.base, "a red lake", adapter, seeds=[3], weights=[1.0], size=size, steps=4, guidance=2.0,
        solver=dots.package.sample.solver, fresh=dots.package.sample.fresh_noise,
    )  # fmt: skip
    assert dots.package.sample.fresh_noise > 0
    assert (pixels(answer["pictures"][0]) == to_arrays(expected[0])[0]).all()
    both = dots.answer({"captions": ["a red lake", "a blue hill"], "seed": 3, "steps": 4, "guidance": 2.0})
    assert len(both["pictures"]) == 2 and both["pictures"][0] != both["pictures"][1]


@pytest.mark.parametrize(("batch", "guidance", "calls"), [(3, 1.0, [3, 2]), (4, 2.0, [2, 2, 1]), (None, 2.0, [5])])
def test_captions_go_through_the_denoiser_as_many_at_once_as_the_package_allows(
    dots: Service, monkeypatch: pytest.MonkeyPatch, batch: int | None, guidance: float, calls: list[int]
) -> None:
    seen, plain = list[int](), service_module.sample_captions

    def spied(base: Base, noise: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        seen.append(len(noise))
        return plain(base, noise, *given, **named)

    monkeypatch.setattr(service_module, "sample_captions", spied)
    dots.package = dots.package.model_copy(update={"batch": batch})
    dots.answer({"captions": ["a", "b", "c", "d", "e"], "steps": 2, "guidance": guidance})
    assert seen == calls


def wrong_requests(picture: str) -> list[tuple[Any, str]]:
    two, words = [picture, picture], ["a", "b"]
    return [
        (3, "inputs: found 3. Send one object"),
        ({}, "inputs: captions: the key is missing"),
        ({"captions": []}, "inputs: captions: found []. It should have at least 1 item"),
        ({"captions": ["a"] * 9}, "at most 8 items"),
        ({"captions": ["a" * 1001]}, "at most 1000 characters"),
        ({"captions": ["a"], "steps": 101}, "inputs: steps: found 101. It should be less than or equal to 100"),
        ({"captions": ["a"], "guidance": float("nan")}, "inputs: guidance: found nan"),
        ({"captions": ["a"], "frames": 4}, "inputs: frames: unknown key"),
        ({"captions": ["a"], "adapters": {"nosuch": 1.0}}, "there is no 'nosuch'. This model has: hills/"),
        ({"captions": ["a"], "adapters": {"../../etc/passwd": 1.0}}, "there is no '../../etc/passwd'"),
        ({"captions": ["a"], "adapters": {"hills/blue": 5}}, "less than or equal to 4"),
        (
            {"captions": ["a", "hill " * 80]},
            "inputs: captions.1: the caption has 82 tokens, the base reads 64. Shorten",
        ),
        ({"pictures": two, "captions": ["a", "hill " * 80]}, "inputs: captions.1: the caption has 82 tokens"),
        ({"pictures": [picture]}, "at least 2 items"),
        ({"pictures": [picture] * 9}, "at most 8 items"),
        ({"pictures": two}, "inputs: captions.0: none, for a picture of your own. Write what it shows"),
        ({"pictures": two, "captions": ["a"]}, "inputs: captions: 1 for 2 pictures"),
        ({"pictures": two, "captions": words, "frames": 301}, "less than or equal to 300"),
        ({"pictures": [picture] * 3, "captions": ["a"] * 3, "frames": 200}, "inputs: frames: 399 in all"),
        ({"pictures": two, "captions": words, "format": "gif"}, "inputs: format: found 'gif'"),
        ({"pictures": ["no base64!", picture], "captions": words}, "inputs: pictures.0: found 'no base64!'"),
        ({"pictures": [picture, "AAAA"], "captions": words}, "inputs: pictures.1: corrupt, or not a picture"),
        ({"pictures": ["A" * 17 * 2**20, picture], "captions": words}, "inputs: pictures.0: a picture of 12.8 MB"),
    ]


def test_a_wrong_request_is_refused_in_one_line(hills: Service, own: list[Path]) -> None:
    for request, message in wrong_requests(text(own[0])):
        said = refused(hills, request)
        assert message in said and "\n" not in said and len(said) < 1300, said


def test_a_bomb_is_refused_by_its_header(hills: Service, own: list[Path]) -> None:
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, format="PNG")
    bomb = base64.b64encode(file.getvalue()).decode()
    said = refused(hills, {"pictures": [bomb, text(own[0])], "captions": ["a", "b"]})
    assert said.startswith("inputs: pictures.0: 64 megapixels, more than the 25 allowed. Send a whole picture")


def test_weights_that_lead_nowhere_are_the_requests_fault(hills: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.full((1, 3, 8, 8), torch.nan)
    monkeypatch.setattr(service_module, "sample_captions", lambda *given, **named: nothing)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        raise FloatingPointError("the latents are not finite")

    monkeypatch.setattr(type(hills.base), "decode", lambda self, latents: decode(latents))
    assert "smaller weights" in refused(hills, {"captions": ["a"]})


def test_requests_wait_for_their_turn_and_not_too_many_do(
    packages: dict[str, Path], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, inside, go = Service(packages["train@dots"], patience=60), threading.Semaphore(0), threading.Event()
    working, most = [0], [0]

    def slow(request: Any) -> dict[str, Any]:
        working[0] += 1
        most[0] = max(most[0], working[0])
        inside.release()
        go.wait(60)
        working[0] -= 1
        return {}

    monkeypatch.setattr(service, "_paint", slow)
    answers: list[dict[str, Any]] = []
    asking = [threading.Thread(target=lambda: answers.append(service.answer({"captions": ["a"]}))) for _ in range(8)]
    for thread in asking:
        thread.start()
    assert inside.acquire(timeout=60)
    while service._waiting < 8:
        threading.Event().wait(0.01)
    with pytest.raises(Busy):
        service.answer({"captions": ["a"]})
    go.set()
    for thread in asking:
        thread.join(60)
    assert (len(answers), most[0], service._waiting) == (8, 1, 0)


def test_one_that_waits_too_long_gives_up(packages: dict[str, Path], base: Path) -> None:
    service = Service(packages["train@dots"], patience=0.05)
    with service._turn, pytest.raises(Busy):
        service.answer({"captions": ["a"]})
    assert service.answer({"captions": ["a"]})["pictures"]


def test_another_base_is_refused(
    packages: dict[str, Path], tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = read_package(packages["train@dots"])
    for place, found in ((tiny_folders["v_prediction"], "another base (sha256:"), (Path("gone"), "is not there")):
        monkeypatch.setenv("MORPHLINE_BASE", str(place))
        with pytest.raises(UserError) as caught:
            Service(packages["train@dots"])
        assert found in str(caught.value) and "MORPHLINE_BASE=" in str(caught.value)
    assert package.digest.startswith("sha256:")


def test_a_damaged_package_is_refused(packages: dict[str, Path], base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packages["train@dots"], tmp_path / "package")
    told = json.loads((folder / "package.json").read_text())
    for change, found in (
        ({"adapters": ["../dots"]}, "names should be relative"),
        ({"adapters": ["gone"]}, "adapters/gone.safetensors is missing"),
        ({"batch": 0}, "no package that can be served"),
    ):
        (folder / "package.json").write_text(json.dumps({**told, **change}))
        with pytest.raises(UserError) as caught:
            read_package(folder)
        assert "no package that can be served" in str(caught.value)
        assert found in str(caught.value) or "validation error" in str(caught.value)


def test_a_package_holds_no_path_of_the_project(packages: dict[str, Path], ran: Path) -> None:
    for folder in packages.values():
        assert str(ran) not in (folder / "package.json").read_text()
        assert not list(folder.rglob("*.py")) and not list(folder.rglob("*.pkl"))


def test_a_packages_sections_are_those_of_params_yaml(packages: dict[str, Path], ran: Path) -> None:
    params = load_params(ran / "params.yaml")
    hills, dots = read_package(packages["morph@hills"]), read_package(packages["train@dots"])
    assert hills.morph == params.morphs["hills"].morph and dots.sample == params.sets["dots"].sample
    assert [keyframe.name for keyframe in hills.keyframes] == KEYFRAMES
    assert (hills.style, dots.style, dots.adapters) == (None, "dots", ("dots",))
