"""How the code reads, in figures: python dev/house.py [TREE ...]

For each tree (by default the one that this file stands in): files and code lines, tokens a line,
lengths of files and functions, ``Any`` in annotations, type tests on actuators, modules with one
importer, modules behind ``safeswitch.Switch``, comprehensions inside comprehensions, docstrings
that name a shape, doctests, tests against code, and the README's bytes. Nano's tables are left out:
they are data.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SHAPE = re.compile(r"``\[[\w, .*+-]+\]``")


def files(tree: Path) -> list[Path]:
    """Python files of the package."""
    found = (tree / "src" / "safeswitch").rglob("*.py")
    return sorted(p for p in found if "tables" not in p.relative_to(tree).parts)


def code_lines(text: str) -> tuple[int, int]:
    """Lines that hold code, and tokens on them; docstrings count as neither."""
    lines: set[int] = set()
    tokens = 0
    fresh = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _NO_CODE:
            fresh = fresh or token.type in (tokenize.NEWLINE, tokenize.INDENT)
            continue
        if fresh and token.type == tokenize.STRING:
            continue
        fresh = False
        tokens += 1
        lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines), tokens


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Every annotation in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            yield from (a.annotation for a in every if a is not None and a.annotation is not None)
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def count_any(tree: ast.AST) -> int:
    """``Any`` in annotations."""
    return sum(
        isinstance(n, ast.Name) and n.id == "Any" for a in annotations(tree) for n in ast.walk(a)
    )


def tests_on_actuators(tree: ast.AST) -> int:
    """``isinstance`` whose second argument names an actuator's class."""
    found = 0
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "isinstance"
        ):
            found += bool(
                re.search(
                    r"Actuator|Steering|SystemPrompt|NoAction|Adapter|RefusalHead",
                    ast.unparse(node.args[1]),
                )
            )
    return found


def nested(tree: ast.AST) -> int:
    """Comprehensions inside comprehensions."""
    outer = [n for n in ast.walk(tree) if isinstance(n, _COMPREHENSIONS)]
    return sum(
        any(isinstance(i, _COMPREHENSIONS) for i in ast.walk(n) if i is not n) for n in outer
    )


def tensor_docstrings(tree: ast.AST) -> tuple[int, int]:
    """Public functions that take or give tensors and have a docstring; those of them that name a
    shape."""
    found = shapes = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text and "Tensor" in " ".join(ast.unparse(a) for a in annotations(node)):
            found += 1
            shapes += bool(_SHAPE.search(text))
    return found, shapes


def loaded(tree: Path) -> tuple[int, list[str]]:
    """Modules of the package behind ``safeswitch.Switch``, and which heavy packages come with
    them."""
    code = "import sys, safeswitch; safeswitch.Switch; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(tree / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    names = done.stdout.split()
    heavy = [name for name in ("sklearn", "scipy", "transformers") if name in names]
    return sum(name.split(".")[0] == "safeswitch" for name in names), heavy


def one_importer(tree: Path) -> int:
    """Modules of at most 70 lines that exactly one other module imports."""
    texts = {p: p.read_text(encoding="utf-8") for p in files(tree)}
    found = 0
    for path, text in texts.items():
        name = ".".join(path.relative_to(tree / "src").with_suffix("").parts)
        package, _, last = name.rpartition(".")
        asked = re.compile(
            rf"from {re.escape(name)} import|from {re.escape(package)} import [^\n]*\b{last}\b"
        )
        importers = sum(bool(asked.search(other)) for p, other in texts.items() if p != path)
        found += importers == 1 and len(text.splitlines()) <= 70
    return found


def spread(values: Sequence[int]) -> str:
    """Median, 90th percentile and maximum."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.0f} / {ordered[int(0.9 * (len(ordered) - 1))]} / {ordered[-1]}"


def measured(tree: Path) -> dict[str, str]:
    """Figure by name."""
    texts = [p.read_text(encoding="utf-8") for p in files(tree)]
    trees = [ast.parse(text) for text in texts]
    counts = [code_lines(text) for text in texts]
    lines, tokens = sum(n for n, _ in counts), sum(t for _, t in counts)
    functions = [
        node.end_lineno - node.lineno + 1
        for one in trees
        for node in ast.walk(one)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    tensors = [tensor_docstrings(one) for one in trees]
    modules, heavy = loaded(tree)
    tests = sum(
        len(p.read_text(encoding="utf-8").splitlines()) for p in (tree / "tests").rglob("*.py")
    )
    whole = sum(len(text.splitlines()) for text in texts)

    def total(count: Callable[[ast.AST], int]) -> str:
        return str(sum(count(one) for one in trees))

    return {
        "files": str(len(texts)),
        "code lines": str(lines),
        "tokens a code line": f"{tokens / lines:.2f}",
        "lines over 100 columns": str(
            sum(len(row) > 100 for text in texts for row in text.splitlines())
        ),
        "file length, median / p90 / max": spread([len(text.splitlines()) for text in texts]),
        "function length, median / p90 / max": spread(functions),
        "Any in annotations": total(count_any),
        "type tests on actuators": total(tests_on_actuators),
        "nested comprehensions": total(nested),
        "short modules with one importer": str(one_importer(tree)),
        "modules behind safeswitch.Switch": f"{modules}, {', '.join(heavy) or 'nothing heavy'}",
        "tensor docstrings that name a shape": f"{sum(s for _, s in tensors)} of {sum(n for n, _ in tensors)}",
        "doctests": str(sum(text.count(">>> ") for text in texts)),
        "test lines / code lines, all": f"{tests / whole:.2f}",
        "README, bytes": str((tree / "README.md").stat().st_size),
    }


def main() -> None:
    """Print the figures of every tree, side by side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("trees", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    trees = parser.parse_args().trees
    columns = [measured(tree.resolve()) for tree in trees]
    print(f"| | {' | '.join(tree.resolve().name for tree in trees)} |\n|---|{'---|' * len(trees)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
