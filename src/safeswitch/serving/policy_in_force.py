"""The policy in force: read anew when its file has changed, and left as it was where the new one
cannot be used.

Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from safeswitch.core.errors import SettingError, check_choice
from safeswitch.serving import metrics
from safeswitch.serving.policy import Facts, Policy, check_policy, read_policy, today
from safeswitch.switch.rules import Rules

_log = logging.getLogger("safeswitch.server")
_Seen = tuple[int, int, int]


class PolicyInForce:
    """See the module text.

    Args:
        path: The file.
        bundles: What is known of each bundle, by name; the first is the default.
        engine: ``transformers`` or ``vllm``.

    Raises:
        SettingError: the file, as it is now, cannot be used.
    """

    def __init__(self, path: Path, bundles: Mapping[str, Facts], engine: str) -> None:
        self._path, self._bundles, self._engine = path, dict(bundles), engine
        self._lock = threading.Lock()
        self._seen = self._stat()
        self._policy, self.id = self._read()
        self._rules: dict[tuple[str | None, str], Rules] = {}
        self.fault = ""

    def rules(self, key: str | None, bundle: str | None) -> Rules:
        """What is done with requests of a client (None: without a key) under a bundle (None: the
        default).

        Raises:
            SettingError: an unknown bundle.
        """
        name = bundle if bundle is not None else next(iter(self._bundles))
        check_choice("policy", "bundle", name, tuple(self._bundles))
        with self._lock:
            known = self._rules.get((key, name))
            if known is None:
                known = self._policy.rules(key, self._bundles[name])
                # a key that the file does not name is nobody in particular: it is not remembered
                if key is None or key in self._policy.keys:
                    self._rules[key, name] = known
            return known

    def allows(self, key: str | None, text: str) -> bool:
        """Whether a client's request is let through, whatever is seen in it."""
        return self._policy.allows(key, text, today())

    def refresh(self, *, anyway: bool = False) -> None:
        """Read the file again where it has changed, or ``anyway``.

        A file that cannot be used changes nothing: the fault is kept and logged, once.
        """
        with self._lock:
            seen = self._stat()
            if seen == self._seen and not anyway:
                return
            self._seen = seen
            try:
                policy, name = self._read()
            except SettingError as error:
                self.fault = str(error)
                metrics.POLICY_FAULT.set(1)
                _log.error("the policy %s stays in force: %s", self.id, error)
                return
            self._policy, self.id, self.fault, self._rules = policy, name, "", {}
        metrics.POLICY_FAULT.set(0)
        _log.warning("policy %s is in force (%s)", self.id, self._path)

    def _read(self) -> tuple[Policy, str]:
        policy, name = read_policy(self._path)
        check_policy(policy, self._bundles.values(), self._engine)
        return policy, name

    def _stat(self) -> _Seen | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
