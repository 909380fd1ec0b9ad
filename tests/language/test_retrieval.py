"""Retrievers: BM25's ranking, corpora good and bad, a service that is up, slow, down or odd."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from policydist.errors import PolicydistError, UsageError
from policydist.language.retrieval import BM25Retriever, HTTPRetriever, find_retriever, read_corpus
from policydist.language.tasks.sources import load_task

Reply = tuple[int, Any]


@contextmanager
def service(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A service whose n-th request is answered by ``reply(n, body)``; its address and the requests it got."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            status, data = reply(len(seen), body)
            try:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data if isinstance(data, bytes) else json.dumps(data).encode())
            except OSError:  # the client did not wait
                pass

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/retrieve", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def good(number: int, body: dict[str, Any]) -> Reply:
    def found(query: str) -> list[dict[str, Any]]:
        return [{"document": {"contents": f"{query} {k}"}, "score": 1.0} for k in range(body["topk"] + 1)]

    return 200, {"result": [found(query) for query in body["queries"]]}


def test_bm25_finds_the_fact_first_and_nothing_for_unknown_words() -> None:
    task = load_task("two-hop")
    retriever = BM25Retriever(task.documents)
    row = task.train[0]
    first, nothing, second, blank = retriever.search(
        [f"{row['relation']} of {row['person']}", "zzz", f"{row['belonging']} of {row['relative']}", ""], 3
    )
    assert first[0] == f"{row['relation']} of {row['person']}: {row['relative']}"
    assert second[0] == f"{row['belonging']} of {row['relative']}: {row['answer']}"
    assert len(first) == 3
    assert nothing == blank == []
    assert retriever.search([], 3) == []


def test_bm25_weighs_rare_words_and_returns_no_more_than_there_is() -> None:
    retriever = BM25Retriever(["the cat sat", "the dog sat", "The Emu ran, twice"])
    assert retriever.search(["the emu"], 9)[0][0] == "The Emu ran, twice"
    assert set(retriever.search(["sat"], 9)[0]) == {"the cat sat", "the dog sat"}


def test_a_corpus_is_read_in_its_usual_forms(tmp_path: Path) -> None:
    rows = [{"id": 1, "contents": '"T"\ntext'}, {"title": "A", "text": "b"}, {"text": "c\u2028d"}]
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    assert read_corpus(str(file)) == ['"T"\ntext', "A\nb", "c\u2028d"]
    plain = tmp_path / "corpus.txt"
    plain.write_text("one\n\n two \n")
    assert read_corpus(str(plain)) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "is empty"), ("\n \n", "is empty"), ('{"id": 1}', "jsonl:1"), ('{"contents": "a"}\n{oh', "jsonl:2")],
)
def test_a_bad_corpus_names_the_line(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError, match=words):
        find_retriever(None, str(file), (), 1, 0)


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the corpus"):
        read_corpus(str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="nothing to search"):
        find_retriever(None, None, (), 1, 0)
    with pytest.raises(UsageError, match="not both"):
        find_retriever("http://a", "b", (), 1, 0)
    with pytest.raises(UsageError, match="corpus is empty"):
        BM25Retriever([])
    with pytest.raises(UsageError, match="holds no word"):
        BM25Retriever(["...", "!"])
    with pytest.raises(UsageError, match="no address"):
        HTTPRetriever("localhost:8000")


def test_a_service_is_asked_in_its_own_form() -> None:
    with service(good) as (url, seen):
        assert HTTPRetriever(url).search(["a", "b"], 2) == [["a 0", "a 1"], ["b 0", "b 1"]]
    assert seen == [{"queries": ["a", "b"], "topk": 2, "return_scores": True}]


def test_a_service_that_fails_is_asked_again() -> None:
    with service(lambda n, body: (503, {}) if n < 3 else good(n, body)) as (url, seen):
        assert HTTPRetriever(url, retries=2, wait=0.0).search(["a"], 1) == [["a 0"]]
    assert len(seen) == 3


def test_a_service_that_stays_down_ends_the_run_with_its_address() -> None:
    with (
        service(lambda n, body: (500, {})) as (url, seen),
        pytest.raises(PolicydistError, match=f"{url} gave no usable"),
    ):
        HTTPRetriever(url, retries=1, wait=0.0).search(["a"], 1)
    assert len(seen) == 2
    with pytest.raises(PolicydistError, match=r"in 2 tries .* check that it runs"):  # nobody listens there any more
        HTTPRetriever(url, timeout=1, retries=1, wait=0.0).search(["a"], 1)


def test_a_slow_service_is_given_up() -> None:
    def slow(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.4)
        return good(number, body)

    start = time.perf_counter()
    with service(slow) as (url, _):
        with pytest.raises(PolicydistError, match=r"raise knobs\.timeout"):
            HTTPRetriever(url, timeout=0.05, retries=1, wait=0.0).search(["a"], 1)
        assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({"result": []}, "answered 0 of 1"), ({"found": 1}, "another form"), ({"result": [[{"document": 3}]]}, "another form"),
        (b"<html>", "no usable answer"), ([1], "another form"),
    ],
)  # fmt: skip
def test_an_odd_answer_is_an_error(reply: Any, words: str) -> None:
    with service(lambda n, body: (200, reply)) as (url, _), pytest.raises(PolicydistError, match=words):
        HTTPRetriever(url, retries=0).search(["a"], 1)
