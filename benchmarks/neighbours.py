"""Can one request of the transformers server fail its neighbours?

    python benchmarks/neighbours.py [--chats 60] [--poisoned 4]

Honest chats beside requests with something wrong in them, one kind after the other, all at once and
with the same sampling, so that they share batches. The server runs on nano, as it is and changed in
three ways: a tokenizer with a token that the embedding has no row for, also as its padding; a chat
template that refuses some conversations; a switch whose action on the prompt takes so much room
that some requests no longer fit. Every honest chat must get the reply that the engine gives it
alone, every other request a reply or an error of its own below 500. Ends with exit code 1 where
that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
from benchmarks.leak import body
from benchmarks.running import in_process

from safeswitch.core.types import Example
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.actuators.prompts import FramedPrompt
from safeswitch.switch.switch import Switch

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NEW = 12
ASKED = {"model": "nano", "max_tokens": NEW, "temperature": 0.0}
EXTRA, REFUSED = "<extra>", "please, not this"
"""A token without a row in the embedding, and text that the template refuses."""


@dataclass(frozen=True)
class Poison:
    """A kind of request with something wrong in it.

    Args:
        name: Of the kind.
        path: Where it goes.
        raw: Its body.
    """

    name: str
    path: str
    raw: bytes


@dataclass(frozen=True)
class Setting:
    """A model with its switch, and what may go wrong with them.

    Args:
        name: For the report.
        lm: The model.
        switch: Folder of its switch.
        poisons: Requests with something wrong in them.
    """

    name: str
    lm: LanguageModel
    switch: str
    poisons: tuple[Poison, ...]


def chat(name: str, text: str, **more: Any) -> Poison:
    """A chat of one turn."""
    turns = [{"role": "user", "content": text}]
    return Poison(name, CHAT, json.dumps({**ASKED, "messages": turns, **more}).encode())


def completion(name: str, prompt: Any, **more: Any) -> Poison:
    """A completion."""
    return Poison(name, COMPLETIONS, json.dumps({**ASKED, "prompt": prompt, **more}).encode())


EVERYWHERE = (
    completion("blank prompt", " "), completion("line break as prompt", "\n"), completion("special token as prompt", [1]),
    completion("token that does not exist", [2048]), completion("huge token", [2**40]),
    completion("one bad prompt of several", ["Hello", " ", "Hi"]), completion("200,000 prompts", ["a"] * 200_000),
    completion("prompt of 200,000 tokens", [5] * 200_000), completion("prompt that fills the context", [5] * 506, max_tokens=6),
    completion("prompt of special tokens", "<|user|><|assistant|></s><pad>"),
    chat("blank chat", " "), chat("1,500 choices", "Hi", n=1500), chat("huge seed", "Hi", n=4, seed=2**63 - 1),
    chat("four stop strings of 60,000 characters", "Hi", stop=["ab" * 30_000] * 4),
    chat("stop strings that no token holds", "Hi", stop=["\u20ac\u2603", "\U0001f600"]),
    chat("long stop strings", "Hi", stop=["a" * 250, "b" * 250, "c" * 250, "d" * 250]),
    chat("tiny temperature", "Hi", temperature=1e-300), chat("small temperature", "Hi", temperature=1e-12),
    chat("tiny nucleus", "Hi", temperature=1.0, top_p=1e-30), chat("reply that does not fit", "Hi", max_tokens=511),
    chat("prompt of 200,000 words", "word " * 200_000), Poison("half a pair", CHAT, b'{"messages": "\\ud800"}'),
    Poison("deep nesting", CHAT, b"[" * 20_000), Poison("5,000 digits", CHAT, b'{"n": ' + b"1" * 5000 + b"}"),
)  # fmt: skip


def settings(folder: Path) -> Iterator[Setting]:
    """Nano as it is, and changed so that more can go wrong."""
    own = str(switch_path())
    yield Setting("nano", LanguageModel.load(weights_path()), own, EVERYWHERE)

    lm = LanguageModel.load(weights_path())
    lm.tokenizer.add_tokens([EXTRA])
    lm.tokenizer.pad_token = EXTRA
    extra = (
        chat("chat with an unknown token", f"Hi {EXTRA}"),
        completion("unknown token", f"Hi {EXTRA}"),
    )
    yield Setting("a token without an embedding", lm, own, extra)

    lm = LanguageModel.load(weights_path())
    start = (
        "{% if '"
        + REFUSED
        + "' in (messages | string) %}{{ raise_exception('refused') }}{% endif %}"
    )
    lm.chat_template = start + str(lm.tokenizer.chat_template)
    yield Setting(
        "a template that refuses", lm, own, (chat("refused conversation", f"Hi, {REFUSED}"),)
    )

    lm = LanguageModel.load(weights_path())
    frame = FramedPrompt(before="Read this with care. " * 20)
    framed = replace(Switch.from_pretrained(switch_path()), actuator=frame)
    framed.save_pretrained(folder / "framed")
    tight = chat("request that does not fit into the frame", "word " * 430)
    raw = completion("completion under an action on the prompt", "Hi")
    yield Setting("an action on the prompt", lm, str(folder / "framed"), (tight, raw))


async def beside(
    url: str, honest: Sequence[Example], poison: Poison, poisoned: int
) -> tuple[list[Any], list[int]]:
    """The honest chats' answers, with a poisoned request sent before every so many of them, and the
    statuses of these."""
    every = max(1, len(honest) // poisoned)
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=httpx.Limits(max_connections=128)
    ) as client:
        good, bad = [], []
        for i, example in enumerate(honest):
            if i % every == 0:
                bad.append(
                    asyncio.create_task(
                        client.post(poison.path, content=poison.raw, headers=headers)
                    )
                )
            good.append(
                asyncio.create_task(client.post(CHAT, json=body(example) | {"max_tokens": NEW}))
            )
        answers = await asyncio.gather(*good)
        return answers, [answer.status_code for answer in await asyncio.gather(*bad)]


def check(setting: Setting, chats: int, poisoned: int) -> Iterator[str]:
    """Run every kind beside the chats; a line about each.

    Raises:
        AssertionError: a chat that was not answered as it is alone, or an error of 500 and above.
    """
    suites = [
        load_suite(name, -(-chats // 3), 0) for name in ("ordinary", "lookalike", "plain_unsafe")
    ]
    honest = [example for row in zip(*suites, strict=True) for example in row][:chats]
    engine, switch = TransformersEngine(setting.lm), Switch.from_pretrained(setting.switch)
    told = [r.text for r in engine.generate(honest, switch, max_new_tokens=NEW, do_sample=False)]
    with in_process(setting.lm, setting.switch) as url:
        for poison in setting.poisons:
            answers, statuses = asyncio.run(beside(url, honest, poison, poisoned))
            ends = Counter(answer.status_code for answer in answers)
            assert ends == {200: chats}, (poison.name, ends)
            said = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
            assert said == told, poison.name
            assert max(statuses) < 500, (poison.name, statuses)
            yield f"{setting.name}: {poison.name}: {ends[200]} of {chats} answered; it got {sorted(set(statuses))}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", type=int, default=60)
    parser.add_argument(
        "--poisoned", type=int, default=4, help="Poisoned requests beside the chats."
    )
    args = parser.parse_args()
    kinds = 0
    with tempfile.TemporaryDirectory() as name:
        for setting in settings(Path(name)):
            for line in check(setting, args.chats, args.poisoned):
                print(line, flush=True)
                kinds += 1
    print(f"{kinds} kinds, {args.chats} of {args.chats} chats answered beside each")


if __name__ == "__main__":
    main()
