"""What DoGe reads and asks: masked contexts, formats, prompts that hand over an analysis, and the Solver behind an endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
import torch

from policydist.errors import PolicydistError, UsageError
from policydist.language import contexts
from policydist.language.recipe import Context
from policydist.language.solver import Endpoint, EndpointConfig
from policydist.language.types import Prompts, Sampling
from policydist.language.worlds.scenes import Shortcut

# --- texts -----------------------------------------------------------------------------------------------------------

ASKED = [{"role": "user", "content": "q"}]
ROW = {"prompt": "ab;cd\n\nfirst?", "context": "ab;cd", "question": "first?", "answer": "ab"}


@pytest.mark.parametrize(
    ("text", "thought", "boxed"),
    [
        ("<think>a</think> the sky is blue", True, False),
        ("<think>a</think>\n\\boxed{B}", True, True),
        (" <think>\na\n</think> so \\boxed{\\frac{1}{2}} ", True, True),
        ("\\boxed{B}", False, False),
        ("<think>a \\boxed{B}</think>", True, False),
        ("<think>a</think><think>b</think>\\boxed{B}", True, False),
        ("well <think>a</think>\\boxed{B}", True, False),
        ("<think>a \\boxed{B}", False, False),
        ("<think>a</think>\\boxed{ }", True, False),
    ],
)
def test_formats(text: str, thought: bool, boxed: bool) -> None:
    assert contexts.has_thought(text) == thought
    assert contexts.has_boxed_answer(text) == boxed


def test_tags_of_an_analysis_are_neutralised() -> None:
    found = contexts.neutral("<think>x</think> <image> <|img|> 3 < 4 <answer id=1>y</answer>")
    assert found == "(think)x(/think) (image) <|img|> 3 < 4 (answer id=1)y(/answer)"
    found = contexts.neutral("<|vision_start|><|image_pad|> <start_of_image> a<b|image|c>")
    assert found == "(|vision_start|)(|image_pad|) (start_of_image) a<b|image|c>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from policydist.language.policies.loading import _source, _tokenizer

    return _tokenizer(_source("embedded"), {})


def text_source(tokenizer: Any, rows: list[dict[str, Any]], **changes: Any) -> contexts.ContextText:
    templates = {"analysis_prompt": "{context}:", "solver_prompt": "{context},{question}={analysis}"}
    return contexts.ContextText(rows, tokenizer, **{**templates, **changes})


def test_a_masked_prompt_that_still_holds_the_question_is_refused(tokenizer: Any) -> None:
    leaking = {**ROW, "context": "ab;cd;  FIRST? is asked below"}
    with pytest.raises(UsageError, match=r"row 1 still holds its question 'first\?'.*mask=false"):
        text_source(tokenizer, [ROW, leaking])
    text_source(tokenizer, [ROW, leaking], masked=False)
    for column in ("context", "question"):
        with pytest.raises(UsageError, match=f"row 0 has no text in column '{column}'"):
            text_source(tokenizer, [{**ROW, column: None}])
    with pytest.raises(UsageError, match="must show the Solver"):
        text_source(tokenizer, [ROW], solver_prompt="{context}{question}")
    with pytest.raises(UsageError, match="cannot be filled in"):
        text_source(tokenizer, [ROW], analysis_prompt="{question}")


def test_text_prompts_hide_the_question_and_hand_over_the_analysis(tokenizer: Any) -> None:
    from policydist.language.guided import given_rows
    from policydist.language.prompts import TextPrompts

    row = {"prompt": "12;34,2?", "context": "12;34", "question": "2?", "answer": "34"}
    source, prompts = text_source(tokenizer, [row]), TextPrompts([row], tokenizer, 64)
    taken = prompts.take(torch.tensor([0]), 1)
    masked = source.analysis_prompts(taken, True)
    assert tokenizer.decode(masked.ids[0][masked.mask[0]]) == "12;34:"
    assert "2?" in tokenizer.decode(source.analysis_prompts(taken, False).ids[0])
    analysis = given_rows(taken, [torch.tensor(tokenizer("3*4")["input_ids"])], 0, torch.device("cpu"))
    asked = source.solver_prompts(analysis)
    assert asked.items[0]["prompt"] == "12;34,2?=3*4"
    assert asked.items[0]["answer"] == "34"
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "12;34,2?"}]
    chatting = replace(analysis, items=({**row, "prompt": chat},))
    if tokenizer.chat_template is None:
        with pytest.raises(UsageError, match="chat template"):
            source.solver_prompts(chatting)


def test_the_images_of_a_row_are_shown_with_both_prompts() -> None:
    import tiny_vision

    from policydist.language.guided import given_rows

    reader = tiny_vision.policy("llava").reader
    one = {"prompt": "w2", "context": "w2 <image>", "question": "w3", "image": tiny_vision.picture(0)}
    two = {
        "prompt": "w2",
        "context": "w4",
        "question": "w5",
        "images": [tiny_vision.picture(1), tiny_vision.picture(2)],
    }
    source = contexts.ContextText([one, two], reader, "{context} w6", "{context} {question} {analysis} w7")
    asked = Prompts(
        torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1).bool(), torch.ones(2).long(), torch.arange(2), (one, two)
    )
    image = [tiny_vision.AT["image"]] * 16

    def texts(prompts: Prompts) -> list[list[int]]:
        return [ids[mask].tolist() for ids, mask in zip(prompts.ids, prompts.mask, strict=True)]

    shown = source.analysis_prompts(asked, True)
    assert texts(shown) == [[2, *image, 6], [*image, *image, 4, 6]]
    said = torch.tensor(reader("w8 w9")["input_ids"])
    solved = source.solver_prompts(given_rows(shown, [said, said], 0, torch.device("cpu")))
    assert texts(solved) == [[2, *image, 3, 8, 9, 7], [*image, *image, 4, 5, 8, 9, 7]]
    assert [item.get("image") for item in solved.items] == [one["image"], None]
    with pytest.raises(
        UsageError, match="doge: row 1, analysis prompt: the prompt marks 1 places with <image>, but the row has 2"
    ):
        contexts.ContextText([one, {**two, "context": "w4 <image>"}], reader)
    with pytest.raises(UsageError, match="doge: row 0, Solver's prompt: the prompt marks 2 places"):
        contexts.ContextText([{**one, "question": "<image> w3"}], reader)


# --- endpoints -------------------------------------------------------------------------------------------------------


class Served(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that does what `script` says, one entry a request: a status, a body, or seconds of silence."""

    script: ClassVar[list[Any]] = []
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Served.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        step = Served.script.pop(0) if Served.script else None
        if isinstance(step, float):
            threading.Event().wait(step)
        status = step if isinstance(step, int) else 200
        answer = step if isinstance(step, str) else json.dumps(completions(min(body["n"], 3)))
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer.encode())
        except OSError:  # the client has given up
            pass

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def completions(count: int) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": f"{k}"}} for k in range(count)]}


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Served)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    Served.script, Served.asked = [], []
    yield f"http://127.0.0.1:{server.server_port}/v1/"
    server.shutdown()
    server.server_close()
    thread.join()


def endpoint(address: str, tokenizer: Any, **settings: Any) -> Endpoint:
    return Endpoint(EndpointConfig(address, "m", **{"pause": 0.01, "timeout": 5.0, **settings}), tokenizer)


def test_an_endpoint_answers_a_batch_and_is_asked_again_for_what_is_missing(
    address: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    items = ({"prompt": "one?"}, {"prompt": [{"role": "user", "content": "two?"}]})
    ids = torch.zeros(2, 1, dtype=torch.long)
    prompts = Prompts(ids, ids == 0, torch.tensor([4, 1]), torch.arange(2), items)
    ctx = Context(Shortcut.draw(0).policy, 0)
    sampling = Sampling(8, temperature=0.7, top_p=0.9)
    rollouts = endpoint(address, tokenizer).answer(prompts, sampling, ctx)
    assert rollouts.group.tolist() == [0, 0, 0, 0, 1]
    texts = [tokenizer.decode(row[real], skip_special_tokens=True) for row, real in zip(
        rollouts.response_ids, rollouts.response_attention, strict=True)]  # fmt: skip
    assert texts == ["0", "1", "2", "0", "0"]
    assert sorted(each["n"] for each in Served.asked) == [1, 1, 4]
    first = Served.asked[0]
    assert (first["path"], first["key"], first["model"]) == ("/v1/chat/completions", "Bearer secret", "m")
    assert (first["temperature"], first["top_p"], first["max_tokens"]) == (0.7, 0.9, 8)
    assert {each["messages"][0]["content"] for each in Served.asked} == {"one?", "two?"}
    assert ctx.generated == int(rollouts.response_attention.sum())


def test_an_endpoint_is_sent_the_images_where_they_are_marked(address: str, tokenizer: Any) -> None:
    import base64
    import io

    import tiny_vision
    from PIL import Image

    first, second = tiny_vision.picture(0), tiny_vision.picture(1)
    chat = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    items = (
        {"prompt": "w2 <image> w3<image>", "images": [first, second]},
        {"prompt": chat, "image": first},
        {"prompt": "w4"},
    )
    ids = torch.zeros(3, 1, dtype=torch.long)
    prompts = Prompts(ids, ids == 0, torch.ones(3, dtype=torch.long), torch.arange(3), items)
    ctx = Context(Shortcut.draw(0).policy, 0)
    endpoint(address, tokenizer, parallel=1).answer(prompts, Sampling(8), ctx)

    def seen(part: dict[str, Any]) -> Any:
        if part["type"] == "text":
            return part["text"]
        head, _, body = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        return Image.open(io.BytesIO(base64.b64decode(body))).tobytes()

    messages = [each["messages"] for each in Served.asked]
    assert [seen(part) for part in messages[0][0]["content"]] == ["w2 ", first.tobytes(), " w3", second.tobytes()]
    assert [turn["content"] for turn in messages[1][:2]] == ["w1", "w2"]
    assert [seen(part) for part in messages[1][2]["content"]] == [first.tobytes(), "w3"]
    assert messages[2] == [{"role": "user", "content": "w4"}]
    broken = replace(prompts.select(torch.tensor([2])), items=({"prompt": "w4", "image": b"GIF89a"},))
    with pytest.raises(UsageError, match="row 2: its image cannot be read"):
        endpoint(address, tokenizer).answer(broken, Sampling(8), ctx)


def test_a_busy_or_garbled_endpoint_is_tried_again(address: str, tokenizer: Any) -> None:
    Served.script = [503, 429, "not json"]
    assert endpoint(address, tokenizer).complete(ASKED, 2, Sampling(8)) == ["0", "1"]
    assert len(Served.asked) == 4


def test_an_endpoint_that_is_down_slow_or_refuses_ends_the_run_in_words(address: str, tokenizer: Any) -> None:
    with pytest.raises(
        PolicydistError, match=r"the Solver at http://127.0.0.1:9/ \(m\) gave no usable answer in 2 tries of 5 s \(.*"
    ):
        endpoint("http://127.0.0.1:9/", tokenizer, retries=1).complete(ASKED, 1, Sampling(8))
    Served.script = [0.4]
    with pytest.raises(PolicydistError, match=r"gave no usable answer in 1 tries of 0\.1 s \(.*timed out"):
        endpoint(address, tokenizer, retries=0, timeout=0.1).complete(ASKED, 1, Sampling(8))
    Served.script, Served.asked = [401], []
    with pytest.raises(PolicydistError, match=r"refused the request: HTTP 401"):
        endpoint(address, tokenizer).complete(ASKED, 1, Sampling(8))
    assert len(Served.asked) == 1  # no use in trying again
    Served.script = ['{"error": "no such model"}']
    with pytest.raises(PolicydistError, match=r"answered without choices: .*no such model"):
        endpoint(address, tokenizer).complete(ASKED, 1, Sampling(8))
    for url in ("localhost:80", "file:///etc/passwd"):
        with pytest.raises(UsageError, match="must begin with http"):
            Endpoint(EndpointConfig(url, "m"), tokenizer)
