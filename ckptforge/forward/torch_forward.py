"""The reference: a model of transformers' own, of which one layer at a time has weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import VerifyError
from ckptforge.forward.hub_model import import_torch, layouts_in_memory, model_of
from ckptforge.forward.network import LayerOutput
from ckptforge.forward.precision import FLOAT32, Precision
from ckptforge.forward.routing import Route
from ckptforge.forward.weights import Weights
from ckptforge.tables.table import Layout
from ckptforge.values import Value

Array = NDArray[np.float32]


class _LazyStack:
    """Stands for a stack of experts' matrices: an index reads one."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, expert: Any) -> Any:
        return self.read(int(expert))


class TorchForward:
    """`embed`, `layer` and `head` of a model, each reading the weights that it needs; numpy in and
    out. Masks, positions and whatever else lies between layers are the model's own: the whole of it
    is run each time, on the tokens that were embedded last, with all layers but one left out. What
    goes from layer to layer has the shape that the model gives it.

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
        self.model = model_of(source.whole_config, source.table, attention, where)
        layout, self._values = self._in_memory(layouts_in_memory(self.model, source.table, where))
        self._router = None
        if weights.has("router"):  # model.layers.{l}.mlp.gate.weight → mlp.gate
            template = layout.holding("router").template
            self._router = template.partition("}.")[2].rpartition(".")[0]
        self._kept = set(getattr(self.model, "_keep_in_fp32_modules_strict", None) or ())
        self._empty()

    def _in_memory(self, layouts: Sequence[Layout]) -> tuple[Layout, Mapping[str, Value]]:
        """The first layout with the model's shapes, else the first, and the weights in it."""
        shapes = {name: tuple(held.shape) for name, held in self.model.state_dict().items()}
        found = [(layout, self.weights.named(layout)) for layout in layouts]
        for layout, values in found:
            if all(value.shape == shapes.get(name, value.shape) for name, value in values.items()):
                return layout, values
        return found[0]

    def _empty(self) -> None:
        """Leaves out of the model all that has weights."""
        base, nothing = self.model.get_decoder(), _nothing(self.torch)
        self._base, self._nothing, self.config = base, nothing, base.config
        names = {id(module): name for name, module in self.model.named_modules()}
        self._prefix = f"{names[id(base)]}."
        self._layers = [type(layer) for layer in base.layers]
        for i in range(len(base.layers)):
            base.layers[i] = nothing
        embedding = base.get_input_embeddings()
        self._ends = {  # what comes behind the layers, such as the norm
            name: module
            for name, module in base.named_children()
            if module is not embedding and any(True for _ in module.parameters())
        }
        self._leave_out_ends()
        self._remake_buffers(base)

    def _leave_out_ends(self) -> None:
        self.model.lm_head = self._nothing
        for name in self._ends:
            setattr(self._base, name, self._nothing)

    def _remake_buffers(self, module: Any) -> None:
        """Gives what modules compute for themselves from the config, such as the frequencies of
        rotary embeddings, numbers: off the device meta."""
        for name, inner in list(module.named_modules()):
            if name and inner._non_persistent_buffers_set and not any(inner.parameters()):
                owner, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(owner), leaf, type(inner)(self.config))

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """(batch, length, hidden)."""
        self._tokens = tokens
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
        self._fill(module, f"{self._prefix}layers.{i}.")
        self._remake_buffers(module)
        if self._router is not None and self.weights.has("router", i):
            module.get_submodule(self._router).register_forward_hook(routed)
        made = self._run(hidden, i, module)
        if not seen:
            return LayerOutput(made, None)
        logits, gates, experts = seen[0]
        figures = logits.float().numpy()
        return LayerOutput(made, Route(figures, figures, experts.numpy(), gates.float().numpy()))

    def head(self, hidden: Array) -> Array:
        """(batch, length, vocab): the final norm and lm_head, in blocks of rows."""
        matrix = "embedding" if self.model.config.tie_word_embeddings else "lm_head"
        if not self.weights.has(matrix):
            raise VerifyError(
                f"{self.weights.source.model.path}: has no lm_head, and its config.json doesn't "
                "tie it to the embedding."
            )
        for name, module in self._ends.items():
            self._fill(module, f"{self._prefix}{name}.")
            setattr(self._base, name, module)
        self.model.lm_head = _nothing(self.torch, self._product(matrix))
        try:
            return self._run(hidden, len(self._layers), self._nothing)
        finally:
            self._leave_out_ends()

    def _product(self, matrix: str) -> Callable[[Any], Any]:
        """states · matrixᵀ, of a matrix that is read in blocks of rows."""
        torch = self.torch
        linear = torch.nn.functional.linear

        def product(states: Any) -> Any:
            blocks = self.weights.blocks(matrix, states.shape[-1])
            parts = [linear(states, torch.from_numpy(rows).to(self.dtype)) for rows in blocks]
            return torch.cat(parts, -1)

        return product

    def _run(self, hidden: Array, i: int, module: Any) -> Array:
        """What the model makes of what layer `i`, which `module` is, is given; behind the last
        layer there is only what comes then."""
        torch, layers = self.torch, self._base.layers
        states = torch.from_numpy(hidden).to(self.dtype)
        embedded = states if i == 0 else torch.zeros((*self._tokens.shape, 1), dtype=self.dtype)
        self._base.set_input_embeddings(_nothing(torch, lambda _: embedded))
        layers[0] = _nothing(torch, lambda _: states)
        if i < len(layers):
            layers[i] = module
        try:
            with torch.no_grad():
                ids = torch.from_numpy(self._tokens)
                made: Array = self.model(input_ids=ids, use_cache=False).logits.float().numpy()
        finally:
            layers[0] = layers[min(i, len(layers) - 1)] = self._nothing
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
                whole = dtype if held.dtype.is_floating_point else held.dtype
                owner._buffers[leaf] = self._reader(name, whole)(None)

    def _refuse_other_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found, expected = self._values.get(name), f"{list(shape)}"
        if found is None or found.shape != shape:
            has = f"has no {name}" if found is None else f"{name} is {list(found.shape)}"
            raise VerifyError(
                f"{self.weights.source.model.path}: {has}, but transformers' "
                f"{type(self.model).__name__} has one of {expected} by the same config.json."
            )

    def _reader(self, name: str, dtype: Any) -> Callable[[int | None], Any]:
        """Reads a tensor, or one of its rows, in a dtype: integers as they are stored."""
        value, weights = self._values[name], self.weights

        def read(row: int | None) -> Any:
            numbers = (
                weights.stored(name, value, row)
                if dtype.is_floating_point
                else weights.integers(name, value)
            )
            return self.torch.from_numpy(numbers).to(dtype)

        return read


def _is_stack(module: Any, parameter: Any) -> bool:
    """Whether a parameter holds a matrix for each of the module's experts, which indexes it by
    one of them."""
    experts: int | None = getattr(module, "num_experts", None)
    return len(parameter.shape) > 2 and experts == parameter.shape[0]


def _nothing(torch: Any, made: Callable[[Any], Any] = lambda states: states) -> Any:
    """A module that takes what a layer takes, and gives back what `made` makes of the states."""

    class Nothing(torch.nn.Module):  # type: ignore[misc]
        def forward(self, states: Any = None, *_: Any, hidden_states: Any = None, **__: Any) -> Any:
            return made(hidden_states if states is None else states)

    return Nothing()
