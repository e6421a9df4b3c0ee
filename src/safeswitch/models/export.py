"""Writing a model as a folder that every engine takes: adapters merged, GGUF weights dequantised.

Knows files and loaded models. Knows nothing of engines.
"""

from __future__ import annotations

from pathlib import Path

from safeswitch.core.artifact import whole_folder
from safeswitch.core.errors import ArtifactError, ModelError
from safeswitch.models.fingerprint import fingerprint_of_files
from safeswitch.models.language_model import LanguageModel


def export_model(lm: LanguageModel, out: Path) -> None:
    """Write model, tokenizer, chat template and processor to ``out``, which is whole or absent.

    What was written is read back: its fingerprint must be the model's, so that a switch fitted on
    one is taken on the other.

    Args:
        lm: A model with plain weights.
        out: A folder that is absent or empty.

    Raises:
        ModelError: quantised weights, which would be written as they are.
        ArtifactError: ``out`` holds something, cannot be written, or came out different.
    """
    method = getattr(lm.model.config, "quantization_config", None)
    if method is not None:
        raise ModelError(
            f"{lm.model_id} is quantised ({getattr(method, 'quant_method', method)}) and is a "
            "folder already: name it as it is; an export writes plain weights, of adapters, GGUF "
            "files and hub ids"
        )
    with whole_folder(out) as staged:
        lm.model.save_pretrained(staged)
        lm.tokenizer.save_pretrained(staged)
        if lm.processor is not None:
            lm.processor.save_pretrained(staged)
        if isinstance(lm.chat_template, str) and lm.chat_template != "plain":
            (staged / "chat_template.jinja").write_text(lm.chat_template, encoding="utf-8")
        written = fingerprint_of_files(staged)
        if written != lm.fingerprint:
            raise ArtifactError(
                f"{out} would hold another model (fingerprint {written}) than {lm.model_id} "
                f"({lm.fingerprint})"
            )
