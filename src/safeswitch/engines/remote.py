"""Generation by an OpenAI-compatible server, ours or another's, so that it is measured like a model
of one's own.

Replies of a SafeSwitch server come with its decisions. What is thought behind a server, how it
samples, and which template it uses are its own affair. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from safeswitch.core.errors import ContextLengthError, DataError, SafeSwitchError, SettingError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.types import Decision, Message, Prompt, Reply, as_messages
from safeswitch.engines.answering import AnsweringEngine
from safeswitch.engines.chat_server import ChatServer, about_question
from safeswitch.engines.requests import ends_in_prefill, row_limits, row_seeds
from safeswitch.switch.engine import EngineFacts
from safeswitch.switch.switch import Switch

if TYPE_CHECKING:
    from openai import APIStatusError


_CHUNK = 4
"""Requests written at a time, in multiples of those in flight: the last ones of a chunk wait for
each other."""
_FIELD = "safeswitch"
"""Field of a reply of our server that holds the decision."""
_AT_SERVER = "server"
"""Stage and action of a decision whose server does not say more."""


class RemoteEngine(AnsweringEngine):
    """A server that answers.

    Args:
        server: The model behind its address.
        in_flight: Most requests that wait for the server at the same time.
    """

    def __init__(self, server: ChatServer, *, in_flight: int = 32) -> None:
        if in_flight < 1:
            raise SettingError(f"RemoteEngine: in_flight must be 1 or more; got {in_flight}")
        super().__init__(f"the server at {server.address}")
        self.server, self.in_flight = server, in_flight
        self._answered: dict[tuple[object, ...], Reply] = {}

    @property
    def facts(self) -> EngineFacts:
        """The model's name is all that is known of it."""
        return EngineFacts(
            runs_in=self.server.address,
            model_id=self.server.model,
            fingerprint=self.server.model,
            chunk=_CHUNK * self.in_flight,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        *,
        max_new_tokens: int | Sequence[int] = 256,
        seed: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[Reply]:
        """One reply per prompt, in order.

        What was answered in a call that failed is not asked for again by the next call.

        Args:
            prompts: Texts, message lists or examples.
            switch: One that does nothing, or None: a server's guard is its own.
            max_new_tokens: Longest reply in tokens, for all prompts or for each.
            seed: One for prompt i = ``seed + i``, or one per prompt; servers may pass it over.
            stop_strings: Strings that end a reply; servers leave them out of it.
            do_sample: Sample; False asks for a temperature of 0.
            temperature: Of sampling.
            top_p: Of sampling.
            progress: Called with the number of replies finished since the last call.
            options: None may be given.

        Raises:
            DataError: a prompt that ends in a prefilled reply, or that the server's filter stops.
            ContextLengthError: a prompt that is too long for the server.
            SettingError: a switch that does something, or an option that servers do not know.
            SafeSwitchError: the server refuses or cannot be reached, after all retries.
        """
        self._check(switch, options)
        limits = row_limits(max_new_tokens, len(prompts))
        stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        common: JsonObject = {"temperature": temperature if do_sample else 0.0}
        if do_sample and top_p is not None:
            common["top_p"] = top_p
        if stops:
            common["stop"] = stops
        calls: list[tuple[tuple[Message, ...], JsonObject]] = []
        seeds = row_seeds(seed, len(prompts))
        for prompt, limit, own in zip(prompts, limits, seeds, strict=True):
            settings = {"max_tokens": limit, **common, **({} if own is None else {"seed": own})}
            calls.append((as_messages(prompt), settings))
        return self._replies(calls, progress)

    def _check(self, switch: Switch | None, options: JsonMapping) -> None:
        if switch is not None and not switch.idle:
            raise SettingError(
                f"{self.called} runs its own guard or none: a switch cannot be put around it"
            )
        if options:
            raise SettingError(
                f"{self.called} takes no {', '.join(sorted(options))}; it takes max_new_tokens, "
                "seed, stop_strings, do_sample, temperature and top_p"
            )

    def _replies(
        self,
        calls: Sequence[tuple[tuple[Message, ...], JsonObject]],
        progress: Callable[[int], None] | None,
    ) -> list[Reply]:
        """Replies in order; the first error ends the rest, and what was answered is remembered."""
        with ThreadPoolExecutor(self.in_flight) as pool:
            waiting = [pool.submit(self._reply, *call) for call in calls]
            try:
                replies = [_done(one, progress) for one in waiting]
            finally:
                # what has not begun when one fails is not paid for
                for one in waiting:
                    one.cancel()
        for call in calls:
            self._answered.pop(_key(*call), None)
        return replies

    def _reply(self, messages: tuple[Message, ...], settings: JsonObject) -> Reply:
        key = _key(messages, settings)
        if key not in self._answered:
            self._answered[key] = self._ask(messages, settings)
        return self._answered[key]

    def _ask(self, messages: tuple[Message, ...], settings: JsonObject) -> Reply:
        if ends_in_prefill(messages):
            raise DataError(
                f"{self.called}: the prompt ends in a prefilled reply, which OpenAI's API does not "
                "continue"
            )
        turns = [{"role": m.role, "content": m.to_content()} for m in messages]
        openai = self.server.openai
        try:
            answer = self.server.complete(turns, **settings)
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            raise self._failed(error) from error
        return self._read(answer)

    def _refused(self, error: APIStatusError) -> Exception:
        """What a call without a reply means: the request's own fault, or the run's."""
        about = about_question(error)
        if about == "too long":
            return ContextLengthError(f"{self.called}: {str(error)[:200]}")
        if about == "filtered":
            return DataError(f"{self.called} has filtered the request: {str(error)[:200]}")
        if error.status_code in (400, 413, 422):
            # of the request or of the settings: which, the other requests of the file will tell
            return ValueError(f"{self.called}: {str(error)[:500]}")
        return self._failed(error)

    def _failed(self, error: Exception) -> SafeSwitchError:
        return SafeSwitchError(f"{self.called}: {type(error).__name__}: {str(error)[:500]}")

    def _read(self, answer: Any) -> Reply:
        """The reply in a body of the API; a refusal that stands apart is its text."""
        body: JsonObject = answer.model_dump()
        choice = next(iter(body.get("choices") or []), None)
        message = (choice or {}).get("message") or {}
        text = message.get("content") or message.get("refusal")
        if choice is None or (text is None and choice.get("finish_reason") == "content_filter"):
            raise DataError(f"{self.called} gave no reply: {str(choice)[:200]}")
        usage = body.get("usage") or {}
        return Reply(
            (text or "").encode("utf-8", "replace").decode(),
            (),
            "length" if choice.get("finish_reason") == "length" else "stop",
            _decision(choice.get(_FIELD) or body.get(_FIELD) or {}),
            usage.get("prompt_tokens") or 0,
            usage.get("completion_tokens") or 0,
        )


def _key(messages: tuple[Message, ...], settings: JsonObject) -> tuple[object, ...]:
    return messages, repr(settings)


def _done(one: Future[Reply], progress: Callable[[int], None] | None) -> Reply:
    reply = one.result()
    if progress is not None:
        progress(1)
    return reply


def _decision(said: JsonMapping) -> Decision:
    """The decision as far as the server tells it: scores only to keys that may see them."""
    fired = bool(said.get("fired"))
    return Decision(
        fired,
        said.get("stage") or (_AT_SERVER if fired else "none"),
        said.get("scores") or {},
        said.get("thresholds") or {},
        token_index=said.get("token_index") or 0,
        actuator=_AT_SERVER if said.get("switched") else "none",
    )
