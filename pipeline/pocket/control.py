"""Training a ControlNet for edges on the finished pocket."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.base.posterior import Posterior
from pipeline.base.stable_diffusion import RESIDUALS, StableDiffusion
from pipeline.editing.edges import edges_of
from pipeline.parallel import parallel_map
from pipeline.pocket.denoiser import draw_timesteps
from pipeline.pocket.layout import build_scheduler
from pipeline.pocket.optimizers import muon_and_adamw
from pipeline.pocket.paintings import paint_captioned
from pipeline.pocket.progress import LogMetrics, Training, batches
from pipeline.sections import ControlNetSection

EDGE_CHANNELS = (8, 16, 32, 64)
"""Of the layers that bring edges of 128x128 down to the latents' 16x16, which halve the side between each two."""
SIGMA, THRESHOLDS = 1.0, (0.2, 1.2)
CENTRE, WIDTH = 2.0, 1.2
"""Where timesteps are drawn, in the log of noise over signal, normally distributed: where the layout is decided. Below,
the picture itself shows its edges through the noise, and there is nothing to learn."""
WITHOUT_CAPTION = 0.5
"""Share of samples with an empty caption, so that edges come to say what is shown (Zhang et al. 2023, section 3.3)."""


class Controlled(nn.Module):
    """The frozen UNet with the ControlNet in training, called as one."""

    def __init__(self, net: ControlNetModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.net, self.unet = net, unet

    def forward(
        self, noisy: torch.Tensor, times: torch.Tensor, captions: torch.Tensor, edges: torch.Tensor
    ) -> torch.Tensor:
        """The UNet's prediction for latents (B, C, h, w), captions (B, L, D) and edges (B, 3, H, W)."""
        added = self.net(noisy, times, captions, edges, return_dict=False)
        named = dict(zip(RESIDUALS, added, strict=True))
        return self.unet(noisy, times, captions, return_dict=False, **named)[0]


def build_net(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet with the UNet's own weights, whose outputs are all zero."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EDGE_CHANNELS)


def paint_edged(index: int, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Painting number `index` (128, 128, 3) uint8, its edges (128, 128) bool, and its caption.

    What counts as an edge differs from painting to painting, so that the ControlNet bears few and many.
    """
    picture, captioned = paint_captioned(index, seed, between=0.0)
    low, high = THRESHOLDS
    threshold = float(np.exp(np.random.default_rng([seed, index, 3]).uniform(np.log(low), np.log(high))))
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return picture, edges_of(pixels, SIGMA, threshold / 2, threshold)[0, 0].bool().numpy(), captioned.first


def train_net(
    base: StableDiffusion, settings: ControlNetSection, work: Path, workers: int, log: LogMetrics
) -> ControlNetModel:
    """A ControlNet for Canny edges of the base's kind. A killed training resumes from its checkpoint in `work`."""
    paint = partial(paint_edged, seed=settings.seed)
    edges, captions, encoded = list[torch.Tensor](), list[str](), list[Posterior]()
    waiting = list[np.ndarray]()
    for picture, found, caption in parallel_map(paint, range(settings.paintings), workers, label="paint"):
        edges.append(torch.from_numpy(found))
        captions.append(caption)
        waiting.append(picture)
        if len(waiting) == 32 or len(edges) == settings.paintings:
            pixels = torch.from_numpy(np.stack(waiting)).permute(0, 3, 1, 2).float() / 255
            encoded.append(base.encode(pixels))
            waiting.clear()
    means, stds = (torch.cat([getattr(each, part) for each in encoded]).cpu().half() for part in ("mean", "std"))
    known, rows = _conditions(base, captions)
    torch.manual_seed(settings.seed + 1)
    unet, device = base.denoiser, base.device
    net = build_net(unet).to(device).train()
    for model in (net, unet):
        model.to(memory_format=torch.channels_last)
    both = Controlled(net, unet)
    if device.type == "cpu":
        # As in the UNet's own training: the backward pass of torch's fused attention takes a third of a step there.
        unet.set_attn_processor(AttnProcessor())
        net.set_attn_processor(AttnProcessor())
    optimizers = muon_and_adamw(net, settings.rate, settings.rate / 2)
    training = Training(net, optimizers, settings.steps, settings.ema, work / "controlnet.pt")
    alphas_cumprod = build_scheduler().alphas_cumprod
    indices = list(batches(len(means), settings.batch, settings.steps, settings.seed + 1))

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        chosen = indices[step]
        clean = Posterior(means[chosen].float(), stds[chosen].float()).sample(generator)
        noise = torch.randn(clean.shape, generator=generator)
        times = draw_timesteps(len(chosen), alphas_cumprod, generator, CENTRE, WIDTH, uniform_share=0.0)
        keep = torch.rand(len(chosen), generator=generator) >= WITHOUT_CAPTION
        given = known[torch.where(keep, rows[chosen], 0)]
        signal = alphas_cumprod[times].sqrt().view(-1, 1, 1, 1)
        scale = (1 - alphas_cumprod[times]).sqrt().view(-1, 1, 1, 1)
        noisy, target = signal * clean + scale * noise, signal * noise - scale * clean
        drawn = torch.stack([edges[index] for index in chosen]).float()[:, None].repeat(1, 3, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = both(
                noisy.to(device, memory_format=torch.channels_last),
                times.to(device),
                given.to(device),
                drawn.to(device, memory_format=torch.channels_last),
            )
        return F.mse_loss(predicted.float(), target.to(device))

    training.run(loss_at, log, "controlnet")
    training.use_average()
    net.set_default_attn_processor()
    unet.set_default_attn_processor()
    return net.eval()


def _conditions(base: StableDiffusion, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (K, L, D) of all different captions, the empty one first, and which of them each caption has (N,)."""
    texts = ["", *sorted(set(captions))]
    parts = [base.condition(texts[first : first + 64])["embedding"] for first in tqdm(range(0, len(texts), 64))]
    places = {text: place for place, text in enumerate(texts)}
    return torch.cat(parts).cpu(), torch.tensor([places[text] for text in captions])
