"""How one image becomes an array (C, H, W) of uint8 or float32: colours, size, type. For pack.py.

Resize and crop are torchvision's Resize and CenterCrop on PIL images, to the bit: the same Pillow filter, the same
rounding of sizes and offsets, zeros around an image smaller than the crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a pixel, all of them gray
GRAY_MODES = ("1", "L", "LA", *WIDE_MODES)
FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
           "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
BYTE_ERROR = 1.2e-7  # k / 255 and k * (1 / 255) in float32 differ by less


class Refused(ValueError):
    """What stops the job: its one line says what was found, what was expected, what to do."""


@dataclass
class Recipe:
    """What is asked for; fix() settles what was left open by the first image, and all others must follow it."""

    resize: tuple[int, ...] | None = None  # (shorter edge) or (height, width)
    crop: tuple[int, int] | None = None  # height, width
    interpolation: str = "bilinear"
    color: str = "auto"  # rgb, gray; after fix also "all gray": no image may be in colour
    dtype: str = "auto"  # uint8, float32
    shape: tuple[int, ...] | None = None

    def fix(self, value: Image.Image | np.ndarray) -> None:
        pixels = self.apply(value)
        if isinstance(value, Image.Image) and self.color == "auto":
            self.color = "all gray" if value.mode in GRAY_MODES else "rgb"
        self.dtype, self.shape = pixels.dtype.name, pixels.shape

    def apply(self, value: Image.Image | np.ndarray) -> np.ndarray:
        """Raises Refused where the image and the recipe do not go together."""
        if isinstance(value, np.ndarray) and (self.resize or self.crop):
            if value.dtype != np.uint8 or len(value) not in (1, 3):
                raise Refused(f"--resize and --crop work on images and on uint8 arrays of 1 or 3 channels, not on "
                              f"{value.dtype} {value.shape}; put them into the Dataset's transforms")
            value = Image.fromarray(value[0] if len(value) == 1 else value.transpose(1, 2, 0))
        pixels = value if isinstance(value, np.ndarray) else self._from_image(value)
        pixels = np.ascontiguousarray(self._typed(pixels))
        if self.shape and pixels.shape != self.shape:
            found, first = ("x".join(map(str, s)) for s in (pixels.shape, self.shape))
            raise Refused(f"is {found} (channels, height, width), the first image {first}; give --resize and --crop "
                          "for one size, --color for one number of channels")
        return pixels

    def _from_image(self, image: Image.Image) -> np.ndarray:
        is_gray = image.mode in GRAY_MODES
        if self.color == "all gray" and not is_gray:
            raise Refused("is in colour, the first image is gray; give --color rgb or --color gray")
        if image.mode in WIDE_MODES:
            image = _wide(image)
        else:
            image = image.convert("RGB")  # drops alpha, as torchvision's loader does
            if self.color in ("gray", "all gray") or self.color == "auto" and is_gray:
                image = image.convert("L")
        if self.resize:
            image = image.resize(_resized(image.size, self.resize), FILTERS[self.interpolation])
        if self.crop:
            image = _center_crop(image, *self.crop)
        pixels = np.asarray(image)
        if pixels.ndim == 3:
            return pixels.transpose(2, 0, 1)
        return np.broadcast_to(pixels, (3, *pixels.shape)) if self.color == "rgb" else pixels[None]

    def _typed(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 where nothing is lost by it, or float32: bytes / 255 as of ToTensor, other values as they are."""
        if pixels.dtype == np.uint8:
            return pixels.astype(np.float32) / np.float32(255) if self.dtype == "float32" else pixels
        if pixels.dtype.kind in "iu":
            if self.dtype == "float32":
                return pixels.astype(np.float32)
            if self.dtype == "uint8" and pixels.min() >= 0 and pixels.max() <= 255:
                return pixels.astype(np.uint8)
            raise Refused(f"pixels of type {pixels.dtype}, {pixels.min()} to {pixels.max()}; give --dtype float32, "
                          "which keeps the values, and give cnnscope their --scale; or --dtype uint8 for 0 to 255")
        if pixels.dtype.kind != "f":
            raise Refused(f"pixels of type {pixels.dtype}; expected uint8 or floats")
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise Refused("has pixels that are no finite numbers")
        if self.dtype == "float32":
            return pixels
        whole = np.rint(pixels * 255)
        if whole.min() >= 0 and whole.max() <= 255 and np.abs(whole / 255 - pixels).max() <= BYTE_ERROR:
            return whole.astype(np.uint8)
        if self.dtype == "uint8":
            raise Refused("has pixels that are not 0 to 255 divided by 255; give --dtype float32")
        return pixels


def _wide(image: Image.Image) -> Image.Image:
    """16 bits as 0 to 1; floats as they are."""
    if image.mode == "F":
        return image
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise Refused("has pixels of 32 bits; save it with 8 or 16 bits, or as floats")
    return Image.fromarray(pixels.astype(np.float32) / np.float32(65535))


def _resized(size: tuple[int, int], wanted: tuple[int, ...]) -> tuple[int, int]:
    """(width, height) for (shorter edge), or for (height, width)."""
    width, height = size
    if len(wanted) == 2:
        return wanted[1], wanted[0]
    edge = wanted[0]
    return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


def _center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    padded = max(image.width, width), max(image.height, height)
    if padded != image.size:
        whole = Image.new(image.mode, padded)
        whole.paste(image, ((padded[0] - image.width) // 2, (padded[1] - image.height) // 2))
        image = whole
    # round() goes to the even neighbour at a half, and so does torchvision
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
