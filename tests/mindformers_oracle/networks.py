"""Jobs that train a network like those of MindFormers: its parameters are cut as MindFormers 2.1
cuts them.

Graph mode: `parallel_core/training_graph`, its `device_matrix.py` for the meshes, and `shard()` of
`tensor_parallel/layers.py`, `transformer/moe/ffn.py` and `router.py` for what cuts which axis.
PyNative mode: `distributed/parallel_dims.py` and `base_models/gpt/parallelize.py` of `pynative`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.mindformers_oracle.jobs import Job, Layout, Parameter

HIDDEN, FFN, VOCAB, EXPERTS = 8, 16, 32, 8
# name → (shape, axis that tensor parallelism cuts, axis that expert parallelism cuts)
Cut = tuple[tuple[int, ...], int | None, int | None]
LAYER: dict[str, Cut] = {
    "input_layernorm.weight": ((HIDDEN,), None, None),
    "self_attention.linear_qkv.weight": ((32, HIDDEN), 0, None),
    "self_attention.linear_qkv.bias": ((32,), 0, None),
    "self_attention.linear_proj.weight": ((HIDDEN, 16), 1, None),
    "pre_mlp_layernorm.weight": ((HIDDEN,), None, None),
    "mlp.router.weight": ((EXPERTS, HIDDEN), None, None),
    "mlp.experts.weight1": ((EXPERTS * HIDDEN, 2 * FFN), None, 0),
    "mlp.experts.weight2": ((EXPERTS * FFN, HIDDEN), None, 0),
    "mlp.shared_experts.linear_fc1.weight": ((2 * FFN, HIDDEN), None, None),
}
FIRST: dict[str, Cut] = {"embedding.word_embeddings.weight": ((VOCAB, HIDDEN), 0, None)}
LAST: dict[str, Cut] = {
    "decoder.final_layernorm.weight": ((HIDDEN,), None, None),
    "output_layer.weight": ((VOCAB, HIDDEN), 0, None),
}
KEPT_WHOLE = ("layernorm", "bias", "router")  # what the parallel optimizer doesn't cut


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Sizes of a job's dimensions. `shard` is the parallel optimizer's, as in `Layout`."""

    dp: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    shard: int = 0
    pynative: bool = False
    dtype: str = "Float32"
    layers: int = 1
    optimizer: bool = True

    @property
    def stage_size(self) -> int:
        return self.dp * self.cp * self.tp

    def job(self) -> Job:
        parameters: dict[str, Parameter] = {}
        for stage in range(self.pp):
            ranks = tuple(range(stage * self.stage_size, (stage + 1) * self.stage_size))
            for name, cut in self.stage(stage).items():
                parameters[name] = self.parameter(name, cut, ranks)
        if self.optimizer:
            parameters |= {
                f"adam_m.{name}": Parameter(
                    dtype="Float32", shape=of.shape, layout=of.layout, optimizer=True
                )
                for name, of in parameters.items()
            }
            parameters["global_step"] = self.global_step()
        return Job(parameters=parameters, ranks=self.pp * self.stage_size, pynative=self.pynative)

    def stage(self, stage: int) -> dict[str, Cut]:
        return {
            **(FIRST if stage == 0 else {}),
            **{
                f"decoder.layers.{layer}.{name}": cut
                for layer in range(self.layers)
                if layer * self.pp // self.layers == stage
                for name, cut in LAYER.items()
            },
            **(LAST if stage == self.pp - 1 else {}),
        }

    def parameter(self, name: str, cut: Cut, ranks: tuple[int, ...]) -> Parameter:
        shape, tp_axis, ep_axis = cut
        experts = ".experts." in name
        if self.pynative and experts:
            shape = (EXPERTS, shape[0] // EXPERTS, *shape[1:])
        if self.pp * self.stage_size == 1:
            return Parameter(dtype=self.dtype, shape=shape)
        moe = experts or (".router." in name and not self.pynative)
        mesh = self.expert_mesh() if moe else self.dense_mesh()
        axis, by = (ep_axis, "ep") if experts else (tp_axis, "tp")
        tensor_map: list[Any] = [-1] * len(shape)
        if axis is not None and by in mesh:
            tensor_map[axis] = 0  # the last axis of either mesh
        if self.pynative:
            tensor_map[0] = self.with_fsdp(shape[0], tensor_map[0], mesh)
        kept_whole = self.pynative or any(part in name for part in KEPT_WHOLE)
        layout = Layout(
            device_matrix=tuple(mesh.values()),
            alias_name=tuple(mesh),
            tensor_map=tuple(tensor_map),
            rank_list=ranks,
            shard=0 if kept_whole else self.shard,
        )
        return Parameter(dtype=self.dtype, shape=shape, layout=layout)

    def dense_mesh(self) -> dict[str, int]:
        if not self.pynative:
            return {"dp": self.dp, "cp": self.cp, "tp": self.tp}
        fsdp = {"fsdp": self.dp * self.cp}
        return fsdp | {"tp": self.tp} if self.tp > 1 else fsdp

    def expert_mesh(self) -> dict[str, int]:
        outer = self.stage_size // self.ep
        if not self.pynative:
            return {"dp_ex_ep": outer, "ep": self.ep}
        return {"efsdp": outer, "ep": self.ep} if self.ep > 1 else self.dense_mesh()

    def with_fsdp(self, size: int, entry: int, mesh: dict[str, int]) -> Any:
        """fully_shard cuts what tensor or expert parallelism left: it is the least significant."""
        own = len(mesh) - 1
        left = size // (1 if entry == -1 else list(mesh.values())[-1])
        if left % next(iter(mesh.values())):
            return entry
        return own if entry == -1 else (entry, own)

    def global_step(self) -> Parameter:
        """Each stage has it. In PyNative mode it has no layout."""
        ranks = tuple(range(self.pp * self.stage_size))
        dtype = "Int64" if self.pynative else "Int32"
        if self.pynative or len(ranks) == 1:
            return Parameter(dtype=dtype, shape=(1,), optimizer=True)
        layout = Layout(
            device_matrix=tuple(self.dense_mesh().values()),
            tensor_map=(-1,),
            rank_list=ranks[: self.stage_size],
        )
        return Parameter(dtype=dtype, shape=(1,), layout=layout, optimizer=True, ranks=ranks)
