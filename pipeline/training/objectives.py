"""Which objective the params ask for."""

from pipeline.sections import TrainSection
from pipeline.training.consistency import Consistency
from pipeline.training.denoising import Denoising
from pipeline.training.objective import Objective
from pipeline.training.smoothness import Smoothness


def objective_of(settings: TrainSection) -> Objective:
    """The objective of a `train` section."""
    if settings.objective == "consistency":
        return Consistency((settings.guidance_from, settings.guidance_to), settings.consistency_skip)
    if settings.objective == "smooth":
        return Smoothness(settings.smooth_weight, settings.min_snr_gamma)
    return Denoising(settings.min_snr_gamma)
