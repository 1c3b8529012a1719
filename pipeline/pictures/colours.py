"""A decoded picture of any mode as 8-bit sRGB over a plain background."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
_HIGH_BIT_MODES = ("I", "F")  # prefixes of the modes of 16 and 32 bits: I, I;16, I;16B, F
# 16 bits to 8, rounded: 65535 is exactly 257 times 255.
_TO_8_BIT = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def to_srgb(picture: Image.Image, background: Sequence[int]) -> tuple[Image.Image, list[str]]:
    """The picture in mode RGB without metadata, and what was changed, in words for the ledger.

    More than 8 bits are scaled, not clipped; palettes are looked up; an embedded colour profile is converted to sRGB;
    what is transparent shows `background` (red, green, blue, 0 to 255).
    """
    changes: list[str] = []
    profile = picture.info.get("icc_profile")
    colour, alpha = _split_alpha(picture, changes)
    if colour.mode != picture.mode and not picture.mode.startswith(_HIGH_BIT_MODES):
        changes.append(f"{picture.mode} to {colour.mode}")
    if profile:
        colour = _apply_profile(colour, profile, changes)
    if colour.mode != "RGB":
        changes.append(f"{colour.mode} to RGB")
        colour = colour.convert("RGB")
    if alpha is not None:
        red, green, blue = background
        changes.append(f"alpha over {red}, {green}, {blue}")
        colour = Image.composite(colour, Image.new("RGB", colour.size, (red, green, blue)), alpha)
    colour.info = {}
    return colour, changes


def _split_alpha(picture: Image.Image, changes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """The colours in an 8-bit mode that profiles exist for (L, RGB, CMYK, LAB), and the alpha unless it is opaque."""
    if picture.mode.startswith(_HIGH_BIT_MODES):
        return _scale_to_8_bit(picture, changes)
    if picture.mode == "1" and not picture.has_transparency_data:
        return picture.convert("L"), None
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        grey = picture.mode == "LA"
        with_alpha = picture if grey or picture.mode == "RGBA" else picture.convert("RGBA")
        alpha = with_alpha.getchannel("A")
        opaque = alpha.getextrema() == (255, 255)
        return with_alpha.getchannel("L") if grey else with_alpha.convert("RGB"), None if opaque else alpha
    return (picture if picture.mode in _SPACES else picture.convert("RGB")), None


def _scale_to_8_bit(picture: Image.Image, changes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Greyscale of 16 or 32 bits. White is known for 16 bits, and inferred from the range for 32 bits and floats."""
    values = np.asarray(picture)
    alpha = None
    if picture.mode.startswith("I;16"):
        transparent = picture.info.get("transparency")
        if isinstance(transparent, int):
            alpha = Image.fromarray(np.where(values == transparent, np.uint8(0), np.uint8(255)))
        changes.append("16 bits scaled to 8")
        return Image.fromarray(_TO_8_BIT[values]), alpha
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    whites = (1.0, 255.0) if picture.mode == "F" else (255.0, 65535.0)
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        changes.append(f"{picture.mode} from {low:g}..{high:g} stretched to 8 bits")
        values = (values - low) / max(high - low, 1e-30) * 255
    else:
        changes.append(f"{picture.mode} with white {white:g} scaled to 8 bits")
        values = values * (255 / white)
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8)), None


def _apply_profile(colour: Image.Image, data: object, changes: list[str]) -> Image.Image:
    try:
        if not isinstance(data, bytes):
            raise TypeError
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        name = (ImageCms.getProfileDescription(profile) or "").strip()
        if name.startswith("sRGB"):
            return colour
        if space == "RGB" and colour.mode == "L":
            colour = colour.convert("RGB")
        if _SPACES[colour.mode] != space:
            changes.append(f"colour profile for {space} ignored: the picture is {colour.mode}")
            return colour
        converted = ImageCms.profileToProfile(colour, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        changes.append("broken colour profile ignored")
        return colour
    if converted is None:  # only with inPlace
        return colour
    changes.append(f"colour profile {ascii(name)[1:-1][:80]} to sRGB")
    return converted
