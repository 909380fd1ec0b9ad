"""All methods for verifiable rewards beside their baselines, on two tasks of the embedded model: docs/comparison.md.

    python benchmarks/comparison.py tune            # a learning rate for each method, on a seed of its own
    python benchmarks/comparison.py run             # four comparisons of 8 seeds: two tasks, two kinds of budget
    python benchmarks/comparison.py run multi-tokens --workers 1
    python benchmarks/comparison.py run --only dpo  # these methods and GRPO, into what was kept of the others
    python benchmarks/comparison.py page            # tables and figures of the docs from what the runs left

`run` is `policydist compare` with the settings below; interrupted, it goes on where it stopped. Budgets end a run at the
first step that reaches them. Methods that sample nothing (`SUPERVISED`) have no tokens to count: under the token budget
they take GRPO's number of steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policydist.language.compare import compare, run_one
from policydist.language.experiment import configure
from policydist.report import comparison, style, words
from policydist.runs.directory import read_metrics, write_whole
from policydist.runs.parallel import run_jobs

HERE = Path(__file__).resolve().parent
KEPT, DOCS = HERE / "comparison", HERE.parent / "docs"
SEEDS, TUNING_SEED, RATES = 8, 100, (3e-4, 1e-3, 3e-3)

PAPERS = ("bnpo", "aepo", "dcpo", "vade", "knapsack", "dump", "herl", "icpo", "calibrl", "brpo", "otr")
BASELINES = (
    "grpo", "reinforce", "reinforce_pp", "rloo", "remax", "ppo", "dr_grpo", "gspo", "dapo", "luffy", "rl_plus", "grpo_sft",
    "rft", "dpo", "sft", "dft",
)  # fmt: skip
METHODS = ("grpo", *PAPERS, *BASELINES[1:])
SUPERVISED = ("otr", "sft", "dft")
DEMONSTRATIONS = ("calibrl", "luffy", "rl_plus", "grpo_sft", *SUPERVISED)
"""Methods that read the worked solutions of the training problems."""
LEFT_OUT = {"arithmetic": ("herl",), "multi": ()}
"""HeRL needs rewards made of criteria, which the rows of arithmetic have not."""


@dataclass(frozen=True)
class Plan:
    """One task's settings: ``steps`` is how many GRPO takes for the tokens of the budget."""

    words: tuple[str, ...]
    tokens: int
    seconds: float
    steps: int


PLANS = {
    "arithmetic": Plan((), tokens=60_000, seconds=6.5, steps=18),
    "multi": Plan(("task.options.rubric=true",), tokens=30_000, seconds=5.0, steps=27),
}
COMMON = ("task.train_size=256", "eval.rows=256", "eval.samples=4", "train.eval_every=1000000", "train.steps=100000")
OWN: Mapping[str, tuple[str, ...]] = {
    "herl": ('knobs.template="{unmet},{met}:"',),
    "icpo": ('knobs.example="{answer}"', 'knobs.question="{question}"'),
    "brpo": ("knobs.answer_tokens=4", "rollout.prompts=16"),
}
"""What these methods' pages set for the embedded model: its prompts are formulas, not sentences."""
NAMES = [f"{task}-{budget}" for task in PLANS for budget in ("tokens", "seconds")]


def methods_of(task: str, only: Sequence[str] = METHODS) -> tuple[str, ...]:
    """Who takes part on a task."""
    return tuple(method for method in METHODS if method in only and method not in LEFT_OUT[task])


def limits(task: str, budget: str, method: str) -> tuple[str, ...]:
    """The settings that end a run."""
    plan = PLANS[task]
    if budget == "seconds":
        return (f"train.second_budget={plan.seconds}",)
    if method in SUPERVISED:
        return (f"train.steps={plan.steps}",)
    return (f"train.token_budget={plan.tokens}",)


def settings(task: str, budget: str, methods: Sequence[str], rates: Mapping[str, float]) -> Iterator[str]:
    """What `policydist compare` is given with ``--set``."""
    yield from (*COMMON, *PLANS[task].words)
    for method in methods:
        for word in (*OWN.get(method, ()), *limits(task, budget, method), f"train.lr={rates[method]}"):
            yield f"{method}:{word}"


def tune(out: Path, workers: int | None, only: Sequence[str]) -> None:
    """Each method's best rate of `RATES`, by the mean over the tasks of its accuracy under the token budget."""
    runs = [(task, method, rate) for task in PLANS for method in methods_of(task, only) for rate in RATES]
    jobs = []
    for task, method, rate in runs:
        own = (*COMMON, *PLANS[task].words, *OWN.get(method, ()), *limits(task, "tokens", method))
        wanted = [*own, f"task.name={task}", f"train.lr={rate}", f"train.seed={TUNING_SEED}", "train.save_every=0"]
        jobs.append((configure(method, {"trackers": []}, wanted), out / "tune" / f"{task}-{method}-{rate}"))
    for count, _ in enumerate(run_jobs(run_one, jobs, workers, fresh=True), start=1):
        print(f"tuning: {count} of {len(jobs)} runs", flush=True)
    found: dict[str, dict[str, dict[str, float]]] = {method: {} for method in METHODS if method in only}
    for (task, method, rate), (_, folder) in zip(runs, jobs, strict=True):
        found[method].setdefault(str(rate), {})[task] = read_metrics(folder)[-1][comparison.ACCURACY]
    best = {method: max(RATES, key=lambda rate: sum(by_rate[str(rate)].values())) for method, by_rate in found.items()}
    keep("rates", {"seed": TUNING_SEED, "rates": best, "accuracy": found}, ("rates", "accuracy"))


def run(name: str, out: Path, workers: int | None, only: Sequence[str]) -> None:
    """One comparison; its summary is kept beside this file."""
    task, budget = name.split("-")
    rates = json.loads((KEPT / "rates.json").read_text())["rates"]
    taking = methods_of(task, only)
    methods = ("grpo", *(method for method in taking if method != "grpo"))
    shown = [-1]

    def tell(done: Mapping[tuple[str, int], int], steps: int) -> None:
        begun = sum(step > 0 for step in done.values())
        if begun != shown[0]:
            shown[0] = begun
            print(f"{name}: {begun} of {len(done)} runs begun or done", flush=True)

    result = compare(
        methods, task=task, seeds=SEEDS, settings=list(settings(task, budget, methods, rates)), out=out / name,
        workers=workers, on_progress=tell,
    )  # fmt: skip
    comparison.write(result.path)
    data = kept(result.path)
    keep(name, data | {"runs": {method: data["runs"][method] for method in taking}}, ("runs",))


def keep(name: str, data: dict[str, Any], merged: Sequence[str]) -> None:
    """Write ``data`` beside this file; what is kept there of other methods under the keys ``merged`` stays."""
    file = KEPT / f"{name}.json"
    old = json.loads(file.read_text()) if file.is_file() else {}
    parts = {key: old.get(key, {}) | data[key] for key in merged}
    ordered = {key: {method: part[method] for method in METHODS if method in part} for key, part in parts.items()}
    write_whole(file, json.dumps(data | ordered, indent=1) + "\n")


def useful(rows: list[dict[str, Any]]) -> float:
    """Mean over the steps of the share of groups that have a gradient; 0 for methods without groups."""
    shares = [row["effective_groups"] for row in rows if "effective_groups" in row]
    return sum(shares) / len(shares) if shares else 0.0


def kept(path: Path) -> dict[str, Any]:
    """Every run's final numbers, which the page is made of."""
    data = comparison.read(path)
    runs = {
        method: [
            {
                "seed": seed, "start": rows[0][comparison.ACCURACY], "steps": rows[-1]["step"],
                "useful": useful(rows),
                **{key: value for key, value in comparison.measures(rows).items() if value is not None},
            }
            for seed, rows in sorted(data.curves(method).items())
        ]
        for method in data.methods
    }  # fmt: skip
    return {"task": data.task, "model": data.model, "runs": runs}


@dataclass(frozen=True)
class Line:
    """One method of a comparison: means over seeds, the paired difference to GRPO, and on how many seeds it is above."""

    method: str
    accuracy: comparison.Estimate
    difference: comparison.Estimate | None
    above: int
    means: Mapping[str, float]


def lines(name: str) -> list[Line]:
    """The kept runs of a comparison, best method first."""
    runs: Mapping[str, list[dict[str, float]]] = json.loads((KEPT / f"{name}.json").read_text())["runs"]
    base = [row["accuracy"] for row in runs["grpo"]]
    found = []
    for method, rows in runs.items():
        values = [row["accuracy"] for row in rows]
        pairs = [value - other for value, other in zip(values, base, strict=True)]
        difference = None if method == "grpo" else comparison.estimate(pairs)
        means = {key: sum(row.get(key, 0.0) for row in rows) / len(rows) for key in rows[0]}
        found.append(Line(method, comparison.estimate(values), difference, sum(pair > 0 for pair in pairs), means))
    return sorted(found, key=lambda line: -(line.accuracy.mean or 0.0))


def label(method: str) -> str:
    """A method's name, papers in bold, with the mark of those that read worked solutions."""
    name = f"**{method}**" if method in PAPERS else method
    return name + (" †" if method in DEMONSTRATIONS else "")


def markdown(name: str) -> str:
    """The table of one comparison. Its memory is that of the comparison at equal seconds, its seconds are the steps at that
    one's pace: the one at equal tokens may run on a busy machine."""
    timed = {line.method: line.means for line in lines(f"{name.split('-')[0]}-seconds")}
    head = (
        "method",
        "accuracy",
        "minus grpo",
        "above grpo",
        "pass@4",
        "useful groups",
        "steps",
        "tokens",
        "responses",
        "seconds",
        "MiB",
    )
    rows = [head, ("---", *["--:"] * (len(head) - 1))]
    for line in lines(name):
        other, means, own = line.difference, line.means, timed[line.method]
        rows.append(
            (
                label(line.method), words.share(line.accuracy.mean, line.accuracy.interval),
                words.share(other.mean, other.interval, sign=True) if other else words.NOTHING,
                f"{line.above} of {SEEDS}" if other else words.NOTHING,
                words.share(means["pass@4"]), words.share(means["useful"] or None), f"{means['steps']:.0f}",
                words.short(means["tokens"]),
                words.short(means["responses"]), f"{means['steps'] * own['seconds'] / own['steps']:.1f}",
                f"{own['memory']:.0f}",
            )
        )  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(task: str, path: Path) -> None:
    """Differences to GRPO with their intervals: equal tokens on the left, equal seconds on the right."""
    panels = {budget: {line.method: line for line in lines(f"{task}-{budget}")} for budget in ("tokens", "seconds")}
    order = [line.method for line in reversed(lines(f"{task}-tokens")) if line.difference]
    with style.drawing(1.0 + 0.27 * len(order)) as figure:
        for axes, (budget, by_method) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            for place, method in enumerate(order):
                found = by_method[method].difference
                if found is None or found.mean is None or found.interval is None:
                    continue
                colour = style.COLOURS[0 if method in PAPERS else 6]
                axes.plot(found.interval, (place, place), color=colour, lw=2, solid_capstyle="butt")
                axes.plot(found.mean, place, "o", color=colour, ms=5)
            axes.axvline(0, color=style.INK, lw=1)
            axes.set_title(f"equal {budget}", loc="left")
            axes.set_xlabel("held-out accuracy minus GRPO's")
            axes.set_yticks(range(len(order)), order)
        style.save(figure, path)


def page() -> None:
    """Write the tables and figures of the docs."""
    file = DOCS / "comparison.md"
    text = file.read_text(encoding="utf-8")
    for name in NAMES:
        start, end = f"<!-- table:start {name} -->", f"<!-- table:end {name} -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{file} has no place for {name}: write {start} and {end} there")
        text = f"{before}{start}\n\n{markdown(name)}\n\n{end}{after}"
    write_whole(file, text)
    for task in PLANS:
        draw(task, DOCS / f"comparison_{task}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("tune", "run", "page"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="folder of the runs")
    parser.add_argument("--workers", type=int, help="processes; all cores by default")
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, default=METHODS, help="tune or run these; others stay as kept"
    )
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"unknown comparison {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    KEPT.mkdir(exist_ok=True)
    if asked.action == "tune":
        tune(asked.out, asked.workers, asked.only)
    elif asked.action == "run":
        for name in asked.names or NAMES:
            run(name, asked.out, asked.workers, asked.only)
    else:
        page()


if __name__ == "__main__":
    main()
