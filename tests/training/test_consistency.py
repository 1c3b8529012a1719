"""The consistency loss: against a slow reference from the papers, exact where a consistency function is known, and the
same whatever the network predicts."""

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from pipeline.base.conditioning import Conditioning
from pipeline.base.noise_path import NoisePath
from pipeline.base.posterior import keyed_seed
from pipeline.base.protocol import Base
from pipeline.sampling.consistency import GRID, boundary
from pipeline.training.consistency import Consistency, consistent, grid_times
from pipeline.training.draws import Batch
from pipeline.training.objective import Trained
from pipeline.training.pack import AdapterPack
from tests.paths import PATHS, diffusion_path
from tests.tiny import build_tiny, caption_of, in_double, open_tiny
from tests.training.jobs import Fresh, jobs, trained
from tests.training.settings import SETTINGS

READY = SETTINGS.model_copy(update={"objective": "consistency", "guidance_from": 2.0, "guidance_to": 8.0})


def a_batch(path: NoisePath, captions: torch.Tensor, shares: list[float]) -> Batch:
    """One sample at each share of the path."""
    generator = torch.Generator().manual_seed(3)
    clean, noise = (torch.randn(len(shares), 4, 8, 8, generator=generator).double() for _ in range(2))
    times = torch.tensor([path.time_at(share) for share in shares])
    count = len(shares)
    return Batch(clean, noise, times, caption_of(captions), ("",) * count, tuple(range(count)))


@dataclass
class Toy:
    """A base whose x0 is known: of N(mean, 1) for the teacher, of its consistency function for the student."""

    path: NoisePath
    mean: torch.Tensor
    teaching: bool = False
    wrong: float = 0.0

    def predict(self, x: torch.Tensor, times: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return torch.cat([self.predict_one(x[row : row + 1], time) for row, time in enumerate(times)])

    def predict_one(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        a, s = (float(part) for part in self.path.at(time[None]))
        if self.teaching:
            clean = self.mean + a * (x - a * self.mean)
        else:
            skip, out = (float(part) for part in boundary(time[None]))
            clean = (self.end(x, time) - skip * x) / out if out else x
        noise = (x - a * clean) / s
        c, d = self.path.target_coefficients(torch.tensor(a).double(), torch.tensor(s).double())
        return c * clean + d * noise

    def end(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Where the teacher's DDIM steps along the grid lead: what lies off the mean shrinks by cos of each angle."""
        points = [torch.zeros_like(time), *(point for point in self.path.even_times(GRID) if point <= time)]
        levels = [tuple(float(part) for part in self.path.at(point[None])) for point in points]
        shrunk = math.prod(a * b + s * t for (a, s), (b, t) in zip(levels, levels[1:], strict=False))
        return levels[0][0] * self.mean + (shrunk + self.wrong * float(time)) * (x - levels[-1][0] * self.mean)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_exact_consistency_function_of_a_gaussian_has_no_loss(kind: str) -> None:
    path = diffusion_path(kind)
    toy = Toy(path, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double())
    batch = a_batch(path, torch.zeros(5, 3, 2), [0.0, 0.03, 0.4, 0.7, 0.999])

    class Teaching:
        def __enter__(self) -> None:
            toy.teaching = True

        def __exit__(self, *_: object) -> None:
            toy.teaching = False

    given = Trained(toy, caption_of(torch.zeros(1, 3, 2)), Teaching)  # type: ignore[arg-type]
    assert float(Consistency((1.0, 9.0))(given, batch).values.max()) < 1e-9
    toy.wrong = 0.01
    assert float(Consistency((1.0, 9.0))(given, batch).values.min()) > 1e-2


def test_at_time_zero_it_is_the_picture_itself() -> None:
    skip, out = boundary(torch.tensor([0.0, 0.05, 999.0]))
    assert skip[0] == 1 and out[0] == 0
    assert float(skip[1]) == pytest.approx(0.25 / (0.25 + 0.25))
    assert float(out[1]) == pytest.approx(0.5 / 0.5**0.5)
    assert float(skip[2]) < 1e-8 and float(out[2]) == pytest.approx(1)
    toy = Toy(diffusion_path("epsilon"), torch.zeros(1, 4, 2, 2).double())
    x = torch.randn(1, 4, 2, 2).double()
    assert torch.equal(consistent(toy, x, torch.tensor([0]), caption_of(torch.zeros(1, 1, 1))), x)  # type: ignore[arg-type]


def test_the_grid_is_that_of_lcm_and_every_time_has_its_point() -> None:
    path = PATHS["epsilon"]
    assert path.even_times(GRID).tolist() == [20 * number + 19 for number in range(50)]
    times, before = grid_times(path, torch.tensor([0, 19, 20, 500, 999]))
    assert times.tolist() == [19, 19, 39, 519, 999] and before.tolist() == [0, 0, 19, 499, 979]
    assert grid_times(path, torch.tensor([0, 79, 999]), skip=5)[1].tolist() == [0, 0, 899]
    assert grid_times(path, torch.tensor([99, 119]), skip=5)[1].tolist() == [0, 19]
    ends, starts = grid_times(PATHS["flow"], torch.tensor([0.0, 0.011, 0.999]).double())
    assert ends.tolist() == pytest.approx([0.02, 0.02, 1.0]) and starts.tolist() == pytest.approx([0, 0, 0.98])


def slow_loss(student: Base, teacher: Base, batch: Batch, row: int, empty: torch.Tensor) -> torch.Tensor:
    """Algorithm 1 of LCM-LoRA for one sample, in alphas and sigmas: as its paper and script have it."""
    abar = student.path.alphas_cumprod
    x0, noise, caption = batch.clean[row : row + 1], batch.noise[row : row + 1], batch.conditioning["embedding"][[row]]
    t = int(batch.times[row]) // 20 * 20 + 19
    t = min(t, 999) if int(batch.times[row]) % 20 != 19 else int(batch.times[row])
    nearer = max(t - 20, 0)
    alpha, sigma = abar[t] ** 0.5, (1 - abar[t]) ** 0.5
    after, spread = abar[nearer] ** 0.5, (1 - abar[nearer]) ** 0.5

    def read(
        unet: torch.nn.Module, x: torch.Tensor, time: int, given: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, a, s = unet(x, time, given).sample, abar[time] ** 0.5, (1 - abar[time]) ** 0.5
        if student.path.prediction_type == "epsilon":
            return (x - s * out) / a, out
        return a * x - s * out, a * out + s * x

    def function(x: torch.Tensor, time: int) -> torch.Tensor:
        scaled = 10.0 * time
        skip, share = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
        return skip * x + share * read(student.denoiser, x, time, caption)[0]

    noisy = alpha * x0 + sigma * noise
    share = torch.rand((), generator=torch.Generator().manual_seed(keyed_seed("guidance", batch.seeds[row])))
    w = READY.guidance_from + (READY.guidance_to - READY.guidance_from) * share - 1
    with torch.no_grad():
        clean, eps = read(teacher.denoiser, noisy, t, caption)
        clean_empty, eps_empty = read(teacher.denoiser, noisy, t, empty)
        target = after * (clean + w * (clean - clean_empty)) + spread * (eps + w * (eps - eps_empty))
        target = function(target, nearer)
    difference = function(noisy, t) - target
    return ((difference**2 + 0.001**2) ** 0.5 - 0.001).mean()


def test_it_is_lcm_loras_loss_with_its_gradient(fresh_tiny: Fresh) -> None:
    base = in_double(fresh_tiny())
    teacher = copy.copy(base)
    teacher = replace(base, denoiser=copy.deepcopy(base.denoiser))  # type: ignore[type-var]
    generator = torch.Generator().manual_seed(8)
    pack = AdapterPack(base, [5], READY)
    pack.up.copy_(0.3 * torch.randn(pack.up.shape, generator=generator))
    captions, empty = (torch.randn(count, 64, 16, generator=generator).double() for count in (4, 1))
    batch = a_batch(base.path, captions, [0.0, 0.019, 0.4, 0.999])
    with pack.attached():
        given = Trained(base, caption_of(empty), pack.bypassed)
        losses = Consistency((READY.guidance_from, READY.guidance_to))(given, batch).values
        losses.sum().backward()
        gradient = pack.up_grad.clone()
        pack.zero_grad()
        slow = torch.stack([slow_loss(base, teacher, batch, row, empty) for row in range(4)])
        slow.sum().backward()
    assert torch.allclose(losses, slow, atol=1e-10, rtol=1e-8)
    assert float(gradient.norm()) > 1e-3 and torch.allclose(gradient, pack.up_grad, atol=1e-9, rtol=1e-6)


def test_a_network_for_v_has_the_loss_of_the_same_one_for_the_noise(fresh_tiny: Fresh) -> None:
    base = in_double(fresh_tiny())
    epsilon = replace(base, path=diffusion_path("epsilon"))  # type: ignore[type-var]

    class AsV:
        path = diffusion_path("v_prediction")

        def predict(self, x: torch.Tensor, times: torch.Tensor, given: Conditioning) -> torch.Tensor:
            a, s = (part.view(-1, 1, 1, 1) for part in self.path.at(times))
            noise = epsilon.predict(x, times, given)
            return (noise - s * x) / a

    captions = torch.randn(3, 64, 16, generator=torch.Generator().manual_seed(2)).double()
    batch = a_batch(epsilon.path, captions, [0.1, 0.5, 0.9])
    empty = caption_of(torch.zeros(1, 64, 16).double())
    objective = Consistency((2.0, 4.0))
    one, other = (objective.errors(Trained(b, empty, nullcontext), batch) for b in (epsilon, AsV()))  # type: ignore[arg-type]
    assert torch.allclose(one, other, atol=1e-9) and float(one.min()) > 0


def test_it_learns(tmp_path: Path) -> None:
    """Its own error at fixed noise falls, of which validation speaks."""
    changes = {"steps": 100, "batch": 4, "rank": 8, "alpha": 8.0, "guidance_from": 1.0, "guidance_to": 1.0}
    build_tiny(at_the_top=True).save_pretrained(tmp_path / "base")
    base, settings = open_tiny(tmp_path / "base"), READY.model_copy(update=changes)
    (state,) = trained(base, tmp_path, settings, jobs(base, 1), every=100).values()
    first, last = (float(state.tensors[f"validation/{step}"].mean()) for step in (0, 100))
    assert last < 0.95 * first
