"""Training adapters on a frozen base, many side by side.

`train_adapters` packs them into batches, `train_pack` is the loop. An adapter is a function of its inputs: neither the
packing, the order of the work, the number of processes nor an interruption changes it, but for float rounding where
the shape of a batch differs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from tqdm import tqdm

from pipeline.adapters.lora import keyed_seed
from pipeline.base.stable_diffusion import StableDiffusion
from pipeline.params import TrainSection
from pipeline.training.checkpoints import Checkpoints, TrainState
from pipeline.training.draws import Sample, denoising_losses, draw_batch, joined, validation_batch
from pipeline.training.optimizers import LossScales, RowOptimizer, load_rows, row_tensors
from pipeline.training.pack import AdapterPack
from pipeline.training.processes import ALONE, Processes
from pipeline.training.rates import learning_rate
from pipeline.training.stopping import Stopped, stop_signals

CHECK_EVERY = 20
"""Steps between two looks at the numbers: a look at every one would make a GPU wait each time."""


@dataclass(frozen=True)
class Job:
    """One adapter to train. identity: a digest of everything that its result depends on."""

    name: str
    identity: str
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Curves:
    """What a training saw.

    loss, grad_norm: (steps taken,) float64. validation: at which step, the loss at fixed noise of each sample.
    ended: why it ended.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    validation: Mapping[int, torch.Tensor]
    ended: str


@dataclass(frozen=True)
class Watch:
    """Who is told. `steps` gets a job's name, a step and its values; `validated` a job, a step and loss by sample.

    `preview` gets the jobs and the step every `preview_every` steps, while the UNet takes batches of equal parts, one
    for each job.
    """

    steps: Callable[[str, int, Mapping[str, float]], None] = lambda name, step, values: None
    validated: Callable[[Job, int, Mapping[str, float]], None] = lambda job, step, losses: None
    preview: Callable[[Sequence[Job], int], None] = lambda jobs, step: None
    preview_every: int | None = None


def train_adapters(
    base: StableDiffusion,
    jobs: Sequence[Job],
    settings: TrainSection,
    checkpoints: Checkpoints,
    *,
    empty: torch.Tensor,
    pack_size: int | None = None,
    every: int = 50,
    watch: Watch = Watch(),
    processes: Processes = ALONE,
) -> dict[str, TrainState]:
    """Train every job to its end, going on from its checkpoint; the finished states by the jobs' names.

    empty: the empty caption's embedding (1, L, D). pack_size: how many side by side, None for as many as fit.
    processes: those that train one adapter together.

    Raises:
        FloatingPointError: when a loss or a gradient is not finite.
        Stopped: after a Ctrl-C or SIGTERM, when all is saved.
        torch.OutOfMemoryError: when not even one adapter fits.
    """
    size = pack_size or max(1, 64 // settings.batch)
    states = resumed(jobs, checkpoints, size)
    while unfinished := [job for job in jobs if not ended(states[job.name], settings)]:
        steps = sorted({states[job.name].step for job in unfinished})
        group = [job for job in unfinished if states[job.name].step == steps[0]][:size]
        # Those that are behind catch up with the next, and go on together with them.
        last = steps[1] if len(steps) > 1 else settings.steps
        try:
            train_pack(base, group, states, settings, last, checkpoints, empty, every, watch, processes)
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            size = (len(group) + 1) // 2
            tqdm.write(f"{len(group)} adapters at once do not fit into memory: on with {size} (machine.pack)")
            torch.cuda.empty_cache()
    return states


def resumed(jobs: Sequence[Job], checkpoints: Checkpoints, size: int) -> dict[str, TrainState]:
    """Where each training goes on, by the jobs' names; `size` of them make a pack.

    A kill while a pack was saved leaves some of it a checkpoint ahead. Those go back to their one before, so that the
    pack goes on together, in batches of the shape that it would have had undisturbed.
    """
    states: dict[str, TrainState] = {}
    for start in range(0, len(jobs), size):
        pack = jobs[start : start + size]
        last = {job.name: checkpoints.load(job.identity) or TrainState(0, {}) for job in pack}
        behind = min(state.step for state in last.values())
        for job in pack:
            if last[job.name].step > behind:
                last[job.name] = checkpoints.load_at(job.identity, behind) or last[job.name]
        states |= last
    return states


def ended(state: TrainState, settings: TrainSection) -> str | None:
    """Why a training is at its end, or None when it is not."""
    if state.step >= settings.steps:
        return f"all {settings.steps} steps"
    validated = [float(state.tensors[key].mean()) for key in _validations(state)]
    if settings.target_loss is not None and validated and validated[-1] <= settings.target_loss:
        return f"the validation loss reached {settings.target_loss:g} at step {state.step}"
    patience = settings.patience
    if patience is not None and len(validated) > patience and min(validated[-patience:]) >= min(validated[:-patience]):
        return f"the validation loss had stopped falling by step {state.step}"
    return None


def train_pack(
    base: StableDiffusion,
    jobs: Sequence[Job],
    states: dict[str, TrainState],
    settings: TrainSection,
    last: int,
    checkpoints: Checkpoints,
    empty: torch.Tensor,
    every: int,
    watch: Watch,
    processes: Processes,
) -> None:
    """Train jobs that stand at one step until step `last`, or until one of them ends; their states go into `states`."""
    identities = [keyed_seed(settings.seed, *(sample.digest for sample in job.samples)) for job in jobs]
    pack = AdapterPack(base.unet, identities, settings)
    optimizers = [RowOptimizer(pack, place, settings) for place in range(len(jobs))]
    scales = LossScales(len(jobs), base.dtype == torch.float16, pack.down.device)
    seen = Seen(jobs, states, settings.steps, pack.down.device)
    for place, job in enumerate(jobs):
        if states[job.name].step:
            load_rows(pack, optimizers[place], scales, place, states[job.name].tensors)
    first = step = states[jobs[0].name].step

    def save() -> None:
        seen.check(step)
        for place, job in enumerate(jobs):
            rows = row_tensors(pack, optimizers[place], scales, place)
            states[job.name] = TrainState(step, rows | seen.tensors(place, step))
            if processes.main:
                checkpoints.save(job.identity, states[job.name])

    label = jobs[0].name if len(jobs) == 1 else f"{len(jobs)} adapters"
    bar = tqdm(total=settings.steps, initial=first, desc=label, unit="step", disable=not processes.main, smoothing=0.05)
    base.unet.train()
    stopping = False
    with bar, pack.attached(), stop_signals() as stop:
        while True:
            try:
                due = is_due(settings, step)
                if due and not seen.is_validated(step):
                    validate(base, jobs, seen, step, settings, watch, processes)
                if watch.preview_every and step > first and step % watch.preview_every == 0 and processes.main:
                    base.unet.eval()
                    watch.preview(jobs, step)
                    base.unet.train()
                over = step == last or stopping
                if step > first and (over or due or step % CHECK_EVERY == 0):
                    seen.tell(step, settings, watch)
                if step > first and (over or due or step % every == 0):
                    save()
                if stopping:
                    raise Stopped(stop.signal, f"stopped after step {step} of {settings.steps}")
                if over or (due and any(ended(states[job.name], settings) for job in jobs if step > first)):
                    break
                for micro in range(settings.accumulation):
                    places = processes.share(range(micro * settings.batch, (micro + 1) * settings.batch))
                    if places:
                        drawn = [
                            draw_batch(job.samples, settings, len(base.schedule), empty, step, places) for job in jobs
                        ]
                        losses = denoising_losses(base, joined(drawn).to(base.device), settings.min_snr_gamma)
                        losses = losses.view(len(jobs), -1).sum(1) / (settings.batch * settings.accumulation)
                        scales.scaled(losses).sum().backward()
                        seen.loss[:, step] += losses.detach()
                stopping = processes.add_up(pack.down_grad, pack.up_grad, seen.loss[:, step], stop.flag)
                usable = scales.unscale(pack)
                seen.grad_norm[:, step] = pack.clip(settings.max_grad_norm)
                for place, optimizer in enumerate(optimizers):
                    if usable[place]:
                        optimizer.set_rate(learning_rate(settings, step))
                        optimizer.step()
                pack.zero_grad()
                step += 1
                bar.update()
            except torch.OutOfMemoryError:
                # No weight has moved since the last whole step.
                pack.zero_grad()
                seen.forget(step)
                save()
                raise
    base.unet.eval()


class Seen:
    """What a pack has seen so far: its curves, kept on the device until somebody looks."""

    def __init__(self, jobs: Sequence[Job], states: Mapping[str, TrainState], steps: int, device: torch.device) -> None:
        self.jobs = jobs
        self.loss = torch.zeros(len(jobs), steps, device=device)
        self.grad_norm = torch.zeros(len(jobs), steps, device=device)
        self.validations: list[dict[int, torch.Tensor]] = []
        self._told = 0
        for place, job in enumerate(jobs):
            state = states[job.name]
            self.validations.append({int(key.rsplit("/", 1)[1]): state.tensors[key] for key in _validations(state)})
            if state.step:
                self._told = state.step
                self.loss[place, : state.step] = state.tensors["curve/loss"].to(self.loss)
                self.grad_norm[place, : state.step] = state.tensors["curve/grad_norm"].to(self.grad_norm)

    def is_validated(self, step: int) -> bool:
        """Whether the loss at fixed noise is known for a step."""
        return all(step in known for known in self.validations)

    def forget(self, step: int) -> None:
        """Undo what a step that was not finished has left."""
        self.loss[:, step:], self.grad_norm[:, step:] = 0, 0

    def check(self, step: int) -> None:
        """Raise FloatingPointError at the first loss or gradient before `step` that is not finite."""
        good = (self.loss[:, :step].isfinite() & self.grad_norm[:, :step].isfinite()).cpu()
        if bool(good.all()):
            return
        place, where = min(((~good).nonzero().tolist()), key=lambda found: found[1])
        job = self.jobs[place]
        raise FloatingPointError(
            f"{job.name}: loss {float(self.loss[place, where])} and gradient norm "
            f"{float(self.grad_norm[place, where])} at step {where} "
            f"({', '.join(sample.name for sample in job.samples)}); lower train.learning_rate, "
            "or use base.dtype: float32"
        )

    def tell(self, step: int, settings: TrainSection, watch: Watch) -> None:
        """Report the steps since the last time, after a look whether they are finite."""
        self.check(step)
        losses, norms = self.loss[:, self._told : step].tolist(), self.grad_norm[:, self._told : step].tolist()
        for place, job in enumerate(self.jobs):
            for number, (loss, norm) in enumerate(zip(losses[place], norms[place], strict=True)):
                at = self._told + number
                values = {"loss": loss, "grad_norm": norm, "learning_rate": learning_rate(settings, at)}
                watch.steps(job.name, at, values)
        self._told = step

    def tensors(self, place: int, step: int) -> dict[str, torch.Tensor]:
        """One adapter's curves, for its checkpoint."""
        curves = {"curve/loss": self.loss[place, :step], "curve/grad_norm": self.grad_norm[place, :step]}
        curves |= {f"validation/{at}": losses for at, losses in self.validations[place].items()}
        return {key: value.double().cpu().clone() for key, value in curves.items()}


def is_due(settings: TrainSection, step: int) -> bool:
    """Whether the loss at fixed noise is asked for after so many steps: at the start, the end, and now and then."""
    return step in (0, settings.steps) or (settings.validate_every is not None and step % settings.validate_every == 0)


@torch.no_grad()
def validate(
    base: StableDiffusion,
    jobs: Sequence[Job],
    seen: Seen,
    step: int,
    settings: TrainSection,
    watch: Watch,
    processes: Processes,
) -> None:
    """Loss of every sample at its own fixed noise and timesteps; the pack must be attached."""
    by_sample = []
    for samples in zip(*(job.samples for job in jobs), strict=True):
        whole = [validation_batch(sample, len(base.schedule)) for sample in samples]
        # Never more at once than a training step has: who can train has the memory to validate.
        parts = [
            denoising_losses(base, joined([batch.part(places) for batch in whole]).to(base.device)).view(len(jobs), -1)
            for places in torch.arange(len(whole[0].clean)).split(settings.batch)
        ]
        by_sample.append(torch.cat(parts, dim=1).mean(1))
    losses = processes.agree(torch.stack(by_sample, dim=1)).double().cpu()
    for place, job in enumerate(jobs):
        seen.validations[place][step] = losses[place]
        named = zip(job.samples, losses[place].tolist(), strict=True)
        watch.validated(job, step, {sample.name: loss for sample, loss in named})


def curves_of(state: TrainState, settings: TrainSection) -> Curves:
    """The curves in a finished state."""
    validation = {int(key.rsplit("/", 1)[1]): state.tensors[key] for key in _validations(state)}
    return Curves(
        state.tensors["curve/loss"],
        state.tensors["curve/grad_norm"],
        validation,
        ended(state, settings) or "unfinished",
    )


def hardly_moved(curves: Curves) -> str | None:
    """A word on a training whose loss at fixed noise did not fall, or None."""
    before, after = (float(curves.validation[step].mean()) for step in (min(curves.validation), max(curves.validation)))
    if isfinite(after) and after < 0.995 * before:
        return None
    return (
        f"the loss at fixed noise went from {before:.4g} to {after:.4g}: hardly anything was learned; "
        "try more train.steps or a higher train.learning_rate"
    )


def _validations(state: TrainState) -> list[str]:
    """The validations in a state, in the order of their steps."""
    found = [key for key in state.tensors if key.startswith("validation/")]
    return sorted(found, key=lambda key: int(key.rsplit("/", 1)[1]))
