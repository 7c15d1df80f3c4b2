"""The README is true: its commands run, as written and in order; its tables are those of the code."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mlflow_triton
import pytest_mlflow_triton
from mlflow_triton.embedded.interpreter import PYTHON_VARIABLE
from mlflow_triton.embedded.runtime import CACHE_VARIABLE
from mlflow_triton.options import OPTIONS
from mlflow_triton.settings import SETTINGS
from pytest_mlflow_triton.settings import OPTIONS as HARNESS_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
TEXTS = pytest.mark.parametrize("document", [README, CONTRIBUTING], ids=lambda path: path.name)
#: These run until Ctrl-C; they are ready when they have printed what the README shows.
SERVERS = ("mlflow server", "mlflow-triton serve", "mlflow deployments run-local")
#: The one thing that is not as written: the port may be taken on the machine that runs the tests.
MLFLOW_PORT = "5000"
DEADLINE = 60  # seconds, for each command
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced(document: Path) -> list[tuple[str, str]]:
    """Return language and text of every fenced block."""
    return FENCE.findall(document.read_text())


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Split a console block into each command and the output that is shown below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown.strip()


def pattern(shown: str) -> re.Pattern[str]:
    """Compile what is shown: … stands for anything, a line of its own also for no line; the rest for itself."""
    texts = re.split(r"^…\n|…", shown, flags=re.MULTILINE)
    return re.compile(r"\s*" + ".*?".join(map(re.escape, texts)), re.DOTALL)


@dataclass(slots=True)
class Reader:
    """Somebody who types what the README says.

    Attributes:
        directory: A place that looks like the root of a clone, as far as the README uses it.
        environment: Of the terminal.
        servers: What runs in other terminals.
    """

    directory: Path
    environment: dict[str, str]
    servers: ExitStack = field(default_factory=ExitStack)

    def console(self, block: str) -> None:
        """Type each command of a console block; its output must be what is shown."""
        for command, shown in commands(block):
            if command.startswith("export "):
                self.export(command)
            elif command.startswith("mlflow deployments run-local"):
                with self.server(command, shown) as output:
                    request = output.strip().splitlines()[-1]
                    assert request.startswith("mlflow deployments predict "), output
                    self.run(request, '{"outputs": {"OUTPUT0": [[…]], "OUTPUT1": [[…]]}}')
            elif command.startswith(SERVERS):
                output = self.servers.enter_context(self.server(command, shown))
                for line in re.findall(r"^export .*", output, re.MULTILINE):
                    self.export(line)
            else:
                self.run(command, shown)

    def export(self, command: str) -> None:
        """Set variables as the shell does."""
        for word in shlex.split(command)[1:]:
            name, _, value = word.partition("=")
            self.environment[name] = value

    def run(self, command: str, shown: str) -> None:
        """Run a command to its end; it fails exactly if a failure is shown."""
        result = subprocess.run(
            ["bash", "-c", command],  # noqa: S607 - the one on PATH
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        fails = re.search(r"^(Error: |failed |E  )", shown, re.MULTILINE) is not None
        said = f"$ {command}\n{result.stdout}{result.stderr}"
        assert result.returncode == (1 if fails else 0), said
        if shown:
            outputs = [result.stdout.strip(), result.stderr.strip()]
            assert any(map(pattern(shown).fullmatch, outputs)), f"{said}\nThe README shows:\n{shown}"

    @contextmanager
    def server(self, command: str, shown: str) -> Iterator[str]:
        """Run a command until the block ends, then press Ctrl-C; yield what it printed to get there."""
        assert shown, f"{command}: the README must show how it looks when it is ready"
        log = self.directory / f"{time.monotonic_ns()}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", command],  # noqa: S607 - the one on PATH
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + DEADLINE
            while not (found := pattern(f"{shown}\n").match(log.read_text())):
                assert process.poll() is None, f"$ {command}\n{log.read_text()}"
                assert time.monotonic() < deadline, f"$ {command}\n{log.read_text()}"
                time.sleep(0.1)
            yield found[0]
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            code = process.wait(30)
            assert code == 0, f"Ctrl-C: exit code {code} of {command}\n{log.read_text()}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Give a terminal in which this environment is activated, and nothing else is set up."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "TRITON_", "PYTEST_")) or name in (CACHE_VARIABLE, PYTHON_VARIABLE)
    } | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1,localhost"])),
        # What a reader can do without, and what takes most of the server's time to start.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WORKERS": "1",
    }
    it = Reader(tmp_path, environment)
    with it.servers:
        yield it


@pytest.mark.slow
@pytest.mark.timeout(900)  # dozens of commands, each of which imports MLflow
def test_every_command_and_script_runs(reader: Reader) -> None:
    """What the README says to type and to run works, in its order, and prints what the README shows."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    previous = ("", "")
    for language, block in [*fenced(README), ("end", "")]:
        if previous[0] == "python":
            shown = block.strip() if language == "text" else ""
            if name := re.match(r"# (\w+\.py)\n", previous[1]):
                (reader.directory / name[1]).write_text(previous[1])
            else:
                reader.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(previous[1])}", shown)
        if language == "console":
            reader.console(re.sub(rf"\b{MLFLOW_PORT}\b", port, block))
        previous = (language, block)


@TEXTS
def test_what_is_not_run_here_exists(document: Path) -> None:
    """Sessions of nox and extras of the package that are named exist; CI runs and installs them."""
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    sessions = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(it) for it in node.decorator_list)
    }
    extras = metadata.metadata("mlflow-triton-plugin").get_all("Provides-Extra") or []
    for line in (
        line for language, block in fenced(document) if language == "bash" for line in block.splitlines()
    ):
        words = shlex.split(line, comments=True)
        if words[0] == "nox":
            assert words[words.index("-s") + 1] in sessions, line
        else:
            assert words[:2] == ["pip", "install"], line
            assert (extra := re.fullmatch(r"\.(?:\[(\w+)\])?", words[2])), line
            assert extra[1] is None or extra[1] in extras, line
    named = set(re.findall(r"nox -s (\w+)", document.read_text()))
    assert named
    assert named <= sessions


def test_every_block_is_accounted_for() -> None:
    """No fenced block of the README escapes the tests by its language; those in "shell" are test_images.py's."""
    blocks = fenced(README)
    assert len(blocks) == README.read_text().count("\n```") / 2
    assert {language for language, _ in blocks} == {"bash", "console", "python", "shell", "text"}
    for block in (block for language, block in blocks if language == "console"):
        assert block.startswith("$ ")


def test_every_verb_is_shown() -> None:
    """Every verb of MLflow's deployments is typed on the command line, and called or named in Python."""
    typed = [
        command
        for language, block in fenced(README)
        if language == "console"
        for command, _ in commands(block)
    ]
    for verb in ("create", "update", "delete", "list", "get", "predict", "run-local", "help"):
        assert any(command.startswith(f"mlflow deployments {verb} -t triton") for command in typed), verb
    for command in ("serve", "doctor", "publish"):
        assert any(re.search(rf"\bmlflow-triton {command}\b", line) for line in typed), command
    scripts = "".join(block for language, block in fenced(README) if language == "python")
    for verb in (
        "create_deployment",
        "update_deployment",
        "delete_deployment",
        "list_deployments",
        "get_deployment",
    ):
        assert f"client.{verb}(" in scripts
    for call in ("client.predict(", "flavor.log_model(", "mlflow.onnx.log_model("):
        assert call in scripts
    for function in ("run_local", "target_help"):
        assert f"{function}(" in README.read_text()


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Render a Markdown table."""
    lines = [columns, ["---" for _ in columns], *rows]
    return "".join(f"| {' | '.join(cell for cell in line)} |\n" for line in lines)


def code(text: str | None) -> str:
    """Render code in a cell."""
    return "`{}`".format(text.replace("|", "\\|")) if text else "none"


def test_settings_table() -> None:
    """The table of settings is `SETTINGS`."""
    target = {"http_url": "triton://HOST:PORT"}
    rows = [
        (
            code(setting.environment),
            code(f"{setting.name}=") if setting.in_target else code(target.get(setting.name)),
            code(setting.default),
            setting.help,
        )
        for setting in SETTINGS
    ]
    assert table(("Environment variable", "Target URI", "Default", "Meaning"), rows) in README.read_text()
    for variable in (CACHE_VARIABLE, PYTHON_VARIABLE):
        assert f"\n| {code(variable)} | " in README.read_text()


def test_deployment_options_table() -> None:
    """The table of deployment options is `OPTIONS`."""
    rows = [(code(f"-C {option.name}={option.form}"), option.help) for option in OPTIONS]
    assert table(("Option", "Meaning"), rows) in README.read_text()


def test_harness_options_table() -> None:
    """The table of the pytest plugin's options is the plugin's own."""
    rows = [
        (
            code(option.usage),
            code(option.environment),
            code(option.ini),
            code(option.default),
            option.help,
        )
        for option in HARNESS_OPTIONS
    ]
    columns = ("Option", "Environment variable", "Ini key", "Default", "Meaning")
    assert table(columns, rows) in README.read_text()


def test_fixtures_table() -> None:
    """The table of fixtures has every public fixture of the plugin, with its scope."""
    fixtures = {}
    for path in Path(pytest_mlflow_triton.__file__).with_name("fixtures").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                for decorator in map(ast.unparse, node.decorator_list):
                    if decorator.startswith("pytest.fixture"):
                        fixtures[node.name] = "session" if "session" in decorator else "function"
    rows = rows_below("| Fixture | Scope | What it is |")
    named = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert named == fixtures


def test_launchers_table() -> None:
    """The table of launchers has those that the options take."""
    launchers = {row[0].strip("`") for row in rows_below("| Launcher | The server is |")}
    for option in HARNESS_OPTIONS:
        if option.flag.endswith("-launcher"):
            assert launchers == set(option.choices)


def rows_below(head: str) -> list[list[str]]:
    """Return the cells of a table of the README."""
    lines = README.read_text().split(f"\n{head}\n")[1].split("\n\n")[0].splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in lines]


@cache
def literals() -> list[str]:
    """Return every string in the package's code, with … for what an f-string inserts."""
    found = []
    for path in Path(mlflow_triton.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_table() -> None:
    """Each message that the README explains is one of the package's, or one of Triton's that it knows."""
    rows = README.read_text().split("| Message | Remedy |\n| --- | --- |\n")[1].split("\n\n")[0].splitlines()
    messages = [row.split("`")[1] for row in rows]
    assert len(messages) > 10
    assert [message for message in messages if not any(message in literal for literal in literals())] == []


@TEXTS
def test_links(document: Path) -> None:
    """A relative link leads to a file of the repository, a link within the document to a heading."""
    text = document.read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    }
    for link in links:
        path, _, fragment = link.partition("#")
        if not link.startswith("https://"):
            assert not path or (ROOT / path).is_file(), link
            assert not fragment or fragment in headings, link
