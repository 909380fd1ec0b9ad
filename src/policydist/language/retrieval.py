"""Retrievers: queries in, ranked texts out. BM25 over a corpus in memory, or any service that speaks Search-R1's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from policydist.errors import MissingExtraError, PolicydistError, UsageError
from policydist.language.service import Service

BATCH = 512
"""Queries of one request."""


class Retriever(Protocol):
    """Finds the ``count`` best texts for each query, best first; fewer if there are no more."""

    def search(self, queries: Sequence[str], count: int) -> list[list[str]]: ...


class BM25Retriever:
    """BM25 over texts held in memory, by `bm25s`. Words are runs of letters and digits, in lower case, none left out.

    Texts that share no word with the query are not returned.

    Raises:
        UsageError: a corpus without any word.
        MissingExtraError: without the extra ``retrieval``.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError:
            raise MissingExtraError("bm25s", "retrieval") from None
        if not documents:
            raise UsageError("the corpus is empty; a retriever needs documents to search (knobs.corpus)")
        self.documents = list(documents)
        self._library: Any = bm25s
        tokens = self._tokens(self.documents)
        if not any(tokens):
            raise UsageError(f"the corpus of {len(documents)} documents holds no word; nothing can be found in it")
        self._index: Any = bm25s.BM25()
        self._index.index(tokens, show_progress=False)

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = self._library.tokenize(
            list(texts), stopwords=[], token_pattern=r"(?u)\b\w+\b", return_ids=False, show_progress=False
        )
        return found

    def search(self, queries: Sequence[str], count: int) -> list[list[str]]:
        """See `Retriever`."""
        results: list[list[str]] = [[] for _ in queries]
        tokens = self._tokens(queries) if queries else []
        asked = [i for i, words in enumerate(tokens) if any(word in self._index.vocab_dict for word in words)]
        if not asked:
            return results
        most = min(count, len(self.documents))
        found, scores = self._index.retrieve([tokens[i] for i in asked], k=most, show_progress=False)
        for i, numbers, values in zip(asked, found.tolist(), scores.tolist(), strict=True):
            results[i] = [self.documents[n] for n, value in zip(numbers, values, strict=True) if value > 0]
        return results


class HTTPRetriever:
    """A retrieval service: ``POST {"queries": [...], "topk": k, "return_scores": true}`` is answered by
    ``{"result": [[{"document": {"contents": text}, "score": s}, ...], ...]}``, as Search-R1's server does.

    Requests that fail are sent again, see `Service`.

    Raises:
        UsageError: for what is no http address.
    """

    def __init__(self, url: str, timeout: float = 30.0, retries: int = 3, wait: float = 0.5) -> None:
        mend = "check that it runs, or raise knobs.timeout or knobs.retries"
        self.service = Service(url, f"the retriever at {url}", mend, timeout, retries, wait)

    def search(self, queries: Sequence[str], count: int) -> list[list[str]]:
        """See `Retriever`.

        Raises:
            PolicydistError: when the service does not answer, or answers something else.
        """
        return [
            texts
            for start in range(0, len(queries), BATCH)
            for texts in self._ask(list(queries[start : start + BATCH]), count)
        ]

    def _ask(self, queries: list[str], count: int) -> list[list[str]]:
        body = {"queries": queries, "topk": count, "return_scores": True}
        data = self.service.post(body)
        try:
            found = [[text_of(entry) for entry in entries][:count] for entries in data["result"]]
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise PolicydistError(
                f'{self.service.name} answered in another form than {{"result": [[{{"document": {{"contents": …}}}}]]}}'
            ) from error
        if len(found) != len(queries):
            raise PolicydistError(f"{self.service.name} answered {len(found)} of {len(queries)} queries")
        return found


def text_of(entry: Any) -> str:
    """The text of a document: ``contents``, or ``text`` below its ``title``, or the string itself.

    Raises:
        UsageError: if it has none.
    """
    inner = entry.get("document", entry) if isinstance(entry, Mapping) else entry
    if isinstance(inner, str):
        return inner
    if isinstance(inner, Mapping):
        for name in ("contents", "text"):
            if isinstance(inner.get(name), str):
                title = inner.get("title")
                return f"{title}\n{inner[name]}" if name == "text" and title else str(inner[name])
    raise UsageError("a document needs a text in contents or text")


def read_corpus(file: str) -> list[str]:
    """The documents of a JSONL file (``contents``, or ``text`` and perhaps ``title``) or of a text file, one a line.

    Raises:
        UsageError: naming file and line for what cannot be read, or an empty corpus.
    """
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the corpus {path}: {error}") from None
    documents = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            documents.append(line.strip())
            continue
        try:
            documents.append(text_of(json.loads(line)))
        except (json.JSONDecodeError, RecursionError, UsageError) as error:
            raise UsageError(
                f'{path}:{number}: not a document such as {{"contents": "…"}}; {str(error)[:100]}'
            ) from None
    if not documents:
        raise UsageError(f"the corpus {path} is empty; write one document a line")
    return documents


def check_sources(url: str | None, corpus: str | None, documents: Sequence[str]) -> None:
    """Refuse two things to search, and none.

    Raises:
        UsageError: if both of the first two are given, or neither and the task has no documents.
    """
    if url is not None and corpus is not None:
        raise UsageError("give knobs.retriever or knobs.corpus, not both")
    if url is None and corpus is None and not documents:
        raise UsageError(
            "there is nothing to search: the task brings no documents; set knobs.corpus to a file of documents, or "
            "knobs.retriever to a service's address"
        )


def find_retriever(
    url: str | None, corpus: str | None, documents: Sequence[str], timeout: float, retries: int
) -> Retriever:
    """The service at ``url``, or BM25 over the corpus file, or over the task's own documents.

    Raises:
        UsageError: as `check_sources`; for a corpus that cannot be read, and for what is no http address.
    """
    check_sources(url, corpus, documents)
    if url is not None:
        return HTTPRetriever(url, timeout, retries)
    return BM25Retriever(read_corpus(corpus) if corpus is not None else documents)
