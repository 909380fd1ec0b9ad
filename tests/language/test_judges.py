import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from policydist.errors import PolicydistError, UsageError
from policydist.language.judges import TaskJudge, TensorJudge, encode_prompts, pad_id
from policydist.language.tasks.base import Task
from policydist.language.types import Rollouts

WORDS = ["<pad>", "<eos>", "a", "b", "c", "user", "assistant", ":"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


class Log(dict):
    log = dict.__setitem__


@pytest.fixture(scope="module")
def fast():
    from transformers import PreTrainedTokenizerFast

    def build(**special):
        inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=inner, **special)

    return build


@pytest.fixture
def tokenizer(fast):
    return fast(pad_token="<pad>", eos_token="<eos>")


def rollouts(ids, attention=None, items=None):
    ids = torch.tensor(ids)
    attention = ids > 0 if attention is None else torch.tensor(attention, dtype=torch.bool)
    count = len(ids)
    return Rollouts(
        prompt_ids=torch.full((count, 2), 2),
        prompt_mask=torch.ones(count, 2, dtype=torch.bool),
        response_ids=ids,
        response_attention=attention,
        response_mask=attention,
        group=torch.zeros(count, dtype=torch.long),
        index=torch.zeros(count, dtype=torch.long),
        behavior_logprobs=torch.zeros(ids.shape),
        extras={"kept": torch.arange(count)},
        items=tuple({"prompt": "p", "answer": str(n)} for n in range(count)) if items is None else items,
    )


BATCH = [[2, 3, 1, 0], [4, 1, 0, 0], [3, 3, 3, 1]]


def judged(tokenizer, grader, **options):
    return TaskJudge(Task("t", [], [], {"mine": grader}, **options), tokenizer)(rollouts(BATCH), Log())


def test_graders_see_the_batch_once_as_text_without_special_or_padding_tokens(tokenizer):
    calls = []

    def grader(responses, rows):
        calls.append((list(responses), [row["answer"] for row in rows]))
        return [1, 0.5, True]

    result = judged(tokenizer, grader)
    assert calls == [(["a b", "c", "b b b"], ["0", "1", "2"])]
    assert result.rewards.tolist() == [1, 0.5, 1]
    assert result.rewards.dtype == torch.float32
    assert result.extras["kept"].tolist() == [0, 1, 2]
    result.validate()


def test_only_attended_tokens_are_decoded(tokenizer):
    seen = []
    batch = rollouts([[2, 3, 4]], attention=[[1, 1, 0]])
    TaskJudge(Task("t", [], [], {"g": lambda r, _: seen.extend(r) or [0.0]}), tokenizer)(batch, Log())
    assert seen == ["a b"]


def test_the_reward_is_the_weighted_sum_and_components_stay_apart(tokenizer):
    graders = {"accuracy": lambda r, _: [1.0, 0.0, 1.0], "format": lambda r, _: np.array([0, 1, 1])}
    log = Log()
    result = TaskJudge(Task("t", [], [], graders, weights={"format": 0.25}), tokenizer)(rollouts(BATCH), log)
    assert result.rewards.tolist() == [1.0, 0.25, 1.25]
    assert result.extras["reward/accuracy"].tolist() == [1, 0, 1]
    assert result.extras["reward/format"].tolist() == [0, 1, 1]
    assert log["reward/accuracy"] == pytest.approx(2 / 3)
    assert set(log) == {"reward/accuracy", "reward/format"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1.0, 0.0], "reward mine returned 2 rewards for 3 responses"),
        ([], "returned 0 rewards for 3"),
        (None, "returned a NoneType; it must return a list of 3 numbers"),
        (1.0, "returned a float"),
        ("abc", "returned a str"),
        ({0: 1, 1: 1, 2: 1}, "returned a dict"),
        ([1.0, "yes", 0.0], r"sample 1 got 'yes' \(str\), not a number"),
        ([1.0, 0.0, None], r"sample 2 got None \(NoneType\)"),
        ([[1.0], [0.0], [1.0]], r"sample 0 got \[1.0\] \(list\)"),
        (np.zeros((3, 2)), "sample 0 got"),
        (torch.tensor(1.0), "returned a float"),
        ([1.0, 0.0, float("nan")], r"sample 2 has reward nan; it must be finite \(response 'b b b'\)"),
        ([1.0, float("-inf"), 0.0], "sample 1 has reward -inf"),
        (torch.tensor([float("nan"), 0, 0]), "sample 0 has reward nan"),
        ([1e300, 0, 0], "sample 0 has reward 1e\\+300"),
        ([10**400, 0, 0], "sample 0 has reward"),
    ],
)
def test_bad_results_of_a_reward_function(tokenizer, given, words):
    with pytest.raises(PolicydistError, match=words) as raised:
        judged(tokenizer, lambda responses, rows: given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "given", [[np.float32(1), np.int64(0), 1], (1, 0, 1), torch.tensor([1, 0, 1]), [torch.tensor(1.0), 0, 1]]
)
def test_numbers_of_all_usual_kinds_are_taken(tokenizer, given):
    assert judged(tokenizer, lambda responses, rows: given).rewards.tolist() == [1, 0, 1]


def test_an_exception_names_function_error_and_sample(tokenizer):
    def grader(responses, rows):
        return [{"a b": 1.0}.get(r) or 1 / (r != "c") for r in responses]

    with pytest.raises(
        PolicydistError, match=r"reward mine raised ZeroDivisionError: .*\(sample 1, response 'c'\)"
    ) as raised:
        judged(tokenizer, grader)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)

    def whole(responses, rows):
        if len(responses) > 1:
            raise KeyError("batch")
        return [0.0]

    with pytest.raises(PolicydistError, match=r"KeyError.*on the batch of 3; no sample fails alone"):
        judged(tokenizer, whole)


def test_an_empty_share_calls_nobody(tokenizer):
    empty = rollouts(BATCH).select(torch.tensor([], dtype=torch.long))
    log = Log()
    result = TaskJudge(Task("t", [], [], {"g": lambda r, _: 1 / 0}), tokenizer)(empty, log)
    assert result.rewards.shape == (0,)
    assert not log


def test_tasks_that_cannot_be_judged(tokenizer):
    with pytest.raises(UsageError, match="task t has no grader"):
        TaskJudge(Task("t", [], [], {}), tokenizer)
    with pytest.raises(UsageError, match=r"weights 'acuracy', which has no grader: did you mean accuracy"):
        TaskJudge(Task("t", [], [], {"accuracy": lambda r, _: []}, weights={"acuracy": 1}), tokenizer)
    with pytest.raises(PolicydistError, match="3 responses came with 0 rows of task t"):
        TaskJudge(Task("t", [], [], {"g": lambda r, _: [1.0] * 3}), tokenizer)(rollouts(BATCH, items=()), Log())


def test_tensor_judge():
    result = TensorJudge(lambda r: r.response_ids[:, 0].double())(rollouts(BATCH), None)
    assert result.rewards.tolist() == [2, 4, 3]

    def counts(r):
        return r.lengths

    for fn, words in [
        (counts, r"reward counts: expected a float tensor of shape \(3,\), got torch.int64 \(3,\)"),
        (lambda r: torch.zeros(3, 1), r"got torch.float32 \(3, 1\)"),
        (lambda r: [1.0, 2.0, 3.0], "got list"),
        (lambda r: torch.tensor([0, 0, float("inf")]), "sample 2 has reward inf"),
    ]:
        with pytest.raises(PolicydistError, match=words):
            TensorJudge(fn)(rollouts(BATCH), None)


def test_prompts_are_padded_on_the_left(tokenizer):
    ids, mask = encode_prompts([{"prompt": "a b c"}, {"prompt": "b"}], tokenizer, 3)
    assert ids.tolist() == [[2, 3, 4], [0, 0, 3]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    assert mask.dtype == torch.bool


def test_chats_go_through_the_template_and_strings_only_when_asked(fast):
    tokenizer = fast(pad_token="<pad>", chat_template=CHAT)
    rows = [{"prompt": [{"role": "user", "content": "a"}]}, {"prompt": "a"}]
    ids, mask = encode_prompts(rows, tokenizer, 8)
    assert ids[0].tolist() == [5, 7, 2, 6, 7]
    assert ids[1][mask[1]].tolist() == [2]
    ids, _ = encode_prompts(rows, tokenizer, 8, chat_strings=True)
    assert ids.tolist() == [[5, 7, 2, 6, 7]] * 2


def test_the_end_token_pads_where_there_is_no_pad_token(fast):
    assert pad_id(fast(pad_token="<pad>", eos_token="<eos>")) == 0
    assert pad_id(fast(eos_token="<eos>")) == 1
    ids, mask = encode_prompts([{"prompt": "a b"}, {"prompt": "c"}], fast(eos_token="<eos>"), 8)
    assert ids.tolist() == [[2, 3], [1, 4]]
    assert mask.tolist() == [[True, True], [False, True]]
    with pytest.raises(UsageError, match="neither a pad nor an end token"):
        encode_prompts([{"prompt": "a"}], fast(), 8)


def test_bad_prompts(tokenizer, fast):
    with pytest.raises(UsageError, match="the prompt of row 1 has 4 tokens, more than the 3 that fit"):
        encode_prompts([{"prompt": "a"}, {"prompt": "a b c a"}], tokenizer, 3)
    with pytest.raises(UsageError, match="the prompt of row 0 has no tokens"):
        encode_prompts([{"prompt": " "}], tokenizer, 3)
    with pytest.raises(UsageError, match="no prompts"):
        encode_prompts([], tokenizer, 3)
    chat = [{"prompt": [{"role": "user", "content": "a"}]}]
    with pytest.raises(UsageError, match="row 0 is a chat, but the tokenizer has no chat template"):
        encode_prompts(chat, tokenizer, 9)
    refusing = fast(pad_token="<pad>", chat_template="{{ raise_exception('only system speaks') }}")
    with pytest.raises(UsageError, match="the chat template refuses the prompt of row 0: only system speaks"):
        encode_prompts(chat, refusing, 9)
