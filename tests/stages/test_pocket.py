import json
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from pipeline.params import load_params
from pipeline.pocket import sheet
from pipeline.pocket.sheet import Sampling
from pipeline.stages import pocket
from tests.declarations import ROOT, all_imports


def test_the_code_digest_covers_what_paints_and_trains() -> None:
    """Everything that the trainings import, but for what they share with other stages."""
    root = Path("pipeline")
    covered = {root / path.relative_to(ROOT / root) for pattern in pocket.CODE for path in (ROOT / root).glob(pattern)}
    needed = {
        file
        for part in ("autoencoder", "denoiser", "layout", "paintings")
        for file in all_imports(root / f"pocket/{part}.py")
    }
    assert needed <= covered


def test_the_stage_writes_a_whole_base_beside_the_card_and_says_what_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    steps = {"autoencoder_steps": 2, "autoencoder_batch": 2, "decoder_steps": 2, "unet_steps": 2, "unet_batch": 2}
    tiny = {"paintings": 16, "textures": 4, **steps}
    for key, value in tiny.items():
        lines = [f"  {key}: {value}" if line.startswith(f"  {key}: ") else line for line in text.splitlines()]
        text = "\n".join(lines)
    text = text.replace("  uri:\n", "  uri: http://127.0.0.1:9\n").replace("  required: true", "  required: false")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    card = tmp_path / "models" / "pocket" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("the card")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(sheet, "FINEST", Sampling(2, 2.0))  # of the untrained base, where 50 steps take half a minute
    pocket.run()
    assert card.read_text() == "the card"
    made = json.loads((card.parent / "made.json").read_text())
    assert made["weights"] == pocket.weight_digests(card.parent) and len(made["weights"]) == 3
    assert made["params"]["paintings"] == 16 and made["code"] == pocket.code_digest()
    assert {path.name for path in card.parent.iterdir()} == {*pocket.OUTPUTS, "README.md"}
    assert StableDiffusionPipeline.from_pretrained(card.parent).unet is not None
    assert not list((tmp_path / ".work" / "pocket").glob("*/")), "checkpoints were left"


def test_earlier_weights_must_be_there_and_not_where_dvc_empties(tmp_path: Path) -> None:
    settings = load_params(ROOT / "params.yaml").pocket

    def problems(start: str | None) -> list[str]:
        return [
            problem.found for problem in pocket.find_start_problems(settings.model_copy(update={"init_from": start}))
        ]

    assert problems(None) == []
    assert "DVC empties models/pocket before" in problems("models/pocket")[0]
    assert "has no unet, vae, text_encoder" in problems(str(tmp_path))[0]
