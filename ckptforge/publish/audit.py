"""What casts did, as manifests and journals say it."""

from __future__ import annotations

from typing import Any

from ckptforge.run.audit import Audit, CastCount


def audit_json(audit: Audit) -> list[dict[str, Any]]:
    """Cast counts as a list of objects, by tensor group."""
    return [
        {
            "group": group,
            "from": source,
            "to": target,
            "values": count.values,
            "overflowed": count.overflowed,
            "underflowed": count.underflowed,
            "rounded": count.rounded,
            **({"undefined": count.undefined} if count.undefined else {}),
            **_errors(count),
        }
        for (group, source, target), count in sorted(audit.counts.items())
    ]


def _errors(count: CastCount) -> dict[str, float | None]:
    """What becoming codes did; nothing for other casts."""
    if not count.square:
        return {}
    return {
        "relative_error": count.relative_error,
        "worst_block": count.worst_block,
        "error": count.error,
        "square": count.square,
    }


def read_audit(content: list[dict[str, Any]]) -> Audit:
    """The audit that `audit_json` wrote. Raises `LookupError`, `TypeError`, `ValueError`."""
    audit = Audit()
    for row in content:
        figures = {key: int(row[key]) for key in ("values", "overflowed", "underflowed", "rounded")}
        count = CastCount(
            **figures,
            undefined=int(row.get("undefined", 0)),
            error=float(row.get("error", 0)),
            square=float(row.get("square", 0)),
            worst=float(row.get("worst_block", 0)) ** 2,
        )
        audit.counts[str(row["group"]), str(row["from"]), str(row["to"])] = count
    return audit
