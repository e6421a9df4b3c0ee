"""What admin keys may ask of a running server: other thresholds, and the policy read again.

Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Mapping

from safeswitch.core.json_types import JsonObject
from safeswitch.serving.errors import ApiError
from safeswitch.serving.keys import Key
from safeswitch.serving.policy_in_force import PolicyInForce

THRESHOLDS = "/safeswitch/thresholds"
"""``POST {"bundle": ..., "thresholds": {...}}`` by an admin key: puts thresholds in force and
answers those in force."""
POLICY = "/safeswitch/policy"
"""``POST {}`` by an admin key: reads the policy file again and answers what is in force."""


def needs_admin(key: Key | None, what: str) -> Key:
    """The key, where it is an admin's.

    Args:
        key: Of the client.
        what: What is asked for, and its verb, for the message.

    Raises:
        ApiError: 403, it is not.
    """
    if key is None or not key.admin:
        raise ApiError(
            403, f"{what} for admin keys (safeswitch keys add --admin)", "permission_error"
        )
    return key


def reload_policy(policy: PolicyInForce | None, payload: object, key: Key | None) -> JsonObject:
    """Read the policy file again; its id.

    Raises:
        ApiError: no admin key, no policy file, or a file that cannot be used.
    """
    needs_admin(key, "the policy is")
    if policy is None:
        raise ApiError(400, "this server has no policy file (safeswitch serve --policy-file)")
    if payload:
        raise ApiError(400, "give an empty object: the policy is read from its file")
    policy.refresh(anyway=True)
    if policy.fault:
        raise ApiError(400, f"the policy {policy.id} stays in force: {policy.fault}")
    return {"policy": policy.id}


def wanted_thresholds(payload: object) -> tuple[str, Mapping[str, float]]:
    """A bundle, and the thresholds that a body asks for by stage; none: they are only shown.

    Raises:
        ApiError: a body of another form.
    """
    if not isinstance(payload, dict) or set(payload) - {"bundle", "thresholds"}:
        raise ApiError(
            400,
            "give an object with bundle (its name) and thresholds (stage to number; none: only "
            "show)",
        )
    wanted, bundle = payload.get("thresholds", {}), payload.get("bundle", "default")
    numbers = isinstance(wanted, dict) and all(type(v) in (int, float) for v in wanted.values())
    if not numbers or not isinstance(bundle, str):
        raise ApiError(400, "bundle is a name, and thresholds are numbers by stage")
    return bundle, wanted
