"""A switch: what to read, how to decide, what to do; and the folder it is kept in.

Folder: ``config.json`` (format version, base model, gate, actuator, how it was fitted),
    ``probers.safetensors``,
``refusal_head.safetensors`` and ``README.md`` (model card). Never pickle. Knows nothing of engines.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from safeswitch._version import __version__
from safeswitch.core.artifact import (
    check_writable,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from safeswitch.core.errors import (
    ArtifactError,
    FingerprintError,
    SafeSwitchError,
    SettingError,
    check_range,
)
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.lock import folder_writer
from safeswitch.core.strict import (
    build,
    check_finite,
    check_texts,
    cleaned,
    one_line,
    only,
    shown,
    take,
)
from safeswitch.core.track import Track, untracked
from safeswitch.switch.actuators.base import Actuator, actuator_from_state
from safeswitch.switch.card import model_card
from safeswitch.switch.format import FORMAT_VERSION, Stored, check_format, migrate
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.rebuild import STAGES, check_fits, gate_from

if TYPE_CHECKING:
    from safeswitch.core.types import Example
    from safeswitch.fitting.observe import Complied
    from safeswitch.fitting.settings import FitSettings
    from safeswitch.models.language_model import LanguageModel
    from safeswitch.switch.engine import ReadingEngine

_CONFIG, _PROBERS, _HEAD, _CARD = (
    "config.json",
    "probers.safetensors",
    "refusal_head.safetensors",
    "README.md",
)
_GATE_FIELDS = ("rule", "product_threshold", "watch_every", "watch_until", "always", "fail")
_FILES = (_PROBERS, _HEAD, _CARD, _CONFIG)
_FIELDS = ("format_version", "library_version", "base_model", "gate", "actuator", "record")
_LONGEST_CONFIG = 16 << 20
"""Bytes of a configuration that are read; a bundle's has some thousands."""
_MOST = 2**24
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
_WAIT_S = 30.0


@dataclass(frozen=True)
class BaseModel:
    """The model that a switch was fitted on. Characters of ``model_id`` that would move a
    terminal's cursor become U+FFFD."""

    model_id: str
    revision: str | None
    fingerprint: str
    num_layers: int
    hidden_size: int
    vocab_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_id", one_line(self.model_id))
        for name in ("num_layers", "hidden_size", "vocab_size"):
            check_range("BaseModel", name, getattr(self, name), 1, _MOST)

    @classmethod
    def of(cls, lm: LanguageModel) -> BaseModel:
        return cls(
            lm.model_id, lm.revision, lm.fingerprint, lm.num_layers, lm.hidden_size, lm.vocab_size
        )


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
    record: JsonMapping = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        engine: ReadingEngine,
        data: Sequence[Example] | Mapping[str, Sequence[Example]] | None = None,
        settings: FitSettings | None = None,
        *,
        complied: Complied | None = None,
        say: Callable[[str], None] = lambda text: None,
        track: Track = untracked,
    ) -> Switch:
        """Fit a switch on the engine's model; see :func:`safeswitch.fitting.fit.fit` for the
        arguments.

        Without ``data`` it is fitted on the starter set that ships with the package.
        """
        # what runs must not load what trains, so the trainers are imported when somebody fits
        from safeswitch.fitting.fit import does_not_refuse, fit

        fitted = fit(
            engine,
            data,
            settings,
            complied=complied or does_not_refuse,
            say=say,
            track=track,
        )
        return cls(fitted.gate, fitted.actuator, BaseModel.of(engine.lm), fitted.record)

    def check(self, lm: LanguageModel, *, allow_other_model: bool = False) -> None:
        """Refuse a model that this switch was not fitted on.

        Raises:
            FingerprintError: other weights (both fingerprints are in the message).
            SettingError: a head of another width or vocabulary, or a layer that the model does not
                have.
            ModelError: an output of a block in which it cannot be found.
        """
        if (
            self.base is not None
            and not allow_other_model
            and self.base.fingerprint != lm.fingerprint
        ):
            raise FingerprintError(
                f"this switch was fitted on {self.base.model_id} (fingerprint "
                f"{self.base.fingerprint}), but the model is {lm.model_id} (fingerprint "
                f"{lm.fingerprint}); fit a switch on that model, or make the engine with "
                "allow_other_model=True if you know that the weights are equivalent"
            )
        actuator = self.actuator.widened(lm.vocab_size) if allow_other_model else self.actuator
        actuator.check(lm.hidden_size, lm.vocab_size)
        for point in self.gate.points:
            lm.site(point.site)

    def describe(self) -> JsonObject:
        """The whole switch but its tensors, as plain JSON: what ``config.json`` holds."""
        return self._state()[0]

    @property
    def idle(self) -> bool:
        """Whether it neither reads nor changes anything, as the switch of an untouched model."""
        gate = self.gate
        return self.actuator.kind == "none" and not gate.always and not gate.thresholds()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) over configuration and tensors: the identity of this
        switch.

        How it was fitted (``record``) and by which version of the library do not count.
        """
        config, tensors, head = self._state()
        digest = hashlib.sha256(
            json.dumps({**config, "record": {}, "library_version": ""}, sort_keys=True).encode()
        )
        for name, tensor in sorted(
            {**tensors, **{f"head.{n}": t for n, t in head.items()}}.items()
        ):
            digest.update(f"{name}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the bundle. All files are written beside the old ones first and then moved into
        place.

        A bundle that is there already survives a full disk; ``config.json`` goes first and comes
        back last, so a folder caught in between is no bundle.

        Raises:
            ArtifactError: the folder cannot be written, or another process is writing it for long;
                what was there is still there.
        """
        folder = Path(folder)
        config, tensors, head = self._state()
        check_writable(folder)
        made = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (
                folder_writer(folder, wait_s=_WAIT_S),
                tempfile.TemporaryDirectory(dir=folder, prefix=".saving.") as temporary,
            ):
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

    def _state(self) -> tuple[JsonObject, dict[str, Tensor], dict[str, Tensor]]:
        """Configuration, prober tensors, head tensors."""
        tensors: dict[str, Tensor] = {}
        stages: JsonObject = {}
        for name in STAGES:
            stage: Stage | None = getattr(self.gate, name)
            if stage is None:
                continue
            config, learned = stage.prober.state()
            stages[name] = {"threshold": stage.threshold, "prober": config}
            tensors |= {f"{name}.{key}": value for key, value in learned.items()}
        action, head = self.actuator.state()
        gate = {n: getattr(self.gate, n) for n in _GATE_FIELDS}
        gate |= {"late_every": self.gate.late_every} if self.gate.late is not None else {}
        if self.gate.harms is not None:
            gate["harms"], learned = self.gate.harms.state()
            tensors |= {f"harms.{key}": value for key, value in learned.items()}
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
        """Load a bundle from a folder or a hub repository; one of an older format is migrated in
        memory (:mod:`safeswitch.switch.format`), and stays on disk as it is.

        Raises:
            ArtifactError: no bundle there, or one that is damaged, of another format, or holds
                anything that is unknown, of another type or size, or out of its range.
        """
        folder = _folder(name, revision, token, cache_dir)
        config = _config(folder / _CONFIG)
        # asked first: what a later version keeps in its other files is not for us to judge
        check_format(config, str(folder / _CONFIG))
        learned, head = _tensors(folder / _PROBERS), _tensors(folder / _HEAD)
        if _config(folder / _CONFIG) != config:
            raise ArtifactError(f"{folder} was written anew while it was read; load it again")
        try:
            return cls._rebuilt(*migrate(Stored(config, learned, head), str(folder / _CONFIG)))
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
            SafeSwitchError,
        ) as error:
            raise ArtifactError(
                f"{folder / _CONFIG} does not describe a bundle that can be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error

    @classmethod
    def _rebuilt(
        cls, config: JsonMapping, learned: Mapping[str, Tensor], head: Mapping[str, Tensor]
    ) -> Switch:
        """Inverse of :meth:`_state`."""
        only(config, _FIELDS, "bundle")
        action = take(config, "actuator", JsonMapping, "bundle")
        record = cleaned(take(config, "record", JsonMapping, "bundle"))
        take(config, "library_version", str, "bundle")
        check_texts(
            {name: value for name, value in config.items() if name not in ("record", "actuator")},
            "bundle",
        )
        check_texts(action, "actuator", controls=True)
        base = None
        if take(config, "base_model", JsonMapping | None, "bundle") is not None:
            base = build(BaseModel, config["base_model"], "base_model")
            given = config["base_model"]["model_id"]
            if base.model_id != given:
                raise SettingError(
                    f"base_model.model_id must be one line of text; got {shown(given)}"
                )
        gate = gate_from(take(config, "gate", JsonMapping, "bundle"), learned)
        actuator = actuator_from_state(action, head)
        if base is not None:
            check_fits(gate, actuator, base)
        return cls(gate, actuator, base, record)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        token: str | None = None,
        folder: str | Path | None = None,
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
                repo_id=repo,
                folder_path=str(local),
                allow_patterns=list(_FILES),
                commit_message="Upload SafeSwitch bundle",
            )
            return str(done)


def _config(path: Path) -> JsonObject:
    """A bundle's configuration.

    Raises:
        ArtifactError: no such file, one that is far too large, or no JSON object.
    """
    if path.is_file() and path.stat().st_size > _LONGEST_CONFIG:
        raise ArtifactError(
            f"{path} has {path.stat().st_size} bytes; at most {_LONGEST_CONFIG} are read"
        )
    return read_json(path)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a bundle, every number of them finite.

    Raises:
        ArtifactError: no such file, a damaged one, or a tensor that cannot be one of a bundle's.
    """
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        where = f"{path}: tensor {shown(name)}"
        if tensor.dtype not in _DTYPES:
            raise ArtifactError(
                f"{where} must be one of {', '.join(map(str, _DTYPES))}; it is {tensor.dtype}"
            )
        check_finite(where, tensor)
    return tensors


def _folder(
    name: str | Path, revision: str | None, token: str | None, cache_dir: str | Path | None
) -> Path:
    local = Path(name)
    if local.is_dir():
        return local
    if local.is_absolute() or str(name).count("/") != 1:
        raise ArtifactError(f"{name} is neither a folder nor a hub id (user/name)")
    try:
        found = snapshot_download(
            str(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            allow_patterns=list(_FILES),
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{name} is no folder here, and cannot be downloaded from the hub: {error}"
        ) from error
    return Path(found)
