"""Each format gives the same model, and what cannot be loaded is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import BOS, EOS, VOCAB, tiny_lm, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from safeswitch.core.errors import ModelError
from safeswitch.models.fingerprint import fingerprint
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.load import find_source

IDS = torch.tensor([[9, 40, 41, 42]])
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


def saved(folder: Path, *, tokenizer: bool = True, **saving: Any) -> PreTrainedModel:
    """A tiny model, and the same in a folder."""
    model = tiny_model("llama")
    model.save_pretrained(folder, **saving)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return model


def adapter(base: Path, folder: Path, **settings: Any) -> Tensor:
    """A random LoRA adapter of the model in ``base``, in ``folder``; what both answer together."""
    lm = LanguageModel.load(base)
    torch.manual_seed(0)
    wrapped = get_peft_model(
        lm.model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **settings)
    )
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    wrapped.save_pretrained(folder)
    return logits(wrapped.eval())


def gguf_name(name: str) -> str:
    """A tensor's name in a GGUF file of llama's architecture."""
    stem, _, kind = name.removeprefix("model.").rpartition(".")
    plain = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    if stem in plain:
        return f"{plain[stem]}.{kind}"
    _, block, part = stem.split(".", 2)
    return f"blk.{block}.{BLOCK[part]}.{kind}"


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """A llama model of ``VOCAB + 1`` tokens as llama.cpp's converter would write it."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(VOCAB + 1)
    vocabulary = {**tiny_tokenizer().get_vocab(), "ab": VOCAB}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    for name, weight in model.state_dict().items():
        rows = heads.get(name.split(".")[-2])
        if rows:  # the converter interleaves the halves that rotate together
            weight = weight.view(rows, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(gguf_name(name), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_adapter_is_merged_into_its_base(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    want = adapter(tmp_path / "base", tmp_path / "adapter")
    lm = LanguageModel.load(tmp_path / "adapter")
    torch.testing.assert_close(logits(lm.model), want)
    assert not any("lora" in name for name, _ in lm.model.named_parameters())
    assert lm.fingerprint != LanguageModel.load(tmp_path / "base").fingerprint
    assert lm.encode(["hi"]) == tiny_lm().encode(["hi"])


def test_a_whole_model_and_an_adapter_in_one_folder_are_not_guessed_about(tmp_path: Path) -> None:
    base, both = saved(tmp_path / "base"), tmp_path / "both"
    want = adapter(tmp_path / "base", both)
    base.config.save_pretrained(both)
    torch.testing.assert_close(logits(LanguageModel.load(both).model), want)
    base.save_pretrained(both)
    with pytest.raises(
        ModelError, match="holds a whole model and an adapter, and which is meant cannot be told"
    ):
        LanguageModel.load(both)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_with_tokens_of_its_own_makes_room_for_them(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    lm = LanguageModel.load(tmp_path / "base")
    lm.tokenizer.add_tokens(["<new>"])
    lm.model.resize_token_embeddings(VOCAB + 1)
    parts = ["embed_tokens", "lm_head"]
    wrapped = get_peft_model(
        lm.model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=parts)
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    lm.tokenizer.save_pretrained(tmp_path / "adapter")
    again = LanguageModel.load(tmp_path / "adapter")
    assert again.vocab_size == VOCAB + 1
    torch.testing.assert_close(logits(again.model), logits(wrapped))


def test_an_adapter_whose_base_is_gone_says_so(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    told = json.loads(settings.read_text())
    settings.write_text(json.dumps({**told, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(
        ModelError,
        match=r"the base model of the adapter in .*gone.*there is no such file or folder",
    ):
        LanguageModel.load(tmp_path / "adapter")
    settings.write_text(json.dumps({**told, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model in base_model_name_or_path"):
        LanguageModel.load(tmp_path / "adapter")


def test_a_prompt_adapter_is_refused_by_its_type(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, TaskType

    saved(tmp_path / "base")
    model = LanguageModel.load(tmp_path / "base").model
    get_peft_model(
        model, PromptTuningConfig(TaskType.CAUSAL_LM, num_virtual_tokens=2)
    ).save_pretrained(tmp_path / "a")
    with pytest.raises(
        ModelError, match=r"PEFT adapter of .*type PROMPT_TUNING adds tokens .* cannot be merged"
    ):
        LanguageModel.load(tmp_path / "a")


def test_a_gguf_file_gives_the_model_that_was_written_and_can_be_saved(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=VOCAB + 1)
    write_gguf(model, tmp_path / "tiny.gguf")
    lm = LanguageModel.load(tmp_path / "tiny.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(lm.model), logits(model))
    assert lm.fingerprint == fingerprint(model)
    lm.model.save_pretrained(tmp_path / "folder")
    lm.tokenizer.save_pretrained(tmp_path / "folder")
    assert LanguageModel.load(tmp_path / "folder").fingerprint == fingerprint(model)


def test_a_damaged_gguf_file_is_named_with_the_reason(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(tiny_model("llama", vocab_size=VOCAB + 1), whole)
    for size in (2000, 20_000):
        (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:size])
        with pytest.raises(ModelError, match=r"cut\.gguf' \(a GGUF file\): \w+"):
            LanguageModel.load(tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("no weights at all")
    with pytest.raises(ModelError, match=r"text\.gguf' \(a GGUF file\): ValueError: .*magic"):
        LanguageModel.load(tmp_path / "text.gguf")


def test_shards_are_one_model(tmp_path: Path) -> None:
    model = saved(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert LanguageModel.load(tmp_path).fingerprint == fingerprint(model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.onnx", "it is ONNX"),
        ("m.pt", "it is pickled PyTorch weights"),
        ("m.safetensors", "name the folder"),
        ("m.xyz", r"a file of the unknown format '\.xyz'"),
        ("m", "a file without an ending"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_by_its_format(
    name: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ModelError, match=rf"{words}.*allowed: a hub id; a folder of config\.json and safetensors"
    ):
        LanguageModel.load(tmp_path / name)


def test_a_folder_is_named_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a folder of ONNX, without config\.json; allowed"):
        LanguageModel.load(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"it is a folder of GGUF files; name the file, as .*a\.gguf"
    ):
        LanguageModel.load(tmp_path)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised with gptq\)"),
        (
            {"quantization": {"group_size": 64, "bits": 4}},
            "quantised with MLX, which transformers cannot read",
        ),
    ],
)
def test_a_quantised_checkpoint_that_cannot_be_loaded_is_named_by_its_method(
    told: dict[str, Any], words: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **told}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=rf"\(a folder of safetensors, {words}"):
        LanguageModel.load(tmp_path)


def test_code_that_comes_with_a_model_is_not_run_unless_asked(tmp_path: Path) -> None:
    saved(tmp_path)
    config = tmp_path / "config.json"
    told = json.loads(config.read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    config.write_text(json.dumps({**told, **own}))
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig\n"
        f"Path({str(ran)!r}).touch()\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    with pytest.raises(ModelError, match=r"code of its own: read it, .*\(--trust-remote-code\)"):
        LanguageModel.load(tmp_path)
    assert not ran.exists()


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file or folder"):
        find_source(tmp_path / "gone")
    with pytest.raises(ModelError, match="there is no such file or folder"):
        find_source("gone.gguf")


def test_a_gguf_file_on_the_hub_is_told_by_its_name() -> None:
    source = find_source("owner/name/quants/x.Q4_1.gguf")
    assert (source.kind, source.name, source.file) == ("gguf", "owner/name", "quants/x.Q4_1.gguf")


class Halved(Tensor):
    """A weight kept in another form, as quantised ones are: it knows its values and no views."""

    half: Tensor

    @staticmethod
    def __new__(cls, half: Tensor) -> Halved:
        wrap: Any = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        made: Halved = wrap(cls, half.shape, dtype=half.dtype)
        made.half = half
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["half"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: object) -> Halved:
        return cls(inner["half"])

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].half)
        raise NotImplementedError(f"no {function}")

    def dequantize(self) -> Tensor:
        return 2 * self.half


def test_a_weight_that_is_kept_in_parts_counts_by_its_values() -> None:
    model, plain = tiny_model("llama"), tiny_model("llama")
    block: Any = model.model.layers[1].mlp
    values = block.up_proj.weight.detach()
    block.up_proj.weight = torch.nn.Parameter(Halved(values / 2), requires_grad=False)
    assert fingerprint(model) == fingerprint(plain)
