"""Fetching weights: whole, with the hash their name promises, or not at all."""

import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from tqdm import tqdm

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 60


def cached_download(url: str, folder: str | Path | None = None) -> Path:
    """The local file of a URL, downloaded on first use.

    A file name of the form `name-0123abcd.pth` promises the first digits of the content's SHA-256,
    as torch.hub's do, and is held to it. The file appears in the folder under its name only when
    it is complete and its hash is right.

    Args:
        url: http(s) address.
        folder: cache; by default the folder where torch.hub keeps checkpoints.

    Returns:
        Path of the file in the cache.

    Raises:
        ConnectionError: the server cannot be reached, refuses, or stops before the end.
        ValueError: the content does not have the promised hash, or the URL names no file.
    """
    folder = Path(torch.hub.get_dir(), "checkpoints") if folder is None else Path(folder)
    name = Path(urlparse(url).path).name
    if not name:
        raise ValueError(f"{url} names no file to download.")
    path = folder / name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f"{name}.", suffix=".partial", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _fetch(url, file, path)
        promised = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
        if promised and not digest.startswith(promised[1]):
            raise ValueError(
                f"{url} has SHA-256 {digest}, but its name promises {promised[1]}...: the content "
                "was changed or damaged on its way; nothing was kept. Try again, or fetch it from "
                "another network."
            )
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


def _fetch(url: str, file, path: Path) -> str:
    """Writes the content of `url` to a binary file and returns its SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    received, expected = 0, None
    request = urllib.request.Request(url, headers={"User-Agent": "detr_fast"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            expected = None if length is None else int(length)
            # disable=None: no bar where standard error is not a terminal.
            with tqdm(
                total=expected, unit="B", unit_scale=True, desc=path.name, disable=None
            ) as bar:
                while block := response.read(_BLOCK):
                    file.write(block)
                    digest.update(block)
                    received += len(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        raise ConnectionError(
            f"{url} answered {error.code} ({error.reason}); nothing was downloaded."
        ) from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({getattr(error, 'reason', error)!s}; {received} bytes "
            f"received); nothing was kept. Where there is no network, put the file at {path}."
        ) from error
    if expected is not None and received != expected:
        raise ConnectionError(
            f"the connection to {url} was cut after {received} of {expected} bytes; nothing was "
            "kept. Try again."
        )
    return digest.hexdigest()
