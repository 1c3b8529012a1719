"""Checks of the pictures that a metric gets."""

from torch import Tensor

TOLERANCE = 1e-3  # a resampled picture may overshoot [0, 1] by rounding; one in [-1, 1] or [0, 255] is a mistake


def check_pictures(pictures: Tensor, name: str = "pictures") -> None:
    """Refuse pictures that would silently give a wrong figure.

    pictures: (N, 3, H, W), floating point, in [0, 1]. Raises ValueError that names the argument and the first wrong
    picture.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
        raise ValueError(
            f"{name}: expected floating point (N, 3, H, W), found {pictures.dtype} {tuple(pictures.shape)}"
        )
    if pictures.numel() == 0:
        return
    low, high = pictures.aminmax(dim=None)
    # A comparison with NaN is false, so one test on the whole tensor finds NaN, infinity and a wrong range alike.
    if bool((low >= -TOLERANCE) & (high <= 1 + TOLERANCE)):
        return
    for index, picture in enumerate(pictures):
        if not bool(picture.isfinite().all()):
            raise ValueError(f"{name}[{index}]: holds NaN or infinity")
        low, high = picture.aminmax()
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise ValueError(f"{name}[{index}]: values from {low:.3g} to {high:.3g}, expected 0 to 1")


def check_pairs(first: Tensor, second: Tensor) -> None:
    """Refuse two stacks that cannot be compared picture by picture. Raises ValueError."""
    if first.shape != second.shape:
        raise ValueError(f"pictures of one shape are compared: found {tuple(first.shape)} and {tuple(second.shape)}")
    check_pictures(first, "first")
    check_pictures(second, "second")
