"""Which store reads the addresses of a scheme: those of the package, those that other packages
announce by entry points of the group `ckptforge.stores`, named as the scheme is, and for any other
scheme what fsspec knows. Each is a function that takes the scheme and returns a store. It is loaded
when the first such address is read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import cast

from ckptforge.storage.store import Store

Opens = Callable[..., Store | None]
GROUP = "ckptforge.stores"
_BUILT_IN = {
    "http": "ckptforge.remote.web:web_store",
    "https": "ckptforge.remote.web:web_store",
    "hf": "ckptforge.remote.hub:hub_store",
    "s3": "ckptforge.remote.s3:s3_store",
    "obs": "ckptforge.remote.s3:s3_store",
}
_ANY = "ckptforge.remote.anything:any_store"
_opened: dict[tuple[str, str | None], Store | None] = {}
_log = logging.getLogger(__name__)


def store_for(scheme: str, endpoint: str | None = None) -> Store | None:
    """The store of a scheme, of the service at `endpoint` where one is said, which only stores of
    this package are; None where nobody knows it. Raises `InputNotFoundError` where a package that
    it needs isn't installed."""
    if (scheme, endpoint) not in _opened:
        opens = _named(_BUILT_IN.get(scheme)) or _announced(scheme) or _named(_ANY)
        where = () if endpoint is None else (endpoint,)
        _opened[scheme, endpoint] = None if opens is None else opens(scheme, *where)
    return _opened[scheme, endpoint]


def _named(where: str | None) -> Opens | None:
    if where is None:
        return None
    module, _, name = where.partition(":")
    try:
        return cast(Opens, getattr(import_module(module), name))
    except ModuleNotFoundError as error:  # the part of the package may not be there
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        return None


def _announced(scheme: str) -> Opens | None:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=scheme):
        try:
            return cast(Opens, point.load())
        except Exception as error:
            _log.warning("%s %s can't be loaded: %s", GROUP, point.value, error)
    return None
