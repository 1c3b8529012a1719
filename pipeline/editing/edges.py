"""Edges of pictures, which a ControlNet for Canny edges takes."""

import torch
from skimage.feature import canny

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, which the usual converters to grey have


def edges_of(pictures: torch.Tensor, sigma: float, low: float, high: float) -> torch.Tensor:
    """White edges on black (N, 3, H, W) float32 of pictures (N, 3, H, W) in [0, 1] (Canny 1986).

    sigma: of the Gaussian before, in pixels; 0 for none. low, high: thresholds of Sobel's gradient, which a sharp step
    from black to white brings to 4: an edge begins above high and goes on above low.
    """
    grey = (pictures * torch.tensor(LUMA, device=pictures.device).view(3, 1, 1)).sum(1).clamp(0, 1)
    found = [canny(one.cpu().numpy(), sigma, low_threshold=low, high_threshold=high) for one in grey]
    return torch.stack([torch.from_numpy(one) for one in found]).float()[:, None].repeat(1, 3, 1, 1)
