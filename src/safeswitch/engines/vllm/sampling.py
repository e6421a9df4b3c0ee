"""Which of a client's sampling parameters act where: the allow-list over vLLM's ``SamplingParams``.

A request under ``enforce`` is run up to five times: the *client's run*, with everything the client
asked for, and the *guarded runs*, which are ours: the pilot that stage 2 reads, the unconstrained
reply that a watch reads first, the judging of an ended reply, the refusal. Whoever could bend a
guarded run could make the refusal say yes, so these take from the client only what leaves a refusal
intact (``SHARED``). A request that brings anything else that bends its reply is *constrained*: what
stage 1 does not clear is refused, on a run of ours; what it clears runs with all its
constraints.

A parameter that no table here names is refused, so that a newer vLLM cannot open a hole in silence.
"""

from __future__ import annotations

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from safeswitch.core.json_types import JsonMapping

HOTTEST = 1.0
"""Highest temperature of a guarded run: above it a pilot is random words. Refusals are not drawn at
all."""

SHARED = frozenset(
    {"n", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids"}
)
"""Act on guarded runs too: how long, how random, where to end."""
NEUTRAL = frozenset(
    {
        "logprobs", "logprob_token_ids", "flat_logprobs", "detokenize", "skip_special_tokens",
        "spaces_between_special_tokens", "include_stop_str_in_output", "output_kind",
        "stream_interval", "skip_clone", "output_text_buffer_length",
        "skip_reading_prefix_cache", "_eos_token_id", "_all_stop_token_ids",
        "_watermarking_skipped",
    }
)  # fmt: skip
"""Say how a reply is handed out, not which tokens it has; guarded runs keep them."""
BENDING = frozenset(
    {
        "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p", "ignore_eos",
        "min_tokens", "structured_outputs", "logit_bias", "allowed_token_ids", "bad_words",
        "_bad_words_token_ids", "repetition_detection", "watermarking", "extra_args",
    }
)  # fmt: skip
"""Bend a reply; only the client's own run has them."""
REFUSED = {
    "prompt_logprobs": "(echo with logprobs) they come from the unguarded head",
    "prompt_logprob_token_ids": "they come from the unguarded head",
    "prompt_logprob_start": "it belongs to prompt_logprobs",
    "thinking_token_budget": "it forces tokens on guarded replies",
    "trace_decode_token_ids": "it forces tokens on guarded replies",
    "routed_experts_prompt_start": "it is for training, not for serving",
}
"""Not served, with the reason."""
SEEDS = (
    "seed is not served here: vLLM on the CPU stops when a seeded prompt is read in chunks; the "
    "operator can start it with --no-enable-chunked-prefill"
)
"""Where ``FrontEnd.seeds_are_fatal``."""


class SamplingRules:
    """The allow-list at work on one engine.

    Args:
        defaults: Sampling parameters of requests that say nothing, from the model's generation
            config: they are the operator's, so they neither bend a reply nor stay away from a
            guarded run.
    """

    def __init__(self, defaults: JsonMapping) -> None:
        known = set(SamplingParams.__struct_fields__)
        self._plain = SamplingParams(**{k: v for k, v in defaults.items() if k in known})

    def refuse_unserved(self, params: SamplingParams) -> None:
        """Refuse what the guard cannot answer for.

        Raises:
            VLLMValidationError: a parameter that is not served, or that no table here names.
        """
        for name in self._requested(params):
            if name in REFUSED:
                reason = REFUSED[name]
                raise VLLMValidationError(f"{name} is not served: {reason}", parameter=name)
            if name not in SHARED | NEUTRAL | BENDING:
                reason = "SafeSwitch does not know what it does"
                raise VLLMValidationError(f"{name} is not served: {reason}", parameter=name)

    def bent_by(self, params: SamplingParams) -> list[str]:
        """Names of the parameters that make a request constrained; empty where there is none."""
        names = [name for name in self._requested(params) if name in BENDING]
        return [*names, "temperature"] if params.temperature > self._hottest else names

    def guarded(self, params: SamplingParams) -> SamplingParams:
        """What the guarded runs of a request are sampled with."""
        own = self._plain.clone()
        for name in SHARED | NEUTRAL:
            setattr(own, name, getattr(params, name))
        own.temperature = min(params.temperature, self._hottest)
        return own

    @property
    def _hottest(self) -> float:
        return max(HOTTEST, float(self._plain.temperature))

    def _requested(self, params: SamplingParams) -> list[str]:
        """Names of the parameters with which the client asks for something."""
        names = params.__struct_fields__
        return [name for name in names if not self._asks_nothing(params, name)]

    def _asks_nothing(self, params: SamplingParams, name: str) -> bool:
        value = getattr(params, name)
        if value is None or value in ([], {}):
            return True
        return value in (getattr(self._plain, name), getattr(_NOTHING, name))


_NOTHING = SamplingParams()
