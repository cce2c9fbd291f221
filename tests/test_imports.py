"""The rooms of `src/balora` and which of them may import which."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "balora"
LIBRARY = {
    "adapters", "anchors", "config", "counterfactual", "errors", "fused", "losses", "model", "teacher_cache",
    "training", "utils",
}  # fmt: skip
PROGRAM = {"audit", "baselines", "cli", "data", "evaluation", "recipe", "report", "study", "world"}
#: Modules that may lie beside the rooms.
LOOSE = {"__init__", "cli", "config", "errors"}


def modules() -> dict[str, Path]:
    """Return every module's file by its dotted name; a package goes by the name of its folder."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_by(name: str, path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import of balora's own, wherever it stands in the file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            origin = importlib.util.resolve_name(origin, package) if node.level else origin
            # `from balora.data import causal_lm` imports a module, `from balora.data import load_table` the package.
            submodules = [f"{origin}.{alias.name}" for alias in node.names if f"{origin}.{alias.name}" in known]
            targets = submodules + [origin] * (len(submodules) < len(node.names))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            targets = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        else:
            continue
        yield from ((node.lineno, target) for target in targets if target in known)


def graph() -> dict[str, set[str]]:
    """Return the modules that each module imports."""
    files = modules()
    return {name: {to for _, to in imported_by(name, path, set(files))} - {name} for name, path in files.items()}


def circles(edges: dict[str, set[str]]) -> list[frozenset[str]]:
    """Return the strongly connected components of more than one node, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in edges[node]:
            if to not in index:
                visit(to)
                low[node] = min(low[node], low[to])
            elif to in stack:
                low[node] = min(low[node], index[to])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(frozenset(stack[at:]))
            del stack[at:]

    for node in edges:
        if node not in index:
            visit(node)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_room_is_of_the_library_or_of_the_program():
    rooms = {room(name) for name in modules()} - {"__init__"}
    assert rooms == LIBRARY | PROGRAM


def test_the_library_imports_nothing_of_the_program():
    files = modules()
    outward = [
        f"{path.relative_to(SOURCE)}:{line} imports {to}"
        for name, path in files.items()
        if room(name) in LIBRARY
        for line, to in imported_by(name, path, set(files))
        if room(to) in PROGRAM
    ]
    assert outward == []


def test_no_modules_import_each_other_in_a_circle():
    assert [sorted(circle) for circle in circles(graph())] == []


def documented() -> dict[str, set[str]]:
    """Return what each room imports, as CONTRIBUTING's table lists it, in its order."""
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \| .* \| ([\w, ]*)\|$", text, re.MULTILINE)
    return {name: set(imports.replace(",", " ").split()) for name, imports in rows}


def test_the_map_in_contributing_matches_the_imports():
    imported: dict[str, set[str]] = {}
    for module, targets in graph().items():
        imported.setdefault(room(module), set()).update(map(room, targets))
    for name in ("__init__", "errors"):
        imported.pop(name)
    actual = {name: targets - {name, "errors", "__init__"} for name, targets in imported.items()}
    assert documented() == actual
    order = list(documented())
    assert all(order.index(target) < order.index(name) for name in order for target in actual[name])


def test_at_most_four_modules_lie_loose():
    assert {path.stem for path in SOURCE.glob("*.py")} <= LOOSE


def test_the_search_finds_imports_of_every_kind_and_circles(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import balora.errors\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from balora.data import load_table, causal_lm\n"
        "def f():\n    from .utils import files\n    from . import losses\n"
        "    importlib.import_module('balora.report')\n"
    )
    known = {"balora", "balora.errors", "balora.data", "balora.data.causal_lm", "balora.utils", "balora.utils.files"}
    found = set(imported_by("balora.module", file, known | {"balora.losses", "balora.report"}))
    lines = {(1, "errors"), (4, "data"), (4, "data.causal_lm"), (6, "utils.files"), (7, "losses"), (8, "report")}
    assert found == {(line, f"balora.{name}") for line, name in lines}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
