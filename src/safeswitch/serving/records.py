"""What becomes of a decision before its reply leaves: counted, traced, logged, put on record.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import dataclass

from opentelemetry.trace import Span

from safeswitch.core.json_types import JsonObject
from safeswitch.engines.context import ChoiceDecision, Context
from safeswitch.serving import metrics
from safeswitch.serving.audit import Audit, AuditError
from safeswitch.serving.tracing import add_decision

_log = logging.getLogger("safeswitch.server")


@dataclass(frozen=True, eq=False)
class DecisionRecords:
    """The decisions on one request.

    Args:
        audit: Where they are kept; None keeps none.
        keeps_text: Whether the request's text is kept as well, beside its hash.
        request_id: Of the request.
        client: Name of its key; None where clients have none.
        span: Of its trace.
    """

    audit: Audit | None
    keeps_text: bool
    request_id: str
    client: str | None
    span: Span

    async def add(self, context: Context, decided: ChoiceDecision) -> None:
        """Count the decision, trace it, log it and put it on record.

        Raises:
            AuditError: it cannot be kept; ``context`` says so too.
        """
        metrics.count(decided.decision, decided.bundle, decided.policy)
        add_decision(self.span, decided)
        d = decided.decision
        _log.info(
            "request %s choice %d: fired=%s stage=%s token=%d policy=%s",
            self.request_id,
            decided.choice,
            d.fired,
            d.stage,
            d.token_index,
            decided.policy,
        )
        if self.audit is None:
            return
        try:
            await asyncio.to_thread(self.audit.write, self._row(decided, context.policy_id))
        except AuditError:
            context.unrecorded = True
            metrics.AUDIT_LOST.inc()
            raise

    def _row(self, decided: ChoiceDecision, policy_id: str) -> JsonObject:
        d, raw = decided.decision, decided.text.encode("utf-8", "surrogatepass")
        kept = None
        if self.keeps_text:
            kept = raw.decode("utf-8", "replace").replace("\0", "\ufffd")
        return {
            "request_id": self.request_id,
            "client": self.client,
            "choice": decided.choice,
            "bundle": decided.bundle,
            "bundle_id": decided.bundle_id,
            "policy": decided.policy,
            "fired": d.fired,
            "stage": d.stage,
            "token_index": d.token_index,
            "scores": json.dumps(dict(d.scores)),
            "thresholds": json.dumps(dict(d.thresholds)),
            "error": d.error,
            "text_sha256": hashlib.sha256(raw).hexdigest(),
            "text": kept,
            "category": d.category or None,
            "categories": json.dumps(dict(d.categories)) if d.categories else None,
            "severity": d.severity or None,
            "act": d.act or None,
            "policy_id": policy_id or None,
        }
