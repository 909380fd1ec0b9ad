"""Supervised token losses: cross-entropy, DFT and One-Token Rollout, per target token.

All three are ``-sum_a q(a) log pi(a)`` with weights q that carry no gradient; they differ in q. R target tokens,
V vocabulary, K samples, C candidates. Every function works on the R rows it is given; `by_rows` cuts a large
vocabulary into pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from policydist.errors import UsageError
from policydist.functional.aggregation import Aggregation, aggregate
from policydist.functional.streams import keyed_uniforms

Estimator = Literal["mc", "exact"]
Terms = Mapping[str, Float[Tensor, " R"]]
"""Per-token numbers; ``loss`` carries gradient, the others are for the log."""

PIECE = 2**23
"""Logits worked on at a time: 32 MiB of float32, and a few times that for a moment."""


def by_rows(
    terms: Callable[..., Terms], logits: Float[Tensor, "R V"], *rows: Tensor, piece: int = PIECE
) -> dict[str, Float[Tensor, " R"]]:
    """``terms(logits, *rows)`` a few rows at a time; equal to one call, with memory of one piece besides the logits.

    What a piece needs for its gradient is computed again in the backward pass. ``rows`` [R, …] are cut alike.
    """
    count = max(1, piece // max(logits.shape[1], 1))
    if len(logits) <= count:
        return dict(terms(_full(logits), *rows))

    def one(part: Tensor, *own: Tensor) -> Terms:
        return terms(_full(part), *own)

    parts = [
        checkpoint(one, *pieces, use_reentrant=False, preserve_rng_state=False)
        for pieces in zip(logits.split(count), *(row.split(count) for row in rows), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _full(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def target_logprobs(logits: Float[Tensor, "R V"], targets: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    """``log pi(x)`` of each row's target x, in nats."""
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)


def sft_terms(logits: Float[Tensor, "R V"], targets: Int[Tensor, " R"], *, smoothing: float = 0.0) -> Terms:
    """Cross-entropy ``-(1 - s) log pi(x) - s/V sum_a log pi(a)``; ``smoothing`` s in [0, 1) spreads the target.

    Raises:
        UsageError: smoothing outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise UsageError(f"smoothing is {smoothing}; it must lie in [0, 1)")
    chosen = target_logprobs(logits, targets)
    if smoothing == 0:
        return {"loss": -chosen}
    everything = logits.mean(1) - logits.logsumexp(1)
    return {"loss": -(1 - smoothing) * chosen - smoothing * everything}


def dft_terms(logits: Float[Tensor, "R V"], targets: Int[Tensor, " R"]) -> Terms:
    """Dynamic fine-tuning (arXiv 2508.05629): ``-sg[pi(x)] log pi(x)``, tokens weighted by how likely they are already."""
    chosen = target_logprobs(logits, targets)
    weight = chosen.detach().exp()
    return {"loss": -weight * chosen, "weight": weight}


def draw_tokens(logits: Float[Tensor, "R V"], uniforms: Float[Tensor, "R K"], kappa: float = 1.0) -> Int[Tensor, "R K"]:
    """K tokens a row, independent and with replacement, from ``softmax(logits / kappa)`` by inverse CDF.

    The softmax is float32 whatever the logits are, its cumulative sum float64: with 150,000 tokens a sum in half
    precision could never reach the last ones.
    """
    cumulative = (_full(logits.detach()) / kappa).softmax(1).cumsum(1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # The sum is one only up to rounding; staying below it can never select a token of probability zero at the end.
    wanted = torch.minimum(uniforms.double() * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True)


def otr_terms(
    logits: Float[Tensor, "R V"],
    targets: Int[Tensor, " R"],
    seeds: Int[Tensor, " R"],
    positions: Int[Tensor, " R"],
    *,
    k: int = 256,
    beta: float = -0.1,
    kappa: float = 1.0,
    estimator: Estimator = "mc",
) -> Terms:
    """One-Token Rollout (arXiv 2509.26313, Eq. 8): a policy gradient of one step at every target token.

    K tokens a_k are drawn from ``pi' = softmax(z / kappa)``; the reward R is 1 where a_k is the target x, else beta:

        mc       -(1/K) sum_k R(a_k) log pi(a_k)
        exact    -[pi'(x) log pi(x) + beta sum_{a != x} pi'(a) log pi(a)],  pi' without gradient

    ``log pi`` is untempered, there is no importance weight and no baseline. At ``kappa`` 1 a constant reward has
    expected gradient zero, so the gradient of ``exact`` is (1 - beta) times that of `dft_terms`: beta and the sampling
    change only scale and noise. ``seeds`` and ``positions`` name each row's stream of random numbers (`keyed_uniforms`).

    Also returned: ``hit_rate``, the share of samples that are the target (in ``exact`` its expectation);
    ``zero_hits``, 1 where there was none; ``negative``, the part of the loss that comes from wrong tokens.

    Raises:
        UsageError: k below 1, kappa not positive, beta above 1, or an unknown estimator.
    """
    check_otr(k, beta, kappa, estimator)
    if estimator == "exact":
        logprobs = logits.log_softmax(1)
        drawn_from = (logits.detach() / kappa).softmax(1)
        right = drawn_from.gather(1, targets[:, None])[:, 0]
        chosen = logprobs.gather(1, targets[:, None])[:, 0]
        negative = -beta * ((drawn_from * logprobs).sum(1) - right * chosen)
        loss = -right * chosen + negative
        return {"loss": loss, "hit_rate": right, "zero_hits": (right == 0).float(), "negative": negative.detach()}
    tokens = draw_tokens(logits, keyed_uniforms(seeds, positions, k), kappa)
    logprobs = logits.gather(1, tokens) - logits.logsumexp(1, keepdim=True)
    hit = tokens == targets[:, None]
    negative = -beta * (logprobs * ~hit).sum(1) / k
    loss = -(logprobs * hit).sum(1) / k + negative
    return {
        "loss": loss,
        "hit_rate": hit.float().mean(1),
        "zero_hits": (~hit.any(1)).float(),
        "negative": negative.detach(),
    }


def check_otr(k: int, beta: float, kappa: float, estimator: str) -> None:
    """Refuse settings for which One-Token Rollout is not defined.

    Raises:
        UsageError: naming the setting.
    """
    if k < 1:
        raise UsageError(f"k is {k}; at least one token must be sampled")
    if not kappa > 0:
        raise UsageError(f"kappa is {kappa}; the sampling temperature must be positive")
    if not beta <= 1:
        raise UsageError(f"beta is {beta}; a wrong token may not be rewarded above a right one, which gets 1")
    if estimator not in ("mc", "exact"):
        raise UsageError(f"estimator is {estimator!r}; it must be mc or exact")


def unlikelihood(
    logits: Float[Tensor, "R V"], candidates: Int[Tensor, "R C"], valid: Bool[Tensor, "R C"]
) -> Float[Tensor, " R"]:
    """``-sum_c log(1 - pi(c))`` over each row's valid candidates (token level; arXiv 1908.04319, Eq. 5).

    Probabilities above ``1 - 1e-6`` count as that, which bounds the loss of a candidate the model is certain of.
    """
    chosen = logits.gather(1, candidates) - logits.logsumexp(1, keepdim=True)
    return -(torch.log1p(-chosen.exp().clamp(max=1 - 1e-6)) * valid).sum(1)


def first_occurrences(ids: Int[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
    """Where a token appears in its row for the first time."""
    return ~(ids[:, :, None] == ids[:, None, :]).tril(-1).any(2)


def sft_loss(
    logits: Float[Tensor, "B T V"],
    targets: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    agg: Aggregation = "token-mean",
    *,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """`sft_terms` over a batch; positions outside the mask contribute nothing."""
    return aggregate(
        _spread(lambda z, x: sft_terms(z, x, smoothing=smoothing), logits, targets, mask)["loss"], mask, agg
    )


def dft_loss(
    logits: Float[Tensor, "B T V"],
    targets: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    agg: Aggregation = "token-mean",
) -> Float[Tensor, ""]:
    """`dft_terms` over a batch."""
    return aggregate(_spread(dft_terms, logits, targets, mask)["loss"], mask, agg)


def otr_loss(
    logits: Float[Tensor, "B T V"],
    targets: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    k: int = 256,
    beta: float = -0.1,
    kappa: float = 1.0,
    estimator: Estimator = "mc",
    agg: Aggregation = "seq-mean-token-mean",
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """`otr_terms` over a batch, and the means over its tokens of what those return besides the loss.

    ``seq-mean-token-mean`` divides by each sequence's own length (Eq. 8). ``generator`` gives every sequence its stream.

    Raises:
        UsageError: as `otr_terms`.
    """
    check_otr(k, beta, kappa, estimator)
    seeds = torch.randint(2**62, (len(logits),), generator=generator).to(logits.device)
    row, position = mask.nonzero(as_tuple=True)

    def terms(z: Tensor, x: Tensor, n: Tensor, t: Tensor) -> Terms:
        return otr_terms(z, x, seeds[n], t, k=k, beta=beta, kappa=kappa, estimator=estimator)

    found = _spread(terms, logits, targets, mask, row, position)
    loss = aggregate(found.pop("loss"), mask, agg)
    return loss, {name: aggregate(values.detach(), mask) for name, values in found.items()}


def _spread(
    terms: Callable[..., Terms],
    logits: Float[Tensor, "B T V"],
    targets: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *rows: Tensor,
) -> dict[str, Float[Tensor, "B T"]]:
    """Terms of the masked-in tokens, put back into their places; zero elsewhere."""
    found = by_rows(terms, logits[mask], targets[mask], *rows)
    return {name: values.new_zeros(mask.shape).masked_scatter(mask, values) for name, values in found.items()}
