"""Files: whole or not at all, with a checksum; what is read back is refused in one line where it is not as it was."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

from optdepth.errors import FileError, InputError
from optdepth.fields import Fields
from optdepth.files import read_json, write_atomically, write_json
from optdepth.tensor_files import read_tensors, write_tensors
from stamped import restamp_tensors

ABOUT = {"format": "test", "version": 1}
KIND = {"format": "test", "version": 1, "make_it": "make it again"}
DEEP = "[" * 100_000 + "]" * 100_000


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {**ABOUT, "numbers": [0.1, -0.0, 1e-310, 2**60], "words": {"a": "é", "b": None}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", **KIND).held == content
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(json.dumps(json.loads(text)))  # laid out otherwise it says the same
    assert read_json(tmp_path / "a.json", **KIND).held == content


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('{"format": "test", "version": 1, "a": 1}', "it is not as it was written, by its checksum"),
        ('{"format": "test", "version": 1, "sha256": "00", "a": 1}', "it is not as it was written, by its checksum"),
        ('{"format": "test", "version": 1, "a": NaN}', "is damaged (NaN is no number of JSON); make it again"),
        ('{"format": "test", "version": 1, "a": 1e999}', "is damaged"),
        ('{"format": "test", "version": 2}', "has version 2, this optdepth reads 1; make it again"),
        ('{"format": "test", "version": true}', "has version True"),
        ('{"format": "other"}', "is not an test file"),
        ("[]", "is not an test file"),
        ("", "is damaged"),
        ("\x00\xff", "is damaged"),
        (f'{{"format": "test", "version": 1, "a": {DEEP}}}', "is damaged (maximum recursion"),
        (f'{{"format": "test", "version": 1, "a": {"9" * 10_000}}}', "is damaged"),
    ],
)
def test_json_that_is_not_as_it_was_written_is_refused_in_a_line(written: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(written, encoding="latin-1")
    with pytest.raises(InputError) as error:
        read_json(tmp_path / "a.json", **KIND)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_flipped_bit_of_tensors_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(4.0), "y": torch.tensor(True)}, {**ABOUT, "word": "a"})
    held, about = read_tensors(path, **KIND)
    assert torch.equal(held.held["x"], torch.arange(4.0))
    assert about.take("word", str) == "a"
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        try:
            held, about = read_tensors(path, **KIND)
        except InputError:
            continue
        assert torch.equal(held.held["x"], torch.arange(4.0))  # white space alone may change
        assert about.held == {**ABOUT, "word": "a"}


def test_tensors_are_taken_by_type_and_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.zeros(3, dtype=torch.bfloat16)}, ABOUT)
    held, _ = read_tensors(path, **KIND)
    for dims, dtype in ((1, torch.float32), (2, torch.bfloat16)):
        with pytest.raises(
            InputError, match=r"damaged \(x is torch.bfloat16 of shape \(3,\), not torch.* dimensions\)"
        ):
            held.take("x", dtype, dims)
    with pytest.raises(InputError, match="lacks 'y'; make it again"):
        held.take("y", torch.float32, 1)
    assert held.optional("y", torch.float32, 1) is None


@pytest.mark.parametrize("tensor", [torch.zeros(1).expand(0), torch.arange(6)[3:4], torch.zeros(2, 0), torch.tensor(2)])
def test_tensors_of_one_number_or_none_come_back(tensor: torch.Tensor, tmp_path: Path) -> None:
    for each in (tensor, tensor.as_strided(tensor.shape, (0,) * tensor.dim())):
        write_tensors(tmp_path / "a.safetensors", {"x": each, "y": each}, ABOUT)
        held, _ = read_tensors(tmp_path / "a.safetensors", **KIND)
        assert torch.equal(held.held["x"], tensor)
        assert torch.equal(held.held["y"], tensor)


def test_a_checksum_moves_with_what_it_is_of(tmp_path: Path) -> None:
    """Content that was changed and stamped anew is sound: checksums are against accidents."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.zeros(3)}, ABOUT)
    restamp_tensors(path, lambda held, _: held["x"].fill_(1))
    assert read_tensors(path, **KIND)[0].held["x"].tolist() == [1, 1, 1]


@dataclass(frozen=True)
class Point:
    x: int
    y: float
    name: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        ("1", int, "a whole number"),
        (True, int, "a whole number"),
        (1.0, int, "a whole number"),
        ("x", float, "a finite number"),
        (10**400, float, "a finite number"),
        (float("inf"), float, "a finite number"),
        (None, float, "a finite number"),
        ("no", bool, "true or false"),
        (["a"], str, "a text"),
        ("\ud800", str, "a text"),
        ("abc", list[str], "a list"),
        ([1, "a"], list[int], "a whole number"),
        ([1], tuple[int, int], "a list of 2"),
        ([], dict[str, int], "an object"),
        ({"x": 1}, Point, "an object of x, y, name"),
        ({"x": 1, "y": "2", "name": "a"}, Point, "a finite number"),
        ({"x": 1, "y": 2, "name": "c"}, Point, "'a' or 'b'"),
        ("x", float | None, "a finite number or null"),
        ([[[]]], int | str, "a whole number or a text"),
    ],
)
def test_a_field_of_another_type_is_named(value: object, kind: object, wanted: str) -> None:
    fields = Fields({"field": value}, "a.json", "make it again")
    with pytest.raises(InputError) as error:
        fields.take("field", kind)
    assert str(error.value).startswith("a.json is damaged (field")
    assert f"not {wanted}" in str(error.value)
    assert str(error.value).endswith("; make it again")


def test_fields_come_as_the_types_asked_for() -> None:
    held = {"n": 2, "pair": [[1, 2], [3, 4]], "point": {"x": 1, "y": 2, "name": "b"}, "none": None}
    fields = Fields({**held, "inside": {"n": 5}}, "a.json", "make it again")
    assert fields.take("n", float) == 2.0
    assert fields.take("pair", tuple[tuple[int, int], ...]) == ((1, 2), (3, 4))
    assert fields.take("point", Point) == Point(1, 2.0, "b")
    assert fields.take("none", float | None) is None
    assert fields.inner("inside").take("n", int) == 5
    with pytest.raises(InputError, match=r"a.json is damaged \(n is 2, not a whole number at least 3\)"):
        fields.take("n", int, least=3)
    with pytest.raises(InputError, match=r"a.json lacks 'm'; make it again"):
        fields.take("m", int)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device); free some space"),
        (errno.EROFS, "Read-only file system); give a place"),
    ],
)
def test_a_full_disk_and_a_read_only_folder_are_one_line(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, ABOUT)

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("optdepth.files.os.fsync", refuse)
    with pytest.raises(FileError) as error:
        write_json(path, {**ABOUT, "a": 1})
    assert isinstance(error.value, InputError)
    assert isinstance(error.value, OSError)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert read_json(path, **KIND).held == ABOUT
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(FileError, match=r"cannot write .*file/b.json \(.*\); give a place that you may write to"):
        write_json(tmp_path / "file" / "b.json", ABOUT)


def test_what_a_kill_left_beside_goes_when_the_file_is_written_again(tmp_path: Path) -> None:
    """Killed between writing beside and renaming, a process leaves its temporary file."""
    path = tmp_path / "a.json"
    code = (
        "import os, signal, sys; from pathlib import Path; from optdepth import files\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomically(Path(sys.argv[1]), b'new')"
    )
    write_json(path, ABOUT)
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_json(path, **KIND).held == ABOUT
    (left,) = (one for one in tmp_path.iterdir() if one != path)
    write_atomically(tmp_path / "b.json", b"another")
    assert left.exists()  # nobody knows whether it is needed but who writes that file
    write_json(path, ABOUT)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_who_is_still_writing_is_left_alone(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".a.json.00000000.part").open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_atomically(tmp_path / "a.json", b"{}")
        assert (tmp_path / ".a.json.00000000.part").exists()
