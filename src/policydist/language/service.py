"""Somebody else's JSON service over HTTP: one way to ask it, to try again, and to give up in words."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from policydist.errors import PolicydistError, UsageError

BUSY = (408, 409, 425, 429)
"""HTTP answers worth another try, besides all from 500 on."""


@dataclass(frozen=True)
class Service:
    """``POST`` of JSON to ``url``. A request that fails, takes longer than ``timeout`` seconds or is not answered by JSON is sent
    again up to ``retries`` times, after ``pause`` seconds and twice as many before each next try. ``name`` and ``mend``
    say in errors who did not answer and what to do; ``headers`` go with every request.

    Raises:
        UsageError: for what is no http address, a timeout that is not positive, or negative retries.
    """

    url: str
    name: str
    mend: str
    timeout: float
    retries: int
    pause: float
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"{self.name}: {self.url!r} is no address; it must begin with http:// or https://")
        if not self.timeout > 0 or self.retries < 0:
            raise UsageError(f"{self.name}: the timeout must be positive and the retries not negative")

    def post(self, body: Mapping[str, Any]) -> Any:
        """The answer to one request.

        Raises:
            PolicydistError: when it is refused, or all tries failed.
        """
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read(300).decode(errors='replace').strip()}"
                if error.code < 500 and error.code not in BUSY:
                    raise PolicydistError(f"{self.name} refused the request: {reason}") from error
            except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise PolicydistError(
            f"{self.name} gave no usable answer in {self.retries + 1} tries of {self.timeout:g} s ({reason}); {self.mend}"
        )

    def _once(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.loads(answer.read())
