"""From a task's name to a task: procedural tasks, reasoning-gym, data files, datasets of the Hub, mixtures of these."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from policydist.errors import PolicydistError, UsageError, nearest
from policydist.language.tasks.base import Grader, Row, Task
from policydist.language.tasks.files import HUB_OPTIONS, Columns, read_hub, read_jsonl, read_parquet
from policydist.language.tasks.grading import GRADERS, last_number
from policydist.language.tasks.mixture import load_mixture
from policydist.language.tasks.rewards import python_function

KINDS = (
    "reasoning-gym:<name>",
    "jsonl:<file>",
    "parquet:<file>",
    "hub:<name>[:config][@split]",
    "mix:<task>,<task>,…",
)
"""The kinds of task besides the named ones."""

READERS: Mapping[str, Callable[[Path, Columns], list[Row]]] = {"jsonl": read_jsonl, "parquet": read_parquet}
NEW_TOKENS = 256


def task_names() -> list[str]:
    """What a task can be called, for help texts: the procedural names, then the kinds that take an argument."""
    return [*sorted(_procedural()), *KINDS]


def load_task(
    spec: str,
    *,
    seed: int = 0,
    train_size: int | None = None,
    test_size: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    grader: str = "auto",
    options: Mapping[str, Any] | None = None,
) -> Task:
    """The task that ``spec`` names: a procedural task's name, or one of

        reasoning-gym:<name>            its own scorer; options are its configuration
        jsonl:<file>[,<test file>]      one JSON object a line
        parquet:<file>[,<test file>]
        hub:<name>[:config][@split[,split]]   through `datasets`; options revision, cache_dir, data_dir, data_files
        mix:<task>,<task>,…             several of these; options are ``{task: options}``, sizes are each task's

    Data files and Hub datasets without a test part are split by ``seed``: a tenth of the rows, at most 256, is for
    testing. Sizes cut a larger set down; asking for more rows than there are is an error.

    ``grader`` names one of `GRADERS`, or ``module:function`` (see `rewards`), with ``options`` for it; ``auto`` looks
    at the training rows: a rubric, numbers and target, choices, answers that are all plain numbers, answers in LaTeX
    (math-verify), else exact match.

    Raises:
        UsageError: for an unknown task, grader, option or column, a file that is missing, unreadable, malformed or
            empty, and a row that its grader cannot use.
        MissingExtraError: when reasoning-gym is wanted and absent.
    """
    options = dict(options or {})
    for name, size, least in (("train_size", train_size, 1), ("test_size", test_size, 0)):
        if size is not None and size < least:
            raise UsageError(f"{name} is {size}; it must be at least {least}")
    kind, colon, argument = spec.partition(":")
    if colon and kind in ("reasoning-gym", "hub", "mix", *READERS) and not argument:
        raise UsageError(f"task {spec!r}: write {next(form for form in KINDS if form.startswith(kind))}")
    if colon and kind == "mix":
        columns = {"prompt_column": prompt_column, "answer_column": answer_column, "grader": grader}
        return _load_mixture(spec, options, seed=seed, train_size=train_size, test_size=test_size, **columns)
    if colon and kind in ("hub", *READERS):
        data = Columns(prompt_column, answer_column, grader)
        return _load_data(spec, data, options, seed, (train_size, test_size))
    sizes = {"train_size": train_size, "test_size": test_size}
    wanted = {name: size for name, size in sizes.items() if size is not None}
    if colon and kind == "reasoning-gym":
        _only_auto(spec, grader)
        from policydist.language.tasks.gym import load_gym

        return load_gym(argument, seed=seed, options=options, **wanted)
    builders = _procedural()
    if spec not in builders:
        raise UsageError(f"unknown task {spec!r}: {_offer(spec, builders)}")
    _only_auto(spec, grader)
    _check_options(f"task {spec}", builders[spec], options)
    return builders[spec](seed=seed, **wanted, **options)


def _load_mixture(spec: str, options: Mapping[str, Any], *, grader: str, **rest: Any) -> Task:
    """A mixture; the grader asked for is for the data files in it, other tasks bring their own."""

    def part(name: str, own: Mapping[str, Any]) -> Task:
        given = grader if name.partition(":")[0] in ("hub", *READERS) else "auto"
        return load_task(name, grader=given, options=own, **rest)

    return load_mixture(spec, part, options)


def make_grader(spec: str, options: Mapping[str, Any] | None = None) -> Grader:
    """The grader that a name of `GRADERS` or ``module:function`` stands for.

    Raises:
        UsageError: for an unknown name or option.
    """
    options = dict(options or {})
    if ":" in spec:
        if options:
            raise UsageError(f"grader {spec}: a reward function takes no options, got {', '.join(options)}")
        return python_function(spec)
    if spec not in GRADERS:
        raise UsageError(f"unknown grader {spec!r}: {nearest(spec, [*GRADERS, 'module:function'])}")
    _check_options(f"grader {spec}", GRADERS[spec], options)
    return GRADERS[spec](**options)


def automatic(rows: Sequence[Row]) -> str:
    """The grader that fits rows of data, as `load_task` describes it."""

    def everywhere(*names: str) -> bool:
        return all(row.get(name) is not None for row in rows for name in names)

    if everywhere("rubric"):
        return "rubric"
    if everywhere("numbers", "target"):
        return "expression"
    if everywhere("choices", "answer"):
        return "choice"
    answers = [str(answer) for row in rows for answer in _listed(row.get("answer"))]
    if all(re.fullmatch(r"\s*[-+]?[\d,]*\.?\d+\s*", answer) and last_number(answer) is not None for answer in answers):
        return "numeric"
    return "math_verify" if any("\\" in answer or "$" in answer for answer in answers) else "exact_match"


def _load_data(
    spec: str, columns: Columns, options: dict[str, Any], seed: int, sizes: tuple[int | None, int | None]
) -> Task:
    """A task from files or the Hub. A named grader is made before the data are read: a wrong name fails first."""
    kind, _, argument = spec.partition(":")
    hub_options = {name: options.pop(name) for name in HUB_OPTIONS if name in options} if kind == "hub" else {}
    grader = None if columns.grader == "auto" else make_grader(columns.grader, options)
    test: Sequence[Row] | None = None
    if kind == "hub":
        train, test = read_hub(argument, columns, hub_options)
    else:
        paths = argument.split(",")
        if len(paths) > 2 or not all(paths):
            raise UsageError(f"task {spec!r}: write {kind}:<file> or {kind}:<train file>,<test file>")
        parts = [READERS[kind](Path(path).expanduser(), columns) for path in paths]
        train, test = parts[0], parts[1] if len(parts) == 2 else None
    name = automatic(train) if columns.grader == "auto" else columns.grader
    grader = grader or make_grader(name, options)
    for part, rows in (("", train), ("test ", test or ())):
        _probe(f"{spec} {part}row", name, grader, rows)
    kept, held = _cut(spec, train, test, seed, *sizes)
    return Task(spec, kept, held, {"accuracy" if name in GRADERS else "reward": grader}, max_new_tokens=NEW_TOKENS)


def _probe(where: str, name: str, grader: Grader, rows: Sequence[Row]) -> None:
    """Let a built-in grader see every row once with an empty response: a bad row fails now, not in training."""
    if name not in GRADERS or name == "math_verify":
        return  # a user's function may be slow or count its calls; math-verify reads references when it needs them
    for number, row in enumerate(rows, 1):
        try:
            grader([""], [row])
        except PolicydistError as error:
            raise UsageError(f"{where} {number}: {error}") from error


def _cut(
    spec: str,
    train: Sequence[Row],
    test: Sequence[Row] | None,
    seed: int,
    train_size: int | None,
    test_size: int | None,
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Split where there is no test part, then keep the wanted number of rows of each, drawn by the seed."""
    from policydist.runs import seeds  # here, because it loads torch, which listing task names should not

    order = seeds.numpy_generator(seed, "split").permutation(len(train)).tolist()
    if test is None:
        if len(train) < 2 and test_size != 0:
            raise UsageError(f"{spec}: one row cannot be split; name a test file, or task.test_size=0")
        held = min(256, max(1, len(train) // 10)) if test_size is None else test_size
        if held >= len(train):
            raise UsageError(f"{spec}: test_size is {held}, but there are only {len(train)} rows in all")
        test, order = [train[i] for i in order[:held]], order[held:]
    elif test_size is not None:
        if test_size > len(test):
            raise UsageError(f"{spec}: test_size is {test_size}, but there are only {len(test)} test rows")
        keep = seeds.numpy_generator(seed, "test").permutation(len(test)).tolist()[:test_size]
        test = [test[i] for i in sorted(keep)]
    if train_size is not None and train_size > len(order):
        raise UsageError(f"{spec}: train_size is {train_size}, but only {len(order)} rows are left for training")
    return [train[i] for i in sorted(order[:train_size])], test


def _procedural() -> Mapping[str, Callable[..., Task]]:
    """Built-in tasks by name."""
    from policydist.language.tasks import twohop
    from policydist.language.tasks.procedural import PROCEDURAL, scenes

    return {**PROCEDURAL, "two-hop": twohop.build, "scenes": scenes.build}


def _check_options(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that the function does not have."""
    known = set(inspect.signature(function).parameters) - {"seed", "train_size", "test_size"}
    for option in options:
        if option not in known:
            offer = nearest(option, known) if known else "it has none"
            raise UsageError(f"{what} has no option {option!r}: {offer}")


def _only_auto(spec: str, grader: str) -> None:
    if grader != "auto":
        raise UsageError(f"task {spec} brings its own grader; leave grader at auto, not {grader!r}")


def _offer(spec: str, builders: Mapping[str, Any]) -> str:
    """The nearest task, kind of task, or, for what is a file, the way to write it."""
    kind, colon, _ = spec.partition(":")
    if not colon and Path(spec).suffix in (".jsonl", ".json", ".parquet"):
        return f"for a file write {'parquet' if spec.endswith('.parquet') else 'jsonl'}:{spec}"
    offer = nearest(kind, [form.partition(":")[0] for form in KINDS]) if colon else nearest(spec, builders)
    return f"{offer} ({'forms' if colon else 'or'}: {', '.join(KINDS)})"


def _listed(answer: Any) -> Sequence[Any]:
    return answer if isinstance(answer, list | tuple) else [answer]
