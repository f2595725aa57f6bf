"""Files on disk: written whole or not at all, each with its checksum, and read with suspicion.

A checksum tells an accident, such as a flipped bit or a mixed-up copy, from what was written. Against malice it is no
help, for who writes a file writes its checksum too: so what is read is besides taken field by field, by type and range.
Nothing here imports torch, which a bundle lacks.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from .errors import FileError, InputError
from .fields import Fields

if sys.platform != "win32":
    import fcntl

CHECKSUM = "sha256"
"""The field that holds it, in JSON and in the head of tensors."""
_FULL = {errno.ENOSPC: "free some space there", errno.EDQUOT: "free some space there"}


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, so that an interrupted command leaves nothing half-written.

    It is written beside and renamed. What a killed process left beside goes when the file is next written.

    Raises:
        FileError: the system refuses.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{escape(path.name)}.*.part"):
            if _abandoned(left):
                left.unlink(missing_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with temporary.open("xb") as file:
                _lock(file)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes of what the system says while something is written one line.

    Raises:
        FileError: it refuses.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        fix = _FULL.get(error.errno or 0, "give a place that you may write to")
        raise FileError(f"cannot write {path} ({error.strerror or error}); {fix}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON that a person can read, with its checksum.

    Raises:
        InputError: it holds a number that JSON lacks.
    """
    plain = as_json(path, content)
    sealed = {**plain, CHECKSUM: digest_of(plain).hexdigest()}
    write_atomically(path, (json.dumps(sealed, indent=2) + "\n").encode())


def as_json(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content as it will be read back from a file.

    Raises:
        InputError: it holds a number that JSON lacks.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    except ValueError as error:
        raise InputError(f"cannot write {path}: a number in it is NaN or infinite ({error}); correct it") from None
    return plain


def read_json(path: Path, *, format: str, version: int, make_it: str) -> Fields:
    """Reads what `write_json` wrote, of the format and version given.

    Args:
        make_it: what the user can do to get such a file, for the error message.

    Raises:
        InputError: it is missing, of another format or version, or not as it was written.
    """
    with reading(path, make_it):
        content = parsed(path.read_bytes())
        checked(content, path, format, version, make_it)
        told = content.pop(CHECKSUM, None)
        check_digest(digest_of(content).hexdigest(), told, path, make_it)
        return Fields(content, str(path), make_it)


@contextmanager
def reading(path: Path, make_it: str) -> Iterator[None]:
    """Makes of what goes wrong while a file is read and decoded one line.

    Raises:
        InputError: there is no such file, or it is damaged.
        FileError: the system refuses to read it.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}; {make_it}")
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise FileError(
            f"cannot read {path} ({error.strerror or error}); give yourself the right to read it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, make_it) from None


@contextmanager
def rebuilding(path: Path, make_it: str) -> Iterator[None]:
    """Makes one line of what goes wrong while something is built from a file's fields, each of which was sound.

    Raises:
        InputError: whatever is raised.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # fields that do not fit together fail wherever they meet
        raise damaged(path, error, make_it) from error


def damaged(path: Path, error: Exception, make_it: str) -> InputError:
    """That a file is, in one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path} is damaged ({reason:.200}); {make_it}")


def parsed(content: bytes | str) -> Any:
    """What JSON says; a ValueError or RecursionError where it is none, or holds NaN or infinity."""
    return json.loads(content, parse_constant=_no_number)


def checked(content: Any, path: Path, format: str, version: int, make_it: str) -> None:
    """Refuses what is no JSON object of the format and version given, and says what it is instead."""
    if not isinstance(content, dict) or content.get("format") != format:
        raise InputError(f"{path} is not an {format} file; {make_it}")
    there = content.get("version")
    if type(there) is not int or there != version:
        raise InputError(f"{path} has version {there!r:.40}, this optdepth reads {version}; {make_it}")


def check_digest(found: str, told: Any, path: Path, make_it: str) -> None:
    """Refuses what has another checksum than it says."""
    if found != told:
        raise InputError(f"{path} is damaged (it is not as it was written, by its checksum); {make_it}")


@runtime_checkable
class Digest(Protocol):
    """What `hashlib` makes, whose own type has no name that can be read while a program runs."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def digest_of(plain: dict[str, Any]) -> Digest:
    """SHA-256 of what JSON says, however it is laid out; more may be added."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _lock(file: BinaryIO) -> None:
    """Marks a file as being written to, for as long as it is open."""
    if sys.platform != "win32":  # which keeps open files from being removed by itself
        with suppress(OSError):  # a file system that knows no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _abandoned(path: Path) -> bool:
    """Whether nobody writes to it any more."""
    if sys.platform == "win32":
        return True
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
