"""The optimizers of the pocket's trainings."""

import torch
from torch import nn


class ViewedMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for weights of any number of dimensions, each viewed as a matrix, one row per output.

    torch's own takes matrices only. The views share the weights' memory, so a step moves the weights themselves. Its
    updates are scaled to AdamW's size (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4).
    """

    def __init__(self, weights: list[nn.Parameter], rate: float, weight_decay: float) -> None:
        self.weights = weights
        self.views = [nn.Parameter(as_matrix(weight.detach())) for weight in weights]
        copies = [
            view for view, weight in zip(self.views, weights, strict=True) if view.data_ptr() != weight.data_ptr()
        ]
        if copies:
            raise ValueError("a weight's memory layout allows no view of it as a matrix")
        super().__init__(self.views, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the weights' gradients."""
        for view, weight in zip(self.views, self.weights, strict=True):
            view.grad = None if weight.grad is None else as_matrix(weight.grad)
        super().step(closure)


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """(out, ...) to (out, n): a view where the memory is contiguous or in channels-last order, else a copy."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.reshape(len(weight), -1)


def adamw(weights: list[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """AdamW with the pocket's settings."""
    return torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)


def muon_and_adamw(model: nn.Module, muon_rate: float, adamw_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and convolutions inside a model; AdamW for biases, norms, embeddings and the outer layers.

    On the pocket's UNet a step of Muon costs a fifth more, and 200 of them get further than 300 of AdamW.
    """
    outer = ("embed", "conv_in", "conv_out")
    inner = [
        weight
        for name, weight in model.named_parameters()
        if weight.ndim >= 2 and not any(part in name for part in outer)
    ]
    chosen = {id(weight) for weight in inner}
    rest = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [ViewedMuon(inner, muon_rate, weight_decay=0.01), adamw(rest, adamw_rate)]
