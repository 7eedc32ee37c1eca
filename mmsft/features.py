"""The store of frozen encoders' outputs: each medium's features on disk, under the hashes of all that decides them."""

import hashlib
import inspect
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from typing import Any, Final
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmsft.errors import DataError
from mmsft.modalities.spec import File, Modality, Options

log = logging.getLogger(__name__)

_FORMAT: Final = 1
"""Of the files; others aren't read."""
_DAY: Final = 24 * 3600
_QUEUED: Final = 8
"""Groups of media that may wait to be written; what comes while so many wait is computed again another time."""
_MANIFEST: Final = "encoder.json"
_HOME: Final = Path(__file__).parent


def identity(modality: Modality, encoder: nn.Module, computing: str) -> dict[str, Any]:
    """Returns what decides the features of every medium, apart from the medium: settings, weights, code.

    Args:
        modality: how media are read.
        encoder: with its weights.
        computing: in what, e.g. ``bf16 on cpu``: rounding differs.

    Raises:
        DataError: the code can't be read, so that nobody could tell when it changes.
    """
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(_bytes(tensor.detach().cpu()))
    configs = {id(config): repr(config) for part in encoder.modules() if (config := getattr(part, "config", None))}
    return {
        "format": _FORMAT,
        "reads": modality.settings(),
        "encoder": hashlib.blake2b(f"{encoder!r} {list(configs.values())}".encode(), digest_size=16).hexdigest(),
        "weights": weights.hexdigest(),
        "computing": computing,
        "code": _code([*type(modality).__mro__, *(type(part) for part in encoder.modules())]),
    }


def _code(classes: list[type]) -> dict[str, str]:
    """Returns the versions of the packages that classes are from, and the hashes of files that belong to none."""
    found = {"torch": str(torch.__version__), "mmsft": _hash_of(*sorted(_HOME.glob("modalities/*.py")))}
    for module in sorted({kind.__module__ for kind in classes}):
        package = module.split(".")[0]
        if package in found or package in sys.stdlib_module_names - {"__main__"}:
            continue
        version = getattr(sys.modules.get(package), "__version__", None)
        if isinstance(version, str):
            found[package] = version
            continue
        file = inspect.getsourcefile(sys.modules[module]) if getattr(sys.modules[module], "__file__", None) else None
        if file is None:
            raise DataError(f"the code of {module} is in no file, so that nobody can tell when it changes")
        found[module] = _hash_of(Path(file))
    return found


def _hash_of(*files: Path) -> str:
    return hashlib.blake2b(b"\0".join(file.read_bytes() for file in files), digest_size=16).hexdigest()


@lru_cache(maxsize=100_000)
def _digest(file: Path, size: int, changed: int) -> str:
    """Returns the hash of a file's bytes; size in bytes and time of its last change in ns tell it from what it was."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """One encoder's features; picklable, so that data workers read it.

    A medium is a file of its own, written aside and then renamed: processes need no lock, and what is there is whole.

    Attributes:
        folder: of the encoder, inside that of all stores.
    """

    folder: Path

    @classmethod
    def of(cls, root: Path, found: Mapping[str, Any]) -> "FeatureStore":
        """Returns the store of an encoder by its `identity`; nothing is made yet."""
        text = json.dumps(found, sort_keys=True)
        return cls(root / hashlib.blake2b(text.encode(), digest_size=16).hexdigest())

    def digest(self, file: File, options: Options) -> str:
        """Returns a medium's key: two clips of one file differ, two names of one picture don't.

        Raises:
            OSError: the file can't be read.
        """
        if isinstance(file, bytes):
            content = hashlib.blake2b(file, digest_size=16).hexdigest()
        else:
            stat = file.stat()
            content = _digest(file, stat.st_size, stat.st_mtime_ns)
        if not options:
            return content
        return hashlib.blake2b(f"{content} {sorted(options.items())}".encode(), digest_size=16).hexdigest()

    def path(self, digest: str) -> Path:
        """Returns where a medium's features are, if they are there."""
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def get(self, digest: str, count: int) -> Tensor | None:
        """Returns a medium's features [count, width] as they were computed, or None.

        A file that isn't whole is told about and taken away, so that the features are computed and written again.
        """
        path = self.path(digest)
        try:
            # Looked for first: a missing file is the usual case, and the library's error for it costs more.
            if not path.exists():
                return None
            with safe_open(path, "pt") as file:
                values: Tensor = file.get_tensor("values")
                stated = (file.metadata() or {}).get("crc32")
        except (OSError, SafetensorError) as error:
            why = str(error)
        else:
            if str(crc32(_bytes(values))) == stated and len(values) == count:
                return values
            why = f"{len(values)} features in place of {count}, or another checksum than {stated}"
        log.warning("feature store: %s is spoilt (%s); the medium is encoded again", path, why)
        with suppress(OSError):
            path.unlink()
        return None


def _bytes(values: Tensor) -> Any:
    return values.contiguous().view(-1).view(torch.uint8).numpy()


@dataclass
class Keeper:
    """Writes the features that one process computes, behind its back; never stops a training.

    Attributes:
        store: where to.
        found: the encoder's `identity`, written beside them.
        limit: bytes of all stores together.
        read: media that were found in the store.
        encoded: media that had to be encoded.
    """

    store: FeatureStore
    found: Mapping[str, Any]
    limit: int
    read: int = 0
    encoded: int = 0
    _waiting: "queue.Queue[tuple[tuple[str, ...], Callable[[], list[Tensor]]] | None]" = field(init=False, repr=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)
    _off: bool = field(default=False, init=False, repr=False)
    _used: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._waiting = queue.Queue(_QUEUED)

    def put(self, digests: tuple[str, ...], values: list[Tensor], read: int) -> None:
        """Takes the features [L, width] of media, and how many others were read; doesn't wait for a device."""
        self.read += read
        self.encoded += len(digests)
        if self._off or not digests:
            return
        if self._thread is None:
            # Begun with the first features: by then the data workers are there, who don't inherit it.
            self._thread = threading.Thread(target=self._write_all, name="feature store", daemon=True)
            self._thread.start()
        with suppress(queue.Full):
            self._waiting.put_nowait((digests, _to_host(values)))

    def close(self) -> None:
        """Writes what waits, and ends."""
        while self._thread is not None and self._thread.is_alive():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=1)
                self._thread.join()
        self._thread = None

    def _write_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            digests, values = item
            for digest, tensor in zip(digests, values(), strict=True):
                if not self._off:
                    self._write(digest, tensor)

    def _write(self, digest: str, values: Tensor) -> None:
        path = self.store.path(digest)
        try:
            if self._used is None:
                self._open()
            if path.exists() or not self._room(values.nbytes):
                return
            path.parent.mkdir(exist_ok=True)
            _place(path, save({"values": values.contiguous()}, {"crc32": str(crc32(_bytes(values)))}))
        except OSError as error:
            self._stop(f"can't be written to ({error}); name another folder with `features.folder`")

    def _open(self) -> None:
        folder = self.store.folder
        folder.mkdir(parents=True, exist_ok=True)
        manifest = folder / _MANIFEST
        if not manifest.exists():
            _place(manifest, json.dumps(self.found, indent=1).encode())
        os.utime(manifest)  # what was used last goes last
        self._used = sum(_sizes(folder.parent))

    def _room(self, size: int) -> bool:
        """Makes room, if need be, of encoders that nobody has used for a day."""
        assert self._used is not None
        if self._used + size > self.limit:
            root = self.store.folder.parent
            for folder in _idle(root, self.store.folder):
                rmtree(folder, ignore_errors=True)
                self._used = sum(_sizes(root))
                if self._used + size <= self.limit:
                    break
            else:
                self._stop(
                    f"is full ({self.limit / 1e9:g} GB); what isn't in it is encoded at each use. Raise "
                    "`features.limit`, or delete folders in it"
                )
                return False
        self._used += size
        return True

    def _stop(self, why: str) -> None:
        self._off = True
        log.warning("feature store: %s %s", self.store.folder.parent, why)


def _place(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all, whoever else writes it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _to_host(values: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Starts a copy to the CPU's memory; what is returned waits for it."""
    if values[0].device.type == "cpu":
        return lambda: values
    hosts = [torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for value in values]
    for host, value in zip(hosts, values, strict=True):
        host.copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[Tensor]:
        copied.synchronize()
        return hosts

    return wait


def _sizes(root: Path) -> Iterator[int]:
    """Yields the sizes of all files; those that a killed process left half-written are taken away."""
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            with suppress(OSError):  # another process may take it away meanwhile
                stat = file.stat()
                if name.endswith(".tmp") and stat.st_mtime < time.time() - _DAY:
                    file.unlink()
                else:
                    yield stat.st_size


def _idle(root: Path, own: Path) -> list[Path]:
    """Returns the folders of other encoders that weren't opened for a day, the longest idle first."""
    found = []
    for manifest in root.glob(f"*/{_MANIFEST}"):
        with suppress(OSError):
            used = manifest.stat().st_mtime
            if manifest.parent != own and used < time.time() - _DAY:
                found.append((used, manifest.parent))
    return [folder for _, folder in sorted(found)]
