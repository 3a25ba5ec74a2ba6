"""The reference: transformers' own Mixtral layers, with their weights streamed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import VerifyError
from ckptforge.forward.network import LayerOutput
from ckptforge.forward.precision import FLOAT32, Precision
from ckptforge.forward.weights import Weights
from ckptforge.wording import install_hint

Array = NDArray[np.float32]
# module of a decoder layer → logical tensor
_WEIGHTS = {
    "self_attn.q_proj": "wq",
    "self_attn.k_proj": "wk",
    "self_attn.v_proj": "wv",
    "self_attn.o_proj": "wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "router",
}


class _LazyStack:
    """Stands for a stack of experts' matrices: an index reads one."""

    def __init__(self, read: Any) -> None:
        self.read = read

    def __getitem__(self, expert: Any) -> Any:
        return self.read(int(expert))


class TorchForward:
    """`embed`, `layer` and `head` of a Mixtral, each reading the weights that it needs; numpy in
    and out.

    Raises `VerifyError` where torch or transformers isn't installed.
    """

    def __init__(
        self,
        weights: Weights,
        config: Mapping[str, Any],
        attention: str = "eager",
        precision: Precision = FLOAT32,
    ) -> None:
        try:
            import torch
            from transformers import MixtralConfig
            from transformers.models.mixtral import modeling_mixtral
        except ImportError as error:
            raise VerifyError(
                f"the forward check needs torch and transformers: {install_hint('torch')} "
                f"({error})."
            ) from error
        self.torch, self.modeling, self.weights = torch, modeling_mixtral, weights
        self.dtype = getattr(torch, precision.name)
        self.config = MixtralConfig(
            **{key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
        )
        self.config._attn_implementation = attention
        self.config._experts_implementation = "eager"
        self.rotary = modeling_mixtral.MixtralRotaryEmbedding(self.config)

    def _parameter(self, tensor: str, **index: int) -> Any:
        return self.torch.from_numpy(self.weights.float32(tensor, **index)).to(self.dtype)

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """(batch, length, hidden)."""
        unique, inverse = np.unique(tokens, return_inverse=True)
        rows = self.torch.from_numpy(self.weights.rows("embedding", unique)).to(self.dtype)
        made: Array = rows.float().numpy()[inverse.reshape(tokens.shape)]
        return made

    def layer(self, i: int, hidden: Array, experts: NDArray[np.int64] | None = None) -> LayerOutput:
        """What layer `i` makes of its input; `experts` are taken instead of those chosen."""
        torch = self.torch
        seen: list[Any] = []

        def routed(_: Any, __: Any, output: Any) -> Any:
            seen.append((output[0], output[2]))
            if experts is None:
                return None
            taken = torch.from_numpy(experts)
            scores = torch.softmax(output[0].float(), -1).gather(1, taken)
            return output[0], scores / scores.sum(-1, keepdim=True), taken

        with torch.no_grad():
            module = self._module(i)
            module.mlp.gate.register_forward_hook(routed)
            states = torch.from_numpy(hidden).to(self.dtype)
            length = hidden.shape[1]
            positions = torch.arange(length)[None]
            output = module(
                states,
                self.rotary(states, positions),
                attention_mask=self._mask(length)[None, None],
                position_ids=positions,
            )
            logits, chosen = seen[0]
            return LayerOutput(output.float().numpy(), logits.float().numpy(), chosen.numpy())

    def _module(self, i: int) -> Any:
        """Layer `i`, whose experts are read when they are used."""
        torch = self.torch
        with torch.device("meta"):
            module = self.modeling.MixtralDecoderLayer(self.config, i).eval()
        for name, tensor in _WEIGHTS.items():
            values = self._parameter(tensor, l=i)
            module.get_submodule(name).weight = torch.nn.Parameter(values, requires_grad=False)
        stacks = module.mlp.experts
        del stacks.gate_up_proj, stacks.down_proj
        stacks.gate_up_proj = _LazyStack(
            lambda e: torch.from_numpy(self.weights.stacked(("w1", "w3"), l=i, e=e)).to(self.dtype)
        )
        stacks.down_proj = _LazyStack(lambda e: self._parameter("w2", l=i, e=e))
        return module

    def _mask(self, length: int) -> Any:
        """(length, length): 0 where a row's token sees a column's, else the least number."""
        torch = self.torch
        unseen = torch.ones((length, length), dtype=torch.bool).triu(1)
        if self.config.sliding_window:
            unseen |= torch.ones_like(unseen).tril(-self.config.sliding_window)
        least = torch.finfo(self.dtype).min
        return torch.zeros((length, length), dtype=self.dtype).masked_fill(unseen, least)

    def head(self, hidden: Array) -> Array:
        """(batch, length, vocab): the final norm and lm_head, in blocks of rows."""
        torch = self.torch
        with torch.no_grad():
            norm = self.modeling.MixtralRMSNorm(
                self.config.hidden_size, eps=self.config.rms_norm_eps
            )
            norm.weight = torch.nn.Parameter(self._parameter("norm"), requires_grad=False)
            states = norm(torch.from_numpy(hidden).to(self.dtype))
            matrix = "lm_head" if self.weights.has("lm_head") else "embedding"
            parts = [
                torch.nn.functional.linear(states, torch.from_numpy(block).to(self.dtype))
                for block in self.weights.blocks(matrix)
            ]
            made: Array = torch.cat(parts, -1).float().numpy()
            return made
