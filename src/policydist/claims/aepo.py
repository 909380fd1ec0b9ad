"""AEPO (arXiv 2510.08141): arbitrary entropy targets, exploration that grows with them, and temperature as the lever."""

from __future__ import annotations

from policydist.claims.conditions import Beyond, Bound, Every, Inside, Point
from policydist.claims.dcpo import LINEAR, MODULAR, arm, held_out, modular
from policydist.claims.declare import Claim, Deviation, Metric, Rule, Setting
from policydist.claims.estimands import Contrast, Trend, difference, value

SHARED = {"high": 2.0, "low": 0.5, "dual_clip": None}
TABLE = MODULAR | {"shared": Setting(SHARED | {"choice": "random"}, "sheet")}
TEMPERATURES = Deviation(
    "temperatures 2.0/0.5 instead of 1.2/0.8, budget 60 of 256 instead of 60 of 2560 samples",
    "a small policy moves far in every step; the sheet's settings (E1)",
    "SCALED_DOWN",
)
TARGETS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
MODULAR_METRICS = (Metric("entropy", "none", "nats"), Metric("accuracy", "higher"), Metric("hot", "none"))

CLAIMS = (
    Claim(
        id="aepo.C1",
        statement="AEPO settles the entropy at the target asked, coming down to it from above, where GRPO collapses.",
        source="entropy stabilises at any of several targets (sheet section 7, E1)",
        arxiv="2510.08141",
        arms=(
            arm("aepo_0.25", "method", "aepo", target_entropy=0.25),
            arm("aepo_0.5", "method", "aepo", target_entropy=0.5),
            arm("grpo", "baseline", "grpo"),
        ),
        metrics=MODULAR_METRICS,
        unit=modular,
        n_units=6,
        budget_s=600,
        settings=TABLE,
        smoke={"steps": 5},
        rules=(
            *(
                Rule(
                    f"tail entropy at target {target}",
                    value("entropy", f"aepo_{target}"),
                    Inside(
                        target - 0.1, target + 0.1, strict=True, estimate_low=target - 0.07, estimate_high=target + 0.07
                    ),
                )
                for target in (0.25, 0.5)
            ),
            Rule("GRPO collapses", value("entropy", "grpo"), Bound("<", 0.1)),
            Rule("both branches fired at 0.25", value("hot", "aepo_0.25"), Every(0.01, 0.99)),
            Rule("both branches fired at 0.5", value("hot", "aepo_0.5"), Every(0.01, 0.99)),
            Rule(
                "accuracy, AEPO(0.5) - GRPO", difference("accuracy", "aepo_0.5", "grpo"), Bound(">", -0.1), must=False
            ),
        ),  # fmt: skip
        sanity=(Rule("GRPO solves the task", value("accuracy", "grpo"), Point(low=0.95)),),
        deviations=(TEMPERATURES,),
        cannot_show="benchmark gains, pass@1024, or that these temperatures suit language models",
    ),
    Claim(
        id="aepo.C2",
        statement="On held-out contexts pass@16 rises with the entropy target, above GRPO from a target of 1.0 on.",
        source="performance against the entropy target (sheet section 7, E2)",
        arxiv="2510.08141",
        arms=(
            *(arm(f"aepo_{target}", "method", "aepo", target_entropy=target) for target in TARGETS),
            arm("aepo_2.0_budget128", "variant", "aepo", target_entropy=2.0, budget=128, fraction=0.5),
            arm("aepo_2.0_budget192", "variant", "aepo", target_entropy=2.0, budget=192, fraction=0.75),
            arm("grpo", "baseline", "grpo"),
        ),
        metrics=(
            Metric("pass@16", "higher"),
            Metric("pass@64", "higher"),
            Metric("pass@1", "higher"),
            Metric("entropy", "none", "nats"),
        ),  # fmt: skip
        unit=held_out,
        n_units=8,
        budget_s=900,
        settings=LINEAR | {"shared": Setting(SHARED, "sheet")},
        smoke={"steps": 5},
        rules=(
            *(
                Rule(
                    f"pass@16 at target {target}, AEPO - GRPO",
                    difference("pass@16", f"aepo_{target}", "grpo"),
                    Beyond(">"),
                )
                for target in (1.0, 1.5, 2.0)
            ),
            Rule(
                "the gain grows with the target",
                Trend("pass@16", {f"aepo_{t}": t for t in TARGETS}, kind="spearman", minus="grpo", of="means"),
                Point(low=0.8),
            ),
            Rule("pass@1 at target 2.0", difference("pass@1", "aepo_2.0", "grpo"), Beyond(">"), must=False),
            *(
                Rule(
                    f"pass@16 with budget {n}",
                    difference("pass@16", f"aepo_2.0_budget{n}", "grpo"),
                    Beyond(">"),
                    must=False,
                )
                for n in (128, 192)
            ),
        ),  # fmt: skip
        sanity=(Rule("GRPO reaches its known level", value("pass@16", "grpo"), Point(0.78, 0.87)),),
        deviations=(
            TEMPERATURES,
            Deviation(
                "budgets of 128 and 192 draw on one half and three quarters of the prompts",
                "a quarter of the prompts yields 64 auxiliary samples",
                "OWN_CHOICE",
            ),
        ),
        cannot_show="the paper's decline at very high entropy: the realised entropy saturates far below the highest target",
    ),
    Claim(
        id="aepo.C3",
        statement="Without a temperature shift the same filtered samples do not hold the entropy: temperature is the lever.",
        source="ablation of temperature regulation (sheet section 6, E3)",
        arxiv="2510.08141",
        arms=(
            arm("aepo", "method", "aepo", target_entropy=0.5),
            arm("temperature_1", "ablation", "aepo", target_entropy=0.5, high=1.0, low=1.0),
        ),
        metrics=MODULAR_METRICS,
        unit=modular,
        n_units=6,
        budget_s=600,
        settings=TABLE,
        smoke={"steps": 5},
        rules=(
            Rule(
                "half of AEPO's tail entropy - that without a shift",
                Contrast("entropy", {"aepo": 0.5, "temperature_1": -1.0}),
                Beyond(">"),
            ),
        ),  # fmt: skip
        deviations=(TEMPERATURES,),
        cannot_show="the size of the effect in a language model",
    ),
)
