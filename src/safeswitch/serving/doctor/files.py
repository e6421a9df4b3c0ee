"""Checks of what the server is given: switch, model, policy, keys, audit database, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from safeswitch.core.artifact import check_writable
from safeswitch.core.errors import SettingError
from safeswitch.serving.doctor.base import Hint, Installation
from safeswitch.serving.settings import ServerSettings
from safeswitch.switch.rebuild import check_fits
from safeswitch.switch.switch import BaseModel, Switch

_LITTLE = 1 << 30
"""Bytes of free disk below which there is a hint."""


class Shape(NamedTuple):
    """Sizes of a model, as its configuration has them."""

    num_layers: int
    hidden_size: int
    vocab_size: int


def bundle(at: Installation) -> str:
    """Whether the switch is whole, and what it says that it is."""
    switch = Switch.from_pretrained(at.bundle)
    told = switch.describe()
    base = switch.base.model_id if switch.base is not None else "any model"
    return f"format {told['format_version']}, fingerprint {switch.fingerprint}, fitted on {base}"


def model(at: Installation) -> str:
    """Configuration and tokenizer of the model, and whether the switch fits them; no weights."""
    from transformers import AutoConfig

    from safeswitch.models.load import find_source, load_tokenizer

    source = find_source(at.model)
    tokenizer = load_tokenizer(source, {})
    place = source.base.name if source.base is not None else source.name
    file = {"gguf_file": source.file} if source.file else {}
    config = AutoConfig.from_pretrained(place, **file).get_text_config()
    shape = Shape(config.num_hidden_layers, config.hidden_size, config.vocab_size)
    told = f"{shape.num_layers} layers, {shape.hidden_size} wide, {shape.vocab_size} tokens"
    if len(tokenizer) > shape.vocab_size:
        told += f" (the tokenizer knows {len(tokenizer)})"
    if at.bundle:
        _check_fit(Switch.from_pretrained(at.bundle), shape)
        told += "; the switch fits, its fingerprint is held against the weights at the start"
    if getattr(tokenizer, "chat_template", None) is None:
        return Hint(f"{told}; it has no chat template: give --chat-template to safeswitch serve")
    return told


def _check_fit(switch: Switch, shape: Shape) -> None:
    base: BaseModel | None = switch.base
    if base is not None and shape != Shape(base.num_layers, base.hidden_size, base.vocab_size):
        raise SettingError(
            f"the switch was fitted on {base.model_id} ({base.num_layers} layers, "
            f"{base.hidden_size} wide, {base.vocab_size} tokens), and this model has "
            f"{shape.num_layers}, {shape.hidden_size}, {shape.vocab_size}: serve that model, or "
            "fit a switch on this one (safeswitch fit)"
        )
    check_fits(switch.gate, switch.actuator, shape)


def policy(at: Installation) -> str:
    """Whether the policy can be used, with the switch and the keys where they are given."""
    from safeswitch.serving.keys import check_names
    from safeswitch.serving.policy import Facts, check_policy, facts_of, read_policy

    assert at.policy_file is not None
    found, name = read_policy(at.policy_file)
    given = {"default": at.bundle} if at.bundle else {}
    bundles = [Facts.parse(bundle, told) for bundle, told in facts_of(given).items()]
    check_policy(found, bundles, at.engine)
    if at.keys is not None:
        check_names(found.keys, at.keys)
    return f"policy {name} can be used"


def keys(at: Installation) -> str:
    """Whether the keys can be read, and by whom the file can be changed."""
    from safeswitch.serving.keys import read_keys

    assert at.keys is not None
    found = read_keys(at.keys)
    mode = at.keys.stat().st_mode
    if mode & 0o022:
        raise SettingError(f"{at.keys} can be written by others than its owner: chmod 600 it")
    if mode & 0o004:
        return Hint(f"{len(found)} keys; everybody may read {at.keys}: chmod 600 it")
    return f"{len(found)} keys"


def audit(at: Installation) -> str:
    """Whether the database answers, and has the columns of this version; nothing is written."""
    from safeswitch.serving.audit import Audit

    store = Audit(at.audit_db)
    try:
        file = _file(at)
        if file is not None:
            check_writable(file.parent)
            if not file.exists():
                return f"{file} is not there yet; the server makes it at its start"
            if not os.access(file, os.W_OK):
                raise SettingError(f"{file} may not be written by this user")
        lacking = store.columns_lacking()
    finally:
        store.close()
    if lacking is None:
        return "the database answers; the server makes its table at its start"
    if lacking:
        return Hint(
            f"the table is of an earlier version and lacks {', '.join(lacking)}: the server adds "
            "them at its first record, and its user must be allowed to alter the table then"
        )
    return "the database answers; its table is that of this version"


def disk(at: Installation) -> str:
    """Room for the audit: its database where that is a file, and its buffer in this folder."""
    file = _file(at)
    folders = [Path.cwd(), *([file.absolute().parent] if file is not None else [])]
    free, folder = min((_free(folder), folder) for folder in folders)
    told = f"{free / (1 << 30):.1f} GiB are free at {folder}"
    if free < ServerSettings().audit_buffer_limit:
        raise SettingError(f"{told}, less than the audit's buffer may take; make room")
    return Hint(f"{told}; make room before the audit fills it") if free < _LITTLE else told


def _file(at: Installation) -> Path | None:
    """The audit's file, None where it is a server or in memory."""
    from sqlalchemy import make_url

    url = make_url(at.audit_db)
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def _free(folder: Path) -> int:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free
