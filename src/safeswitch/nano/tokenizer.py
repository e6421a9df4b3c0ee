"""The embedded model's tokenizer: byte-level BPE trained on the corpus, with a chat template of
three roles.

A conversation is ``<s>``, then ``<|role|>content</s>`` for each turn; a reply ends with ``</s>``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from safeswitch.core.types import Message

VOCABULARY = 2048
CONTEXT = 512
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token "
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the vocabulary; digits stay single tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    specials = [PAD, BOS, EOS, *ROLE_TOKENS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLE_TOKENS.values()),
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Sequence[Message]]
) -> list[tuple[list[int], list[bool]]]:
    """Token ids of whole conversations, and which of them belong to the last reply (its end token
    included)."""
    known = tokenizer.get_vocab()
    bos, eos = known[BOS], known[EOS]
    roles = {role: known[token] for role, token in ROLE_TOKENS.items()}
    flat = [message.content for turns in conversations for message in turns]
    pieces = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    rows: list[tuple[list[int], list[bool]]] = []
    for turns in conversations:
        ids: list[int] = [bos]
        start = 0
        for message in turns:
            start = len(ids) + 1
            ids += [roles[message.role], *next(pieces), eos]
        rows.append((ids, [i >= start for i in range(len(ids))]))
    return rows
