"""The server's own log: one line a decision, beside the lines of the server that it stands in."""

from __future__ import annotations

import logging

_FORMAT = "%(levelname)s %(asctime)s %(name)s: %(message)s"


def log_to_stderr() -> None:
    """Print what SafeSwitch logs from level INFO on; nothing changes where the program has set its
    log up already."""
    log = logging.getLogger("safeswitch")
    if log.handlers or log.level != logging.NOTSET:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
