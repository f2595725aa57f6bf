"""Images with labels, from anywhere Hugging Face `datasets` reads, split so that nothing judges itself."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from .carving import Carving
from .errors import InputError
from .image_tables import cells, classes_of, digests, labels_of, read_tables
from .pictures import cut, picture, stored
from .splits import Batches, carve

MEMORY = 2 * 2**30
"""Bytes: a split up to this size is decoded once and kept; a larger one is decoded image by image."""
SAMPLE = 2048
"""Images from which mean and standard deviation are estimated where the train split is not kept in memory."""


class ImageSplit(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Samples of a data set: item i is (uint8 image (channels, height, width), label).

    Args:
        table: these samples alone, images undecoded.

    Attributes:
        rows: (n,) int64 numbers of the samples in the data set, its own test split counted after its train split.
        labels: (n,) int64.
        source: names the data set: its name, and a fingerprint of its content.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        rows: Int64[np.ndarray, " n"],
        *,
        source: str,
        channels: int,
        image_size: int,
        resize: int | None,
    ) -> None:
        self.rows, self.source = rows, source
        self.channels, self.image_size, self.resize = channels, image_size, resize
        self._table = table
        self.labels = labels_of(table)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        pixels = self.pixels
        image = self._decode(self._table[i]["image"], i) if pixels is None else pixels[i]
        return image, int(self.labels[i])

    @property
    def in_memory(self) -> bool:
        """Whether reading an item decodes nothing."""
        return self.pixels is not None

    def image(self, i: int) -> Image.Image:
        """Item i as a picture to look at."""
        pixels = self[i][0].permute(1, 2, 0).numpy()
        return Image.fromarray(pixels.squeeze(2) if self.channels == 1 else pixels)

    def digests(self, classes: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
        """Hash of each sample as it is stored, (n,); see `Carving`."""
        return digests(self._table, classes)

    @cached_property
    def pixels(self) -> UInt8[Tensor, "n channels size size"] | None:
        """All images, decoded on first use; None where they would take more than 2 GiB."""
        shape = (len(self), self.channels, self.image_size, self.image_size)
        if np.prod(shape) > MEMORY:
            return None
        pixels = torch.empty(shape, dtype=torch.uint8)
        for i, cell in enumerate(cells(self._table, "decoding images")):
            pixels[i] = self._decode(cell, i)
        return pixels

    def decode_all(self) -> None:
        """Decodes every image and keeps none."""
        for i, cell in enumerate(cells(self._table, "checking images")):
            self._decode(cell, i)

    def _decode(self, cell: dict[str, Any], i: int) -> UInt8[Tensor, "channels size size"]:
        where = f"{self.source} row {self.rows[i]}"
        found = picture(cell, where, "L" if self.channels == 1 else "RGB")
        if self.resize is not None:
            found = cut(found, self.image_size, self.resize)
        elif found.size != (self.image_size, self.image_size):
            shape, size = "{}x{}".format(*found.size), self.image_size
            raise InputError(f"{where} is {shape}, not {size}x{size} as the first one: give image_size")
        pixels = torch.from_numpy(np.array(found))
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1)


@dataclass(frozen=True)
class Data:
    """A source of labelled images, cut into four splits that share no row.

    Attributes:
        name: as given to `load_data`.
        classes: names; a label is an index into them.
        channels: 1 (grey) or 3.
        image_size: pixels, height and width.
        mean, std: per channel, of the train split, on a scale where a pixel is in [0, 1].
        flip: whether the mirror image of an image keeps its label.
        splits: `train` to train networks, `fit` to fit rules, `certify` to certify them, `test` to judge all.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    splits: Mapping[str, ImageSplit] = field(repr=False)

    def inputs(
        self, images: UInt8[Tensor, "n channels h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n channels h w"]:
        """What a network takes, from what a split holds; augmented where a generator is given, for training."""
        if generator is not None:
            images = augment(images, generator, flip=self.flip, pad=self.image_size // 8)
        return normalise(images, self.mean, self.std)

    def batches(self, split: str, size: int = 256) -> Batches[Tensor]:
        """Normalised images (n, channels, h, w) and labels (n,) of a split, in its order, `size` at a time."""
        if split not in self.splits:
            raise InputError(f"no split {split!r}: the splits are {', '.join(self.splits)}")
        held = self.splits[split]
        return Batches(held, ((self.inputs(images), labels) for images, labels in DataLoader(held, batch_size=size)))

    def carving(self) -> Carving:
        """What finds these splits again: see `reload_data`. Every image is read, none decoded."""
        rows = {key: split.rows for key, split in self.splits.items()}
        known = {key: split.digests(self.classes) for key, split in self.splits.items()}
        return Carving(self.splits["train"].source, rows, known, self.mean, self.std)

    def check_images(self) -> None:
        """Decodes every image that is not trained on, so that one that cannot be is known before a training.

        Raises:
            InputError: an unreadable image, or one of another size.
        """
        for split in (self.splits[name] for name in ("fit", "certify", "test")):
            if split.pixels is None:
                split.decode_all()


def load_data(
    name: str,
    *,
    seed: int,
    fit: float | None = None,
    certify: float | None = None,
    test: float | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    label: str | None = None,
) -> Data:
    """Labelled images from 'digits' (embedded), a folder of parquet files or images, or the hub.

    The source's own test split (or else its validation split) is `test`; `fit` and `certify` are carved out
    of its train split, stratified by label. A source with one split is carved into all four.

    Args:
        name: "digits" (1,797 real 8x8 images of scikit-learn), a folder with parquet files or with one folder
            of images a class (perhaps below train/ and test/), or the name of a data set on the hub.
        seed: of the carving.
        fit, certify: share of the carved table. Default 0.05 each; 0.2 and 0.1 where test is carved too.
        test: share of the carved table, default 0.2; only for a source without a test split.
        image_size: resize the shorter side to it and crop the centre. Needed where images differ in size.
        resize: pixels of the shorter side before `image_size` is cut out of it, as pretrained models ask for: 256 where
            224 are cut, say. As many as `image_size` when not given.
        mean, std: per channel, of the normalisation that a pretrained model was trained with, pixels in [0, 1]; those
            of the train split when not given.
        label: the column that holds the labels; label, labels or fine_label when not given.

    Raises:
        InputError: no such source, no usable columns, bad labels, an unreadable image, images of different
            sizes, a class with too few images for a share, or a normalisation or size that is none.

    Example:
        >>> {name: len(split) for name, split in od.load_data("digits", seed=0).splits.items()}
        {'train': 899, 'fit': 359, 'certify': 180, 'test': 359}
    """
    tables = read_tables(name, label)
    whole = "test" not in tables
    if test is not None and not whole:
        raise InputError(f"test={test}: {name} has its own test split; leave test out")
    shares = {
        "fit": (0.2 if whole else 0.05) if fit is None else fit,
        "certify": (0.1 if whole else 0.05) if certify is None else certify,
        **({"test": 0.2 if test is None else test} if whole else {}),
    }
    source = _Source.of(name, tables, image_size, resize)
    given = _normalisation(mean, std, source.channels)
    rows = carve(labels_of(tables["train"]), source.classes, shares, seed)
    if not whole:
        rows["test"] = np.arange(len(tables["train"]), len(source.table), dtype=np.int64)
    named = f"{Path(name).name}@{_fingerprint(source.table)}"
    splits = source.splits(named, rows, rows)
    return source.data(splits, *(given or _moments(splits["train"], seed)))


def reload_data(name: str, carving: Carving, *, image_size: int | None = None, resize: int | None = None) -> Data:
    """The data of a run again: the very splits that were carved then, wherever in the source their images lie now.

    Every image is read, and compared by what is stored: the bytes of its file or cell, and the name of its class. None
    is decoded for that.

    Raises:
        InputError: the source holds other images than it did, or what `load_data` raises.
    """
    source = _Source.of(name, read_tables(name), image_size, resize)
    places = carving.places(digests(source.table, source.classes), name)
    return source.data(source.splits(carving.source, carving.rows, places), carving.mean, carving.std)


@dataclass(frozen=True)
class _Source:
    """All images of a source in one table, the train split's before the test split's, and what they have in common."""

    name: str
    table: datasets.Dataset
    classes: tuple[str, ...]
    channels: int
    image_size: int
    resize: int | None

    @classmethod
    def of(cls, name: str, tables: dict[str, datasets.Dataset], image_size: int | None, resize: int | None) -> Self:
        if resize is not None and (image_size is None or resize < image_size):
            raise InputError(f"resize={resize}, image_size={image_size}: give the pixels to cut out, at most as many")
        classes = classes_of(tables, name)
        size = _square(tables["train"][0]["image"], name) if image_size is None else image_size
        table = datasets.concatenate_datasets(list(tables.values()))  # a source has one kind of label in all its tables
        return cls(name, table, classes, 1 if name == "digits" else 3, size, resize or image_size)

    def splits(
        self, source: str, rows: Mapping[str, Int64[np.ndarray, " n"]], places: Mapping[str, Int64[np.ndarray, " n"]]
    ) -> dict[str, ImageSplit]:
        """Splits of the samples with these numbers, which lie at these places in the table."""
        form: dict[str, Any] = {"channels": self.channels, "image_size": self.image_size, "resize": self.resize}
        return {key: ImageSplit(self.table.select(places[key]), rows[key], source=source, **form) for key in rows}

    def data(self, splits: dict[str, ImageSplit], mean: tuple[float, ...], std: tuple[float, ...]) -> Data:
        flip = self.name != "digits"
        return Data(self.name, self.classes, self.channels, self.image_size, mean, std, flip, splits)


def _normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if mean is None and std is None:
        return None
    centre, spread = tuple(mean or ()), tuple(std or ())
    if not len(centre) == len(spread) == channels or not all(math.isfinite(m) for m in centre) or min(spread) <= 0:
        raise InputError(f"mean={mean}, std={std}: give {channels} numbers of each, one a channel, std > 0")
    return centre, spread


def _square(cell: dict[str, Any], name: str) -> int:
    width, height = picture(cell, f"{name} row 0", "RGB").size
    if width != height:
        raise InputError(f"{name}: images are {width}x{height}, not square: give image_size")
    return width


def _fingerprint(table: datasets.Dataset) -> str:
    """12 hexadecimal digits of all labels and of at most 1,000 evenly spaced images."""
    digest = hashlib.sha256(labels_of(table).tobytes())
    for row in np.unique(np.linspace(0, len(table) - 1, 1000, dtype=np.int64)):
        digest.update(stored(table[int(row)]["image"], f"row {row} of the data"))
    return digest.hexdigest()[:12]


def _moments(split: ImageSplit, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, exact for images in memory, else from 2,048 of them."""
    pixels = split.pixels
    if pixels is None:
        chosen = np.random.default_rng(seed).choice(len(split), min(SAMPLE, len(split)), replace=False)
        pixels = torch.stack([split[int(i)][0] for i in chosen])
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(split.channels):  # through a histogram: no float copy of the images
        weight = torch.bincount(pixels[:, channel].flatten(), minlength=256).double()
        weight /= weight.sum()
        # `fsum` rounds once, so that images normalised on any machine are the same inputs, bit for bit.
        mean.append(math.fsum((weight * values).tolist()))
        std.append(math.sqrt(math.fsum((weight * (values - mean[-1]) ** 2).tolist())))
    if min(std) == 0:
        raise InputError(f"{split.source}: a channel is constant over all images: nothing to learn from")
    return tuple(mean), tuple(std)


def normalise(
    images: UInt8[Tensor, "n channels h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "n channels h w"]:
    """(images / 255 - mean) / std per channel, float32, on the images' device."""
    centre, spread = (torch.tensor(value, device=images.device)[:, None, None] for value in (mean, std))
    return (images.float() / 255 - centre) / spread


def augment(
    images: UInt8[Tensor, "n channels h w"], generator: torch.Generator, *, flip: bool, pad: int
) -> UInt8[Tensor, "n channels h w"]:
    """A random crop of each image padded with `pad` zeros on every side and, if `flip`, a fair mirror image.

    Standard for CIFAR since He et al. 2016. The generator lives on the images' device.
    """
    n, _, height, width = images.shape
    device = images.device
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=generator, device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand((n, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    sample = torch.arange(n, device=device)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
