"""Finding the parts of a model, encoding prompts, layer numbers, and the fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.tiny import BOS, EOS, NAMES, ODD, PAD, VOCAB, tiny_lm, tiny_model, tiny_tokenizer
from torch import nn

from safeswitch.core.errors import ContextLengthError, DataError, ModelError, SettingError
from safeswitch.core.types import Example, Message
from safeswitch.models.fingerprint import fingerprint, fingerprint_of_files
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.locate import locate


@pytest.mark.parametrize("name", [*NAMES, *ODD])
def test_parts_are_found(name: str) -> None:
    lm = tiny_lm(name)
    assert lm.parts.head is lm.model.get_output_embeddings()
    assert len(lm.parts.blocks) == lm.num_layers == lm.model.config.num_hidden_layers
    assert (lm.hidden_size, lm.vocab_size) == (32, VOCAB)
    ids = torch.tensor([[9, 10, 11]])
    with torch.no_grad():
        states = lm.parts.backbone(input_ids=ids, use_cache=False).last_hidden_state
    assert states.shape == (1, 3, lm.hidden_size)


@pytest.mark.parametrize(
    ("name", "tied"), [("llama", False), ("llama_tied", True), ("gpt2", True), ("gemma2", True)]
)
def test_tied_heads_are_told(name: str, tied: bool) -> None:
    assert tiny_lm(name).parts.tied is tied


def test_an_encoder_decoder_is_refused() -> None:
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
        locate(transformers.T5ForConditionalGeneration(config))


def test_a_model_without_head_is_refused() -> None:
    with pytest.raises(ModelError, match="LlamaModel has no LM head"):
        locate(tiny_model("llama").model)


def test_a_model_without_a_block_list_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(ModelError, match="found no list of 3 blocks below LlamaModel"):
        locate(model)


def test_layers_count_from_both_ends() -> None:
    lm = tiny_lm()
    assert [lm.layer(i) for i in (0, 3, -1, -4)] == [0, 3, 3, 0]
    for wrong in (4, -5):
        with pytest.raises(
            SettingError, match=rf"layer {wrong} does not exist: tiny-llama has layers 0\.\.3"
        ):
            lm.layer(wrong)


def test_prompts_go_through_the_chat_template() -> None:
    lm = tiny_lm()
    system = (Message("system", "be kind"), Message("user", "hi"))
    text, talk, example = lm.encode(["hi", system, Example("1", (Message("user", "hi"),), "safe")])
    assert lm.tokenizer.decode(text) == "<bos><|user|>hi<eos><|assistant|>"
    assert lm.tokenizer.decode(talk) == "<bos><|system|>be kind<eos><|user|>hi<eos><|assistant|>"
    assert example == text
    assert text[0] == BOS


def test_templates_can_be_replaced_or_left_out() -> None:
    plain = LanguageModel(tiny_model("llama"), tiny_tokenizer(), chat_template="plain")
    assert plain.encode(["hi"]) == [tiny_tokenizer()("hi")["input_ids"]]
    lm = LanguageModel(
        tiny_model("llama"), tiny_tokenizer(), chat_template="{{ messages[0].content }}!"
    )
    assert lm.tokenizer.decode(lm.encode(["hi"])[0]) == "hi!"


def test_a_missing_chat_template_is_named_with_the_way_out() -> None:
    lm = LanguageModel(tiny_model("llama"), tiny_tokenizer(chat_template=None))
    with pytest.raises(ModelError, match="has no chat template; give one with chat_template="):
        lm.encode(["hi"])


GEMMA_LIKE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
)


def test_where_the_template_knows_no_system_turn_its_text_goes_in_front_of_the_first_user_turn() -> (
    None
):
    lm = tiny_lm(chat_template=GEMMA_LIKE)
    talk = (
        Message("system", "be kind"),
        Message("user", "hi"),
        Message("assistant", "yes"),
        Message("user", "go"),
    )
    assert (
        lm.tokenizer.decode(lm.encode([talk])[0])
        == "<user>be kind\n\nhi<assistant>yes<user>go<reply>"
    )


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ("uu", "Roles must alternate"),
        ("suu", "Roles must alternate"),
        ("sa", "System role not supported"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_an_error_with_its_words(
    roles: str, words: str
) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    talk = tuple(Message(names[role], "hi") for role in roles)  # type: ignore[arg-type]
    with pytest.raises(
        ModelError,
        match=f"chat template of tiny-llama refuses the conversation: TemplateError: {words}",
    ):
        tiny_lm(chat_template=GEMMA_LIKE).encode([talk])


def test_prompts_that_do_not_fit_are_refused_with_the_room_left() -> None:
    lm = tiny_lm()
    assert lm.context_length == 512
    lm.encode(["x" * 500], room=8)
    with pytest.raises(
        ContextLengthError, match=r"prompt 1 has 504 tokens and 20 reply .* at most 8 new tokens"
    ):
        lm.encode(["x", "x" * 500], room=20)


def test_empty_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        tiny_lm().encode(["  "])


def test_rows_are_padded_on_the_left() -> None:
    ids, mask = tiny_lm().pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [PAD, PAD, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_model_survives_saving_and_loading(tmp_path: Path) -> None:
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.fingerprint == lm.fingerprint
    assert again.encode(["hi"]) == lm.encode(["hi"])
    assert LanguageModel.load(tmp_path, dtype=torch.float64).fingerprint == lm.fingerprint


def test_nothing_loadable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load a causal language model"):
        LanguageModel.load(tmp_path)


def test_damaged_weights_are_an_error_with_the_reason(tmp_path: Path) -> None:
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        ModelError, match=r"cannot load a causal language model .*SafetensorError: .+"
    ):
        LanguageModel.load(tmp_path)


@pytest.mark.parametrize("error", [ImportError("no quantiser"), RuntimeError("out of memory")])
def test_a_missing_package_or_too_little_memory_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    tiny_model("llama").config.save_pretrained(tmp_path)
    monkeypatch.setattr("safeswitch.models.load.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(ModelError, match=str(error)):
        LanguageModel.load(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_tells_weights_apart_and_nothing_else(name: str) -> None:
    prints = {
        fingerprint(tiny_model(name)),
        fingerprint(tiny_model(name)),
        fingerprint(tiny_model(name).double()),
    }
    assert len(prints) == 1
    assert fingerprint(tiny_model(name, seed=1)) not in prints
    halved = tiny_model(name).to(torch.bfloat16)
    assert fingerprint(halved) == fingerprint(halved.float())


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma2", "gpt2", "phi3"])
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_the_fingerprint_of_a_folder_is_that_of_the_model_in_it(
    name: str, shard: str, tmp_path: Path
) -> None:
    tiny_model(name).save_pretrained(tmp_path, max_shard_size=shard)
    assert fingerprint_of_files(tmp_path) == fingerprint(tiny_model(name))


def test_a_folder_without_all_weights_has_no_fingerprint(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        fingerprint_of_files(tmp_path)
