"""A loaded model with its tokenizer: the one object that everything else is given.

Knows loading, chat templates, images, layer numbers and what the architecture can do (traits).
Knows nothing of probers, switches or decoding.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import ByteLevel
from torch import Tensor, nn
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Message, Output, Prompt, Site
from safeswitch.models.chat import ChatEncoder
from safeswitch.models.fingerprint import fingerprint
from safeswitch.models.load import find_source, load_parts
from safeswitch.models.locate import Parts, locate
from safeswitch.models.offload import compute_device
from safeswitch.models.outputs import Outputs, find_outputs
from safeswitch.models.prompt_text import PromptText
from safeswitch.models.thinking import Thinking
from safeswitch.models.traits import Traits, find_traits
from safeswitch.models.vision import Encoded, Vision, collate


class LanguageModel:
    """A decoder-only language model and its tokenizer; it may be that of a vision-language model.

    Args:
        model: A loaded ``transformers`` causal LM, or image-text-to-text model; it is put into eval
            mode.
        tokenizer: Its tokenizer.
        model_id: Folder or hub id, for the record.
        revision: Hub revision, for the record.
        chat_template: A Jinja template to use instead of the tokenizer's; ``"plain"`` joins the
            turns' text with line breaks, for base models.
        thinking: Start and end mark of the model's thinking; None looks for well-known ones.
        processor: Of a vision-language model, for prompts with images; its chat template is then
            taken.
        no_images: Why images cannot be taken, for messages, where there is no processor.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_id: str = "",
        revision: str | None = None,
        chat_template: str | None = None,
        thinking: tuple[str, str] | None = None,
        processor: Any = None,
        no_images: str = "it reads text only",
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.model_id = (
            model_id or getattr(model.config, "_name_or_path", "") or type(model).__name__
        )
        self.revision = revision
        self.chat_template = chat_template
        self.processor = processor
        self._marks, self._no_images = thinking, no_images
        self.parts: Parts = locate(model)
        self.lock = threading.RLock()
        """Held by whoever has hooks on the model."""

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
        thinking: tuple[str, str] | None = None,
        **kwargs: Any,
    ) -> LanguageModel:
        """Load what ``model`` names: a hub id, a folder, a PEFT adapter or a GGUF file.

        Adapters are merged into their base, GGUF weights are dequantised. A vision-language model
        whose processor cannot be loaded takes text alone.

        Args:
            model: See :data:`safeswitch.models.load.ALLOWED`.
            revision: Hub revision; of an adapter, the adapter's own.
            token: For gated models of the hub.
            cache_dir: Where the hub's files are kept.
            chat_template: See the class.
            trust_remote_code: Run the code that comes with a model.
            thinking: See the class.
            kwargs: For the model's ``from_pretrained``: ``dtype``, ``device_map``, ...

        Raises:
            ModelError: a format that cannot be loaded, nothing loadable there, or weights that are
                damaged or do not fit on the device.
        """
        shared: JsonObject = {"revision": revision, "token": token, "cache_dir": cache_dir}
        source = find_source(model, **shared)
        shared["trust_remote_code"] = trust_remote_code
        parts = load_parts(source, shared, **kwargs)
        processor, reason = None, "it reads text only"
        if parts.home is not None:
            processor, reason = _processor(parts.home, shared)
        return cls(
            parts.model,
            parts.tokenizer,
            model_id=str(model),
            revision=revision,
            chat_template=chat_template,
            thinking=thinking,
            processor=processor,
            no_images=reason,
        )

    @property
    def num_layers(self) -> int:
        """Number of blocks; layer number ``num_layers`` is the state after the final norm."""
        return len(self.parts.blocks)

    @property
    def hidden_size(self) -> int:
        """Width d of the LM head's input."""
        head: nn.Module = self.parts.head
        size = getattr(head, "in_features", None)
        return (
            int(size) if size is not None else int(self.model.config.get_text_config().hidden_size)
        )

    @property
    def vocab_size(self) -> int:
        """Rows of the LM head."""
        size = getattr(self.parts.head, "out_features", None)
        return (
            int(size) if size is not None else int(self.model.config.get_text_config().vocab_size)
        )

    @property
    def input_size(self) -> int:
        """Rows of the embedding: tokens below it can be read. A tokenizer may know more."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where input tokens go."""
        return compute_device(self.model.get_input_embeddings())

    @property
    def pass_tokens(self) -> int:
        """What a forward pass costs beside its tokens (reading the weights, starting kernels), in
        tokens computed.

        On a processor some 16, measured on 135M parameters; an accelerator computes hundreds of
        tokens meanwhile.
        """
        return 16 if self.device.type == "cpu" else 512

    @property
    def head_device(self) -> torch.device:
        """Where the LM head computes."""
        return compute_device(self.parts.head)

    @property
    def head_dtype(self) -> torch.dtype:
        """In what the LM head computes: its weight's dtype, or the model's where the weight is
        quantised."""
        dtype = next(self.parts.head.parameters()).dtype
        return dtype if dtype.is_floating_point else self.model.dtype

    @property
    def context_length(self) -> int | None:
        """Largest number of tokens the model takes, or None when its config sets no limit."""
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @cached_property
    def longest_text(self) -> int | None:
        """Characters beyond which no text fits into the context, None where that cannot be told
        from the tokenizer.

        A byte-level tokenizer that changes nothing beforehand gives at least one token for as many
        bytes as its longest has.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        lossless = (
            backend is not None
            and backend.normalizer is None
            and isinstance(backend.decoder, ByteLevel)
        )
        if self.context_length is None or not lossless:
            return None
        return self.context_length * max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the weights, see :func:`safeswitch.models.fingerprint.fingerprint`."""
        return fingerprint(self.model)

    @cached_property
    def traits(self) -> Traits:
        """What the architecture can do, found by running a few tokens through it."""
        return find_traits(self.model)

    @cached_property
    def outputs(self) -> Outputs:
        """The modules that give what each half of a block adds to the residual stream."""
        with self.lock:  # it runs the model, past whoever has hooks on it
            return find_outputs(self.model, self.parts)

    @cached_property
    def thinking(self) -> Thinking | None:
        """The marks of the model's thinking, None where it does none."""
        if self._marks is not None:
            return Thinking.of(self.tokenizer, self._marks)
        template = self._chat.template
        return Thinking.find(self.tokenizer, template if isinstance(template, str) else None)

    @cached_property
    def _header(self) -> list[int]:
        return self._chat.header() if self._chat.template else []

    def thinking_opened(self, messages: Sequence[Message], ids: Sequence[int]) -> bool | None:
        """What a prompt says of the thinking of its reply, see :meth:`Thinking.opened`: the reply's
        own header and a reply that has been begun are asked, never what a user wrote.

        Args:
            messages: The conversation.
            ids: Its tokens.
        """
        if self.thinking is None:
            return False
        if messages[-1].role == "assistant":
            start, end = (messages[-1].content.rfind(mark) for mark in self.thinking.marks)
            return start > end
        header = self._header
        return (
            self.thinking.opened(header) if header and list(ids[-len(header) :]) == header else None
        )

    def needs_thinking(self) -> Thinking:
        """The marks of the model's thinking.

        Raises:
            SettingError: none are known.
        """
        if self.thinking is None:
            raise SettingError(
                f"{self.model_id} has no thinking marks that are known here, and a gate or a "
                "budget waits for the end of its thinking; name them with LanguageModel.load(..., "
                "thinking=(start, end))"
            )
        return self.thinking

    def answer_start(
        self, messages: Sequence[Message], ids: Sequence[int], reply: Sequence[int]
    ) -> int:
        """Tokens of ``reply`` in front of its answer: all of them where that has not begun.

        Raises:
            SettingError: the model has no known thinking marks.
        """
        start = self.needs_thinking().answer_start(reply, self.thinking_opened(messages, ids))
        return len(reply) if start is None else start

    @cached_property
    def prompt_text(self) -> PromptText:
        """Tokens of a prompt to the text that they stand for."""
        return PromptText(self.tokenizer)

    @property
    def _chat(self) -> ChatEncoder:
        return ChatEncoder(
            self.tokenizer, self.model_id, self.chat_template, self.processor, self._no_images
        )

    def layer(self, index: int) -> int:
        """Resolve a layer number, counting from the end when negative.

        Raises:
            SettingError: outside ``-(num_layers + 1) .. num_layers``.
        """
        count = self.num_layers + 1
        if not -count <= index < count:
            raise SettingError(
                f"layer {index} does not exist: {self.model_id} has layers 0..{count - 1} (or "
                f"-1..-{count})"
            )
        return index % count

    def site(self, site: Site) -> Site:
        """Resolve where a state is read; a layer number as :meth:`layer` does.

        Raises:
            SettingError: a layer or block that does not exist.
            ModelError: an output of a block in which it cannot be found.
        """
        if not isinstance(site, Output):
            return self.layer(site)
        if site.block > self.num_layers:
            raise SettingError(
                f"output {site} does not exist: {self.model_id} has blocks 1..{self.num_layers}"
            )
        self.outputs[site]
        return site

    def encode(
        self, prompts: Sequence[Prompt], *, room: int | Sequence[int] = 0, check: bool = True
    ) -> list[list[int]]:
        """Token ids of each prompt, as :meth:`inputs` gives them, for callers who can do nothing
        with images.

        Raises:
            DataError: a prompt with images.
        """
        encoded = self.inputs(prompts, room=room, check=check)
        seeing = next((i for i, one in enumerate(encoded) if one.vision), None)
        if seeing is not None:
            raise DataError(
                f"prompt {seeing} has images, which what was asked for cannot take; give text alone"
            )
        return [one.ids for one in encoded]

    def inputs(
        self, prompts: Sequence[Prompt], *, room: int | Sequence[int] = 0, check: bool = True
    ) -> list[Encoded]:
        """Each prompt through the chat template, ready for the reply's first token.

        Args:
            prompts: Text, messages or examples; what is given as tokens is taken as it is.
            room: Reply tokens that must still fit into the context, for all prompts or for each.
            check: Whether prompts that do not fit are refused.

        Raises:
            ModelError: no chat template.
            TemplateError: it refuses a conversation, or drops the text of a turn.
            ContextLengthError: a prompt that does not fit.
            DataError: images, where the model takes none, or that cannot be read; a token that the
                model has no embedding of.
        """
        encoded = self._chat.encode(
            prompts, limit=self.context_length if check else None, room=room
        )
        self._check_embedded(encoded)
        return encoded

    def _check_embedded(self, encoded: Sequence[Encoded]) -> None:
        """Tokenizers may know more tokens than the embedding has rows; on a GPU such a token ends
        the whole process.

        Raises:
            DataError: such a token in a prompt.
        """
        count = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        if count is None:
            return
        for i, one in enumerate(encoded):
            wrong = [token for token in one.ids if not 0 <= token < count]
            if wrong and not one.vision:
                raise DataError(
                    f"prompt {i} has the token {wrong[0]}, of which {self.model_id} has no "
                    f"embedding: it has those of tokens 0..{count - 1}"
                )

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Left-pad token rows to one batch: ids ``[n, t]`` and attention mask ``[n, t]``, on the
        model's device."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
            mask[i, width - len(row) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def collate(
        self, visions: Sequence[Vision], rows: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """The images of rows that :meth:`pad` makes a batch ``[n, t]`` of, as further arguments of
        the model, on its device; an argument with one entry a token is ``[n, t]`` too."""
        lengths = [len(row) for row in rows]
        return {
            name: part.to(self.device)
            for name, part in collate(visions, lengths, max(lengths)).items()
        }

    def run_backbone(
        self, ids: Tensor, mask: Tensor, vision: Mapping[str, Tensor] | None = None
    ) -> None:
        """One forward pass of the backbone over a left-padded batch ``[n, t]``, without cache and
        without logits.

        Whatever is to be seen of it is read by hooks.

        Args:
            ids: Tokens.
            mask: 1 where they are real.
            vision: The batch's images, see :meth:`collate`.
        """
        extra: JsonObject = dict(vision or {})
        body = self.parts.body
        if body is not self.parts.backbone:  # positions of image tokens are the model's own affair
            inputs = {"attention_mask": mask, **extra}
            extra["position_ids"] = self.model._prepare_position_ids_for_generation(ids, inputs)
        elif "position_ids" in inspect.signature(body.forward).parameters:
            extra["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        body(input_ids=ids, attention_mask=mask, use_cache=False, **extra)

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad token, else its end token, else 0, the first that can be read:
        padding is always masked."""
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None and token_id < self.input_size:
                return int(token_id)
        return 0


def _processor(model: str, shared: JsonObject) -> tuple[Any, str]:
    """The processor of a vision-language model, or None and why it cannot be loaded."""
    try:
        return AutoProcessor.from_pretrained(model, **shared), ""
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        return None, f"its processor cannot be loaded ({type(error).__name__}: {error})"
