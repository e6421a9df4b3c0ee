"""What reading a request costs beside answering it, and beside a guard model.

    python benchmarks/score_only.py [--quick]

Two comparisons, each in rounds that alternate; the ratio is the median over rounds.

*Server*: one server on transformers, 8 clients at once; ``/v1/moderations`` with one text a request
against ``/v1/chat/completions`` with 64 reply tokens, on the same requests. A random Llama of about
100 million parameters, which does not end its replies by itself; the gate never fires.

*Guard model*: the same texts read by stage 1 of a switch (ten blocks' steps at the prompt's end),
in one prefill of a random model of Qwen3-0.6B's shape, against that model as a guard that writes one
token, yes or no, behind a policy of 200 tokens and the text; and the same without the policy. Weights
are random, so the figures are costs and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.overhead import fitted, model_100m
from benchmarks.running import in_process
from benchmarks.serving import safe_switch
from tests.tiny import tiny_tokenizer

from safeswitch.core.types import Tokens
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.screen import screen
from safeswitch.fitting.plan import FitPlan, read_blocks
from safeswitch.fitting.settings import FitSettings
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano.suites import load_suite
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch

CLIENTS = 8
REPLY = 64
POLICY = 200
TEXT = 40
"""Tokens of a text, for the comparison with the guard model."""


def saved(switch: Switch, folder: str) -> str:
    """A folder, with a switch in it."""
    switch.save_pretrained(folder)
    return folder


def guard_model() -> LanguageModel:
    """28 blocks, width 1024, Qwen3-0.6B's shape but for the tokenizer: random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LanguageModel(Qwen3ForCausalLM(config), tiny_tokenizer(), model_id="random-0.6b")


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rounds(count: int, works: Sequence[Callable[[], object]]) -> list[list[float]]:
    """Seconds of each work in each round, after one round that does not count."""
    for work in works:
        work()
    return [[seconds(work) for work in works] for _ in range(count)]


def on_the_server(requests: int, count: int) -> None:
    """Reading against answering, through HTTP."""
    prompts = [e.prompt for e in load_suite("ordinary", requests, 0)]
    written = [0]
    lm = model_100m()
    with (
        tempfile.TemporaryDirectory() as folder,
        in_process(lm, saved(safe_switch(lm), folder)) as url,
        httpx.Client(base_url=url, timeout=600) as client,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):

        def read(text: str) -> None:
            client.post("/v1/moderations", json={"input": text}).raise_for_status()

        def answer(text: str) -> None:
            turns = [{"role": "user", "content": text}]
            body = {"model": "nano", "messages": turns, "max_tokens": REPLY, "temperature": 0}
            reply = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            written[0] += reply["usage"]["completion_tokens"]

        found = rounds(
            count,
            (
                lambda: list(clients.map(read, prompts)),
                lambda: list(clients.map(answer, prompts)),
            ),
        )
    tokens = written[0] / (len(prompts) * (count + 1))
    reading, answering = (statistics.median(column) for column in zip(*found, strict=True))
    ratio = statistics.median(b / a for a, b in found)
    print(
        f"server, 100M: reads {len(prompts) / reading:.1f} requests/s, answers "
        f"{len(prompts) / answering:.1f} requests/s of {tokens:.1f} tokens; ratio {ratio:.1f}"
    )


def beside_a_guard_model(texts: int, count: int) -> None:
    """Reading against a guard's one token, on the same weights."""
    lm = guard_model()
    engine = TransformersEngine(lm, batch_size=8)
    blocks = read_blocks("steps", FitPlan(lm.num_layers, FitSettings()))
    prober = fitted({"kind": "steps", "blocks": list(blocks)}, lm.hidden_size)
    switch = Switch(Gate(stage1=Stage(prober, 0.5)), NoAction())
    draw = torch.Generator().manual_seed(0)
    bodies = torch.randint(3, 1000, (texts, TEXT), generator=draw).tolist()
    policy = torch.randint(3, 1000, (POLICY,), generator=draw).tolist()
    plain = [Tokens(tuple(body), "") for body in bodies]
    framed = [Tokens((*policy, *body), "") for body in bodies]
    found = rounds(
        count,
        (
            lambda: screen(engine, plain, switch),
            lambda: engine.generate(framed, max_new_tokens=1, do_sample=False),
            lambda: engine.generate(plain, max_new_tokens=1, do_sample=False),
        ),
    )
    ours, guard, bare = (statistics.median(column) for column in zip(*found, strict=True))
    ratio = statistics.median(row[1] / row[0] for row in found)
    ratio_bare = statistics.median(row[2] / row[0] for row in found)
    print(
        f"0.6B: stage 1 reads {texts / ours:.2f} texts/s; a guard says yes or no to "
        f"{texts / guard:.2f} behind a policy (ratio {ratio:.1f}), to {texts / bare:.2f} without "
        f"one (ratio {ratio_bare:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few requests and rounds")
    asked = parser.parse_args()
    on_the_server(16 if asked.quick else 32, 1 if asked.quick else 3)
    beside_a_guard_model(4 if asked.quick else 16, 1 if asked.quick else 3)


if __name__ == "__main__":
    main()
