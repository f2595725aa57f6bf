"""Data: real sources, splits that share nothing, and one clear line for what is wrong."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from optdepth.data import Data, ImageSplit, augment, load_data, normalise, reload_data
from optdepth.errors import InputError


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", seed=0)


def png(pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(
    path: Path, n: int = 40, *, labels: list | None = None, size: int = 6, image="img", label="label", classes=2
) -> None:
    random = np.random.default_rng(0)
    cells = [png(random.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(n)]
    labels = [i % classes for i in range(n)] if labels is None else labels
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({image: cells, label: labels}).to_parquet(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_digits_splits_are_disjoint_stratified_and_complete(digits: Data) -> None:
    rows = [split.rows for split in digits.splits.values()]
    assert list(digits.splits) == ["train", "fit", "certify", "test"]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(1797))
    assert len({split.source for split in digits.splits.values()}) == 1
    for share, key in ((0.5, "train"), (0.2, "fit"), (0.1, "certify"), (0.2, "test")):
        counts = np.bincount(digits.splits[key].labels)
        assert len(digits.splits[key]) == pytest.approx(share * 1797, abs=2)
        assert np.ptp(counts / np.bincount(np.concatenate([s.labels for s in digits.splits.values()]))) < 0.02


def test_digits_are_the_real_ones(digits: Data) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    split = digits.splits["fit"]
    for i in (0, 100):
        image, label = split[i]
        assert (image.dtype, image.shape, label) == (torch.uint8, (1, 8, 8), labels[split.rows[i]])
        assert np.array_equal(np.rint(image.double().flatten().numpy() * 16 / 255), images[split.rows[i]])
        assert np.array_equal(np.asarray(split.image(i)), image[0].numpy())
    assert (digits.classes, digits.channels, digits.flip) == (tuple("0123456789"), 1, False)


def test_mean_and_std_are_of_the_train_split(digits: Data) -> None:
    images = normalise(digits.splits["train"].pixels, digits.mean, digits.std)
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_same_seed_same_splits(digits: Data) -> None:
    again, other = load_data("digits", seed=0), load_data("digits", seed=1)
    for key, split in digits.splits.items():
        assert np.array_equal(split.rows, again.splits[key].rows)
        assert split.source == other.splits[key].source
    assert not np.array_equal(digits.splits["fit"].rows, other.splits["fit"].rows)


def test_cifar10(shared_data) -> None:
    data = load_data(str(shared_data("cifar10")), seed=0, fit=0.9, certify=0.05)
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 2500,
        "fit": 45000,
        "certify": 2500,
        "test": 10000,
    }
    assert len({split.source for split in data.splits.values()}) == 1
    assert np.array_equal(np.sort(np.concatenate([s.rows for s in data.splits.values()])), np.arange(60000))
    image, label = data.splits["test"][3]
    assert (image.shape, image.dtype, 0 <= label < 10) == ((3, 32, 32), torch.uint8, True)
    assert data.mean == pytest.approx((0.491, 0.482, 0.447), abs=0.01)


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("image", "fine_label")])
def test_parquet_folder(image: str, label: str, tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_parquet(tmp_path / "set" / f"{name}.parquet", image=image, label=label)
    data = load_data(str(tmp_path / "set"), seed=0, fit=0.2, certify=0.2)
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 24,
        "fit": 8,
        "certify": 8,
        "test": 40,
    }
    assert data.splits["train"][0][0].shape == (3, 6, 6)
    assert data.flip


@pytest.mark.parametrize("nested", [True, False])
def test_image_folder(nested: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test") if nested else (".",):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for i in range(20):
                Image.fromarray(random.integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    data = load_data(str(tmp_path / "set"), seed=0, fit=0.2, certify=0.2, image_size=5)
    assert data.classes == ("cat", "dog")
    assert len(data.splits["test"]) == (40 if nested else 8)
    assert data.splits["test"][0][0].shape == (3, 5, 5)


def test_what_was_carved_is_found_again_and_a_train_and_a_test_table_number_one_data_set(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", n=40)
    write_parquet(tmp_path / "set" / "test.parquet", n=50)
    data = load_data(str(tmp_path / "set"), seed=3, fit=0.2, certify=0.2)
    assert np.array_equal(data.splits["test"].rows, np.arange(40, 90))
    again = reload_data(str(tmp_path / "set"), data.carving())
    assert (again.mean, again.std, again.classes) == (data.mean, data.std, data.classes)
    for key, split in data.splits.items():
        there = again.splits[key]
        assert (there.source, there.rows.tolist()) == (split.source, split.rows.tolist())
        assert torch.equal(there.pixels, split.pixels)
    write_parquet(tmp_path / "set" / "train.parquet", n=50)  # the same pictures, ten that were among the test's too
    write_parquet(tmp_path / "set" / "test.parquet", n=40)
    with pytest.raises(InputError, match="no longer holds") as caught:
        reload_data(
            str(tmp_path / "set"),
            replace(data.carving(), digests={k: d + 1 for k, d in data.carving().digests.items()}),
        )
    assert "90 new" in str(caught.value)
    moved = reload_data(str(tmp_path / "set"), data.carving())  # a sample is where it was carved to, in whatever table
    for key, split in data.splits.items():
        assert torch.equal(moved.splits[key].pixels, split.pixels)
        assert np.array_equal(moved.splits[key].labels, split.labels)


def test_resize_keeps_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    table = datasets.Dataset.from_dict({"image": [png(wide)], "label": [0]})
    split = ImageSplit(table, np.array([0]), source="x", channels=3, image_size=10, resize=10)
    assert torch.equal(split[0][0], torch.full((3, 10, 10), 200, dtype=torch.uint8))


def test_large_splits_are_decoded_item_by_item(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optdepth.data.MEMORY", 100)
    lazy = load_data("digits", seed=0)
    assert lazy.splits["train"].pixels is None
    assert torch.equal(lazy.splits["train"][7][0], digits.splits["train"][7][0])
    assert lazy.mean == pytest.approx(digits.mean)


def test_augment_crops_and_flips() -> None:
    images = (torch.arange(1, 6 * 3 * 4 * 4 + 1) % 251).byte().reshape(6, 3, 4, 4)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    first = augment(images, torch.Generator().manual_seed(0), flip=True, pad=2)
    again = augment(images, torch.Generator().manual_seed(0), flip=True, pad=2)
    assert torch.equal(first, again)
    seen = set()
    for image, whole in zip(first, padded, strict=True):
        crops = {
            (y, x, flip): (window.flip(2) if flip else window)
            for y in range(5)
            for x in range(5)
            for flip in (False, True)
            for window in [whole[:, y : y + 4, x : x + 4]]
        }
        seen.add(next(key for key, crop in crops.items() if torch.equal(crop, image)))
    assert len(seen) > 1
    assert torch.equal(augment(images, torch.Generator(), flip=False, pad=0), images)


def decode_all(folder: Path) -> None:
    for split in load_data(str(folder), seed=0).splits.values():
        assert split.pixels is not None


def fails(name: str | Path, message: str, **options: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(str(name), seed=0, **options)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(tmp_path / "nowhere", r"no such folder: .*; give 'digits', a folder")
    fails("./nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "cannot read")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    fails("someone/unknown-data", "cannot read someone/unknown-data")


def test_columns_and_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "train.parquet", label="kind")
    fails(tmp_path / "a", "columns img, kind: name the label column")
    write_parquet(tmp_path / "b" / "train.parquet", image="photo")
    fails(tmp_path / "b", "name the image column")
    write_parquet(tmp_path / "c" / "train.parquet", labels=[0, 1] * 19 + [0, -1])
    fails(tmp_path / "c", "label -1 in row 39")
    write_parquet(tmp_path / "d" / "train.parquet")
    write_parquet(tmp_path / "d" / "test.parquet", labels=[0, 2] * 20)
    fails(tmp_path / "d", r"label 2 in row 1 of test is not in 0\.\.1")
    write_parquet(tmp_path / "e" / "train.parquet", labels=["x", "y"] * 20)
    fails(tmp_path / "e", "give integers")
    write_parquet(tmp_path / "f" / "train.parquet", labels=[0, 1] * 19 + [0, None])
    fails(tmp_path / "f", "missing")


def test_too_few_in_a_class(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", labels=[0] * 36 + [1] * 4)
    fails(tmp_path / "set", r"class '1' has 4 samples, too few .* at least 10 a class")


def test_shares() -> None:
    fails("digits", "positive", fit=0.0)
    fails("digits", "leave something", fit=0.5, certify=0.3, test=0.2)


def test_shares_of_a_source_with_a_test_split(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_parquet(tmp_path / "set" / f"{name}.parquet")
    fails(tmp_path / "set", "own test split", test=0.2)


def test_images_of_different_sizes_ask_for_a_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sizes = [6] * 39 + [7]
    cells = [png(random.integers(0, 256, (size, size, 3), dtype=np.uint8)) for size in sizes]
    (tmp_path / "set").mkdir()
    labels = [i % 2 for i in range(40)]
    datasets.Dataset.from_dict({"image": cells, "label": labels}).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(InputError, match=r"row 39 is 7x7, not 6x6 .* give image_size"):
        decode_all(tmp_path / "set")
    assert load_data(str(tmp_path / "set"), seed=0, image_size=6).image_size == 6


def test_images_that_are_not_square_ask_for_a_size(shared_data) -> None:
    fails(shared_data("imagenet-samples"), "not square: give image_size")


def test_unreadable_image(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(tmp_path / "set" / name / f"{i}.png")
    (tmp_path / "set" / "dog" / "3.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"dog/3\.png.*unreadable image"):
        decode_all(tmp_path / "set")


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAINING", "TESTING"), ("Train", "Val")])
def test_folders_of_splits_are_known_in_any_case(names: tuple[str, str], tmp_path: Path) -> None:
    """A source's own test images are never trained on."""
    for name, shade in zip(names, (10, 200), strict=True):
        for label in ("cat", "dog"):
            folder = tmp_path / "set" / name / label
            folder.mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (4, 4), (shade + i, i, 20 - i)).save(folder / f"{i}.png")
    data = load_data(str(tmp_path / "set"), seed=0, fit=0.2, certify=0.2)
    assert data.classes == ("cat", "dog")
    for name, split in data.splits.items():
        assert bool((split.pixels[:, 0] >= 200).all()) == (name == "test")
        assert bool((split.pixels[:, 0] < 40).all()) == (name != "test")


def test_a_folder_is_taken_for_no_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "csv" / "train.parquet")
    assert len(load_data("csv", seed=0, fit=0.2, certify=0.2).splits["fit"]) == 8


def test_a_name_that_is_nowhere_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    fails("mine/images", "no such folder: mine/images; give")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked = []

    def unreachable(self: object, name: str, *, timeout: float) -> None:
        asked.append((name, timeout))
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    fails("theirs/images", r"no such folder: theirs/images, and the hub .* cannot be reached \(no route\).*OFFLINE=1")
    assert asked == [("theirs/images", 10.0)]


def read(picture: Image.Image, **form: Any) -> Tensor:
    """The pixels of a picture that was stored, as a split of one holds it."""
    buffer = io.BytesIO()
    picture.save(buffer, **form)
    table = datasets.Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [0]})
    shape = {"channels": 3, "image_size": picture.size[0], "resize": None}
    return ImageSplit(table, np.array([0]), source="x", **shape)[0][0]


def test_sixteen_bits_are_brought_to_eight() -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    pixels = read(Image.fromarray(ramp), format="png")
    assert np.array_equal(pixels[0].numpy(), np.rint(ramp / 257))
    fails_to_read = pytest.raises(InputError, match="holds floating numbers: store it in 8 or 16 bits")
    with fails_to_read:
        read(Image.fromarray(np.ones((8, 8), dtype=np.float32)), format="tiff")
    with pytest.raises(InputError, match="holds numbers from 0 to 70000"):
        read(Image.fromarray(np.array([[0, 70000], [1, 2]], dtype=np.int32)), format="tiff")


def test_pictures_are_upright() -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    assert torch.equal(
        read(Image.fromarray(pixels), format="png", exif=exif)[0],
        torch.tensor([0, 255]).repeat_interleave(4).expand(8, 8).byte(),
    )


def test_the_way_a_pretrained_model_reads_images_can_be_given(tmp_path: Path) -> None:
    """Twice the pixels, the centre cut out, and its own normalisation."""
    write_parquet(tmp_path / "set" / "train.parquet", size=16)
    centre, spread = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    given = {"seed": 0, "fit": 0.2, "certify": 0.2}
    whole = load_data(str(tmp_path / "set"), image_size=16, mean=centre, std=spread, **given)
    assert (whole.mean, whole.std) == (centre, spread)
    part = load_data(str(tmp_path / "set"), image_size=8, resize=16, **given)
    assert torch.equal(part.splits["fit"].pixels, whole.splits["fit"].pixels[:, :, 4:12, 4:12])
    fails(tmp_path / "set", "resize=4, image_size=8: give the pixels", image_size=8, resize=4)
    fails(tmp_path / "set", r"mean=\(0.5,\), std=None: give 3 numbers of each", image_size=8, mean=(0.5,))
