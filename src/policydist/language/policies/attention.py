"""Attention of a transformers model over sequences that are laid out our way: packed rows, shared prompts, own caches.

Every current transformers decoder hands its queries, keys and values to a registered attention function together with
the keyword arguments of ``model.forward``. Ours looks for a ``plan`` among them and lets it attend; without one it does
what ``sdpa`` does. So training and decoding need neither masks built by the model nor the model's cache classes.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NAME = "policydist"
OWN = ("sdpa", "eager", NAME)
"""Implementations that ours stands in for; a user who asks for another one gets it."""
LAYERS = {"full_attention", "sliding_attention"}


class Plan(Protocol):
    """How the tokens of one forward pass see each other."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """Outputs [1, L, H, D] for ``query`` [1, H, L, D], ``key`` and ``value`` [1, K, L, D], K dividing H."""
        ...


class Call:
    """What one attention layer asks for: its number, scale, window (None: all) and soft cap of the scores (None:
    none)."""

    def __init__(self, layer: int, scale: float | None, window: int | None, softcap: float | None) -> None:
        self.layer = layer
        self.scale = scale
        self.window = window
        self.softcap = softcap


def register() -> None:
    """Make the attention function known to transformers under `NAME`; idempotent."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def adopt(model: Any) -> bool:
    """Switch ``model`` to our attention if it then computes what it computed before; whether it does.

    The check is a trial: two short sequences, padded and masked in the ordinary way against packed. Layers of a kind
    that the plans do not know are refused without one.
    """
    config = model.config.get_text_config()
    if not set(getattr(config, "layer_types", None) or LAYERS) <= LAYERS or config._attn_implementation not in OWN:
        return False
    register()
    before = config._attn_implementation
    try:
        with torch.no_grad():
            expected = _trial(model)
            config._attn_implementation = NAME
            if torch.allclose(_trial(model, packed=True), expected, rtol=0.0, atol=tolerance(expected)):
                return True
    except (TypeError, ValueError, RuntimeError, AttributeError):
        # An architecture that cannot even run this way takes the ordinary path.
        pass
    config._attn_implementation = before
    return False


def tolerance(logits: Tensor) -> float:
    scale = float(logits.abs().max())
    return scale * (1e-4 if logits.dtype in (torch.float32, torch.float64) else 5e-2)


def _trial(model: Any, packed: bool = False) -> Tensor:
    """Logits [5, V] of two sequences of 3 and 2 tokens."""
    from policydist.language.policies.packing import pack_prompts

    device = next(model.parameters()).device
    ids = torch.tensor([[0, 1, 2], [2, 1, 0]], device=device) % model.get_input_embeddings().num_embeddings
    real = torch.tensor([[1, 1, 1], [1, 1, 0]], device=device)
    if not packed:
        logits: Tensor = model(input_ids=ids, attention_mask=real, use_cache=False).logits[real.bool()]
        return logits
    plan, positions = pack_prompts(real.sum(1))
    logits = model(
        input_ids=ids[real.bool()][None],
        position_ids=positions[None],
        attention_mask=torch.empty(1, 1, 1, 1, dtype=torch.bool, device=device),
        use_cache=False,
        plan=plan,
        logits_to_keep=torch.arange(5, device=device),
    ).logits[0]
    return logits


def forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: Plan | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The registered function. Attention dropout is never applied: sampler and scorer must agree."""
    if plan is not None:
        call = Call(int(module.layer_idx), scaling, sliding_window, softcap)  # type: ignore[arg-type]
        return plan.attend(query, key, value, call), None
    if softcap is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        rest["dropout"] = 0.0
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
        return out, None
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = causal_mask(query.shape[2], None, query.device)
    return dense(query, key, value, attention_mask, scaling, softcap).transpose(1, 2).contiguous(), None


def causal_mask(length: int, window: int | None, device: torch.device) -> Bool[Tensor, "L L"]:
    """True where query i sees key j: ``0 <= i - j``, and ``i - j < window`` if there is one."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def causal(
    query: Float[Tensor, "B H L D"], key: Float[Tensor, "B K L D"], value: Float[Tensor, "B K L D"], call: Call
) -> Float[Tensor, "B H L D"]:
    """Causal attention within each row; padding on the right of a row is never seen by its real tokens."""
    length = query.shape[2]
    window = call.window if call.window is not None and call.window < length else None
    if window is None and call.softcap is None:
        shared = query.shape[1] != key.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=call.scale, enable_gqa=shared
        )
    return dense(query, key, value, causal_mask(length, window, query.device), call.scale, call.softcap)


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, softcap: float | None
) -> Tensor:
    """Attention written out, for what fused kernels cannot do: ``softmax(cap * tanh(scale q k / cap) + mask) v``."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        # The lowest number rather than minus infinity: a row of padding that sees nothing must not become NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
