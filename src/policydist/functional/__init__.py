"""Pure mathematics of policy optimisation on tensors: no state, no files, no model.

Conventions: N responses, T tokens, V vocabulary, Q groups, K reward components. Groups are ragged: ``group`` [N] holds
any integer ids (or a `Groups`, looked up once). Masks are true on the tokens that count. Losses are to be minimised.

The names below are the language-model side. Integer-valued distributions have modules of their own:
`functional.integers`, `functional.integer_counts` and `functional.integer_bits`.
"""

from policydist.functional.advantages import (
    discounted_returns,
    dr_grpo_advantage,
    gae_advantage,
    grpo_advantage,
    normalize_then_sum,
    reinforce_advantage,
    reinforce_pp_advantage,
    reinforce_pp_baseline_advantage,
    remax_advantage,
    rloo_advantage,
    sum_then_normalize,
    whiten,
)
from policydist.functional.aggregation import TRL_LOSS_TYPES, VERL_LOSS_AGG, Aggregation, aggregate
from policydist.functional.beta import (
    BetaNormalization,
    beta_moments,
    bnpo_advantage,
    bnpo_params,
    bnpo_variance,
    bnpo_weight,
    decomposed_advantage,
)
from policydist.functional.controllers import aepo_count, aepo_select, dcpo_advantage, dcpo_alpha, entropy_switch
from policydist.functional.divergences import categorical_kl, generalized_jsd, kl_estimate
from policydist.functional.entropy import entropy_from_logits, sampled_entropy
from policydist.functional.groups import (
    Groups,
    group_centred,
    group_count,
    group_mean,
    group_std,
    group_sum,
    mixed_groups,
)
from policydist.functional.leakage import (
    ARXIV_DEGREES,
    bhattacharyya,
    density_bound,
    exact_accuracy,
    n_leaked_density,
    n_leaked_exact,
    n_leaked_ratio,
    n_leaked_regression,
    ratio_bound,
    ratio_density,
    total_variation,
    zipf_ratio,
)
from policydist.functional.overlong import overlong_penalty
from policydist.functional.surrogates import (
    clip_fraction,
    clipped_surrogate,
    gspo_surrogate,
    importance_ratio,
    reinforce_surrogate,
    rloo_surrogate,
)
from policydist.functional.tilting import tilt_logratio, tilted_logprobs

__all__ = [
    "ARXIV_DEGREES",
    "TRL_LOSS_TYPES",
    "VERL_LOSS_AGG",
    "Aggregation",
    "BetaNormalization",
    "Groups",
    "aepo_count",
    "aepo_select",
    "aggregate",
    "beta_moments",
    "bhattacharyya",
    "bnpo_advantage",
    "bnpo_params",
    "bnpo_variance",
    "bnpo_weight",
    "categorical_kl",
    "clip_fraction",
    "clipped_surrogate",
    "dcpo_advantage",
    "dcpo_alpha",
    "decomposed_advantage",
    "density_bound",
    "discounted_returns",
    "dr_grpo_advantage",
    "entropy_from_logits",
    "entropy_switch",
    "exact_accuracy",
    "gae_advantage",
    "generalized_jsd",
    "group_centred",
    "group_count",
    "group_mean",
    "group_std",
    "group_sum",
    "grpo_advantage",
    "gspo_surrogate",
    "importance_ratio",
    "kl_estimate",
    "mixed_groups",
    "n_leaked_density",
    "n_leaked_exact",
    "n_leaked_ratio",
    "n_leaked_regression",
    "normalize_then_sum",
    "overlong_penalty",
    "ratio_bound",
    "ratio_density",
    "reinforce_advantage",
    "reinforce_pp_advantage",
    "reinforce_pp_baseline_advantage",
    "reinforce_surrogate",
    "remax_advantage",
    "rloo_advantage",
    "rloo_surrogate",
    "sampled_entropy",
    "sum_then_normalize",
    "tilt_logratio",
    "tilted_logprobs",
    "total_variation",
    "whiten",
    "zipf_ratio",
]
