import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pipeline.adapters.lora import lora_config, read_adapter, read_notes, save_adapter
from pipeline.adapters.mixing import mixed_adapters
from pipeline.base.protocol import Base
from pipeline.errors import UserError
from pipeline.training.pack import AdapterPack
from tests.tiny import caption_of
from tests.training.settings import SETTINGS as TINY

Fresh = Callable[[], Base]
NOTES = {"base": {"source": "tiny", "digest": "sha256:0"}, "captions": {"a.png": "ein Häuschen"}}


SETTINGS = TINY.model_copy(update={"alpha": 3.0, "rank": 2})


def saved(base: Base, path: Path) -> torch.Tensor:
    """Save a random adapter of alpha 3 and rank 2; returns what the base predicts with it."""
    pack = AdapterPack(base, [1], SETTINGS)
    pack.up.copy_(0.3 * torch.randn(pack.up.shape, generator=torch.Generator().manual_seed(2)))
    notes = {**NOTES, "base": {"source": "tiny", "digest": base.digest}}
    save_adapter(path, pack.tensors(0), lora_config(SETTINGS), notes, base.adapter_prefix)
    with pack.attached():
        return predicted(base)


@torch.no_grad()
def predicted(base: Base) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return base.predict(
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.tensor([300]),
        caption_of(torch.randn(1, 64, 16, generator=generator)),
    )


def test_reloading_gives_the_same_predictions(fresh_tiny: Fresh, tmp_path: Path) -> None:
    expected = saved(fresh_tiny(), tmp_path / "a.safetensors")
    base = fresh_tiny()
    adapter = read_adapter(tmp_path / "a.safetensors", base.digest, base.device)
    with mixed_adapters(base.denoiser, [adapter], torch.ones(1, 1)):
        assert torch.allclose(predicted(base), expected, atol=1e-6)


def test_diffusers_takes_the_file_as_it_is(fresh_tiny: Fresh, tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    expected = saved(fresh_tiny(), tmp_path / "a.safetensors")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["epsilon"])
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        got = pipe.unet(
            torch.randn(1, 4, 8, 8, generator=generator),
            torch.tensor([300]),
            torch.randn(1, 64, 16, generator=generator),
        ).sample
    assert torch.allclose(got, expected, atol=1e-6), "rank, alpha or a layer was lost on the way"


def test_the_same_adapter_is_the_same_file_in_every_process(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from tests.tiny import open_tiny\n"
        "from pipeline.adapters.lora import lora_config, save_adapter\n"
        "from pipeline.training.pack import AdapterPack\n"
        "from tests.training.settings import SETTINGS\n"
        "pack = AdapterPack(open_tiny(Path(sys.argv[1])), [1], SETTINGS)\n"
        "notes = {'b': 1, 'a': {'z': 2, 'y': 3}}\n"
        "save_adapter(Path(sys.argv[2]), pack.tensors(0), lora_config(SETTINGS), notes, 'unet.')\n"
    )
    contents = []
    for number in range(2):  # another hash seed reorders sets; safetensors itself reorders its metadata
        path = tmp_path / f"{number}.safetensors"
        subprocess.run(
            [sys.executable, "-c", script, str(tiny_folders["epsilon"]), str(path)],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": str(number), "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        )
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_notes_come_back(fresh_tiny: Fresh, tmp_path: Path) -> None:
    saved(fresh_tiny(), tmp_path / "a.safetensors")
    assert read_notes(tmp_path / "a.safetensors")["captions"] == {"a.png": "ein Häuschen"}


def test_tensors_are_float32_and_the_header_aligned(fresh_tiny: Fresh, tmp_path: Path) -> None:
    saved(fresh_tiny(), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F32"}


def test_an_adapter_of_another_base_a_missing_and_a_damaged_one_are_told(fresh_tiny: Fresh, tmp_path: Path) -> None:
    saved(fresh_tiny(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="not on this base"):
        read_adapter(tmp_path / "a.safetensors", "sha256:other", torch.device("cpu"))
    with pytest.raises(UserError, match="missing"):
        read_notes(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match=r"c\.safetensors"):
        read_notes(tmp_path / "c.safetensors")
