"""Loading, saving and bad input of language-model policies; tables and linear maps against enumeration."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, policy, prompts, rollouts, tiny, tokenizer, uniforms

from policydist.errors import PolicydistError, UsageError
from policydist.language.policies.hf import TransformersPolicy
from policydist.language.policies.linear import LinearPolicy
from policydist.language.policies.loading import Lora, load_policy
from policydist.language.policies.tabular import TabularPolicy
from policydist.language.types import Policy, Prompts, Rollouts, Sampling
from policydist.language.world import to_rollouts


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    policy().save(tmp_path / "model")
    return tmp_path / "model"


def test_saved_model_loads_to_the_same_scores(directory: Path, tmp_path: Path) -> None:
    rows = rollouts(policy().generate(prompts(), Sampling(max_new_tokens=8), uniforms()))
    first = load_policy(directory)
    first.add_value_head()
    torch.nn.init.normal_(first.core.value_head.weight)
    first.save(tmp_path / "again")
    again = load_policy(tmp_path / "again")
    assert again.tokenizer("w3 w5")["input_ids"] == [3, 5], "a tokenizer is loaded as it was saved"
    with torch.no_grad():
        expected, found = first.score(rows, values=True), again.score(rows, values=True)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=0, rtol=0)
    torch.testing.assert_close(found.values, expected.values, atol=0, rtol=0)
    assert (tmp_path / "again" / "model.safetensors").is_file()
    assert list((tmp_path / "again").glob("*.bin")) == []


def test_lora_trains_and_saves_only_the_adapter(directory: Path, tmp_path: Path) -> None:
    model = load_policy(directory, lora=Lora(rank=2))
    assert model.packing
    rows = rollouts(model.generate(prompts(), Sampling(max_new_tokens=8), uniforms()))
    trainable = {name for name, weight in model.module.named_parameters() if weight.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    for name, weight in model.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = load_policy(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again.score(rows).logprobs, model.score(rows).logprobs)
        assert (again.score(rows).logprobs - load_policy(directory).score(rows).logprobs).abs().max() > 1e-3
    again.score(rows).logprobs.sum().backward()
    assert any(weight.grad is not None for weight in again.module.parameters())


def test_scores_go_through_the_module_that_was_set() -> None:
    model = policy()
    rows = rollouts(model.generate(prompts(), Sampling(max_new_tokens=4), uniforms()))
    calls: list[int] = []

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.module = inner

        def forward(self, *args: Any) -> Any:
            calls.append(1)
            return self.module(*args)

    model.module = Wrapper(model.module)
    model.score(rows)
    assert calls == [1], "one call a score, whatever the number of passes"
    model.generate(prompts(), Sampling(max_new_tokens=4), uniforms())
    assert calls == [1]


def test_dropout_is_off_in_training_mode() -> None:
    inner = tiny("gpt2")
    for module in inner.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model = TransformersPolicy(inner, tokenizer())
    rows = rollouts(model.generate(prompts(), Sampling(max_new_tokens=8), uniforms()))
    model.module.train()
    with torch.no_grad():
        assert torch.equal(model.score(rows).logprobs, model.score(rows).logprobs)


def test_a_copy_is_independent() -> None:
    model = policy()
    frozen = copy.deepcopy(model)
    assert frozen.module is frozen.core
    with torch.no_grad():
        model.model.get_output_embeddings().weight.add_(1)
    assert not torch.equal(model.model.get_output_embeddings().weight, frozen.model.get_output_embeddings().weight)


def test_the_model_still_generates_by_itself() -> None:
    model = policy("gemma2")
    ids, mask = prompts().ids, prompts().mask.long()
    options = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": 1, "pad_token_id": 0}
    expected = tiny("gemma2").generate(ids, attention_mask=mask, **options)
    assert torch.equal(model.model.generate(ids, attention_mask=mask, **options), expected)


def test_a_shared_configuration_is_noticed() -> None:
    model = policy()
    rows = rollouts(model.generate(prompts(), Sampling(max_new_tokens=4), uniforms()))
    model.model.config._attn_implementation = "sdpa"
    with pytest.raises(PolicydistError, match="share its configuration"):
        model.score(rows)


def _no_config(path: Path) -> None:
    (path / "config.json").unlink()


def _no_tokenizer(path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()


def _big_tokenizer(path: Path) -> None:
    tokenizer(VOCAB + 5).save_pretrained(path)


def _unknown_architecture(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "nothing-known"}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_config, "no config.json"),
        (_no_tokenizer, "no tokenizer"),
        (_big_tokenizer, "ids up to 44, the model knows 40"),
        (_unknown_architecture, "cannot load"),
    ],
)
def test_bad_directories(directory: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(directory)
    with pytest.raises(UsageError, match=words) as caught:
        load_policy(directory)
    assert "\n" not in str(caught.value)


def test_other_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model directory"):
        load_policy(tmp_path / "absent")
    with pytest.raises(UsageError, match="context of 96"):
        policy().generate(prompts(), Sampling(max_new_tokens=90), uniforms(16, 90))
    rows = rollouts(policy().generate(prompts(), Sampling(max_new_tokens=4), uniforms()))
    with pytest.raises(UsageError, match="add_value_head"):
        policy().score(rows, values=True)
    with pytest.raises(UsageError, match="features"):
        LinearPolicy(torch.ones(3, 2, dtype=torch.long), 4)
    with pytest.raises(UsageError, match="shape"):
        TabularPolicy(2, 3, 4, init=torch.zeros(2, 2, 4))


def test_tokenizer_without_pad_or_end() -> None:
    words = tokenizer()
    words.pad_token = None
    assert TransformersPolicy(tiny("qwen2"), words).pad == 1
    words.pad_token, words.eos_token = None, None
    model = tiny("qwen2")
    model.generation_config.eos_token_id = None
    with pytest.raises(UsageError, match="neither a pad token nor an end token"):
        TransformersPolicy(model, words)


def contexts(count: int, samples: int) -> Prompts:
    ids = torch.arange(count)
    return Prompts(ids[:, None], torch.ones(count, 1, dtype=torch.bool), torch.full((count,), samples), ids)


def small(kind: str) -> TabularPolicy | LinearPolicy:
    generator = torch.Generator().manual_seed(7)
    if kind == "linear":
        model = LinearPolicy(torch.randn(3, 4, generator=generator, dtype=torch.float64), 5)
        torch.nn.init.normal_(model.core.weights, generator=generator)
        torch.nn.init.normal_(model.core.value_weights, generator=generator)
        return model
    rows = 1 + 3 + 9 if kind == "prefix" else 3
    init = torch.randn(3, rows, 3, generator=generator, dtype=torch.float64)
    model = TabularPolicy(3, 3, 3, prefix=kind == "prefix", init=init, dtype=torch.float64)
    torch.nn.init.normal_(model.core.values, generator=generator)
    return model


KINDS = ["table", "prefix", "linear"]


def drawn(model: TabularPolicy | LinearPolicy, samples: int) -> Rollouts:
    some = contexts(3, samples)
    values = torch.rand(3 * samples, 3, generator=torch.Generator().manual_seed(8))
    return to_rollouts(some, model.generate(some, Sampling(max_new_tokens=3), values)).validate()


@pytest.mark.parametrize("kind", KINDS)
def test_small_policies_sample_their_exact_distribution(kind: str) -> None:
    model, samples = small(kind), 20_000
    assert isinstance(model, Policy)
    rows = drawn(model, samples)
    exact = model.probabilities().detach()
    torch.testing.assert_close(exact.sum(1), torch.ones(3, dtype=torch.float64))
    base = 5 if kind == "linear" else 3
    powers = base ** torch.arange(rows.response_ids.shape[1]).flip(0)
    number = (rows.response_ids * powers).sum(1) + exact.shape[1] * rows.prompt_ids[:, 0]
    observed = torch.bincount(number, minlength=exact.numel()).view_as(exact) / samples
    spread = (exact * (1 - exact) / samples).sqrt()
    assert ((observed - exact).abs() < 5 * spread + 1e-6).all()
    scores = model.score(rows)
    torch.testing.assert_close(scores.logprobs.sum(1).exp(), exact.flatten()[number])
    torch.testing.assert_close(scores.logprobs.float(), rows.behavior_logprobs.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_small_policies_have_exact_gradients(kind: str) -> None:
    model = small(kind)
    rows = drawn(model, 5)
    names = list(dict(model.core.named_parameters()))

    def everything(*weights: torch.Tensor) -> torch.Tensor:
        weighted = copy.copy(model)
        given = dict(zip(names, weights, strict=True))
        weighted.module = lambda *args: torch.func.functional_call(model.core, given, args)
        found = weighted.score(rows, entropy=True, tilts=(0.7,), values=True)
        return torch.stack([found.logprobs, found.entropy, found.tilted[0.7], found.values]).sum(-1)

    weights = tuple(weight.detach().clone().requires_grad_() for weight in model.core.parameters())
    assert torch.autograd.gradcheck(everything, weights)


@pytest.mark.parametrize("kind", KINDS)
def test_score_function_has_mean_zero_by_enumeration(kind: str) -> None:
    model = small(kind)
    probabilities = model.probabilities()
    expected_score = (probabilities.detach() * probabilities.log()).sum()
    gradients = torch.autograd.grad(expected_score, next(model.core.parameters()))
    torch.testing.assert_close(gradients[0], torch.zeros_like(gradients[0]), atol=1e-12, rtol=0)


def test_small_entropy_is_exact() -> None:
    model = small("linear")
    rows = drawn(model, 2)
    exact = torch.distributions.Categorical(model.probabilities()).entropy()[rows.prompt_ids[:, 0]]
    torch.testing.assert_close(model.score(rows, entropy=True).entropy[:, 0], exact)


def test_sequences_are_bounded() -> None:
    assert small("table").sequences().tolist()[:4] == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
    with pytest.raises(UsageError, match="too many"):
        TabularPolicy(1, 30, 10).sequences()
