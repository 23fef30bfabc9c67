"""One file of tensors and JSON, with a checksum over both.

The file is in the safetensors format, which holds tensors and words and nothing that could run; the
JSON stands among the words of its header. The checksum shows what has changed by accident or by a
careless hand. It is no signature: whoever changes a file on purpose can write a new one.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["CHECKPOINT", "FIT", "Kind", "check_target", "read_sealed", "write_sealed"]


class Kind(NamedTuple):
    """What the content of a file means, what it is, who writes it, and how to come by another."""

    format: str
    what: str
    writer: str
    remedy: str


FIT = Kind("ember fit 1", "fit", "fit.save", "save the fit anew")
CHECKPOINT = Kind("ember checkpoint 1", "checkpoint", "fit_batches", "start again without resume")


def check_target(path: str | Path) -> Path:
    """The path of a file to be written, once it is known that it can be.

    Raises:
        TypeError: If it is no path.
        ValueError: If there is no such folder, or a folder stands there.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{path!r} is no path; give the name of a file.")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}.")
    return path


def write_sealed(path: Path, content: Any, tensors: Mapping[str, Tensor], kind: Kind = FIT) -> None:
    """Writes a file, or leaves the one that was there as it is.

    Raises:
        ValueError: If the file cannot be written.
    """
    text = json.dumps(content, allow_nan=False)
    words = {"format": kind.format, "version": _version(), "content": text}
    words["checksum"] = _checksum(words, tensors)
    try:
        # In the same folder, so that it can take the place of the old file in one go.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(dict(tensors), name, metadata=words)
            os.chmod(name, _mode(path))
            os.replace(name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be written: {_reason(error)}.") from error


def read_sealed(path: str | Path, kind: Kind = FIT) -> tuple[Any, dict[str, Tensor]]:
    """The content of a file and its tensors.

    Raises:
        ValueError: If there is no such file, it is of another kind or version, or has changed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            words = file.metadata() or {}
            _check_format(path, words, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is no {kind.what} that {kind.writer} wrote, or it is damaged, for instance "
            f"cut short ({_reason(error)}); {kind.remedy}."
        ) from error
    if words.pop("checksum", "") != _checksum(words, tensors):
        raise ValueError(
            f"{path} is not as {kind.writer} wrote it: its checksum does not agree with what it "
            f"holds; take an unchanged copy, or {kind.remedy}."
        )
    return json.loads(words["content"]), tensors


def _check_format(path: Path, words: Mapping[str, str], kind: Kind) -> None:
    found = words.get("format", "")
    if not found.startswith(f"ember {kind.what}"):
        raise ValueError(f"{path} holds tensors, but no {kind.what} that {kind.writer} wrote.")
    if found != kind.format:
        raise ValueError(
            f"{path} was written in the format '{found}' by Ember {words.get('version')}, and this "
            f"Ember {_version()} reads '{kind.format}'; load it with the Ember that wrote it, or "
            "fit anew."
        )


def _checksum(words: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _mode(path: Path) -> int:
    """The permissions of a new file: those of the old one, or what the user's mask leaves."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()).rstrip(".")


def _version() -> str:
    try:
        return importlib.metadata.version("pyro-ember")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
