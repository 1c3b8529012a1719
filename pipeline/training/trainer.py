"""One step of many adapters: draw, loss, backward, clip, step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from pipeline.base.conditioning import Conditioning
from pipeline.base.posterior import keyed_seed
from pipeline.base.protocol import Base
from pipeline.sections import TrainSection
from pipeline.training.checkpoints import TrainState
from pipeline.training.draws import Batch, draw_batch, validation_batch
from pipeline.training.examples import Example
from pipeline.training.history import History
from pipeline.training.moving_means import MovingMeans
from pipeline.training.objective import Objective, Recordable, Trained
from pipeline.training.optimizers import LossScales, RowOptimizer, adapter_state, load_adapter_state
from pipeline.training.pack import AdapterPack
from pipeline.training.rates import learning_rate
from pipeline.training.recording import RecordedLosses


class PackTrainer:
    """N adapters that are all at one step. examples: those that each adapter learns from; measured: those whose loss at
    fixed noise is taken. states: what each resumes from.

    step: how many optimizer steps are done.
    """

    def __init__(
        self,
        base: Base,
        examples: Sequence[Sequence[Example]],
        measured: Sequence[Sequence[Example]],
        states: Sequence[TrainState],
        settings: TrainSection,
        objective: Objective,
        empty_caption: Conditioning,
        accelerator: Accelerator | None,
    ) -> None:
        self.base, self.examples, self.measured, self.settings = base, examples, measured, settings
        self.objective, self.accelerator = objective, accelerator
        self.empty_caption = empty_caption.to(torch.device("cpu"))  # beside the examples' captions
        seeds = [keyed_seed(settings.seed, *(example.digest for example in own)) for own in examples]
        self.pack = AdapterPack(base, seeds, settings)
        self.optimizers = [RowOptimizer(self.pack, row, settings) for row in range(len(examples))]
        self.scales = LossScales(len(examples), base.dtype == torch.float16, self.pack.down.device)
        self.means = MovingMeans(len(examples), self.pack.down.device, objective.observes)
        self.trained = Trained(base, empty_caption.to(base.device), self.pack.bypassed)
        self.history = History(states, settings.steps, self.pack.down.device)
        self.step = states[0].step
        self._ahead = set[int]()  # rows that have done the step which is under way
        self._whole = settings.batch * settings.accumulation
        self._learning: RecordedLosses | None = None
        self._measuring: RecordedLosses | None = None
        for row, state in enumerate(states):
            if state.step:
                load_adapter_state(self.pack, self.optimizers[row], self.scales, row, state.tensors)
                self.means.load(row, state.tensors)

    def train_step(self) -> None:
        """One optimizer step of every adapter."""
        settings, pack, step = self.settings, self.pack, self.step
        places = self._own_share(range(self._whole))
        self.means.begin()
        for first in range(0, len(places), settings.batch):
            batch = self._draw(step, places[first : first + settings.batch])
            self.history.loss[:, step] += self._learn(batch)
        self._add_up(pack.down_grad, pack.up_grad, self.history.loss[:, step])
        self.means.end(self._add_up)
        usable = self.scales.unscale(pack)
        self.history.grad_norm[:, step] = pack.clip(settings.max_grad_norm)
        for row, optimizer in enumerate(self.optimizers):
            if usable[row]:
                optimizer.set_rate(learning_rate(settings, step))
                optimizer.step()
            self._ahead.add(row)
        self._ahead.clear()
        self.step += 1
        pack.zero_grad()

    def _learn(self, batch: Batch) -> torch.Tensor:
        """Add the gradients of a share of a step to the rows; that share of each adapter's loss, (N,)."""
        scales = self.scales.begin()
        if self._learning is not None:
            return self._learning(batch, scales)
        found = self.objective(self.trained, batch, self.means.means_at(self.step, len(batch)))
        if found.observed is not None:
            self.means.observe(found.observed, self._whole)
        return self._learn_from(found.values, scales)

    def _learn_from(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        # A mean for each adapter and not over all: its gradient must not depend on its neighbours.
        losses = values.view(len(self.pack), -1).sum(1) / self._whole
        (losses * scales).sum().backward()
        return losses.detach()

    def _draw(self, step: int, places: Sequence[int]) -> Batch:
        """The samples of all adapters, those of the first first."""
        settings, path = self.settings, self.base.path
        drawn = [draw_batch(own, settings, path, self.empty_caption, step, places) for own in self.examples]
        return self._read(Batch.concatenate(drawn).to(self.base.device))

    def _read(self, batch: Batch) -> Batch:
        """With its captions as text encoders in training read them now, with gradients; else as it is."""
        if self.settings.text_rate is None:
            return batch
        return replace(batch, conditioning=self.base.condition(batch.captions))

    def _own_share(self, places: range) -> list[int]:
        """The places of a step's samples that this process draws; all of them where it trains alone."""
        if self.accelerator is None:
            return list(places)
        with self.accelerator.split_between_processes(list(places)) as share:
            return share

    def _add_up(self, *tensors: torch.Tensor) -> None:
        """Sum over the processes that train together, in place: gradients of shares of a batch add up to its own."""
        if self.accelerator is not None:
            for tensor in tensors:
                tensor.copy_(self.accelerator.reduce(tensor.contiguous(), reduction="sum"))

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes that train together."""
        if self.accelerator is None:
            return flag
        flags = torch.tensor([float(flag)], device=self.pack.down.device)
        return bool(self.accelerator.reduce(flags, reduction="sum") > 0)

    def drop_unfinished_step(self) -> None:
        """After memory ran out within a step: adapters that have done it stay ahead, the others do it again."""
        self.pack.zero_grad()
        for row in range(len(self.pack)):
            if row not in self._ahead:
                self.history.forget(row, self.step)
                self.scales.undo(row)
                self.means.undo(row)

    @torch.no_grad()
    def validate(self) -> torch.Tensor:
        """The objective's errors (adapters, measured examples) float64 at each example's own fixed noise and times."""
        by_example = []
        for examples in zip(*self.measured, strict=True):
            whole = [validation_batch(example, self.base.path) for example in examples]
            # Never more at once than a training step has: who can train has the memory to validate.
            chunks = []
            for rows in torch.arange(len(whole[0])).split(self.settings.batch):
                some = Batch.concatenate([batch.take(rows) for batch in whole]).to(self.base.device)
                chunks.append(self._measure(self._read(some)))
            by_example.append(torch.cat([chunk.view(len(whole), -1) for chunk in chunks], dim=1).mean(1))
        losses = torch.stack(by_example, dim=1)
        if self.accelerator is not None:
            losses = broadcast(losses)  # the first process's, so that all decide alike
        losses = losses.cpu().double()
        for row, known in enumerate(self.history.validations):
            known[self.step] = losses[row]
        return losses

    def _measure(self, batch: Batch) -> torch.Tensor:
        return self.objective.errors(self.trained, batch) if self._measuring is None else self._measuring(batch)

    def values(self, row: int, since: int) -> Iterator[tuple[int, Mapping[str, float]]]:
        """(step, its loss, gradient norm and learning rate) of an adapter's steps from `since` on."""
        until = self.step + (row in self._ahead)
        losses = self.history.loss[row, since:until].tolist()
        norms = self.history.grad_norm[row, since:until].tolist()
        for step, loss, norm in zip(range(since, until), losses, norms, strict=True):
            yield step, {"loss": loss, "grad_norm": norm, "learning_rate": learning_rate(self.settings, step)}

    def state(self, row: int) -> TrainState:
        """All that one adapter's training needs to go on from here."""
        step = self.step + (row in self._ahead)
        tensors = adapter_state(self.pack, self.optimizers[row], self.scales, row)
        return TrainState(step, tensors | self.means.tensors(row) | self.history.tensors(row, step))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While it lasts, the adapters lie on the base and the denoiser is in training mode."""
        self.base.denoiser.train()
        objective = self.objective
        # Captions that are read anew at each step cannot be recorded.
        if isinstance(objective, Recordable) and self.settings.text_rate is None:
            self._learning = RecordedLosses(objective, self.trained, True, self._learn_from)
            self._measuring = RecordedLosses(objective, self.trained, False, lambda errors: errors)
        try:
            with self.pack.attached():
                yield
        finally:
            self._learning = self._measuring = None  # with the memory of their records
            self.base.denoiser.eval()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The denoiser in evaluation mode, for the while."""
        self.base.denoiser.eval()
        try:
            yield
        finally:
            self.base.denoiser.train()
