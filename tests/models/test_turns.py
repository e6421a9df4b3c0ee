"""Turns are found again in a prompt's text, or it is said that they cannot be."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_tokenizer

from safeswitch.core.errors import ModelError
from safeswitch.core.types import Message
from safeswitch.models.chat import ChatEncoder
from safeswitch.models.prompt_text import PromptText
from safeswitch.models.turns import Turns

CHATML = (
    "{% if messages[0].role != 'system' %}<bos>system\nBe useful.<eos>\n{% endif %}"
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}<bos>assistant\n"
)
"""Roles as words, and a system turn where none is given, as in ChatML."""
TALKS = [
    (Message("user", "How do I bake bread?\n\nSteps, please."),),
    (Message("system", "You bake."), Message("user", "bread?")),
    (Message("user", "a"), Message("assistant", "b\nb"), Message("user", "c")),
    (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")),
]


def made(template: str) -> tuple[ChatEncoder, PromptText]:
    tokenizer = tiny_tokenizer(chat_template=template)
    return ChatEncoder(tokenizer, "tiny"), PromptText(tokenizer)


@pytest.mark.parametrize("talk", TALKS, ids=range(len(TALKS)))
def test_turns_that_words_part_are_found_again(talk: tuple[Message, ...]) -> None:
    encoder, text = made(CHATML)
    assert Turns(encoder)(text(encoder.encode([talk], limit=None)[0].ids)) == talk


def test_where_special_tokens_alone_part_turns_one_line_is_one_turn_and_more_are_uncertain() -> (
    None
):
    encoder, text = made(tiny_tokenizer().chat_template)
    turns = Turns(encoder)
    for talk, found in (
        ((Message("user", "just a line"),), (Message("user", "just a line"),)),
        ((Message("user", "two\nlines"),), None),
        (TALKS[2], None),
    ):
        assert turns(text(encoder.encode([talk], limit=None)[0].ids)) == found


@pytest.mark.parametrize("text", ["", "hello", "system\nBe useful.\n\nuser\n \n\nassistant\n"])
def test_a_text_that_has_not_come_through_the_template_has_no_turns(text: str) -> None:
    assert Turns(made(CHATML)[0])(text) is None


def test_a_template_that_turns_things_round_is_named() -> None:
    encoder, _ = made("{% for m in messages | reverse %}{{ m.content }}<eos>{% endfor %}")
    with pytest.raises(
        ModelError, match="the chat template of tiny does not show its turns in order"
    ):
        Turns(encoder)
