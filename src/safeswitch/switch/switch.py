"""A switch: what to read, how to decide, what to do; and the folder it is kept in.

Folder: ``config.json`` (format version, base model, gate, actuator, how it was fitted), ``probers.safetensors``,
``refusal_head.safetensors`` and ``README.md`` (model card). Never pickle. Knows nothing of engines.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from safeswitch._version import __version__
from safeswitch.core.artifact import check_writable, read_json, read_tensors, write_json, write_tensors, write_text
from safeswitch.core.errors import ArtifactError, FingerprintError, SafeSwitchError
from safeswitch.core.types import Example
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.base import prober_from_state
from safeswitch.switch import body, heads, prompts  # noqa: F401  (registers their actions)
from safeswitch.switch.actuators import Actuator, actuator_from_state
from safeswitch.switch.card import model_card
from safeswitch.switch.fit import Say, does_not_refuse, fit
from safeswitch.switch.fit_data import Complied, Generating
from safeswitch.switch.fit_settings import FitSettings
from safeswitch.switch.gate import Gate, Stage

FORMAT_VERSION = 1
_CONFIG, _PROBERS, _HEAD, _CARD = "config.json", "probers.safetensors", "refusal_head.safetensors", "README.md"
_GATE_FIELDS = ("rule", "product_threshold", "watch_every", "watch_until", "always", "fail")
_FILES = (_PROBERS, _HEAD, _CARD, _CONFIG)
_STAGES = ("stage1", "stage2", "watch", "late")


@dataclass(frozen=True)
class BaseModel:
    """The model that a switch was fitted on."""

    model_id: str
    revision: str | None
    fingerprint: str
    num_layers: int
    hidden_size: int
    vocab_size: int

    @classmethod
    def of(cls, lm: LanguageModel) -> BaseModel:
        return cls(lm.model_id, lm.revision, lm.fingerprint, lm.num_layers, lm.hidden_size, lm.vocab_size)


@dataclass(frozen=True, eq=False)
class Switch:
    """Gate and actuator, bound to a base model.

    Args:
        gate: When to act.
        actuator: What to do then.
        base: The model it was fitted on; None for a switch without learned parts.
        record: How it was made: settings, calibration, metrics, data hash (plain JSON).
    """

    gate: Gate
    actuator: Actuator
    base: BaseModel | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        engine: Generating,
        data: Sequence[Example] | Mapping[str, Sequence[Example]],
        settings: FitSettings | None = None,
        *,
        complied: Complied = does_not_refuse,
        say: Say = lambda text: None,
    ) -> Switch:
        """Fit a switch on the engine's model; see :func:`safeswitch.switch.fit.fit` for the arguments."""
        fitted = fit(engine, data, settings, complied=complied, say=say)
        return cls(fitted.gate, fitted.actuator, BaseModel.of(engine.lm), fitted.record)

    def check(self, lm: LanguageModel, *, allow_other_model: bool = False) -> None:
        """Refuse a model that this switch was not fitted on.

        Raises:
            FingerprintError: other weights (both fingerprints are in the message).
            SettingError: a head of another width or vocabulary.
        """
        if self.base is not None and not allow_other_model and self.base.fingerprint != lm.fingerprint:
            raise FingerprintError(
                f"this switch was fitted on {self.base.model_id} (fingerprint {self.base.fingerprint}), but the model "
                f"is {lm.model_id} (fingerprint {lm.fingerprint}); fit a switch on that model, or pass "
                "allow_other_model=True if you know that the weights are equivalent"
            )
        actuator = self.actuator.widened(lm.vocab_size) if allow_other_model else self.actuator
        actuator.check(lm.hidden_size, lm.vocab_size)
        for layer in self.gate.layers:
            lm.layer(layer)

    def describe(self) -> dict[str, Any]:
        """The whole switch but its tensors, as plain JSON: what ``config.json`` holds."""
        return self._state()[0]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) over configuration and tensors: the identity of this switch.

        How it was fitted (``record``) and by which version of the library do not count.
        """
        config, tensors, head = self._state()
        digest = hashlib.sha256(json.dumps({**config, "record": {}, "library_version": ""}, sort_keys=True).encode())
        for name, tensor in sorted({**tensors, **{f"head.{n}": t for n, t in head.items()}}.items()):
            digest.update(f"{name}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the bundle. All files are written beside the old ones first and then moved into place.

        A bundle that is there already survives a full disk; ``config.json`` goes first and comes back last, so a
        folder caught in between is no bundle.

        Raises:
            ArtifactError: the folder cannot be written; what was there is still there.
        """
        folder = Path(folder)
        config, tensors, head = self._state()
        check_writable(folder)
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving.") as temporary:
                staged = Path(temporary)
                write_tensors(staged / _PROBERS, tensors)
                write_tensors(staged / _HEAD, head)
                write_text(staged / _CARD, model_card(self))
                write_json(staged / _CONFIG, config)
                (folder / _CONFIG).unlink(missing_ok=True)
                for name in _FILES:
                    (staged / name).replace(folder / name)
        except OSError as error:
            raise ArtifactError(f"cannot write {folder}: {error}") from error
        finally:
            if made and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """Configuration, prober tensors, head tensors."""
        tensors: dict[str, Tensor] = {}
        stages: dict[str, Any] = {}
        for name in _STAGES:
            stage: Stage | None = getattr(self.gate, name)
            if stage is None:
                continue
            config, learned = stage.prober.state()
            stages[name] = {"threshold": stage.threshold, "prober": config}
            tensors |= {f"{name}.{key}": value for key, value in learned.items()}
        action, head = self.actuator.state()
        gate = {n: getattr(self.gate, n) for n in _GATE_FIELDS}
        gate |= {"late_every": self.gate.late_every} if self.gate.late is not None else {}
        return (
            {
                "format_version": FORMAT_VERSION,
                "library_version": __version__,
                "base_model": asdict(self.base) if self.base is not None else None,
                "gate": {**gate, "stages": stages},
                "actuator": action,
                "record": dict(self.record),
            },
            tensors,
            head,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Switch:
        """Load a bundle from a folder or a hub repository.

        Raises:
            ArtifactError: no bundle there, or a damaged one, or a newer format.
        """
        folder = _folder(name, revision, token, cache_dir)
        config = read_json(folder / _CONFIG)
        if config.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"{folder / _CONFIG}: format version {config.get('format_version')!r} is not supported; "
                f"this library ({__version__}) reads {FORMAT_VERSION}"
            )
        learned, head = read_tensors(folder / _PROBERS), read_tensors(folder / _HEAD)
        try:
            gate: dict[str, Any] = dict(config["gate"])
            stages: dict[str, Any] = {
                stage: Stage(prober_from_state(entry["prober"], _below(learned, stage)), float(entry["threshold"]))
                for stage, entry in gate.pop("stages").items()
            }
            base = BaseModel(**config["base_model"]) if config["base_model"] is not None else None
            return cls(Gate(**stages, **gate), actuator_from_state(config["actuator"], head), base, config["record"])
        except (AttributeError, KeyError, TypeError, ValueError, SafeSwitchError) as error:
            raise ArtifactError(
                f"{folder / _CONFIG} does not describe a bundle that can be loaded: {type(error).__name__}: {error}"
            ) from error

    def push_to_hub(
        self, repo: str, *, private: bool = False, token: str | None = None, folder: str | Path | None = None
    ) -> str:
        """Upload the bundle to the Hugging Face hub; returns the address.

        Args:
            repo: ``user/name``.
            private: Create the repository as private.
            token: Hub token.
            folder: Where the bundle is saved first; a temporary folder by default.
        """
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(folder) if folder is not None else Path(temporary)
            self.save_pretrained(local)
            api = HfApi(token=token)
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=str(local), allow_patterns=list(_FILES), commit_message="Upload SafeSwitch bundle"
            )
            return str(done)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}


def _folder(name: str | Path, revision: str | None, token: str | None, cache_dir: str | Path | None) -> Path:
    local = Path(name)
    if local.is_dir():
        return local
    if local.is_absolute() or str(name).count("/") != 1:
        raise ArtifactError(f"{name} is neither a folder nor a hub id (user/name)")
    try:
        found = snapshot_download(
            str(name), revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(_FILES)
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ArtifactError(f"{name} is no folder here, and cannot be downloaded from the hub: {error}") from error
    return Path(found)
