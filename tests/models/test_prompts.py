"""What a prompt's tokens say, and whether they end where a reply begins."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from safeswitch.models.generation_prompt import GenerationPrompt
from safeswitch.models.prompt_text import PromptText, is_lost
from safeswitch.nano import weights_path

TURNS = [
    {"role": "system", "content": "Be good."},
    {"role": "user", "content": "How do I\nsharpen a knife?"},
    {"role": "assistant", "content": "With a stone."},
    {"role": "user", "content": "And scissors?"},
]
CHATML = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}no thinking\n{% endif %}{% endif %}"
)
"""Words behind the mark, as many templates have them, and a switch that changes the end."""
INST = "{% for m in messages %}{{ '<|user|>' + m['content'] + '<|assistant|>' }}{% endfor %}"
"""No generation prompt: the mark that ends the user's turn begins the reply."""


@pytest.fixture(scope="module")
def tokenizer() -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(weights_path())


def encoded(tokenizer: AutoTokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_text_is_that_of_the_turns_one_a_line_and_nothing_else(tokenizer: AutoTokenizer) -> None:
    text = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    said = PromptText(tokenizer)(encoded(tokenizer, text))
    assert said == "\n".join(turn["content"] for turn in TURNS)


def test_a_prompt_ends_where_the_template_lets_a_reply_begin(tokenizer: AutoTokenizer) -> None:
    mark = GenerationPrompt.of(tokenizer)
    whole = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    ids = encoded(tokenizer, whole)
    assert mark.closes(ids)
    assert not mark.is_continued(ids)
    begun = [*ids, *encoded(tokenizer, "I can help.")]
    assert not mark.closes(begun)
    assert mark.is_continued(begun)
    assert not mark.closes(encoded(tokenizer, "And scissors?"))
    assert not mark.is_continued(encoded(tokenizer, "And scissors?")), "raw text has no mark"


@pytest.mark.parametrize("switches", [{}, {"enable_thinking": False}])
def test_words_and_switches_behind_the_mark_belong_to_it(
    tokenizer: AutoTokenizer, switches: dict[str, bool]
) -> None:
    mark = GenerationPrompt.of(tokenizer, CHATML)
    text = tokenizer.apply_chat_template(
        TURNS, chat_template=CHATML, tokenize=False, add_generation_prompt=True, **switches
    )
    ids = encoded(tokenizer, text)
    assert mark.closes(ids)
    bare = encoded(tokenizer, text.rstrip())
    assert mark.is_continued([*bare, *encoded(tokenizer, " Sure.")]), "without the line break"
    assert not mark.closes([*ids, *encoded(tokenizer, "Sure.")])
    assert mark.is_continued([*ids, *encoded(tokenizer, "Sure.")])


def test_a_template_without_a_generation_prompt_ends_the_users_turn(
    tokenizer: AutoTokenizer,
) -> None:
    mark = GenerationPrompt.of(tokenizer, INST)
    assert mark.closes(encoded(tokenizer, "<|user|>hello<|assistant|>"))
    assert not mark.closes(encoded(tokenizer, "<|user|>hello<|assistant|>Sure"))


def test_a_template_that_does_not_tell_has_no_ends(tokenizer: AutoTokenizer) -> None:
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert GenerationPrompt.of(tokenizer, plain).ends == []


def test_text_that_a_template_dropped_is_missed_whatever_became_of_its_white_space() -> None:
    prompt = "Be good.\nHow are you?"
    assert not is_lost("  be\n\nGOOD. ", prompt)
    assert is_lost("Answer in French.", prompt)
    assert not is_lost("…", prompt), "nothing to compare by"
