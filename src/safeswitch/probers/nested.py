"""State of probers that hold probers: a list of configs, and tensors prefixed by the place in that
list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import shown
from safeswitch.probers.base import Prober, prober_from_state


def nest(probers: Sequence[Prober]) -> tuple[list[JsonObject], dict[str, Tensor]]:
    """Configs in order, and tensors named ``<place>.<name>``."""
    configs: list[JsonObject] = []
    tensors: dict[str, Tensor] = {}
    for i, prober in enumerate(probers):
        config, own = prober.state()
        configs.append(config)
        tensors.update({f"{i}.{name}": t for name, t in own.items()})
    return configs, tensors


def unnest(config: JsonMapping, key: str, tensors: Mapping[str, Tensor]) -> tuple[Prober, ...]:
    """Inverse of :func:`nest` for the configs under ``key``.

    Raises:
        ArtifactError: there is no such list, or it is empty; a tensor that belongs to none of them.
    """
    configs = config.get(key)
    if not isinstance(configs, list) or not configs:
        raise ArtifactError(
            f"{config.get('kind')} prober: {key!r} must be a list of prober configs; got "
            f"{configs!r}"
        )
    places = {str(i) for i in range(len(configs))}
    alone = [name for name in tensors if name.partition(".")[0] not in places]
    if alone:
        raise ArtifactError(
            f"{config.get('kind')} prober: tensor {shown(alone[0])} belongs to none of its probers"
        )
    probers = []
    for i, inner in enumerate(configs):
        prefix = f"{i}."
        own = {
            name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
        }
        probers.append(prober_from_state(inner, own))
    return tuple(probers)
