"""Vision-language models: text and image requests, mixed in a batch, equal runs row by row;
fitting; what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeswitch.core.errors import DataError, ModelError
from safeswitch.core.pictures import Picture
from safeswitch.core.types import Example, Message, Position, Prompt, ReadPoint
from safeswitch.data.readers import read_examples
from safeswitch.data.writers import data_hash, to_row
from safeswitch.engines.jsonl import request_hash
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.score import log_likelihoods
from safeswitch.models.fingerprint import fingerprint, fingerprint_of_files
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Encoded
from safeswitch.switch.actuators.base import LowRankHead, SystemPrompt
from safeswitch.switch.actuators.prompts import FramedPrompt
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.engines.slow import EOS, Projection, pilot_point, prompt_point, random_head
from tests.switch.made import WORDS, settings, two_of_three
from tests.tiny import tiny_lm
from tests.tiny_vision import (
    FAMILIES,
    PARTS_TEMPLATE,
    picture,
    vision_lm,
    vision_model,
    vision_processor,
    vision_tokenizer,
)

NEW, K = 9, 2


def seen(text: str, *seeds: int, width: int = 20, height: int = 16) -> list[dict[str, Any]]:
    """One user turn with images in front of its text."""
    images = [{"type": "image", "image": picture(seed, width, height)} for seed in seeds]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


REQUESTS: list[Prompt] = [
    "tell me a story",
    seen("what is this?", 1),
    seen("and this", 2, width=40, height=24),
    "a",
    seen("compare these two", 3, 4),
    [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look: "},
                {"type": "image", "image": picture(5)},
                {"type": "text", "text": " well?"},
            ],
        }
    ],
]


@torch.no_grad()
def states_by_hand(lm: LanguageModel, one: Encoded, fed: Sequence[int] = ()) -> tuple[Tensor, ...]:
    """States of every layer at the newest token, each ``[d]``: one row through the whole model, no
    cache, its own positions."""
    extra = dict(one.vision)
    if "mm_token_type_ids" in extra:
        extra["mm_token_type_ids"] = torch.cat(
            [extra["mm_token_type_ids"], torch.zeros(1, len(fed), dtype=torch.long)], 1
        )
    ids = torch.tensor([[*one.ids, *fed]])
    out = lm.model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        use_cache=False,
        output_hidden_states=True,
        **extra,
    )
    return (*(h[0, -1] for h in out.hidden_states[:-1]), out.last_hidden_state[0, -1])


def reply_by_hand(
    lm: LanguageModel, one: Encoded, tokens: int, head: LowRankHead | None = None
) -> list[int]:
    """Greedy reply of one row, each token from a full forward pass; with ``head``, its difference
    is added by hand."""
    reply: list[int] = []
    for _ in range(tokens):
        hidden = states_by_hand(lm, one, reply)[-1]
        logits = lm.parts.head(hidden) + (
            head.up @ (head.down @ hidden) if head is not None else 0.0
        )
        reply.append(int(logits.argmax()))
        if reply[-1] == EOS:
            break
    return reply


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_under_the_gate_equals_each_row_alone(family: str, layer: int) -> None:
    lm = vision_lm(family)
    first = Projection(prompt_point(lm, layer), lm.hidden_size, seed=1)
    second = Projection(pilot_point(lm, K, layer), lm.hidden_size, seed=2)
    rows = lm.inputs(REQUESTS)
    assert len({len(one.ids) for one in rows}) > 2
    plain = [reply_by_hand(lm, one, NEW) for one in rows]
    at = lm.layer(layer)
    s1 = [float(torch.sigmoid(states_by_hand(lm, one)[at] @ first.direction)) for one in rows]
    s2 = [
        float(torch.sigmoid(states_by_hand(lm, one, reply[:K])[at] @ second.direction))
        for one, reply in zip(rows, plain, strict=True)
    ]
    low = sorted(s1)[0] + 1e-5
    bar = sorted(b for a, b in zip(s1, s2, strict=True) if a > low)[1] + 1e-5
    fired = [a > low and b > bar for a, b in zip(s1, s2, strict=True)]
    assert any(hit and one.vision for hit, one in zip(fired, rows, strict=True))
    assert 0 < sum(fired) < len(rows)
    switch = Switch(Gate(stage1=Stage(first, low), stage2=Stage(second, bar)), random_head(lm))
    replies = TransformersEngine(lm).generate(REQUESTS, switch, max_new_tokens=NEW, do_sample=False)
    for one, reply, hit, own in zip(rows, replies, fired, plain, strict=True):
        assert reply.decision.fired == hit
        assert list(reply.token_ids) == (
            reply_by_hand(lm, one, NEW, random_head(lm)) if hit else own
        )
        assert reply.prompt_tokens == len(one.ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_states_are_those_of_full_passes(family: str) -> None:
    lm = vision_lm(family)
    points = [
        prompt_point(lm, 2),
        prompt_point(lm),
        pilot_point(lm, 2, 1),
        ReadPoint(3, Position("window", 2)),
    ]
    replies, activations = TransformersEngine(lm).collect(REQUESTS, points, max_new_tokens=4)
    for i, one in enumerate(lm.inputs(REQUESTS)):
        told = replies[i].token_ids[:2]
        for point, fed in ((points[0], ()), (points[1], ()), (points[2], told)):
            torch.testing.assert_close(
                activations.at(point)[i],
                states_by_hand(lm, one, fed)[point.layer],
                atol=1e-4,
                rtol=1e-4,
            )
        torch.testing.assert_close(
            activations.at(points[3])[i, -1], states_by_hand(lm, one)[3], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_is_read(family: str) -> None:
    lm = vision_lm(family)
    _, activations = TransformersEngine(lm).collect(
        [seen("what?", 1), seen("what?", 2)], [prompt_point(lm)], max_new_tokens=0
    )
    one, other = activations.at(prompt_point(lm))
    assert not torch.allclose(one, other, atol=1e-3)


def rows_to_fit(images: bool) -> list[Example]:
    """Half unsafe by their first word; with ``images``, half of either label shows one."""
    return [
        Example(
            f"r{i}",
            (Message.of("user", seen(text, i)[0]["content"] if images and i // 2 % 2 else text),),
            "safe" if i % 2 else "unsafe",
            source=f"s{i // 2 % 3}",
            reply=None if i % 2 else "No, sorry.",
        )
        for i, text in enumerate(
            f"{'ask' if i % 2 else 'ZAP'} {WORDS[i % 8]} {WORDS[i // 8 % 8]} {i}" for i in range(80)
        )
    ]


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_switch_is_fitted_on_text_and_on_images(
    family: str, images: bool, tmp_path: Path
) -> None:
    lm = vision_lm(family)
    engine = TransformersEngine(lm, batch_size=64)
    data = rows_to_fit(images)
    switch = Switch.fit(engine, data, settings(readers=("layers", "window")), complied=two_of_three)
    stage = switch.gate.stage1
    assert stage is not None
    _, activations = engine.collect(data, stage.prober.points, max_new_tokens=0)
    scores = stage.prober.score(activations)
    assert sum((s > stage.threshold) == e.unsafe for s, e in zip(scores, data, strict=True)) > 60
    replies = engine.generate(data, switch, max_new_tokens=4, do_sample=False)
    told = torch.tensor([r.decision.scores["stage1"] for r in replies])
    torch.testing.assert_close(told, scores.float(), atol=1e-5, rtol=0)
    switch.save_pretrained(tmp_path)
    again = engine.generate(
        data[:6], Switch.from_pretrained(tmp_path), max_new_tokens=4, do_sample=False
    )
    assert [r.token_ids for r in again] == [r.token_ids for r in replies[:6]]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_actions_keep_the_image(family: str) -> None:
    lm = vision_lm(family)
    engine = TransformersEngine(lm)
    turn = Message("user", "abc", (Picture(picture(1), 2),))
    for action, expected in (
        (SystemPrompt("be kind"), (Message("system", "be kind"), turn)),
        (
            FramedPrompt(before=">> ", after=" <<"),
            (Message("user", ">> abc <<", (Picture(picture(1), 5),)),),
        ),
    ):
        assert action.edit((turn,)) == expected
        reply = engine.generate(
            [[turn]], Switch(Gate(always=True), action), max_new_tokens=5, do_sample=False
        )[0]
        assert list(reply.token_ids) == reply_by_hand(lm, lm.inputs([expected])[0], 5)


def test_a_model_folder_is_loaded_with_its_vision_part_and_its_processor(tmp_path: Path) -> None:
    lm = vision_lm("llava")
    lm.model.save_pretrained(tmp_path)
    lm.processor.save_pretrained(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.fingerprint == lm.fingerprint
    with pytest.raises(
        ModelError, match="cannot be read from disk"
    ):  # its files have names of their own
        fingerprint_of_files(tmp_path)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    found = TransformersEngine(again).generate(REQUESTS, **options)
    assert [r.token_ids for r in found] == [
        r.token_ids for r in TransformersEngine(lm).generate(REQUESTS, **options)
    ]


def test_without_a_processor_text_is_served_and_images_are_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    vision_model("llava").save_pretrained(tmp_path)
    tokenizer = vision_tokenizer("llava")
    tokenizer.chat_template = PARTS_TEMPLATE.replace(
        "{% for p in m.content %}", "{{ m.content }}{% for p in [] %}"
    )
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine.load(tmp_path)
    assert engine.generate(["hi"], max_new_tokens=3)
    with pytest.raises(DataError, match="cannot be given any: its processor cannot be loaded"):
        engine.generate([REQUESTS[1]], max_new_tokens=3)


def test_where_images_cannot_be_taken_they_are_refused_and_never_dropped() -> None:
    with pytest.raises(DataError, match="tiny-llama cannot be given any: it reads text only"):
        TransformersEngine(tiny_lm()).generate([REQUESTS[1]], max_new_tokens=3)
    lm = vision_lm("llava")
    engine = TransformersEngine(lm)
    with pytest.raises(
        DataError, match="prompt 0 has images, which what was asked for cannot take"
    ):
        log_likelihoods(engine, [(REQUESTS[1], "yes")])
    prober = Projection(ReadPoint(2, Position("appended")), lm.hidden_size)
    prober.appended = (30, 31)
    switch = Switch(Gate(stage1=Stage(prober, 0.5)), random_head(lm))
    assert engine.generate(["hi"], switch, max_new_tokens=2)
    with pytest.raises(DataError, match="in a pass that takes no images"):
        engine.generate([REQUESTS[1]], switch, max_new_tokens=2)
    plain = LanguageModel(lm.model, lm.tokenizer, processor=lm.processor, chat_template="plain")
    with pytest.raises(DataError, match="chat_template='plain'"):
        plain.inputs([REQUESTS[1]])


def test_images_come_from_files_beside_the_data(tmp_path: Path) -> None:
    picture(7).save(tmp_path / "seven.png")
    content = [
        {"type": "text", "text": "see "},
        {"type": "image", "path": "seven.png"},
        {"type": "text", "text": "there"},
    ]
    row = {"id": "1", "label": "safe", "messages": [{"role": "user", "content": content}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    example = read_examples(tmp_path / "rows.jsonl")[0]
    assert example.prompt == "see there"
    assert example.messages[0].images == (Picture(str(tmp_path / "seven.png"), 4),)
    lm = vision_lm("llava")
    by_file, by_image = lm.inputs(
        [example, [Message("user", "see there", (Picture(picture(7), 4),))]]
    )
    assert by_file.ids == by_image.ids
    assert torch.equal(by_file.vision["pixel_values"], by_image.vision["pixel_values"])
    assert to_row(example)["messages"][0]["content"][1] == {
        "type": "image",
        "path": str(tmp_path / "seven.png"),
    }
    (tmp_path / "seven.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read an image from"):
        lm.inputs([example])


def test_hashes_tell_images_apart_and_leave_text_as_it_was() -> None:
    one, same, other = (
        Example("1", (Message.of("user", seen("a", seed)[0]["content"]),), "safe")
        for seed in (1, 1, 2)
    )
    text = Example("1", (Message("user", "a"),), "safe")
    assert request_hash(one) == request_hash(same) != request_hash(other)
    assert data_hash([one]) == data_hash([same]) != data_hash([other])
    assert (
        len({request_hash(one), request_hash(text)})
        == len({data_hash([one]), data_hash([text])})
        == 2
    )
    assert repr(text.messages[0]) == "Message(role='user', content='a')"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio", "path": "a"},
        {"type": "image"},
        {"type": "text"},
        "words",
        {"type": "image_url", "image_url": {}},
    ],
)
def test_parts_of_another_kind_are_refused(part: Any) -> None:
    with pytest.raises(DataError, match="part 0 of a turn must be"):
        Message.of("user", [part])


def test_a_template_that_refuses_is_an_error_with_its_words() -> None:
    processor = vision_processor("llava")
    processor.chat_template = "{{ raise_exception('no turns') }}"
    lm = LanguageModel(
        vision_lm("llava").model, processor.tokenizer, model_id="m", processor=processor
    )
    with pytest.raises(ModelError, match="the chat template of m refuses the conversation"):
        lm.inputs(["hi"])


def test_weights_of_the_vision_part_count_in_the_fingerprint() -> None:
    model = vision_model("llava")
    before = fingerprint(model)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.add_(1.0)
    assert fingerprint(model) != before
