"""Write ``design/vllm-fields.md`` from the tables of ``safeswitch.serving.vllm.fields``."""

from __future__ import annotations

from pathlib import Path

from safeswitch.serving.vllm.fields import KINDS, ROUTES, Field, Route

PAGE = Path(__file__).parents[1] / "design" / "vllm-fields.md"
HEAD = """# What a request to the guarded vLLM server may hold

Written by `python dev/vllm_fields.py` from `serving/vllm/fields.py`; read in vLLM 0.32.0 and 0.33.0.
Every other route is closed (404): stored responses, batches, raw tokens, beam search, pooling, speech,
control and development routes. Every other field is refused (400) under `enforce`.

"""


def page() -> str:
    """The whole page."""
    kinds = "\n".join(f"- **{kind}**: {meaning}." for kind, meaning in KINDS.items())
    bodies = [_table(route) for route in ROUTES if route.fields]
    bare = [f"`{route.method} {route.path}`" for route in ROUTES if not route.fields]
    return f"{HEAD}{kinds}\n\nWithout a body: {', '.join(bare)}.\n\n" + "\n".join(bodies)


def _table(route: Route) -> str:
    rows = [_row(name, field) for name, field in _sorted(route)]
    head = f"## `{route.method} {route.path}`\n\n| field | is | values |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _row(name: str, field: Field) -> str:
    since = f" (from vLLM {field.since})" if field.since else ""
    return f"| `{name}`{since} | {field.kind} | {_values(field)} |"


def _sorted(route: Route) -> list[tuple[str, Field]]:
    order = list(KINDS)
    return sorted(route.fields.items(), key=lambda item: (order.index(item[1].kind), item[0]))


def _values(field: Field) -> str:
    if field.kind == "refused":
        return " or ".join(f"`{v}`" for v in field.harmless) or "none"
    bounds = []
    if field.least is not None:
        bounds.append(f"from {field.least:.16g}")
    if field.most is not None:
        noun = "" if field.type in ("int", "number") else " entries"
        bounds.append(f"up to {field.most:.16g}{noun}")
    if field.longest is not None:
        bounds.append(f"{field.longest} characters each")
    return ", ".join([field.type, *bounds])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
