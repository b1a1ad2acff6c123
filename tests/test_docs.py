"""Every example in the documents and docstrings runs, and every link inside the repository leads somewhere."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pfimg
from pfimg import _core

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def having(language: str) -> list[Path]:
    return [document for document in DOCUMENTS if blocks(document, language)]


def name_of(item: object) -> str:
    return item.relative_to(ROOT).as_posix() if isinstance(item, Path) else str(item)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own in which the sample pages lie where the examples look for them."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(ROOT / "tests" / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PF_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", having("python"), ids=name_of)
@pytest.mark.usefixtures("workplace")
def test_python_examples_run(document: Path) -> None:
    """Those of one document one after the other, as a reader would type them."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "".join(blocks(document, "python"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", having("sh"), ids=name_of)
@pytest.mark.usefixtures("workplace")
def test_command_lines_run(document: Path) -> None:
    """Those that use the command; how to install it is tested elsewhere."""
    script = "".join(block for block in blocks(document, "sh") if "pfimg " in block and "pip install" not in block)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def documented() -> Iterator[tuple[str, str]]:
    """Name and docstring of everything in the package, the compiled part too."""
    found = [module.name for module in pkgutil.walk_packages(pfimg.__path__, "pfimg.")]
    # Plug-ins can be imported only where their engines can; tests/engines does.
    names = [name for name in found if not re.fullmatch(r"pfimg\.engines\.(lmcache|sglang|vllm)\w*", name)]
    for module in [pfimg, *map(importlib.import_module, names)]:
        yield module.__name__, module.__doc__ or ""
        for name, item in vars(module).items():
            own = getattr(item, "__module__", None) == module.__name__ or (module is _core and not name.startswith("_"))
            if own and (inspect.isclass(item) or inspect.isroutine(item)):
                yield f"{module.__name__}.{name}", inspect.getdoc(item) or ""
                if inspect.isclass(item):
                    yield from (
                        (f"{item.__qualname__}.{part}", inspect.getdoc(value) or "") for part, value in vars(item).items()
                    )


@pytest.mark.usefixtures("workplace")
def test_examples_in_docstrings_give_what_they_show() -> None:
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    output: list[str] = []
    for name, text in documented():
        test = doctest.DocTestParser().get_doctest(text, dict(vars(pfimg)) | {"pfimg": pfimg}, name, name, 0)
        runner.run(test, out=output.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(output)
    assert runner.tries > 0


@pytest.mark.parametrize("name", sorted(pfimg.__all__))
def test_what_is_public_is_documented(name: str) -> None:
    """Fields are told of in the docstring of their class."""
    item = getattr(pfimg, name)
    if inspect.isclass(item) or inspect.isroutine(item):
        methods = (
            {part: value for part, value in vars(item).items() if inspect.isroutine(value) and not part.startswith("_")}
            if inspect.isclass(item)
            else {}
        )
        assert inspect.getdoc(item)
        assert [part for part, method in methods.items() if not inspect.getdoc(method)] == []
