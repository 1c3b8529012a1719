"""LoRA on text encoders beside the denoiser's: against peft's, and what a training of it must hold to."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from pipeline.adapters.lora import ATTENTION, TEXT_ATTENTION
from pipeline.base.protocol import Base
from pipeline.previews import preview_sheet
from pipeline.training.checkpoints import TrainState
from pipeline.training.draws import draw_batch
from pipeline.training.loop import Callbacks
from pipeline.training.objectives import objective_of
from pipeline.training.optimizers import RowOptimizer
from pipeline.training.pack import AdapterPack
from pipeline.training.trainer import PackTrainer
from tests.text_adapters import READING
from tests.tiny import build_tiny_xl, open_tiny
from tests.training.jobs import Fresh, Killed, examples, jobs, kill_at, trained

STEPS = READING.model_copy(update={"caption_dropout": 0.3, "max_grad_norm": 0.01})


def a_trainer(base: Base) -> PackTrainer:
    """One adapter of two pictures whose B is random, as after some steps."""
    own = [examples(base)]
    state = TrainState(0, {})
    trainer = PackTrainer(base, own, own, [state], STEPS, objective_of(STEPS), base.condition([""]), None)
    trainer.pack.up.copy_(0.2 * torch.randn(trainer.pack.up.shape, generator=torch.Generator().manual_seed(5)))
    return trainer


def test_a_step_has_pefts_gradients_clipped_together(fresh_tiny: Fresh, tiny_folders: dict[str, Path]) -> None:
    """With dropped captions, through the pipeline's own encoder, as diffusers' scripts clip: both parts by one norm."""
    base = fresh_tiny()
    trainer = a_trainer(base)
    pack, kept = trainer.pack, {}
    plain = pack.clip

    def clip(most: float) -> torch.Tensor:
        norms = plain(most)
        kept["norm"], kept["down"], kept["up"] = norms, pack.down_grad.clone(), pack.up_grad.clone()
        return norms

    pack.clip = clip  # type: ignore[method-assign]
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["epsilon"])
    factors, modules = pack.tensors(0), {}
    for module, ends in ((pipe.unet, ATTENTION), (pipe.text_encoder, TEXT_ATTENTION)):
        module.requires_grad_(False)
        config = LoraConfig(r=STEPS.rank, lora_alpha=STEPS.alpha, target_modules=list(ends))
        module.add_adapter(config, "default")
        start = "text_encoder.text_model." if module is pipe.text_encoder else ""
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                key = start + name.replace(".default", "")
                parameter.data = factors[key].clone()
                modules[key] = parameter
    assert modules.keys() == factors.keys()
    batch = draw_batch(trainer.examples[0], STEPS, base.path, trainer.empty_caption, 0, range(STEPS.batch))
    assert {"", "a red hill"} == set(batch.captions)
    tokens = pipe.tokenizer(list(batch.captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
    read = pipe.text_encoder(tokens).last_hidden_state
    noisy = base.path.add_noise(batch.clean, batch.noise, batch.times)
    (pipe.unet(noisy, batch.times, read).sample - batch.noise).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(modules.values(), STEPS.max_grad_norm)
    with trainer.attached():
        trainer.train_step()
    assert norm > STEPS.max_grad_norm and float(kept["norm"]) == pytest.approx(float(norm), rel=1e-4)
    for layer in pack.layers:
        for letter, part, row in (("A", layer.down, "down"), ("B", layer.up, "up")):
            expected = modules[f"{layer.name}.lora_{letter}.weight"].grad
            assert torch.allclose(kept[row][0, part], expected.flatten(), atol=1e-6), (layer.name, letter)
    assert any(kept["down"][0, pack.text_from[0] :]), "nothing reaches the text encoder"


def test_both_parts_learn_at_their_own_rates(tiny: Base) -> None:
    """AdamW's first step is the rate itself, whatever the gradient: B's is b_rate times A's in either part."""
    settings = READING.model_copy(update={"b_rate": 4.0, "weight_decay": 0.0, "learning_rate": 1e-2, "text_rate": 1e-3})
    pack = AdapterPack(tiny, [1], settings)
    before = pack.down.clone(), pack.up.clone()
    pack.down_grad.fill_(0.5)
    pack.up_grad.fill_(-0.5)
    optimizer = RowOptimizer(pack, 0, settings)
    optimizer.set_rate(5e-3)  # half of it, as in a warm-up: the text encoders' part is at half of its own
    optimizer.step()
    for rows, start, cut, rates in (
        (pack.down, before[0], pack.text_from[0], (-5e-3, -5e-4)),
        (pack.up, before[1], pack.text_from[1], (2e-2, 2e-3)),
    ):
        moved = (rows - start)[0]
        assert 0 < cut < len(moved)
        assert torch.allclose(moved[:cut], torch.tensor(rates[0]), rtol=1e-3)
        assert torch.allclose(moved[cut:], torch.tensor(rates[1]), rtol=1e-3)


def test_the_denoisers_part_begins_as_it_does_alone(tiny: Base) -> None:
    alone = AdapterPack(tiny, [7], READING.model_copy(update={"text_rate": None}))
    both = AdapterPack(tiny, [7], READING)
    assert torch.equal(both.down[:, : both.text_from[0]], alone.down) and both.text_from == (
        alone.down.shape[1],
        alone.up.shape[1],
    )
    layers = {layer.name for layer in both.layers} - {layer.name for layer in alone.layers}
    assert layers == {f"text_encoder.text_model.encoder.layers.0.self_attn.{end}" for end in TEXT_ATTENTION}
    started = both.down[:, both.text_from[0] :].abs()
    assert 0 < float(started.max()) <= 1 / math.sqrt(16), "kaiming, as the denoiser's"


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_training_goes_on_exactly_where_it_was(
    fresh_tiny: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    settings = STEPS.model_copy(update={"validate_every": 2, "schedule": "linear", "steps": 5})
    base = fresh_tiny()
    calm = trained(base, tmp_path / "calm", settings, jobs(base, 1))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        trained(base, tmp_path / "killed", settings, jobs(base, 1))
    resumed = trained(fresh_tiny(), tmp_path / "killed", settings, jobs(base, 1))
    (state,) = calm.values()
    assert {"optimizer/text_down/exp_avg", "optimizer/text_up/exp_avg"} < state.tensors.keys()
    again = resumed["job 0"].tensors
    assert again.keys() == state.tensors.keys()
    assert all(torch.equal(tensor, again[key]) for key, tensor in state.tensors.items())


def test_validations_and_previews_read_captions_as_the_adapter_does(fresh_tiny: Fresh, tmp_path: Path) -> None:
    """The text encoder's part alone learns: without it the loss and the pictures would stay as they were."""
    settings = READING.model_copy(
        update={"learning_rate": 1e-30, "text_rate": 0.1, "steps": 8, "validate_every": 4, "max_grad_norm": 1e6}
    )
    losses, sheets = [], []
    base = fresh_tiny()
    wanted = jobs(base, 1)

    def preview(given: object, step: int) -> None:
        sheets.append([preview_sheet(base, wanted, reads) for reads in (True, False)])

    callbacks = Callbacks(validation=lambda job, step, found: losses.append(found), preview=preview, preview_every=4)
    shown = trained(base, tmp_path / "shown", settings, wanted, callbacks=callbacks)
    plain = trained(fresh_tiny(), tmp_path / "plain", settings, wanted)
    assert all(torch.equal(plain["job 0"].tensors[key], tensor) for key, tensor in shown["job 0"].tensors.items())
    assert len(losses) == 3 and len({tuple(found.values()) for found in losses}) == 3
    assert (sheets[0][0] != sheets[1][0]).any(), "a preview of what was read at first"
    assert (sheets[0][1] == sheets[1][1]).all(), "the denoiser has changed"


def test_both_encoders_of_an_xl_learn(tmp_path: Path) -> None:
    build_tiny_xl().save_pretrained(tmp_path / "xl")
    base = open_tiny(tmp_path / "xl")
    states = trained(base, tmp_path / "work", READING, jobs(base, 1))
    pack = AdapterPack(base, [0], READING)
    pack.down[0], pack.up[0] = (states["job 0"].tensors[f"weight/{name}"] for name in ("down", "up"))
    for part, layers in (("text_encoder.", 2), ("text_encoder_2.", 2)):
        learned = {key: bool(tensor.any()) for key, tensor in pack.tensors(0).items() if key.startswith(part)}
        assert len(learned) == 2 * 4 * layers
        # An XL takes the last layer but one of the first encoder; of the second the last is in the pooled caption.
        last = "layers.1" if part == "text_encoder." else "none"
        assert {key for key, any_learned in learned.items() if not any_learned} == {
            key for key in learned if last in key and "lora_B" in key
        }
