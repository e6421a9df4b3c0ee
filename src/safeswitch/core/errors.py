"""Every error that SafeSwitch raises on purpose.

    SafeSwitchError
    ├── DataError            a row, file or label that cannot be used
    ├── ModelError           a model that lacks what is needed (head, blocks, chat template, layer)
    │   ├── ContextLengthError   a prompt that does not fit the context
    │   └── TemplateError        a conversation that the chat template refuses, or of which it drops text
    ├── FitError             training data or settings from which nothing can be learned
    │   └── NotFittedError       score or save before fit
    ├── ActivationError      recorded states that are not finite, or missing
    ├── ArtifactError        a bundle or store that is damaged, truncated or of an unknown format
    │   └── FingerprintError     a bundle fitted on another model
    └── SettingError         an option outside its allowed values

Each message says what was wrong, where, and what is allowed.
"""

from __future__ import annotations


class SafeSwitchError(Exception):
    """Base class: catch this to catch every deliberate error of the library."""


class DataError(SafeSwitchError):
    """A row, file or label that cannot be used."""


class ModelError(SafeSwitchError):
    """A model that lacks what is needed."""


class ContextLengthError(ModelError):
    """A prompt that does not fit into the model's context."""


class TemplateError(ModelError):
    """A conversation that the chat template refuses, or of which it drops text."""


class FitError(SafeSwitchError):
    """Data or settings from which nothing can be learned."""


class NotFittedError(FitError):
    """``score`` or ``save`` was called before ``fit``."""


class ActivationError(SafeSwitchError):
    """Recorded states that are missing or not finite."""


class ArtifactError(SafeSwitchError):
    """A bundle or store that is damaged, truncated or of an unknown format."""


class FingerprintError(ArtifactError):
    """A bundle that was fitted on another model."""


class SettingError(SafeSwitchError):
    """An option outside its allowed values."""


def check_choice(owner: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise :class:`SettingError` naming parameter, owner, allowed values and the value got."""
    if value not in allowed:
        options = ", ".join(repr(a) for a in allowed)
        raise SettingError(f"{owner}: {name} must be one of {options}; got {value!r}")


def check_unicode(what: str, text: str) -> None:
    """Raise :class:`DataError` where ``text`` cannot be written as UTF-8, since it holds half of a
    surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} cannot be written as UTF-8: character {error.start + 1} is "
            f"{text[error.start]!r}, half of a surrogate pair"
        ) from error


def check_range(owner: str, name: str, value: float, low: float, high: float) -> None:
    """Raise :class:`SettingError` unless ``low <= value <= high`` (NaN is refused)."""
    if not low <= value <= high:
        raise SettingError(f"{owner}: {name} must lie in [{low}, {high}]; got {value!r}")
