"""The end of a compiled library, by which it is known to be whole and of the sources beside it: one
that isn't ends a process without a word, or computes something else. The build uses it, too, where
nothing of this package is installed."""

import hashlib
from pathlib import Path

_MARK = b"ckptforge kernels"
_DIGEST = hashlib.sha256
_LENGTH = len(_MARK) + 2 * _DIGEST().digest_size


def sources_of(directory: Path) -> bytes:
    """A digest of the sources in a directory; nothing where there are none, as in a wheel."""
    paths = sorted(path for end in ("*.c", "*.h", "form.py") for path in directory.glob(end))
    if not any(path.suffix == ".c" for path in paths):
        return b""
    digest = _DIGEST()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()


def seal_of(library: bytes, sources: bytes) -> bytes:
    """What a build adds to a library that it has made of these sources."""
    return _MARK + sources + _DIGEST(library + sources).digest()


def is_sealed(file: bytes, sources: bytes) -> bool:
    """Whether a file is a library with its seal, and of these sources where there are any."""
    library, seal = file[:-_LENGTH], file[-_LENGTH:]
    said = seal[len(_MARK) : len(_MARK) + _DIGEST().digest_size]
    return seal == seal_of(library, said) and sources in (b"", said)
