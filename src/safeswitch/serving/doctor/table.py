"""The checks in their order, and the whole examination."""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.serving.doctor import files, machine, server
from safeswitch.serving.doctor.base import Check, Finding, Installation, finding

CHECKS = (
    Check("python", machine.python),
    Check("packages", machine.packages),
    Check("device", machine.device),
    Check("vllm", machine.vllm),
    Check("threads", machine.threads),
    Check("environment", machine.environment),
    Check("bundle", files.bundle, "bundle"),
    Check("model", files.model, "model"),
    Check("policy", files.policy, "policy_file"),
    Check("keys", files.keys, "keys"),
    Check("audit", files.audit, "audit_db"),
    Check("disk", files.disk, "audit_db"),
    Check("health", server.health, "url"),
    Check("metrics", server.metrics, "url"),
)


def examine(at: Installation) -> Iterator[Finding]:
    """What each check says that there is something to look at for, as soon as it is known."""
    for check in CHECKS:
        if not check.about or getattr(at, check.about):
            yield finding(check, at)
