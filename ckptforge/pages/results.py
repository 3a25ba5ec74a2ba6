"""The page of each verb, of the object that `--json` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckptforge.pages import (
    comparison,
    inspection,
    likeness,
    statistics,
    verification,
    writing,
)
from ckptforge.pages.document import document, section
from ckptforge.pages.markup import Markup, tag
from ckptforge.pages.tables import facts, items

Found = Mapping[str, Any]
Sections = Sequence[Markup | None]


def html_page(found: Found, said: str = "") -> str:
    """A result, as `to_json()` gives it, as one HTML page that needs nothing else. `said` is the
    verdict of a check in words. Raises `KeyError` for an object of no verb that has a page."""
    verb = found["verb"]
    sections, names = _PAGES.get(verb, (writing.sections, ("output",)))
    if verb == "compare" and "problems" in found:
        sections, names = _checked, ("path",)
    if verb == "verify" and "losses" in found:
        sections, names = likeness.sections, ("a", "b")
    kind = "good" if found.get("ok", True) else "failed"
    verdict = tag("p", said, class_=f"verdict {kind}") if said else Markup()
    subject = " and ".join(str(found[name]) for name in names)
    made = [one for one in sections(found) if one]
    return document(f"ckptforge {verb}", subject, made, verdict)


def _checked(found: Found) -> Sections:
    about = [
        ("manifest", found["manifest"]),
        ("files", f"{found['files']:,}"),
        ("tensors", f"{found['tensors']:,}"),
        ("bytes", f"{found['bytes']:,}"),
    ]
    compared = section("What was compared", facts(about))
    return [compared, section("Problems", items(found["problems"]))]


_PAGES: Mapping[str, tuple[Callable[[Found], Sections], tuple[str, ...]]] = {
    "inspect": (inspection.sections, ("path",)),
    "stats": (statistics.sections, ("path",)),
    "verify": (verification.sections, ("hf_dir", "ms")),
    "compare": (comparison.sections, ("a", "b")),
}
