"""What the operator decides about the server. Handed to the server's processes in one environment
variable, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from safeswitch.core.errors import SettingError, check_choice, check_range
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.engines.context import POLICIES
from safeswitch.switch.switch import Switch

VARIABLE = "SAFESWITCH_SERVER"
AUDIT_FAILURES = ("block", "buffer")
TOOL_RESULTS = ("mark", "strip", "refuse")


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server around the engine.

    Args:
        clients_may: Policies that a client may ask for with ``{"safeswitch": {"policy": ...}}``;
            nobody may by default. With ``keys`` each key says so itself.
        clients_bundles: Bundles that a client may ask for with ``{"safeswitch": {"bundle": ...}}``;
            none by default.
        clients_scores: Whether clients may see scores and thresholds; not by default. With ``keys``
            each key says so itself.
        keys: File of API keys; empty lets everybody in.
        rate_storage: Where requests are counted for rate limits, as a URI of the package
            ``limits``.
        max_tokens: Longest reply that a client may ask for, and gets when it does not say; 0 leaves
            that to the engine.
        refusal_field: Move the text of a switched chat reply into ``message.refusal`` (in streams
            ``delta.refusal``), where OpenAI's clients look for it. Where a client asks for a reply
            that is parsed it always stands there.
        max_body: Largest request body, in bytes; 0: what the model's context can hold, at most 1
            MiB.
        error_delay: Seconds before a request is told that it is refused, so that a client that
            sends nothing else cannot keep the server busy with it.
        max_choices: Most replies that one request may ask for, ``n`` to each of its prompts.
        injection: Whether the engine has a bundle that reads tool results and documents for
            instructions inside them.
        tool_results: What is done with a flagged tool result in a chat: ``mark`` puts a warning in
            front, ``strip`` takes the text out, ``refuse`` turns the request away. Empty reads none
            there, and advises ``refuse`` where they are read without an answer.
        audit: SQLAlchemy URL of the audit database; empty for none.
        audit_failure: When the audit database cannot be written: ``block`` answers 503, ``buffer``
            keeps records in ``audit_buffer`` until it can.
        audit_buffer: SQLite file for records that wait; a JSONL file of earlier versions beside it
            is taken over.
        audit_buffer_limit: Most bytes of records in that file; beyond it requests are blocked.
        audit_text: Keep the request's text in the audit, not only its hash.
        ui: Serve the page at ``/ui``.
        ui_pilot_text: Let the page show what is withheld: the text of pilot tokens, also of those
            that are rolled back (transformers server only), and to clients of a server without
            keys the recorded requests' text. For a demo on a machine of one's own.
        ui_reviews: File of verdicts (``safeswitch review``) that the page adds to; empty takes none.
        calibration: Benign stage-1 scores of each bundle's calibration (see :class:`Histogram`), by
            name; what drift is measured against.
        drift_bound: Largest population stability index of a bundle's scores against these that
            raises no alarm.
        tell_kinds: Whether every client is told the kind of harm and its severity; else whoever may
            see scores.
        policy_file: What is done by client and kind of harm (:mod:`safeswitch.serving.policy`);
            empty for the bundles' own thresholds and action.
        engine: Engine behind the server, which a policy must fit.
        bundles: What a policy must know of each bundle
            (:class:`safeswitch.serving.policy.Facts`), by name, the default first.
    """

    clients_may: tuple[str, ...] = ()
    clients_bundles: tuple[str, ...] = ()
    clients_scores: bool = False
    keys: str = ""
    rate_storage: str = "async+memory://"
    max_tokens: int = 0
    refusal_field: bool = False
    max_body: int = 0
    error_delay: float = 0.0
    max_choices: int = 128
    injection: bool = False
    tool_results: str = ""
    audit: str = ""
    audit_failure: str = "block"
    audit_buffer: str = "audit-buffer.db"
    audit_buffer_limit: int = 64 << 20
    audit_text: bool = False
    ui: bool = False
    ui_pilot_text: bool = False
    ui_reviews: str = ""
    calibration: Mapping[str, JsonMapping] = field(default_factory=dict)
    drift_bound: float = 0.25
    tell_kinds: bool = False
    policy_file: str = ""
    engine: str = "transformers"
    bundles: Mapping[str, JsonMapping] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("clients_may", "clients_bundles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for policy in self.clients_may:
            check_choice("ServerSettings", "clients_may", policy, POLICIES)
        check_choice("ServerSettings", "audit_failure", self.audit_failure, AUDIT_FAILURES)
        if self.tool_results:
            check_choice("ServerSettings", "tool_results", self.tool_results, TOOL_RESULTS)
        if self.max_body < 0 or self.audit_buffer_limit < 1:
            raise SettingError(
                "ServerSettings: max_body must be 0 or more bytes, audit_buffer_limit 1 byte or "
                "more"
            )
        check_choice("ServerSettings", "engine", self.engine, ("transformers", "vllm"))
        check_range("ServerSettings", "error_delay", self.error_delay, 0.0, 60.0)
        check_range("ServerSettings", "drift_bound", self.drift_bound, 0.01, 100.0)
        if self.ui_pilot_text and not self.ui:
            raise SettingError("ServerSettings: ui_pilot_text (--ui-pilot-text) needs ui (--ui)")
        if self.ui_reviews and not (self.ui and self.audit):
            raise SettingError(
                "ServerSettings: ui_reviews (--ui-reviews) needs ui (--ui) and audit (--audit)"
            )
        if self.max_choices < 1:
            raise SettingError(
                f"ServerSettings: max_choices must be 1 or more; got {self.max_choices}"
            )
        if self.max_tokens < 0:
            raise SettingError(
                f"ServerSettings: max_tokens must be 0 (no limit) or more; got {self.max_tokens}"
            )

    def export(self) -> None:
        """Put these settings into the environment, for the processes that are started from here."""
        os.environ[VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> ServerSettings:
        """What :meth:`export` wrote; the defaults where nothing was.

        Raises:
            SettingError: not JSON, or fields that do not exist.
        """
        text = os.environ.get(VARIABLE, "{}")
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise SettingError(
                f"{VARIABLE} must hold a JSON object of ServerSettings' fields: {error}"
            ) from error


def calibration_of(bundles: Mapping[str, str]) -> JsonObject:
    """Benign calibration scores of the bundles that have them on record, by name.

    Raises:
        ArtifactError: a folder that holds no bundle.
    """
    records = {name: Switch.from_pretrained(folder).record for name, folder in bundles.items()}
    found = {
        name: dict(record.get("calibration") or {}).get("benign_stage1")
        for name, record in records.items()
    }
    return {name: scores for name, scores in found.items() if scores is not None}
