"""The ranks of the job that wrote an iteration, as metadata.json names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckptforge.errors import FormatError, shown
from ckptforge.mindformers.metadata import Described
from ckptforge.wording import counted, runs_of


def refuse_strangers(path: Path, described: Mapping[str, Described], files: int) -> None:
    """Raises `FormatError` where a tensor's layout or a slice names a rank that is none of the job,
    of which `files` lie there.

    Ranks are numbered from 0 without gaps. Where redundancy was removed some may have written no
    file: such a rank is taken for one of the job if all layouts of the ranks beside it name it.
    """
    lists: dict[tuple[int, ...], str] = {}
    wrote: dict[int, str] = {}
    for name, one in described.items():
        lists.setdefault(one.ranks, name)
        for holder in one.holders:
            wrote.setdefault(holder.storage_rank, name)
    named = {rank: name for ranks, name in reversed(lists.items()) for rank in ranks}
    known = {**wrote, **named}
    gap = next((rank for rank in range(len(known)) if rank not in known), len(known))
    for rank in sorted(known):
        beside = [ranks for ranks in lists if rank in ranks]
        others = {one for ranks in beside for one in ranks} - {rank}
        silent = rank not in wrote and rank >= files
        alone = silent and any(
            rank not in ranks and not others.isdisjoint(ranks) for ranks in lists
        )
        if rank > gap or alone:
            what = "rank_list" if rank in named else "storage_rank"
            inside = runs_of(one for one in known if one < rank)
            raise FormatError(
                f"{path}: {shown(known[rank])} has a {what} with rank {rank}, which isn't of the "
                f"job that wrote {counted(files, 'file')} and whose ranks are {inside or 'none'}; "
                "the file is damaged, or of another job: copy the whole iteration again."
            )
