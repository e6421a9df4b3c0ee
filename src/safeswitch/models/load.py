"""What a model's name stands for, told by its files, and how its parts are loaded.

A hub id, a folder, a PEFT adapter over its base model, or a GGUF file. Adapters are merged into
their base and GGUF weights are dequantised, so that the same model has the same fingerprint
whatever file it came from. Knows file formats. Knows nothing of prompts and of what is done with
a model.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from safeswitch.core.errors import ModelError
from safeswitch.core.json_types import JsonMapping
from safeswitch.models.fingerprint import loads_with_vision

Kind = Literal["hub", "folder", "adapter", "gguf"]

ALLOWED = (
    "a hub id; a folder of config.json and safetensors, in one file or sharded, also quantised; "
    "a PEFT adapter (folder or hub id); a GGUF file (FILE.gguf, or OWNER/NAME/FILE.gguf on the hub)"
)

_ADAPTER, _CONFIG, _GGUF = "adapter_config.json", "config.json", ".gguf"
_WEIGHTS = ("model.", "model-", "pytorch_model.", "pytorch_model-")
"""How files of a whole model's weights begin; an adapter's are called adapter_model."""
_FORMATS: Mapping[str, str] = {
    _GGUF: "GGUF",
    ".safetensors": "safetensors",
    ".bin": "pickled PyTorch or GGML weights",
    ".pt": "pickled PyTorch weights",
    ".pth": "pickled PyTorch weights",
    ".ckpt": "a training checkpoint",
    ".onnx": "ONNX",
    ".h5": "TensorFlow weights",
    ".tflite": "TensorFlow Lite",
    ".msgpack": "Flax weights",
    ".npz": "NumPy or MLX weights",
    ".engine": "TensorRT",
    ".mlmodel": "Core ML",
    ".llamafile": "llamafile",
    ".zip": "a ZIP archive",
    ".gz": "a gzip archive",
}
"""Names of formats by the ending of a file, for messages."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Args:
        kind: How its parts are found.
        name: Folder or hub id that holds them.
        file: The GGUF file in it.
        base: Of an adapter: the model that it changes.
    """

    kind: Kind
    name: str
    file: str | None = None
    base: Source | None = None

    @property
    def described(self) -> str:
        """The format in words, for messages."""
        if self.kind == "gguf":
            return "a GGUF file"
        if self.base is not None:
            return f"a PEFT adapter of {self.base.name}"
        return _told_folder(Path(self.name)) if self.kind == "folder" else "a hub id"


@dataclass(frozen=True)
class LoadedParts:
    """What was loaded.

    Args:
        model: The model, its adapter merged, nothing of GGUF left in it.
        tokenizer: Its tokenizer; an adapter's own where it brings one.
        home: Folder or hub id of its processor; None where it reads text only.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    home: str | None


def find_source(model: str | Path, **shared: Any) -> Source:
    """What ``model`` stands for; nothing is loaded.

    Args:
        model: File, folder or hub id.
        shared: ``revision``, ``token`` and ``cache_dir``, for the hub.

    Raises:
        ModelError: a file or folder of a format that cannot be loaded, named with what can be.
    """
    place = Path(model)
    if place.is_file():
        if place.suffix.lower() != _GGUF:
            raise ModelError(
                f"cannot load {str(model)!r}: it is {_told_file(place)}; allowed: {ALLOWED}"
            )
        return Source("gguf", str(place.parent), place.name)
    if place.is_dir():
        return _of_folder(place, shared)
    name, parts = str(model), Path(model).parts
    if (
        name.lower().endswith(_GGUF)
        and not place.is_absolute()
        and len(parts) > 2
        and parts[0] != ".."
    ):
        return Source("gguf", "/".join(parts[:2]), "/".join(parts[2:]))
    if (
        place.is_absolute()
        or len(parts) > 2
        or parts[:1] == ("..",)
        or place.suffix.lower() == _GGUF
    ):
        raise ModelError(
            f"cannot load {name!r}: there is no such file or folder; allowed: {ALLOWED}"
        )
    return _of_hub(name, shared)


def check_for_vllm(model: str | Path) -> None:
    """Refuse what vLLM's guard cannot read, with the command that makes a folder of it.

    Raises:
        ModelError: a GGUF file or a PEFT adapter, or a format that nothing here loads.
    """
    source = find_source(model)
    if source.kind in ("gguf", "adapter"):
        raise ModelError(
            f"vLLM is given a folder or hub id of weights, and {str(model)!r} is "
            f"{source.described}: "
            f"make one with `safeswitch export --model {model} --out FOLDER`, and give "
            "--model FOLDER"
        )


def load_parts(source: Source, shared: JsonMapping, **options: Any) -> LoadedParts:
    """Load a model and its tokenizer.

    Args:
        source: See :func:`find_source`.
        shared: ``revision``, ``token``, ``cache_dir`` and ``trust_remote_code``.
        options: For the model's ``from_pretrained``.

    Raises:
        ModelError: the format, why it cannot be loaded, and what can be.
    """
    try:
        if source.base is not None:
            return _with_adapter(source, source.base, shared, options)
        return _plain(source, shared, options)
    except ModelError:
        raise
    except (
        Exception
    ) as error:  # many kinds, some bare; all mean that these files cannot be loaded here
        raise ModelError(_why(source, error)) from error


def load_tokenizer(source: Source, shared: JsonMapping) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone, see :func:`load_parts`.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        if source.base is not None:
            return _own_tokenizer(source.name, shared) or load_tokenizer(
                source.base, {**shared, "revision": None}
            )
        return _tokenizer(source, shared)
    except ModelError:
        raise
    except Exception as error:  # see load_parts
        raise ModelError(_why(source, error)) from error


def _tokenizer(source: Source, shared: JsonMapping) -> PreTrainedTokenizerBase:
    where = dict(shared)
    if source.file is not None:
        _needs("gguf", "GGUF files")
        where["gguf_file"] = source.file
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name, **where)
    return found


def _plain(source: Source, shared: JsonMapping, options: JsonMapping) -> LoadedParts:
    where = dict(shared)
    given = dict(options)
    if source.file is not None:
        _needs("gguf", "GGUF files")
        where["gguf_file"] = source.file
        given.setdefault("quantization_config", _dequantised())
    config = AutoConfig.from_pretrained(source.name, **where)
    sees = loads_with_vision(config)
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = kind.from_pretrained(source.name, **where, **given)
    tokenizer = _tokenizer(source, shared)
    if source.file is not None:
        _forget_gguf(model)
    return LoadedParts(model, tokenizer, source.name if sees else None)


def _dequantised() -> Any:
    """Ask for plain weights; where transformers gives no others, it has no such setting."""
    kind = getattr(transformers, "GgufConfig", None)
    return None if kind is None else kind(dequantize=True)


def _forget_gguf(model: PreTrainedModel) -> None:
    """The weights are plain tensors by now; a model that still says otherwise cannot be saved."""
    setattr(model, "hf_quantizer", None)  # noqa: B010  (not declared on the class)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _with_adapter(
    source: Source, base: Source, shared: JsonMapping, options: JsonMapping
) -> LoadedParts:
    """The base model with the adapter merged into its weights."""
    _needs("peft", "adapters")
    from peft import PeftConfig, PeftModel

    own = {name: value for name, value in shared.items() if name != "trust_remote_code"}
    settings = PeftConfig.from_pretrained(source.name, **own)
    if settings.is_prompt_learning:
        raise ValueError(
            f"an adapter of type {settings.peft_type.value} adds tokens to each prompt and cannot "
            "be merged; those that change weights (LoRA and its kin) can"
        )
    # the revision asked for is the adapter's; its base has its own
    loaded = load_parts(base, {**shared, "revision": settings.revision}, **options)
    tokenizer = _own_tokenizer(source.name, shared) or loaded.tokenizer
    embedding: Any = loaded.model.get_input_embeddings()
    if len(tokenizer) > embedding.weight.shape[0]:
        loaded.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted: Any = PeftModel.from_pretrained(loaded.model, source.name, config=settings, **own)
    return LoadedParts(adapted.merge_and_unload(), tokenizer, loaded.home)


def _own_tokenizer(adapter: str, shared: JsonMapping) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside an adapter, None where there is none."""
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(adapter, **shared)
    except (OSError, ValueError, KeyError):
        return None
    return found


def _of_folder(folder: Path, shared: JsonMapping) -> Source:
    whole = (folder / _CONFIG).is_file()
    if (folder / _ADAPTER).is_file():
        if whole and any(path.name.startswith(_WEIGHTS) for path in folder.iterdir()):
            raise ModelError(
                f"cannot load {str(folder)!r}: it holds a whole model and an adapter, and which is "
                f"meant cannot be told; move {_ADAPTER} elsewhere if the adapter is merged, else "
                "give the adapter a folder of its own"
            )
        return Source("adapter", str(folder), base=_base(folder / _ADAPTER, shared))
    if whole:
        return Source("folder", str(folder))
    ggufs = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == _GGUF)
    if ggufs:
        raise ModelError(
            f"cannot load {str(folder)!r}: it is a folder of GGUF files; name the file, as "
            f"{folder / ggufs[0]}"
        )
    raise ModelError(
        f"cannot load a causal language model from {str(folder)!r}: it is {_told_folder(folder)}, "
        f"without {_CONFIG}; allowed: {ALLOWED}"
    )


def _of_hub(name: str, shared: JsonMapping) -> Source:
    """An adapter is told by its configuration; where the hub is silent, loading says why."""
    own = {key: value for key, value in shared.items() if key in ("revision", "token", "cache_dir")}
    try:
        found = find_adapter_config_file(name, **own)
    except (OSError, ValueError):
        found = None
    if found is None:
        return Source("hub", name)
    return Source("adapter", name, base=_base(Path(found), shared))


def _base(config: Path, shared: JsonMapping) -> Source:
    """The base model that an adapter's configuration names.

    Raises:
        ModelError: it names none, or one that is not there.
    """
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{config} is not readable JSON of an adapter: {error}") from error
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{config} names no base model in base_model_name_or_path; write its folder or hub id "
            "there"
        )
    try:
        return find_source(
            name, **{key: value for key, value in shared.items() if key != "revision"}
        )
    except ModelError as error:
        raise ModelError(f"the base model of the adapter in {config.parent}: {error}") from error


def _needs(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{what} need {package}: pip install 'safeswitch[models]'")


def _told_file(path: Path) -> str:
    known = _FORMATS.get(path.suffix.lower())
    if path.suffix.lower() == ".safetensors":
        return "a single safetensors file, which needs what stands beside it: name the folder"
    return known or (
        f"a file of the unknown format {path.suffix!r}"
        if path.suffix
        else "a file without an ending"
    )


def _told_folder(folder: Path) -> str:
    """What a folder holds, in words: its formats, and how it is quantised where it says so."""
    endings = {path.suffix.lower() for path in folder.iterdir()} if folder.is_dir() else set()
    formats = ", ".join(sorted({_FORMATS[ending] for ending in endings if ending in _FORMATS}))
    method = _quantised(folder / _CONFIG)
    return f"a folder of {formats or 'no weights'}{f', quantised with {method}' if method else ''}"


def _quantised(config: Path) -> str | None:
    """The method by which a checkpoint is quantised, None where its configuration names none."""
    try:
        parsed = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(parsed, dict):
        return None
    if "quantization_config" not in parsed:
        return "MLX, which transformers cannot read" if "quantization" in parsed else None
    settings = parsed["quantization_config"]
    return (
        str(settings.get("quant_method", "an unnamed method"))
        if isinstance(settings, dict)
        else None
    )


def _why(source: Source, error: Exception) -> str:
    place = source.name if source.file is None else f"{source.name}/{source.file}"
    text = (
        f"cannot load a causal language model from {place!r} ({source.described}): "
        f"{type(error).__name__}: {error}"
    )
    if "trust_remote_code" in str(error):
        return (
            f"{text}; this model comes with code of its own: read it, and where you trust it, give "
            "trust_remote_code (--trust-remote-code)"
        )
    return f"{text}; allowed: {ALLOWED}"
