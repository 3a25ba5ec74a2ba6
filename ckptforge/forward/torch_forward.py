"""The reference: transformers' own Mixtral layers, their weights streamed in, experts one matrix at a time, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptforge.errors import VerifyError
from ckptforge.forward.weights import Weights

Array = NDArray[np.float32]
_ATTENTION = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo"}
_LM_ROWS = 8192


class _LazyStack:
    """Stands for a stack of experts' matrices: an index reads one."""

    def __init__(self, read: Any) -> None:
        self.read = read

    def __getitem__(self, expert: Any) -> Any:
        return self.read(int(expert))


class TorchForward:
    """`embed`, `layer` and `head` of a Mixtral, each reading the weights that it needs; numpy in and out.

    Raises `VerifyError` where torch or transformers isn't installed.
    """

    def __init__(self, weights: Weights, config: Mapping[str, Any], attention: str = "eager") -> None:
        try:
            import torch
            from transformers import MixtralConfig
            from transformers.models.mixtral import modeling_mixtral
        except ImportError as error:
            raise VerifyError(f"the forward check needs torch and transformers: pip install 'ckptforge[torch]' ({error}).") from error
        self.torch, self.modeling, self.weights = torch, modeling_mixtral, weights
        self.config = MixtralConfig(**{key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")})
        self.config._attn_implementation = attention
        self.config._experts_implementation = "eager"
        self.rotary = modeling_mixtral.MixtralRotaryEmbedding(self.config)

    def _parameter(self, tensor: str, **index: int) -> Any:
        return self.torch.from_numpy(self.weights.float32(tensor, **index))

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """(batch, length, hidden)."""
        unique, inverse = np.unique(tokens, return_inverse=True)
        return self.weights.rows("embedding", unique)[inverse.reshape(tokens.shape)]

    def layer(self, i: int, hidden: Array) -> tuple[Array, Array, NDArray[np.int64]]:
        """(output, router logits (tokens, experts), experts chosen (tokens, top_k)) of layer `i`."""
        torch = self.torch
        with torch.no_grad():
            with torch.device("meta"):
                module = self.modeling.MixtralDecoderLayer(self.config, i).eval()
            for name, tensor in _ATTENTION.items():
                getattr(module.self_attn, name).weight = torch.nn.Parameter(self._parameter(tensor, l=i), requires_grad=False)
            module.input_layernorm.weight = torch.nn.Parameter(self._parameter("attention_norm", l=i), requires_grad=False)
            module.post_attention_layernorm.weight = torch.nn.Parameter(self._parameter("ffn_norm", l=i), requires_grad=False)
            module.mlp.gate.weight = torch.nn.Parameter(self._parameter("router", l=i), requires_grad=False)
            experts = module.mlp.experts
            del experts.gate_up_proj, experts.down_proj
            experts.gate_up_proj = _LazyStack(lambda e: torch.cat([self._parameter("w1", l=i, e=e), self._parameter("w3", l=i, e=e)]))
            experts.down_proj = _LazyStack(lambda e: self._parameter("w2", l=i, e=e))
            seen: list[Any] = []
            module.mlp.gate.register_forward_hook(lambda _, __, output: seen.append((output[0], output[2])))
            states = torch.from_numpy(hidden)
            length = hidden.shape[1]
            positions = torch.arange(length)[None]
            mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
            if self.config.sliding_window:
                mask = mask + torch.full_like(mask, torch.finfo(torch.float32).min).tril(-self.config.sliding_window)
                mask = mask.clamp(min=torch.finfo(torch.float32).min)
            output = module(states, self.rotary(states, positions), attention_mask=mask[None, None], position_ids=positions)
            logits, chosen = seen[0]
            return output.numpy(), logits.numpy(), chosen.numpy()

    def head(self, hidden: Array) -> Array:
        """(batch, length, vocab): the final norm and lm_head, in blocks of rows."""
        torch = self.torch
        with torch.no_grad():
            norm = self.modeling.MixtralRMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)
            norm.weight = torch.nn.Parameter(self._parameter("norm"), requires_grad=False)
            states = norm(torch.from_numpy(hidden))
            matrix = self.weights.read("lm_head" if self.weights.has("lm_head") else "embedding")
            parts = [
                torch.nn.functional.linear(states, torch.from_numpy(matrix[start : start + _LM_ROWS].astype(np.float32)))
                for start in range(0, len(matrix), _LM_ROWS)
            ]
            made: Array = torch.cat(parts, -1).numpy()
            return made
