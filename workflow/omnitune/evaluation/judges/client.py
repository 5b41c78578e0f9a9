"""Asks an OpenAI-compatible endpoint: few at a time, again after failures, and never for longer than is allowed."""

import asyncio
import json
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from omnitune.config.benchmarks.judge import Judge
from omnitune.evaluation.judges.prompt import Answer, MissingError, Part, messages, read_answer

logger = logging.getLogger("omnitune")

MAX_BYTES = 1 << 20  # of a response
LONGEST_PAUSE = 60.0  # seconds, also where the server asks for more
FAILURES = 10  # times the number of requests at a time: so many in a row without an answer, and no more are made
REFUSALS = 3  # so many requests that are wrong for the endpoint, and none that it took or may yet take: all are alike
SHOWN = 200  # characters of a server's words in a message


Found = Callable[[str, Answer | MissingError], None]
Asked = Callable[[], Sequence[Part]]


class Endpoint:
    """A judge's endpoint.

    Args:
        judge: where it is and how it is asked.
        pause: seconds before the first repetition, doubled before each further one.
        accepted: whether it is known to take such requests, by answers that are kept.

    Raises:
        ValueError: where the variable that should hold the key is not set.
    """

    def __init__(self, judge: Judge, pause: float = 1.0, accepted: bool = False) -> None:
        self.judge, self.pause = judge, pause
        self.url = f"{judge.base_url}/chat/completions"
        self.key = os.environ.get(judge.api_key_env, "").strip() if judge.api_key_env else ""
        if judge.api_key_env and not self.key:
            raise ValueError(
                f"judge {judge.name!r}: the environment variable {judge.api_key_env} is not set; export the key."
            )
        self.slots, self.turn = asyncio.Semaphore(judge.concurrency), asyncio.Lock()
        self.next_start = 0.0
        self.answered, self.accepted = False, accepted
        self.failures = self.refusals = self.running = 0
        self.refused = ""  # by what status and words, of the last one

    async def ask(self, client: httpx.AsyncClient, asked: Asked) -> Answer:
        """The scores that the model gives; what is asked is made when it is its turn.

        Raises:
            MissingError: where there is none to be had.
            ValueError: where no request can be answered: another address, key or model is needed.
        """
        async with self.slots:
            if self.failures >= FAILURES * self.judge.concurrency:
                raise MissingError("not asked: the endpoint had stopped answering")
            if await self._takes_none():
                raise MissingError("not asked: the endpoint had refused others like it")
            self.running += 1
            try:
                return await self._asked(client, asked())
            finally:
                self.running -= 1

    async def _asked(self, client: httpx.AsyncClient, parts: Sequence[Part]) -> Answer:
        """The same, as often as it is worth another try."""
        request = {**self.judge.parameters, "model": self.judge.model, "messages": messages(parts)}
        for attempt in range(self.judge.retries + 1):
            try:
                answer = read_answer(_text_of(await self._post(client, request)))
                if answer is None:
                    raise MissingError("the answer holds no scores", again=True)
            except MissingError as missing:
                if not missing.again or attempt == self.judge.retries:
                    raise
                backoff = self.pause * 2**attempt * random.uniform(0.5, 1.5)
                await asyncio.sleep(min(max(backoff, missing.after), LONGEST_PAUSE))
            else:
                return answer
        raise AssertionError

    async def _takes_none(self) -> bool:
        """Whether all that it was asked was wrong for it; known once nothing is on its way, and said once.

        Where one was taken, others are refused for what they show, and each costs itself alone.
        """
        while not self.accepted and self.refusals >= REFUSALS and self.running:
            await asyncio.sleep(0.02)
        if self.accepted or self.refusals < REFUSALS:
            return False
        if self.refused:
            logger.warning(
                "judge %s: %s answers %s: no more is asked. Check model and parameters.",
                *(self.judge.name, self.url, self.refused),
            )
            self.refused = ""
        return True

    async def _post(self, client: httpx.AsyncClient, request: Mapping[str, Any]) -> Any:
        """The body of the response, from JSON."""
        await self._wait_for_turn()
        try:
            async with asyncio.timeout(self.judge.timeout):
                status, headers, body = await self._read(client, request)
        except TimeoutError:
            self.failures += 1
            raise MissingError(f"no answer within {self.judge.timeout:g} seconds", again=True) from None
        except httpx.ConnectError as error:
            self.failures += 1
            if not self.answered and self.failures > self.judge.retries:
                raise ValueError(
                    f"judge {self.judge.name!r}: {self.url} cannot be reached ({self._clean(str(error))}). Start the "
                    "endpoint, or take the judge out of the benchmark."
                ) from None
            raise MissingError("the endpoint cannot be reached", again=True) from None
        except httpx.HTTPError as error:
            self.failures += 1
            raise MissingError(f"the connection broke ({type(error).__name__})", again=True) from None
        if status in {401, 403, 404}:
            key = f"the key in {self.judge.api_key_env}" if self.judge.api_key_env else "api_key_env, which is not set"
            words = self._clean(body)
            raise ValueError(
                f"judge {self.judge.name!r}: {self.url} answers {status} ({words}). Check base_url, model and {key}."
            )
        self.failures = self.failures + 1 if status >= 500 else 0
        self.answered = True
        if status != 200:
            raise self._refused(status, headers, body)
        self.accepted = True
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise MissingError("the response is not JSON", again=True) from None

    def _refused(self, status: int, headers: httpx.Headers, body: str) -> MissingError:
        """What another status than 200 means."""
        again = status in {408, 409, 429} or status >= 500
        if not again:
            self.refusals, self.refused = self.refusals + 1, f"{status} ({self._clean(body)})"
        return MissingError(f"status {status}", again=again, after=_seconds(headers.get("retry-after")))

    async def _read(self, client: httpx.AsyncClient, request: Mapping[str, Any]) -> tuple[int, httpx.Headers, str]:
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        content = bytearray()
        async with client.stream("POST", self.url, json=request, headers=headers) as response:
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise MissingError(f"the response has more than {MAX_BYTES} bytes")
            return response.status_code, response.headers, content.decode("utf-8", "replace")

    async def _wait_for_turn(self) -> None:
        if self.judge.rate is None:
            return
        async with self.turn:
            clock = asyncio.get_running_loop().time
            await asyncio.sleep(max(self.next_start - clock(), 0))
            self.next_start = clock() + 60 / self.judge.rate

    def _clean(self, text: str) -> str:
        """The start of a server's words, without the key, which some repeat, and in one line."""
        text = " ".join(text.split())
        return (text.replace(self.key, "***") if self.key else text)[:SHOWN]


async def ask_all(endpoint: Endpoint, questions: Mapping[str, Asked], found: Found) -> None:
    """Asks all questions, and hands over each answer, or why there is none, as it comes."""

    async def one(client: httpx.AsyncClient, name: str) -> None:
        try:
            answer: Answer | MissingError = await endpoint.ask(client, questions[name])
        except MissingError as missing:
            answer = missing
        found(name, answer)

    async with httpx.AsyncClient(timeout=None, follow_redirects=False) as client:
        tasks = [asyncio.create_task(one(client, name)) for name in questions]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


def _text_of(body: Any) -> str:
    """The text of a chat completion; MissingError for a refusal, for what was cut off, and for another form."""
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        refusal, text = message.get("refusal"), message.get("content")
    except (AttributeError, LookupError, TypeError):
        raise MissingError("the response is no chat completion", again=True) from None
    if refusal or finish == "content_filter":
        raise MissingError("refused")
    if finish == "length":
        raise MissingError("the answer was cut off (max_tokens)")
    if not isinstance(text, str):
        raise MissingError("the response is no chat completion", again=True)
    return text


def _seconds(header: str | None) -> float:
    """Of Retry-After; a date is not read."""
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0
