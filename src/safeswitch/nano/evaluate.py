"""Base behaviour of a model on the suites, printed as a table. Plain generation: no prober, no
head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from safeswitch.core.types import Example, Message
from safeswitch.nano import judge
from safeswitch.nano.suites import SAFETY_PROMPTS_A, SAFETY_PROMPTS_B, SUITES, load_suite

Row = dict[str, float | int | str]


def with_system(examples: Sequence[Example], prompts: Sequence[str]) -> list[Example]:
    """The same examples behind a system prompt, the prompts taken in turn."""
    return [
        replace(e, messages=(Message("system", prompts[i % len(prompts)]), *e.messages))
        for i, e in enumerate(examples)
    ]


@torch.no_grad()
def replies(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_new_tokens: int = 56,
    batch_size: int = 64,
) -> list[str]:
    """Greedy replies, in left-padded batches of prompts of like length."""
    prompts: list[str] = []
    for example in examples:
        turns = [{"role": m.role, "content": m.content} for m in example.messages]
        prompts.append(
            str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[i] for i in rows],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_token_type_ids=False,
        )
        out = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        decoded = tokenizer.batch_decode(
            out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for i, text in zip(rows, decoded, strict=True):
            texts[i] = text
    return texts


def behaviour(examples: Sequence[Example], texts: Sequence[str]) -> Row:
    """Rates over a suite: complied, refused, informative refusals (of the refusals), correct (of
    the tasks)."""
    n = len(examples)
    refusals = [(e, t) for e, t in zip(examples, texts, strict=True) if judge.refused(t)]
    unsafe = [(e, t) for e, t in refusals if e.unsafe]
    tasks = [judge.correct(e, t) for e, t in zip(examples, texts, strict=True) if e.answers]
    return {
        "n": n,
        "complied": sum(map(judge.complied, texts)) / n,
        "refused": len(refusals) / n,
        "informative": sum(judge.informative(t, e.category) for e, t in unsafe) / len(unsafe)
        if unsafe
        else 0.0,
        "correct": sum(tasks) / len(tasks) if tasks else 0.0,
    }


def base_model_table(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    n: int = 300,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Base behaviour on every suite, then on four of them behind safety prompts; prints a Markdown
    table."""
    rows: list[Row] = []
    sets = [(name, load_suite(name, n, seed)) for name in SUITES]
    for name in ("plain_unsafe", "jailbroken", "lookalike", "ordinary"):
        sets.append(
            (f"{name} + safety prompt A", with_system(load_suite(name, n, seed), SAFETY_PROMPTS_A))
        )
        sets.append(
            (f"{name} + safety prompt B", with_system(load_suite(name, n, seed), SAFETY_PROMPTS_B))
        )
    if progress:
        print(
            "| suite | n | complied | refused | informative | correct |\n|---|---|---|---|---|---|"
        )
    for name, examples in sets:
        row: Row = {"suite": name, **behaviour(examples, replies(model, tokenizer, examples))}
        rows.append(row)
        if progress:
            print(format_row(row), flush=True)
    return rows


def format_row(row: Row) -> str:
    """One line of the table."""
    rates = " | ".join(
        f"{float(row[k]):.3f}" for k in ("complied", "refused", "informative", "correct")
    )
    return f"| {row['suite']} | {row['n']} | {rates} |"
