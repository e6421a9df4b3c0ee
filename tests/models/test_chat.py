"""What of a conversation arrives in the prompt, whatever the template does with it."""

from __future__ import annotations

import logging

import pytest
from tests.tiny import VOCAB, tiny_lm, tiny_tokenizer

from safeswitch.core.errors import DataError, TemplateError
from safeswitch.core.pictures import Picture
from safeswitch.core.types import Message, Role, Tokens
from safeswitch.models.chat import ChatEncoder, lost_turns
from safeswitch.models.language_model import LanguageModel

DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}<reply>"
LAST_TURN_ONLY = "{{ messages[-1].content }}<reply>"
WITHOUT_THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] | trim if m.role == 'assistant' else m.content }}"
    "{% endfor %}<reply>"
)


def talk(*turns: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(role, text) for role, text in turns)


def rendered(template: str, messages: tuple[Message, ...]) -> str:
    lm = tiny_lm(chat_template=template)
    return str(lm.tokenizer.decode(lm.encode([messages])[0]))


def test_system_text_that_the_template_drops_goes_in_front_of_the_first_user_turn() -> None:
    messages = talk(("system", "Be kind."), ("user", " hi "), ("assistant", "yes"), ("user", "go"))
    assert rendered(DROPS_SYSTEM, messages) == "<user>Be kind.\n\n hi<assistant>yes<user>go<reply>"


def test_system_text_is_missed_even_where_the_user_says_the_same() -> None:
    messages = talk(("system", "Be kind."), ("user", "Be kind."))
    assert rendered(DROPS_SYSTEM, messages) == "<user>Be kind.\n\nBe kind.<reply>"
    assert (
        rendered(DROPS_SYSTEM, talk(("system", "kind"), ("user", "Be kind.")))
        == "<user>kind\n\nBe kind.<reply>"
    )


def test_the_user_is_told_once_where_system_text_went(caplog: pytest.LogCaptureFixture) -> None:
    lm = LanguageModel(
        tiny_lm().model, tiny_tokenizer(chat_template=DROPS_SYSTEM), model_id="told-once"
    )
    with caplog.at_level(logging.WARNING, "safeswitch.models"):
        lm.encode([talk(("user", "hi"))])
        assert not caplog.records
        for _ in range(3):
            lm.encode([talk(("system", "Be kind."), ("user", "hi"))])
    assert [r.getMessage() for r in caplog.records] == [
        "the chat template of told-once takes no system turn: its text is put in front of the first user turn"
    ]


def test_other_text_that_the_template_drops_is_an_error_that_names_the_turn() -> None:
    lm = tiny_lm(chat_template=LAST_TURN_ONLY)
    assert lm.tokenizer.decode(lm.encode(["hi"])[0]) == "hi<reply>"
    messages = talk(("user", "first"), ("assistant", "reply"), ("user", "second"))
    with pytest.raises(
        TemplateError,
        match=r"prompt 1: the chat template of tiny-llama drops text of turn 0 \(user\)",
    ):
        lm.encode(["hi", messages])


def test_earlier_thinking_may_be_left_out_and_nothing_else() -> None:
    messages = talk(("user", "a"), ("assistant", "<think>long</think>\n\nshort"), ("user", "b"))
    assert rendered(WITHOUT_THINKING, messages) == "<user>a<assistant>short<user>b<reply>"
    assert lost_turns("<user>a<assistant><user>b<reply>", messages) == [1]


def test_white_space_may_be_set_otherwise() -> None:
    assert lost_turns("a b\nc", talk(("user", "  a\n\nb c "))) == []
    assert lost_turns("ab c", talk(("user", "a b c"))) == [0]


def test_texts_around_images_are_each_looked_for() -> None:
    turn = Message("user", "before after", (Picture("x.png", 7),))
    assert lost_turns("<u>before <image>after", (turn,)) == []
    assert lost_turns("<u>before <image>", (turn,)) == [0]


def test_an_encoder_alone_does_the_same() -> None:
    encoder = ChatEncoder(tiny_tokenizer(), "m", DROPS_SYSTEM)
    (row,) = encoder.encode([talk(("system", "Be kind."), ("user", "hi"))], limit=None)
    assert tiny_tokenizer().decode(row.ids) == "<user>Be kind.\n\nhi<reply>"


def test_a_token_without_an_embedding_is_refused_before_the_model_sees_it() -> None:
    lm = tiny_lm()
    lm.tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(
        DataError, match=rf"prompt 1 has the token {VOCAB}, of which tiny-llama has no embedding"
    ):
        lm.encode(["fine", "a <|new|> b"])
    with pytest.raises(DataError, match="prompt 0 has the token 1000000000000"):
        lm.encode([Tokens((5, 10**12), "x")])
