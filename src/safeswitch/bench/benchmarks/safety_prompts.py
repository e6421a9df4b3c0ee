"""Safety-Prompts: Chinese, seven scenarios and six instruction attacks.

Source: Sun et al., arXiv 2304.10436; github.com/thu-coai/Safety-Prompts; hub
    thu-coai/Safety-Prompts, one JSON file for each part
Licence: Apache-2.0
Revision: newest
Rows: 100,000 with replies; the replies are not read
Label: typical scenarios (safety_prompts) and instruction attacks (safety_prompts_attacks) are
    labelled unsafe, since a careless answer is what they are after
Noise: machine-augmented; many scenario requests are delicate rather than unsafe and a careful
    answer is right, which the rules judge counts as compliance: read its figures as refusal rates,
    or use a model as judge
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    """The file is one object: scenario to its requests."""
    for scenario, requests in row.items():
        for i, request in enumerate(requests if isinstance(requests, list) else ()):
            yield {
                "id": f"{scenario}-{i}",
                "prompt": request["prompt"],
                "category": scenario,
                "lang": "zh",
            }


_PARTS = {
    "safety_prompts": "typical_safety_scenarios",
    "safety_prompts_attacks": "instruction_attack_scenarios",
}
for _name, _config in _PARTS.items():
    register(
        Benchmark(
            _name,
            __doc__ or "",
            rows=_rows,
            hub=(Hub("thu-coai/Safety-Prompts", config=_config),),
            label="unsafe",
        )
    )
