"""How a job of Megatron's is cut: its degrees, and which layers lie where. Pure arithmetic.

Source: MindSpeed-LLM `mindspeed_llm/tasks/checkpoint/convert.py`, `convert_hf2mg.py`; Megatron-LM
`megatron/core/parallel_state.py`; MindSpeed-MM `mindspeed_mm/models/vlm_model.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from ckptforge.errors import ConfigError
from ckptforge.wording import counted

Chunk = tuple[int, int]  # stage, and which of its parts
LISTED = "num_layer_list"


class Rank(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file's place in a job."""

    stage: int = 0
    expert: int = 0
    tensor: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The degrees of a job. `expert_tensor` cuts the matrices of experts, where it is 1 not all
    ranks write a file; with `extended` they aren't cut, but spread over all tensor-parallel ranks,
    too. `parts` are those of a stage, `v_shaped` if the second ones lie in reverse order."""

    tensor: int = 1
    stages: int = 1
    expert: int = 1
    expert_tensor: int = 1
    extended: bool = False
    parts: int = 1
    v_shaped: bool = False

    @property
    def chunks(self) -> list[Chunk]:
        """The parts of all stages in the order of their layers."""
        found = []
        for part in range(self.parts):
            stages: Sequence[int] = range(self.stages)
            if self.v_shaped and part % 2:
                stages = stages[::-1]
            found += [(stage, part) for stage in stages]
        return found

    @property
    def last(self) -> Chunk:
        """The part of a stage that the head is in."""
        return self.chunks[-1]

    def writes(self, rank: Rank) -> bool:
        """Whether a rank writes a file: experts that aren't cut lie on one for each."""
        if self.expert == 1 or self.expert_tensor == self.tensor or self.extended:
            return True
        if self.tensor % self.expert == 0:
            return rank.expert == rank.tensor % self.expert
        return rank.tensor == rank.expert % self.tensor

    def grid(self) -> Iterator[Rank]:
        """All places, stage by stage."""
        for stage in range(self.stages):
            for expert in range(self.expert):
                for tensor in range(self.tensor):
                    yield Rank(stage=stage, expert=expert, tensor=tensor)

    def ranks(self) -> Iterator[Rank]:
        """Those that write a file, stage by stage."""
        return filter(self.writes, self.grid())

    def cut(self, dimension: str, of_experts: bool, rank: Rank) -> tuple[int, int]:
        """(into how many parts a dimension of [shard], `mp` or `ep`, cuts an axis, which of them a
        rank has); `of_experts` where the tensor is cut by `ep`, too."""
        if dimension == "ep":
            if self.extended:
                return self.expert * self.tensor, rank.expert * self.tensor + rank.tensor
            return self.expert, rank.expert
        if not of_experts:
            return self.tensor, rank.tensor
        degree = 1 if self.extended else self.expert_tensor
        return degree, rank.tensor % degree


class Layers(msgspec.Struct, frozen=True):
    """Where layers lie: (stage, part) → number there → number in the model, in their order."""

    held: Mapping[Chunk, Mapping[int, int]]

    def ends(self, job: Job) -> tuple[Chunk, Chunk]:
        """The first and the last part of a stage that has any."""
        chunks = [chunk for chunk in job.chunks if self.held.get(chunk)] or job.chunks[:1]
        return chunks[0], chunks[-1]


def found_layers(job: Job, held: Mapping[Chunk, Sequence[int]]) -> Layers:
    """Layers as files hold them: the numbers there, which have gaps where layers do nothing, in the
    order of the parts of stages."""
    number = 0
    layers: dict[Chunk, dict[int, int]] = {}
    for chunk in job.chunks:
        own = layers[chunk] = {}
        for local in sorted(held.get(chunk, ())):
            own[local] = number
            number += 1
    return Layers(layers)


def spread_layers(
    job: Job,
    layers: int,
    listed: Sequence[int] | None,
    idle: Sequence[int],
    where: str,
    key: str = LISTED,
) -> Layers:
    """A model's layers as a job spreads them: as many in each part, or as `listed` for each under
    `key`; `idle` are places, counted in the job, at which no layer is. Raises `ConfigError`."""
    places = layers + len(idle)
    chunks = job.chunks
    lengths = [places // len(chunks)] * len(chunks) if listed is None else list(listed)
    if len(lengths) != len(chunks) or sum(lengths) != places or not all(n >= 0 for n in lengths):
        advice = f"{key} or noop_layers" if key == LISTED else key
        with_idle = f" and {counted(len(idle), 'idle one')}" if idle else ""
        raise ConfigError(
            f"{where}: {counted(layers, 'layer')}{with_idle} can't be divided into "
            f"{counted(len(chunks), 'part')} of "
            f"{'equal length' if listed is None else 'lengths ' + ', '.join(map(str, lengths))}: "
            f"choose other degrees, or give {advice} that fit."
        )
    if wrong := [place for place in idle if not 0 <= place < places]:
        raise ConfigError(f"{where}: noop_layers has {wrong[0]}, expected 0 to {places - 1}.")
    found: dict[Chunk, dict[int, int]] = {}
    start = number = 0
    for chunk, length in zip(chunks, lengths, strict=True):
        own = found[chunk] = {}
        for local in range(length):
            if start + local not in idle:
                own[local] = number
                number += 1
        start += length
    return Layers(found)
