"""Training adapters on a frozen base, many side by side.

`train_adapters` packs them into batches, `train_pack` keeps the books, and `PackTrainer.train_step` is where they
learn. An adapter is a function of its inputs: neither the packing, the order of the work, the number of processes nor
an interruption changes it, but for float rounding where the shape of a batch differs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from accelerate import Accelerator
from tqdm import tqdm

from pipeline.base.conditioning import Conditioning
from pipeline.base.protocol import Base
from pipeline.processes.memory import free_cached_memory, ran_out_of_memory
from pipeline.sections import TrainSection
from pipeline.training.checkpoints import Checkpoints, SavedStates, TrainState
from pipeline.training.examples import Example
from pipeline.training.history import ended, outline
from pipeline.training.objective import Objective
from pipeline.training.stopping import Stopped, stop_signals
from pipeline.training.trainer import PackTrainer

REPORT_EVERY, REPORTS = 20, 10
"""Steps between two reports, fewer in a short training, which makes at least so many: to read the numbers at every step
would make a GPU wait each time."""

MEASURED = 64
"""Of so many pictures at most a training takes the loss at fixed noise. Of thousands it would take longer than to learn
from them, and a signal would wait for it."""


@dataclass(frozen=True)
class Job:
    """One adapter to train. digest: of everything that its result depends on; it names checkpoints and cached files.

    held_out: examples that it does not learn from.
    """

    name: str
    digest: str
    examples: Sequence[Example]
    held_out: Sequence[Example] = ()

    @property
    def measured(self) -> Sequence[Example]:
        """Those whose loss at fixed noise is taken: the ones held out, if there are any, else those learned from, of
        many MEASURED at even distances."""
        count = len(self.examples)
        even = [self.examples[place * count // MEASURED] for place in range(MEASURED)]
        return self.held_out or (even if count > MEASURED else self.examples)


@dataclass(frozen=True)
class Callbacks:
    """Whom the trainer reports to. `step` gets a job's name, a step and its values; `validation` a job, a step and the
    loss by example.

    `preview` gets the jobs and the step every `preview_every` steps, while the denoiser takes batches of equal parts,
    one for each job; it must leave no trace.
    """

    step: Callable[[str, int, Mapping[str, float]], None] = lambda name, step, values: None
    validation: Callable[[Job, int, Mapping[str, float]], None] = lambda job, step, losses: None
    preview: Callable[[Sequence[Job], int], None] = lambda jobs, step: None
    preview_every: int | None = None


@dataclass(frozen=True)
class TrainingSetup:
    """What all packs have in common.

    empty_caption: one row, for caption dropout. pack_size: adapters side by side, None for as many as fit.
    accelerator: of the processes that train each adapter together; None where each process trains its own.
    """

    base: Base
    settings: TrainSection
    empty_caption: Conditioning
    objective: Objective
    checkpoints: Checkpoints
    pack_size: int | None = None
    checkpoint_every: int = 50
    callbacks: Callbacks = field(default_factory=Callbacks)
    accelerator: Accelerator | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator is None or self.accelerator.is_main_process


def train_adapters(setup: TrainingSetup, jobs: Sequence[Job]) -> Mapping[str, TrainState]:
    """Train every job to its end, from its checkpoint if there is one; the finished states by the jobs' names.

    Only the pack in training is in memory. The finished states lie in the checkpoints, and are read one by one.

    Raises:
        FloatingPointError: when a loss or a gradient is not finite.
        Stopped: after a Ctrl-C or SIGTERM, when all is saved.
        RuntimeError: when not even one adapter fits (on CUDA torch.OutOfMemoryError).
    """
    size = setup.pack_size or max(1, 64 // setup.settings.batch)
    states = resumed_states(jobs, setup.checkpoints, size)
    while unfinished := [job for job in jobs if not ended(states[job.name], setup.settings)]:
        steps = sorted({states[job.name].step for job in unfinished})
        pack = [job for job in unfinished if states[job.name].step == steps[0]][:size]
        # Those that are behind catch up with the next, and go on together with them.
        until = steps[1] if len(steps) > 1 else setup.settings.steps
        try:
            train_pack(setup, pack, states, until)
        except RuntimeError as error:
            if len(pack) == 1 or not ran_out_of_memory(error):
                raise
            size = (len(pack) + 1) // 2
            tqdm.write(f"{len(pack)} adapters at once do not fit into memory: continuing with {size} (machine.pack)")
            free_cached_memory()
    return SavedStates(setup.checkpoints, {job.name: (job.digest, states[job.name].step) for job in jobs})


def resumed_states(jobs: Sequence[Job], checkpoints: Checkpoints, size: int) -> dict[str, TrainState]:
    """An outline of the state that each training resumes from, by the jobs' names; `size` of them are one pack.

    A kill while a pack was saved leaves some of it a checkpoint ahead. Those go back to their one before, so that the
    pack continues together, in batches of the shape that it would have had undisturbed.
    """
    states: dict[str, TrainState] = {}
    for start in range(0, len(jobs), size):
        pack = jobs[start : start + size]
        last = {job.name: checkpoints.load(job.digest) or TrainState(0, {}) for job in pack}
        behind = min(state.step for state in last.values())
        for job in pack:
            if last[job.name].step > behind:
                last[job.name] = checkpoints.load_at(job.digest, behind) or last[job.name]
        states |= {name: outline(state) for name, state in last.items()}
    return states


def train_pack(setup: TrainingSetup, jobs: Sequence[Job], states: dict[str, TrainState], until: int) -> None:
    """Train jobs that are at one step until step `until`, or until one of them ends.

    states: an outline of each job's state, from which it goes on; the new ones are put there.
    """
    settings, callbacks = setup.settings, setup.callbacks
    trainer = PackTrainer(
        setup.base,
        [job.examples for job in jobs],
        [job.measured for job in jobs],
        [setup.checkpoints.require_at(job.digest, states[job.name].step) for job in jobs],
        settings,
        setup.objective,
        setup.empty_caption,
        setup.accelerator,
    )
    first = reported = trainer.step
    report_every = min(REPORT_EVERY, max(1, settings.steps // REPORTS))

    def validate() -> None:
        for row, losses in enumerate(trainer.validate()):
            named = zip(jobs[row].measured, losses.tolist(), strict=True)
            callbacks.validation(jobs[row], trainer.step, {example.name: loss for example, loss in named})

    def require_finite() -> None:
        found = trainer.history.first_not_finite(trainer.step)
        if found:
            row, step = found
            pictures = ", ".join(example.name for example in jobs[row].examples)
            raise FloatingPointError(
                f"{jobs[row].name}: loss {float(trainer.history.loss[row, step])} and gradient norm "
                f"{float(trainer.history.grad_norm[row, step])} at step {step} ({pictures}); "
                "lower train.learning_rate, or use base.dtype: float32"
            )

    def report() -> None:
        require_finite()
        last = []
        for row, job in enumerate(jobs):
            values: Mapping[str, float] = {}
            for step, values in trainer.values(row, reported):
                callbacks.step(job.name, step, values)
            last += [values["loss"]] if values else []
        if last:
            bar.set_postfix(loss=f"{sum(last) / len(last):.4f}", refresh=False)

    def save() -> None:
        require_finite()
        for row, job in enumerate(jobs):
            state = trainer.state(row)
            states[job.name] = outline(state)
            if setup.is_main:
                setup.checkpoints.save(job.digest, state)

    label = jobs[0].name if len(jobs) == 1 else f"{len(jobs)} adapters"
    bar = tqdm(total=settings.steps, initial=first, desc=label, unit="step", disable=not setup.is_main, smoothing=0.05)
    try:
        with bar, trainer.attached(), stop_signals() as stop:
            if is_validation_due(settings, first) and not trainer.history.is_validated(first):
                validate()
            for step in range(first + 1, until + 1):
                trainer.train_step()
                bar.update()
                stopping = trainer.any_process(stop.flag)
                due = is_validation_due(settings, step)
                last = stopping or step == until
                if due:
                    validate()
                if callbacks.preview_every and step % callbacks.preview_every == 0 and setup.is_main:
                    with trainer.evaluating():
                        callbacks.preview(jobs, step)
                if last or due or step % report_every == 0:
                    report()
                    reported = step
                if last or due or step % setup.checkpoint_every == 0:
                    save()
                if stopping:
                    raise Stopped(stop.signal, f"stopped after step {step} of {settings.steps}")
                if due and any(ended(states[job.name], settings) for job in jobs):
                    break
    except RuntimeError as error:
        if ran_out_of_memory(error):
            trainer.drop_unfinished_step()
            report()
            save()
        raise


def is_validation_due(settings: TrainSection, step: int) -> bool:
    """Whether the loss at fixed noise is asked for after so many steps: at the start, the end, and in between."""
    return step in (0, settings.steps) or (settings.validate_every is not None and step % settings.validate_every == 0)
