"""The floor plan, enforced: who imports whom, which file is the door to which package.

docs/architecture.md explains the plan. For the arrows, imports inside functions and under
TYPE_CHECKING count like all others: a hint is a dependency of the reader, even where it is none
of the program. For the doors of third-party packages, hints do not count: they load nothing.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mpq"

# Room -> the rooms whose names it may import, besides its own. A room is a folder of mpq/ or a
# file directly in it. `mpq/__init__.py` is the front door: it names everything, and no room
# imports through it.
ARROWS = {
    room: set(rooms.split())
    for room, rooms in {
        "errors": "",
        "measures": "errors",
        "files": "errors",
        "assets": "errors",
        "data": "assets errors",
        "formats": "errors",
        "kernels": "formats errors",
        "plans": "formats errors",
        "config_sections": "formats errors",
        "config_rules": "config_sections",
        "config": "config_rules config_sections formats errors",
        "cost": "plans formats errors",
        "run": "files plans formats errors",
        "modeling": "kernels plans formats measures data assets errors",
        "profiling": "modeling kernels plans formats measures data run files errors",
        "convert": "modeling kernels plans formats files errors",
        "search": "plans formats cost config run files errors",
        "plots": "plans formats cost run files errors",
    }.items()
}
STAGES = {"profiling", "search", "convert"}
TORCH_FREE = {
    "errors",
    "formats",
    "plans",
    "cost",
    "files",
    "run",
    "config",
    "config_rules",
    "config_sections",
}
TORCH_FREE |= {"search", "plots"}

# What a package imports for us: the file named in pyproject.toml imports the second instead.
BEHALF = {
    ("cmaes", "search/samplers.py"): "optuna",
    ("scipy", "search/samplers.py"): "optuna",
    ("safetensors", "modeling/loading.py"): "transformers",
    ("compressed-tensors", "tests/modeling/"): "transformers",
}
IMPORT_NAMES = {"compressed-tensors": "compressed_tensors"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def module_files() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


@cache
def imported(path: Path, when: str = "ever") -> frozenset[str]:
    """Every module that a file imports, `mpq.a.b` for mpq's own.

    `when` is "ever" (at any depth, hints included), "running" (all but hints) or "loading" (what
    the import of the file itself imports).
    """
    known = module_files()
    found = set()
    for node in nodes_of(ast.parse(path.read_text()), when):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = names & known.keys()
            found |= inner
            if len(inner) < len(names):
                found.add(node.module or "")
    return frozenset(found)


def nodes_of(tree: ast.AST, when: str) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_hint = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        is_body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if (is_hint and when != "ever") or (is_body and when == "loading"):
            continue
        yield node
        yield from nodes_of(node, when)


def own_imports(module: str, when: str = "ever") -> set[str]:
    return {
        name
        for name in imported(module_files()[module], when)
        if name.split(".")[0] == "mpq" and name != module
    }


def third_party(path: Path) -> set[str]:
    """The packages that a file may load; a hint loads none, so it opens no door."""
    tops = {name.split(".")[0] for name in imported(path, "running")}
    return tops - set(sys.stdlib_module_names) - {"mpq", "tests"}


def files_under(base: Path, place: str) -> list[Path]:
    """The Python files that a place of a dependency comment names."""
    return sorted((base / place).rglob("*.py")) if place.endswith("/") else [base / place]


def declared() -> dict[str, list[str]]:
    """Distribution -> the places its comment in pyproject.toml names, as written."""
    text = (ROOT / "pyproject.toml").read_text()
    found = {}
    for line in text[
        text.index("dependencies = [") : text.index("[project.scripts]")
    ].splitlines():
        code, _, comment = line.partition("#")
        for name in re.findall(r'"([A-Za-z0-9_-]+)[^"]*"', code):
            found[name] = re.findall(r"(?:\w+/)+(?:\w+\.py)?|\w+\.py", comment)
    return found


def wanted_at(name: str, place: str) -> str:
    """What the files of a place must import for the comment to be true."""
    return BEHALF.get((name, place), IMPORT_NAMES.get(name, name))


def requirement_names(requirements: list[str]) -> list[str]:
    return [re.match(r"[A-Za-z0-9_-]+", text)[0] for text in requirements]


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def optional() -> list[str]:
    """What mpq imports where it is installed: the extras whose name is a package of theirs."""
    extras = project()["optional-dependencies"].items()
    return [
        text for name, texts in extras for text in texts if requirement_names([text]) == [name]
    ]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- arrows ---------------------------------------------------------------------------------


def test_the_table_of_arrows_has_no_cycle():
    order = list(TopologicalSorter(ARROWS).static_order())
    assert set(order) == set(ARROWS)


def test_stages_meet_only_in_artefacts():
    for room in (*STAGES, "plots"):
        assert not ARROWS[room] & ({*STAGES, "plots", "cli"} - {room})


def test_every_room_is_in_the_table():
    rooms = {room_of(name) for name in module_files()} - {"mpq", "cli"}
    assert not rooms - ARROWS.keys(), "a new room needs its line in ARROWS and in the floor plan"


@pytest.mark.parametrize("module", [name for name in module_files() if name != "mpq"])
def test_no_arrow_runs_up(module):
    room = room_of(module)
    allowed = {*ARROWS, "cli"} if room == "cli" else {room, *ARROWS[room]}
    faults = {
        target
        for target in own_imports(module)
        if room_of(target) not in allowed and not is_version(module, target)
    }
    assert not faults, f"{module} may not import {sorted(faults)}; see ARROWS"


def is_version(module: str, target: str) -> bool:
    """True where `from mpq import __version__` is all that a module takes from the front door."""
    if target != "mpq":
        return False
    names = {
        alias.name
        for node in ast.walk(ast.parse(module_files()[module].read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "mpq"
        for alias in node.names
    }
    return {name for name in names if f"mpq.{name}" not in module_files()} == {"__version__"}


def test_modules_load_in_an_order():
    names = [name for name in module_files() if name != "mpq"]
    graph = {name: own_imports(name, "loading") - {"mpq"} for name in names}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("room", sorted(TORCH_FREE))
def test_torch_is_out_of_reach_of_rooms_that_need_none(room):
    waiting = [name for name in module_files() if room_of(name) == room]
    seen = set(waiting)
    while waiting:
        module = waiting.pop()
        heavy = third_party(module_files()[module]) & {"torch", "transformers"}
        assert not heavy, f"{room} reaches {sorted(heavy)} through {module}"
        fresh = own_imports(module) - seen - {"mpq"}
        seen |= fresh
        waiting += fresh


# --- doors ----------------------------------------------------------------------------------


def test_every_dependency_says_who_needs_it():
    silent = [
        name for name in requirement_names(project()["dependencies"]) if not declared()[name]
    ]
    assert not silent, f"pyproject.toml: {silent} need a comment that names files of mpq/"


def test_the_files_that_a_dependency_names_import_it():
    faults = []
    for name in requirement_names([*project()["dependencies"], *optional()]):
        for place in declared()[name]:
            wanted = wanted_at(name, place)
            paths = [path for path in files_under(PACKAGE, place) if path.exists()]
            if not any(wanted in third_party(path) for path in paths):
                faults.append(f"{name}: {place} does not import {wanted}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("module", module_files())
def test_third_party_packages_enter_by_their_doors(module):
    path = module_files()[module]
    doors = {
        IMPORT_NAMES.get(name, name): {
            door for place in declared()[name] for door in files_under(PACKAGE, place)
        }
        for name in requirement_names([*project()["dependencies"], *optional()])
    }
    faults = sorted(name for name in third_party(path) if path not in doors.get(name, set()))
    assert not faults, (
        f"{path.relative_to(ROOT)} imports {faults}: go through the door that pyproject.toml "
        "names, or add the file to the dependency's comment"
    )


def test_what_the_tests_import_is_declared_and_the_extras_name_true_places():
    names = requirement_names(project()["dependencies"])
    for extra in project()["optional-dependencies"].values():
        names += requirement_names(extra)
    known = {IMPORT_NAMES.get(name, name) for name in names}
    users = sorted((ROOT / "tests").rglob("*.py"))
    loose = {path.name: third_party(path) - known for path in users if third_party(path) - known}
    assert not loose, f"tests import undeclared packages: {loose}"
    faults = [
        f"{name}: no file of {place} imports it"
        for name, places in declared().items()
        for place in places
        if place.startswith("tests/")
        and not any(
            wanted_at(name, place) in third_party(path) for path in files_under(ROOT, place)
        )
    ]
    assert not faults, "\n".join(faults)


# --- rooms are furnished alike --------------------------------------------------------------


def test_a_sign_hangs_on_every_room_and_no_room_is_for_leftovers():
    for name, path in module_files().items():
        assert path.stem not in {"utils", "helpers", "common", "misc"}, path
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), f"{name}: the room has no sign"
            if name not in {"mpq", "mpq.plots"}:
                assert len(tree.body) == 1, f"{name}: a sign holds no code"


def test_every_module_has_its_test_file():
    bare = []
    for name, path in module_files().items():
        if path.name == "__init__.py" or name == "mpq.errors" or room_of(name) == "assets":
            continue
        place = path.relative_to(PACKAGE)
        tests = (ROOT / "tests" / place.parent).glob(f"test_{place.stem}*.py")
        if not any(is_test_of(test, place.stem) for test in tests):
            bare.append(str(place))
    assert not bare, f"no test file mirrors {bare}"


def is_test_of(test: Path, stem: str) -> bool:
    """`test_wrap.py` and `test_wrap_causality.py` test wrap.py."""
    return test.stem == f"test_{stem}" or test.stem.startswith(f"test_{stem}_")


def test_every_test_file_mirrors_a_module():
    rooms = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"]
    stray = []
    for room in rooms:
        # test_docs.py holds a page of docs/ to the room's code.
        stems = {path.stem for path in room.rglob("*.py")} | {room.name, "docs"}
        for test in sorted((ROOT / "tests" / room.name).rglob("test_*.py")):
            stray += [test.name] * (not any(is_test_of(test, stem) for stem in stems))
    assert not stray, f"these test no module of their room: {stray}"


# --- start-up -------------------------------------------------------------------------------

HEAVY = {"torch", "transformers", "optuna", "datasets", "scipy", "pandas", "matplotlib"}
HEAVY |= {"numba", "triton"}


def loaded_by(code: str) -> set[str]:
    told = "import sys; print('|'.join(name for name in sys.modules if '.' not in name))"
    listing = run_python(f"{code}\n{told}")
    return set(listing.splitlines()[-1].split("|"))


def test_importing_mpq_loads_nothing_heavy():
    assert not loaded_by("import mpq") & {*HEAVY, "numpy", "pydantic"}


def test_triton_waits_for_the_first_call_of_its_kernels():
    loaded = loaded_by("import mpq.kernels.fake_quant, mpq.kernels.triton")
    assert "torch" in loaded
    assert "triton" not in loaded


def test_the_front_door_opens_to_every_name_it_lists_however_often():
    run_python(
        "import mpq\nassert set(mpq.__all__) <= set(dir(mpq))\n"
        "first = {name: getattr(mpq, name) for name in mpq.__all__}\n"
        "assert first == {name: getattr(mpq, name) for name in mpq.__all__}"
    )


def test_an_unknown_name_at_the_front_door_is_an_attribute_error():
    import mpq

    with pytest.raises(AttributeError, match="module 'mpq' has no attribute 'quantise'"):
        mpq.quantise  # noqa: B018


def test_rooms_without_torch_import_none_when_they_run():
    names = [name for name in module_files() if room_of(name) in TORCH_FREE]
    assert "torch" not in loaded_by("import " + ", ".join(names))


@pytest.mark.parametrize("program", sorted(project()["scripts"]))
def test_help_loads_nothing_heavy(program):
    module, function = project()["scripts"][program].split(":")
    loaded = loaded_by(
        f"import sys\nsys.argv = [{program!r}, '--help']\nfrom {module} import {function}\n"
        f"try:\n    {function}()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert not loaded & HEAVY


# --- the page -------------------------------------------------------------------------------


def test_the_floor_plan_names_every_module_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.split("## Floor plan")[1].split("## Arrows")[0]
    shown = set(re.findall(r"\b\w+\.py\b", tree))
    there = {path.name for path in module_files().values()}
    assert shown == there


def test_the_page_lists_the_arrows_as_they_are_tested():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("## Arrows")[1].split("**Doors.**")[0]
    listed = {}
    for line in re.findall(r"^\| (`.*?) \| (.*?) \|$", table, flags=re.MULTILINE):
        targets = set(re.findall(r"`(\w+)`", line[1]))
        listed |= dict.fromkeys(re.findall(r"`(\w+)`", line[0]), targets)
    del listed["cli"]
    tested = {room: targets - {"errors"} for room, targets in ARROWS.items()}
    assert listed == {room: targets for room, targets in tested.items() if room in listed}
    assert tested.keys() - listed.keys() == {"errors", "config_rules", "config_sections"}
