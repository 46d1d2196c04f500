"""Data from a folder of images, prepared as ``preprocessor_config.json`` of Hugging Face says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompile.errors import InputError, MissingExtraError
from qcompile.ir.required import name_of
from qcompile.run.reading import Reading, read_config

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_FILES", "image_arrays"]

IMAGE_FILES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

CONFIG = "preprocessor_config.json"

#: The steps that are done here; others that a configuration asks for are refused.
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}

#: Bilinear, which configurations leave unsaid.
_RESAMPLE = 2


def image_arrays(files: Sequence[Path], values: Sequence[ir.Value], reading: Reading) -> dict[str, np.ndarray]:
    """One row for each image, ``[channels, height, width]``, or with the channels last where the graph has them so.

    Args:
        values: the graph's inputs.

    Raises:
        InputError: if the configuration is missing or asks for more than is known here, or the graph takes no images
            of that size.
        MissingExtraError: if Pillow is not installed.
    """
    value = _only(values, files[0].parent)
    config = read_config(Path(reading.preprocessing or files[0].parent), CONFIG)
    further = sorted(key for key in config if key.startswith("do_") and config[key] and key not in _STEPS)
    if further or config.get("crop_pct") is not None:
        said = ", ".join([*further, *(["crop_pct"] if config.get("crop_pct") is not None else [])])
        raise InputError(f"the preprocessing asks for {said}, which is not done here: write an .npz")
    assert value.shape is not None  # as ``_only`` saw
    last = value.shape[3] in (1, 3) and value.shape[1] not in (1, 3)
    channels = value.shape[3 if last else 1]
    rows = [_prepared(file, config, "L" if channels == 1 else "RGB") for file in files]
    if len({row.shape for row in rows}) > 1:
        raise InputError(f"the images of '{files[0].parent}' have several sizes, and {CONFIG} gives them none")
    array = np.stack(rows)
    array = array if last else array.transpose(0, 3, 1, 2)
    wrong = [dim for dim, size in zip(value.shape[1:], array.shape[1:]) if isinstance(dim, int) and dim != size]
    if wrong:
        raise InputError(
            f"the images become {list(array.shape[1:])}, and '{name_of(value)}' is {list(value.shape[1:])}"
        )
    return {name_of(value): np.ascontiguousarray(array)}


def _only(values: Sequence[ir.Value], folder: Path) -> ir.Value:
    if len(values) != 1 or values[0].shape is None or len(values[0].shape) != 4:
        said = ", ".join(f"'{name_of(value)}'" for value in values)
        raise InputError(f"'{folder}' gives images, one input of four dimensions, and the model takes {said}")
    return values[0]


def _prepared(file: Path, config: Mapping[str, Any], mode: str) -> np.ndarray:
    """One image as ``[height, width, channels]``."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("reading images", "images") from error
    try:
        with Image.open(file) as opened:
            image = opened.convert(mode)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"'{file}' is not a readable image") from error
    if config.get("do_resize", True):
        image = image.resize(_resized(image, config), config.get("resample", _RESAMPLE))
    if config.get("do_center_crop", False):
        image = _cropped(image, config)
    array = np.asarray(image, np.float64)
    array = array[..., None] if array.ndim == 2 else array
    if config.get("do_rescale", True):
        array = array * config.get("rescale_factor", 1 / 255)
    if config.get("do_normalize", True) and "image_mean" in config:
        array = (array - np.array(config["image_mean"])) / np.array(config["image_std"])
    return array.astype(np.float32)


def _resized(image: Image.Image, config: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height: as stated, or with the shorter side as stated."""
    size = config.get("size")
    if isinstance(size, int):
        size = {"shortest_edge": size} if config.get("do_center_crop") else {"height": size, "width": size}
    if isinstance(size, dict) and size.keys() == {"height", "width"}:
        return size["width"], size["height"]
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        short, wanted = min(image.size), size["shortest_edge"]
        return tuple(int(wanted * side / short) for side in image.size)  # type: ignore[return-value]  # two sides
    raise InputError(f"the preprocessing has size {size}; known are height and width, or shortest_edge")


def _cropped(image: Image.Image, config: Mapping[str, Any]) -> Image.Image:
    """The middle of an image, black beyond its edges."""
    size = config.get("crop_size", config.get("size"))
    size = {"height": size, "width": size} if isinstance(size, int) else size
    if not isinstance(size, dict) or size.keys() != {"height", "width"}:
        raise InputError(f"the preprocessing has crop_size {size}; known are height and width")
    left, top = (image.width - size["width"]) // 2, (image.height - size["height"]) // 2
    return image.crop((left, top, left + size["width"], top + size["height"]))
