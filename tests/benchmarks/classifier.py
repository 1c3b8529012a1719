"""A small classifier of painted landscapes: reads their attributes, and gives features for a Frechet distance.

It is trained on paintings alone, in a minute or two, and does not ship.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.landscapes.world import Scene, attribute_values

ATTRIBUTES = ("time", "rock", "foreground", "ridges")
FEATURES = 64


class Reader(nn.Module):
    """Pictures (B, 3, 128, 128) in [0, 1] to features (B, 64), and those to logits of each attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        # Rows stay apart: what lies below is not what lies above.
        self.project = nn.Linear(widths[-1] * 4, FEATURES)
        values = attribute_values()
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values[name])) for name in ATTRIBUTES})

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures to features (B, 64)."""
        maps = self.body(F.avg_pool2d(pictures * 2 - 1, 2))
        return torch.tanh(self.project(F.adaptive_avg_pool2d(maps, (4, 1)).flatten(1)))

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each attribute."""
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}


def labels(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """Which value each scene has, (N,) a name."""
    values = attribute_values()
    return {name: torch.tensor([values[name].index(getattr(scene, name)) for scene in scenes]) for name in ATTRIBUTES}


def train_reader(pictures: torch.Tensor, scenes: Sequence[Scene], epochs: int = 6, batch: int = 64) -> Reader:
    """A reader of pictures (N, 3, 128, 128) uint8; the same one on the same machine."""
    torch.manual_seed(0)
    reader, truth = Reader(), labels(scenes)
    steps = epochs * (len(pictures) // batch)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    bar = tqdm(total=steps, desc="classifier", unit="step")
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures), generator=generator).split(batch)[: len(pictures) // batch]:
            shown = pictures[chosen].float() / 255
            # Softer pictures than the painter's are read by what they show, not by how sharp they are.
            if torch.rand((), generator=generator) < 0.5:
                shown = F.interpolate(F.avg_pool2d(shown, 2), scale_factor=2, mode="bilinear")
            loss = sum(F.cross_entropy(logits, truth[name][chosen]) for name, logits in reader(shown).items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    return reader.eval()


@torch.no_grad()
def accuracies(reader: Reader, pictures: torch.Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of pictures (N, 3, 128, 128) in [0, 1] whose attribute is read as the scene's."""
    truth = labels(scenes)
    logits = [reader(part) for part in pictures.split(100)]
    return {
        name: float((torch.cat([part[name] for part in logits]).argmax(1) == truth[name]).double().mean())
        for name in ATTRIBUTES
    }


@torch.no_grad()
def features(reader: Reader, pictures: torch.Tensor) -> torch.Tensor:
    """Features (N, 64) float64 of pictures in [0, 1]."""
    return torch.cat([reader.features(part) for part in pictures.split(100)]).double()


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Squared Frechet distance of the normal distributions fitted to features (N, D) and (M, D) (Heusel et al. 2017).

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)); the trace of the root is the sum of the roots of AB's eigenvalues.
    """
    gap = (a.mean(0) - b.mean(0)).square().sum()
    first, second = torch.cov(a.T), torch.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals((first @ second).numpy()).real.clip(min=0)).sum()
    return float(gap + first.trace() + second.trace() - 2 * roots)
