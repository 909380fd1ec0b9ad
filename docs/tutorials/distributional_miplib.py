"""Tutorial: learning to branch on distributions of integer programs. Rendered to distributional_miplib.md by render.py."""

# ruff: noqa: E402 (imports stand where the reader needs them)

# %% [markdown]
# # Learning to branch
#
# A solver of integer programs splits a problem in two by fixing a fractional variable, again and again. Which variable
# decides how large the tree grows. The best known rule, *strong branching*, tries every candidate by solving two linear
# programs: few nodes, much time. If your programs come from one **distribution** (the same model every day, other data),
# a network can learn to guess what strong branching would say. Needs `pip install 'policydist[milp]'` (SCIP comes with it).
#
# ## A distribution
#
# A distribution draws the same instance from the same seed, byte for byte. `get("gisp/easy")` is a registered one; here
# we make two small ones of our own: generalised independent sets (which plots to harvest, where roads may be closed for a
# fee) and combinatorial auctions.

# %%
from policydist.estimation.methods.distributional_miplib import MILPDistribution

harvest = MILPDistribution("gisp/lesson", "gisp", {"n": 38, "p": 0.3, "alpha": 0.25})
auctions = MILPDistribution("ca/lesson", "ca", {"items": 20, "bids": 80})
for distribution in (harvest, auctions):
    milp = distribution.sample(seed=1)
    print(f"{distribution.name}: {milp.n_variables} binaries, {milp.n_rows} rows, {milp.rows.nnz} coefficients")

# %% [markdown]
# `seeds(split)` are the seeds of the training, validation and test instances; no instance is in two splits.
#
# ## What the expert says
#
# `collect` solves an instance with SCIP, now and then asks strong branching, and keeps the node's *state*, the fractional
# candidates and their scores. Asking does not change the solver's own state.

# %%
from policydist.estimation.methods.distributional_miplib import CollectConfig, collect_samples, items

wanted = [
    item
    for distribution in (harvest, auctions)
    for split, count in (("train", 12), ("validation", 4), ("test", 6))
    for item in items(distribution, split, count)
]
samples = collect_samples(wanted, CollectConfig(per_instance=5, query=0.3), workers=1)
for split, by_domain in samples.items():
    print(f"{split:10s}", {domain: len(found) for domain, found in by_domain.items()})
one = samples["train"]["gisp/lesson"][1]
print(f"a node at depth {one.depth}: {len(one.state.variables)} variables, {len(one.candidates)} of them fractional")

# %% [markdown]
# ## One policy each, or one for both?
#
# The policy is a graph network over variables and rows, and a softmax over the candidates. The paper's protocol compares
# policies trained on one domain (*homogeneous*) with a single one trained on the union (*mixed*), both with the same
# instances per domain and the same number of updates.

# %%
import torch

from policydist.estimation.methods.distributional_miplib import PolicyConfig, TrainConfig, imitation, train_protocol

torch.set_num_threads(1)
config = TrainConfig(PolicyConfig(width=32), steps=80, batch=8, lr=3e-3, epoch=20)
policies = {}
print("                          cross-entropy  acc@1 (chance)  acc@5 (chance)")
for mix in ("homogeneous", "mixed"):
    trained = train_protocol(samples["train"], mix, config, seed=0, validation=samples["validation"])
    policies[mix] = {domain: fit.policy for domain, fit in trained.items()}
    for domain, row in imitation(policies[mix], samples["test"]).items():
        print(
            f"{mix:12s} {domain:12s} {row['cross_entropy']:13.2f}  {row['acc@1']:5.2f} ({row['chance@1']:.2f})"
            f"    {row['acc@5']:5.2f} ({row['chance@5']:.2f})"
        )

# %% [markdown]
# *acc@k*: one of the policy's first k candidates has the largest expert score (ties count, also for chance). With so few
# test nodes the numbers are rough; the method's page has the claims with their intervals.
#
# One node in detail: what the expert scored, and what the policy believes.

# %%
import matplotlib.pyplot as plt
import numpy as np

node = max(samples["test"]["gisp/lesson"], key=lambda sample: len(sample.candidates))
order = np.argsort(-node.scores)
belief = policies["homogeneous"]["gisp/lesson"].probabilities(node.state, node.candidates)
fig, axes = plt.subplots(2, 1, figsize=(9, 4), layout="constrained", sharex=True)
axes[0].bar(range(len(order)), node.scores[order] / node.scores.max(), color="tab:grey")
axes[0].set(ylabel="expert's score")
axes[1].bar(range(len(order)), belief[order], color="tab:blue")
axes[1].set(ylabel="policy", xlabel="fractional variables, the expert's favourite first")

# %% [markdown]
# ## In the solver
#
# What counts is the tree. `evaluate` puts the policy in front of SCIP's rules and counts nodes; for rules that fix
# variables on the side, *fair nodes* add what they saved. Solves that reach the limit stay in, with what they cost.

# %%
from policydist.estimation.methods.distributional_miplib import SolverSettings, evaluate, summarise

settings = SolverSettings(time_limit=None, node_limit=3000, cuts=False, heuristics=False)
rules = {
    "random": "random",
    "policy": policies["homogeneous"]["gisp/lesson"],
    "relpscost": "relpscost",
    "expert": "vanillafullstrong",
}
rows = evaluate(rules, harvest.instances("test", 8), settings)
table = summarise(rows)
for rule, row in table.items():
    counts = f"nodes {row['nodes']:7.1f}   fair {row['fair_nodes']:7.1f}   LPs {row['lps']:7.1f}"
    print(f"{rule:10s} {counts}   unsolved {row['unsolved']:.0f}")
fig, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for place, rule in enumerate(rules):
    nodes = [row.nodes for row in rows if row.rule == rule]
    axis.plot([place] * len(nodes), nodes, "o", alpha=0.5, color="tab:blue")
    axis.plot([place - 0.2, place + 0.2], [table[rule]["nodes"]] * 2, color="black")
axis.set_xticks(range(len(rules)), rules)
axis.set(yscale="log", ylabel="nodes (bar: shifted geometric mean)")

# %% [markdown]
# ## Instances of your own
#
# MPS and LP files in folders `train`, `validation` and `test` are read as they are; `generate` writes such a folder, with
# a manifest of checksums. A changed file is found before anything is learned from it.

# %%
import tempfile
from pathlib import Path

from policydist.errors import PolicydistError
from policydist.estimation.methods.distributional_miplib import generate, open_folder, read_instance

folder = Path(tempfile.mkdtemp()) / "lesson"
generate(harvest, folder, {"train": 2, "test": 1})
print({split: len(files) for split, files in open_folder(folder).files.items()})
file = folder / "train" / "000001.mps"
file.write_text(file.read_text()[:3000])
for attempt in (open_folder, read_instance):
    try:
        attempt(folder if attempt is open_folder else file)
    except PolicydistError as problem:
        print(str(problem).replace(str(folder), "lesson"))

# %% [markdown]
# The same steps from the command line:
#
# ```bash
# policydist milp generate gisp/tiny --out instances --train 12 --validation 4 --test 6
# policydist milp collect instances ca/tiny --out samples --workers 2
# policydist milp train samples --out policy --width 32 --batch 8 --steps 100
# policydist milp evaluate instances --policy policy --rules random relpscost --instances 6
# ```
