"""The reference: a model of transformers' own, of which one layer at a time has weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import VerifyError
from ckptforge.forward.hub_model import import_torch, layout_in_memory, model_of
from ckptforge.forward.network import LayerOutput
from ckptforge.forward.precision import FLOAT32, Precision
from ckptforge.forward.routing import Route
from ckptforge.forward.weights import Weights

Array = NDArray[np.float32]


class _LazyStack:
    """Stands for a stack of experts' matrices: an index reads one."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, expert: Any) -> Any:
        return self.read(int(expert))


class TorchForward:
    """`embed`, `layer` and `head` of a model, each reading the weights that it needs; numpy in and
    out. Masks, positions and whatever else lies between layers are the model's own.

    Raises `VerifyError` where torch or transformers isn't installed, or doesn't have the model, and
    `ConfigError` for a config.json that it makes none of.
    """

    def __init__(
        self, weights: Weights, attention: str = "eager", precision: Precision = FLOAT32
    ) -> None:
        self.torch, _ = import_torch()
        source = weights.source
        where = f"the config of {source.model.path}"
        self.weights, self.dtype = weights, getattr(self.torch, precision.name)
        self.model = model_of(source.config, source.table, attention, where)
        self.config = self.model.config
        layout = layout_in_memory(self.model, source.table, where)
        self._values = weights.named(layout)
        self._router = None
        if weights.has("router"):  # model.layers.{l}.mlp.gate.weight → mlp.gate
            template = layout.holding("router").template
            self._router = template.partition("}.")[2].rpartition(".")[0]
        self._kept = set(getattr(self.model, "_keep_in_fp32_modules_strict", None) or ())
        self._empty()

    def _empty(self) -> None:
        """Leaves out of the model all that has weights."""
        base, nothing = self.model.base_model, _nothing(self.torch)
        self._base, self._nothing = base, nothing
        self._layers, self._norm = [type(layer) for layer in base.layers], base.norm
        for i in range(len(base.layers)):
            base.layers[i] = nothing
        base.norm = self.model.lm_head = nothing
        base.rotary_emb = type(base.rotary_emb)(self.config)  # off the device meta

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """(batch, length, hidden)."""
        unique, inverse = np.unique(tokens, return_inverse=True)
        rows = self.torch.from_numpy(self.weights.rows("embedding", unique)).to(self.dtype)
        made: Array = rows.float().numpy()[inverse.reshape(tokens.shape)]
        return made

    def layer(self, i: int, hidden: Array, taken: Route | None = None) -> LayerOutput:
        """What layer `i` makes of its input; the experts and gates of `taken` stand in for those
        that it would choose."""
        torch = self.torch
        seen: list[Any] = []

        def routed(_: Any, __: Any, output: Any) -> Any:
            seen.append(output)
            if taken is None:
                return None
            gates = torch.from_numpy(taken.gates).to(output[1].dtype)
            return output[0], gates, torch.from_numpy(taken.experts)

        with torch.device("meta"):
            module = self._layers[i](self.config, i).eval()
        self._fill(module, f"{self.model.base_model_prefix}.layers.{i}.")
        if self._router is not None and self.weights.has("router", i):
            module.get_submodule(self._router).register_forward_hook(routed)
        self._base.layers[i] = module
        try:
            made = self._run(hidden)
        finally:
            self._base.layers[i] = self._nothing
        if not seen:
            return LayerOutput(made, None)
        logits, gates, experts = seen[0]
        figures = logits.float().numpy()
        return LayerOutput(made, Route(figures, figures, experts.numpy(), gates.float().numpy()))

    def head(self, hidden: Array) -> Array:
        """(batch, length, vocab): the final norm and lm_head, in blocks of rows."""
        matrix = "embedding" if self.config.tie_word_embeddings else "lm_head"
        if not self.weights.has(matrix):
            raise VerifyError(
                f"{self.weights.source.model.path}: has no lm_head, and its config.json doesn't "
                "tie it to the embedding."
            )
        self._fill(self._norm, f"{self.model.base_model_prefix}.norm.")
        self._base.norm, self.model.lm_head = (
            self._norm,
            _nothing(self.torch, self._product(matrix)),
        )
        try:
            return self._run(hidden)
        finally:
            self._base.norm = self.model.lm_head = self._nothing

    def _product(self, matrix: str) -> Callable[[Any], Any]:
        """states · matrixᵀ, of a matrix that is read in blocks of rows."""
        torch = self.torch
        linear = torch.nn.functional.linear

        def product(states: Any) -> Any:
            blocks = self.weights.blocks(matrix, states.shape[-1])
            parts = [linear(states, torch.from_numpy(rows).to(self.dtype)) for rows in blocks]
            return torch.cat(parts, -1)

        return product

    def _run(self, hidden: Array) -> Array:
        with self.torch.no_grad():
            states = self.torch.from_numpy(hidden).to(self.dtype)
            made: Array = self.model(inputs_embeds=states, use_cache=False).logits.float().numpy()
        return made

    def _fill(self, module: Any, prefix: str) -> None:
        """Gives a module its weights; of a stack of experts one matrix is read at a time."""
        for key, held in module.state_dict(keep_vars=True).items():
            name, (path, _, leaf) = prefix + key, key.rpartition(".")
            owner = module.get_submodule(path)
            self._refuse_other_shape(name, tuple(held.shape))
            dtype = self.torch.float32 if any(kept in name for kept in self._kept) else self.dtype
            if isinstance(held, self.torch.nn.Parameter):
                del owner._parameters[leaf]
                if _is_stack(owner, held):
                    setattr(owner, leaf, _LazyStack(self._reader(name, dtype)))
                    continue
                values = self._reader(name, dtype)(None)
                setattr(owner, leaf, self.torch.nn.Parameter(values, requires_grad=False))
            else:
                owner._buffers[leaf] = self._reader(name, dtype)(None)

    def _refuse_other_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found, expected = self._values.get(name), f"{list(shape)}"
        if found is None or found.shape != shape:
            has = f"has no {name}" if found is None else f"{name} is {list(found.shape)}"
            raise VerifyError(
                f"{self.weights.source.model.path}: {has}, but transformers' "
                f"{type(self.model).__name__} has one of {expected} by the same config.json."
            )

    def _reader(self, name: str, dtype: Any) -> Callable[[int | None], Any]:
        value = self._values[name]

        def read(row: int | None) -> Any:
            return self.torch.from_numpy(self.weights.stored(name, value, row)).to(dtype)

        return read


def _is_stack(module: Any, parameter: Any) -> bool:
    """Whether a parameter holds a matrix for each of the module's experts, which indexes it by
    one of them."""
    experts: int | None = getattr(module, "num_experts", None)
    return len(parameter.shape) > 2 and experts == parameter.shape[0]


def _nothing(torch: Any, made: Callable[[Any], Any] = lambda states: states) -> Any:
    """A module that takes what a layer takes, and gives back what `made` makes of the states."""

    class Nothing(torch.nn.Module):  # type: ignore[misc]
        def forward(self, hidden_states: Any, *_: Any, **__: Any) -> Any:
            return made(hidden_states)

    return Nothing()
