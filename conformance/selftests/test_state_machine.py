"""Any sequence of operations, accidents and other people's doings, against a dictionary of what should be there.

``STATE_MACHINE_STEPS=2000`` makes it that many steps, and ``STATE_MACHINE_SEED`` another sequence.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mlflow_triton import flavor
from mlflow_triton.embedded.runtime import safe_temporary_directory
from mlflow_triton.errors import DeploymentNotFound
from mlflow_triton.repository import claim
from mlflow_triton.repository.layout import KEPT
from mlflow_triton.repository.record import RECORD_NAME
from worlds import CONFIG, MODEL, Fault, World

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its clients"),
    pytest.mark.slow,
]

#: One is the beginning of another; the rest are what else Triton and a directory allow.
NAMES = ("bigne", "bigne2", "a-b", "x_Y.0-z")
#: By model: what it answers, its version, and what lies beside model.py.
MODELS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "plain": (1, 1, ()),
    "labelled": (2, 1, ("labels.txt", "1/weights/a.bin", "1/weights/b.bin")),
    "seventh": (3, 7, ("7/vocabulary.txt",)),
}
BROKEN = "class TritonPythonModel:\n    def initialize(self, args):\n        raise RuntimeError('broken')\n"
FOREIGN = 90
DAY = 86_400
PER_EXAMPLE = 50
EXAMPLES_PER_SEED = 8

names = st.sampled_from(NAMES)
models = st.sampled_from(sorted(MODELS))
#: "put": create or update, whichever there is reason for.
verbs = st.sampled_from(("put", "put", "put", "create", "update", "keep", "keep", "rollback", "delete"))
#: A moment for files and clocks, in seconds from now.
moments = st.sampled_from((-20 * 365 * DAY, -DAY, -60, 0, DAY, 20 * 365 * DAY))


@dataclass(frozen=True, slots=True)
class State:
    """What there is under a name: a deployment of a model (``None``: none), which the server serves or not.

    `kept` is the model that a rollback would bring back.
    """

    model: str | None = None
    ready: bool = False
    kept: str | None = None


NOTHING = State()


def after(verb: str, state: State, model: str, *, foreign: bool) -> tuple[str, State]:
    """Say how an operation on a name ends, and what there is then."""
    if verb == "create":
        if foreign or state.model is not None:
            return "DeploymentExists", state
    elif foreign or (verb == "rollback" and state.kept is None) or (state.model is None and verb != "delete"):
        return "DeploymentNotFound", state
    if verb == "delete":
        return "done", NOTHING
    if verb == "rollback":
        return "done", State(state.kept, ready=True, kept=state.model)
    if model == "broken":
        return "LoadFailed", state
    return "done", State(model, ready=True, kept=state.model if verb == "keep" else None)


def kind(outcome: str) -> str:
    """Return how a client ended, in a word."""
    return "done" if outcome[:1] in '[{"' else outcome.partition(":")[0]


class Deployments(RuleBasedStateMachine):
    """One server, clients that are killed or go on, and others who use the same repository."""

    saved: ClassVar[Path]
    counts: ClassVar[Counter[tuple[str, str]]]

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="states-", dir=safe_temporary_directory()))
        shutil.copytree(self.saved, self.directory / "saved")
        uris = {model: str(self.directory / "saved" / model) for model in (*MODELS, "broken")}
        self.world = World(self.directory / "world", uris)
        self.world.start()
        #: By name: what there may be. More than one only while a change is interrupted and not settled.
        self.states: dict[str, set[State]] = {name: {NOTHING} for name in NAMES}
        self.pending: set[str] = set()
        #: Of those, which the server may have stopped to serve.
        self.down: set[str] = set()
        #: By name, whether it is loaded; and models whose directory was taken away from under the server.
        self.foreign: dict[str, bool] = {}
        self.orphans: set[str] = set()
        self.offset = 0.0
        #: Whether a process has died since the last operation.
        self.dirty = False

    def teardown(self) -> None:
        """End the server."""
        self.world.stop()
        shutil.rmtree(self.directory)

    @initialize(grpc=st.sampled_from((True, True, True, False)))
    def transport(self, grpc: bool) -> None:
        """Choose how models are loaded."""
        self.world.grpc = grpc

    @rule(verb=verbs, name=names, model=models)
    def operate(self, verb: str, name: str, model: str) -> None:
        """Create, update or delete."""
        self.expect(verb, name, model)

    @rule(name=names, model=models)
    def put(self, name: str, model: str) -> None:
        """Create a deployment, or update it."""
        self.expect("put", name, model)

    @rule(name=names)
    def roll_back(self, name: str) -> None:
        """Bring back what an update has kept."""
        self.expect("rollback", name, "")

    @rule(verb=st.sampled_from(("put", "put", "create", "update", "keep")), name=names)
    def publish_a_broken_model(self, verb: str, name: str) -> None:
        """Create or update with a model that does not load."""
        self.expect(verb, name, "broken")

    @rule(name=names)
    def predict(self, name: str) -> None:
        """Ask through the client."""
        wanted = self.answers_of(name)
        with self.clock():
            outcome = self.world.forked(
                lambda client: client.predict(name, {"x": [0]})["outputs"]["y"].tolist()
            )
        self.count("predict", outcome)
        if kind(outcome) == "done":
            assert json.loads(outcome)[0] in wanted, (outcome, wanted)
        else:
            assert kind(outcome) == "DeploymentNotFound", outcome
            assert None in wanted, (outcome, wanted)

    @rule(verb=verbs, name=names, model=models, step=st.integers(0, 125))
    def kill_client(self, verb: str, name: str, model: str, step: int) -> None:
        """Kill a client in the middle of an operation."""
        self.strike("kill client", verb, name, model, step)

    @rule(
        fault=st.sampled_from(("ENOSPC", "EACCES", "EIO")),
        verb=verbs,
        name=names,
        model=models,
        step=st.integers(0, 125),
    )
    def fail_a_client(self, fault: str, verb: str, name: str, model: str, step: int) -> None:
        """Let the disk fail from the middle of an operation on."""
        self.strike(fault, verb, name, model, step)

    @rule(verb=verbs, name=names, model=models, step=st.integers(0, 125))
    def kill_server(self, verb: str, name: str, model: str, step: int) -> None:
        """Kill the server in the middle of an operation, and start another one."""
        self.strike("kill server", verb, name, model, step)

    @rule(kill=st.booleans())
    def restart_server(self, kill: bool) -> None:
        """End the server and start another one, which loads nothing."""
        self.count("restart server", "killed" if kill else "stopped")
        if kill:
            os.kill(self.world.server.pid, signal.SIGKILL)
        self.restarted()

    @rule(wanted=st.one_of(st.just(()), st.lists(names, unique=True, min_size=1).map(tuple)))
    def restore(self, wanted: tuple[str, ...]) -> None:
        """Load deployments again: those of some names, or all."""
        with self.clock():
            outcome = self.world.forked(
                lambda client: [(entry.name, entry.failed, entry.text) for entry in client.restore(wanted)]
            )
        self.count("restore", outcome)
        assert kind(outcome) == "done", outcome
        results = json.loads(outcome)
        sure = {name for name in NAMES if all(state.model for state in self.states[name])}
        assert {name for name, *_ in results} >= (set(wanted) or sure), outcome
        for name, failed, text in results:
            self.states[name] = {
                replace(state, ready=state.model is not None)
                for state in self.states[name]
                if failed == (state.model is None)
            }
            assert self.states[name], text
        self.dirty &= not results
        self.look({name for name, *_ in results})

    @precondition(lambda self: self.dirty or self.pending)
    @rule()
    def repair(self) -> None:
        """Have the doctor settle what is interrupted and remove what is left over."""
        outcome = self.world.forked(lambda client: list(client._deployer()._recovery.repair()))
        self.count("repair", outcome)
        assert kind(outcome) == "done", outcome
        assert all(well for _, well, _ in json.loads(outcome)), outcome
        self.dirty = False
        self.look(set(self.pending))

    @rule(name=names, load=st.booleans())
    def foreign_model_appears(self, name: str, load: bool) -> None:
        """Put a model of somebody else's under a name that is free."""
        if (self.world.repository / name).exists() or name in self.pending:
            return
        self.count("foreign model appears", "loaded" if load else "not loaded")
        directory = self.world.repository / name
        write_model(directory, MODEL.format(value=FOREIGN), 1)
        self.foreign[name] = load or name in self.orphans
        self.orphans.discard(name)
        if load:
            self.request(f"/v2/repository/models/{name}/load")

    @precondition(lambda self: self.foreign)
    @rule(name=names, unload=st.booleans())
    def foreign_model_disappears(self, name: str, unload: bool) -> None:
        """Take somebody else's model away, also from under the server."""
        if name not in self.foreign:
            return
        self.count("foreign model disappears", "unloaded" if unload else "as it is")
        loaded = self.foreign.pop(name)
        if unload:
            self.unload(name)
        elif loaded:
            self.orphans.add(name)
        shutil.rmtree(self.world.repository / name)

    @precondition(lambda self: self.ready())
    @rule(name=names)
    def somebody_unloads(self, name: str) -> None:
        """Unload a deployment behind the plugin's back."""
        if name in self.pending or self.states[name] != {replace(self.state(name), ready=True)}:
            return
        self.count("somebody unloads", "done")
        self.unload(name)
        self.states[name] = {replace(self.state(name), ready=False)}

    @rule(offset=moments)
    def clock_jumps(self, offset: float) -> None:
        """Set the clock of all clients from now on, back or forth."""
        self.count("clock jumps", "back" if offset < self.offset else "forth")
        self.offset = offset

    @rule(model=models, moment=moments)
    def artifact_times(self, model: str, moment: float) -> None:
        """Give a model's artifacts other times, as an unpacked archive or a restored backup has."""
        self.count("artifact times", "set")
        set_times(Path(self.world.models[model]).rglob("*"), moment)

    @precondition(lambda self: self.ready())
    @rule(name=names, moment=moments, only_model=st.booleans())
    def times_on_disk(self, name: str, moment: float, only_model: bool) -> None:
        """Give the files of a deployment other times, as a restored backup has."""
        if name in self.pending or self.state(name).model is None:
            return
        self.count("times on disk", "model.py" if only_model else "all")
        set_times((self.world.repository / name).rglob("model.py" if only_model else "*"), moment)

    @invariant()
    def all_agree(self) -> None:
        """Compare list, get, answers and directories with what should be there."""
        outcome = self.world.forked(lambda client: [client.list_deployments(), described(client)])
        assert kind(outcome) == "done", outcome
        listed, got = json.loads(outcome)
        entries = {entry["name"]: entry for entry in listed}
        assert len(entries) == len(listed)
        for name in NAMES:
            self.on_disk(name)
            assert self.world.answers(name) in self.answers_of(name), (name, self.answers_of(name))
            if name in self.pending:
                continue
            state = self.state(name)
            entry, details = entries.pop(name, None), got[name]
            if state.model is None:
                assert entry is None
                assert isinstance(details, str)
                continue
            assert entry is not None
            assert self.kept(name) == state.kept
            assert entry["mlflow_model_uri"] == self.world.models[state.model]
            assert (entry["state"] == "READY") == state.ready, entry
            assert details["in_sync"] == state.ready, details
            assert details["changed_files"] == []
            assert (details["serving_id"] == details["deployment_id"]) == state.ready
            assert details["versions"] == [MODELS[state.model][1]]
        assert entries.keys() <= self.pending
        self.nothing_left_over()

    # What the rules are made of.

    def chosen(self, verb: str, name: str) -> str:
        """Return the verb that "put" stands for."""
        if verb != "put":
            return verb
        return "update" if any(state.model for state in self.states[name]) else "create"

    def expect(self, verb: str, name: str, model: str) -> None:
        """Run an operation without a fault, and hold its end against what it should be."""
        verb = self.chosen(verb, name)
        again = verb == self.interrupted(name) == "create"
        with self.clock():
            outcome = self.world.run(verb, None, model, name)
        self.count(f"{verb}{' (broken model)' if model == 'broken' else ''}", outcome)
        states = self.states[name]
        if again:
            states = {NOTHING}  # undone in any case
        ends = [after(verb, state, model, foreign=name in self.foreign) for state in states]
        self.states[name] = {state for end, state in ends if end == kind(outcome)}
        assert self.states[name], (outcome, ends)
        self.dirty = False
        self.look({name})
        assert name not in self.pending, outcome

    def strike(self, what: str, verb: str, name: str, model: str, step: int) -> None:
        """Run an operation with a fault at one of its steps."""
        verb = self.chosen(verb, name)
        fault = Fault(what, step, self.world.server.pid, str(self.world.directory))
        started = time.monotonic()
        with self.clock():
            outcome = self.world.run(verb, fault, model, name)
        assert time.monotonic() - started < 60, outcome
        self.count(f"{what}, {verb}", outcome)
        ends = {after(verb, state, model, foreign=name in self.foreign) for state in self.states[name]}
        self.dirty = True
        self.states[name] |= {state for _, state in ends}
        self.pending.add(name)
        if what == "kill server":
            self.restarted()
        if what == "kill server" or verb == "delete":
            self.down.add(name)
        if self.interrupted(name) is None and kind(outcome) == "done":
            self.states[name] = {state for end, state in ends if end == "done"}
        if self.interrupted(name) is None and what == "kill server":
            self.states[name] = {replace(state, ready=False) for state in self.states[name]}
        self.look({name})

    def restarted(self) -> None:
        """Start another server in the place of the present one."""
        self.world.stop()
        self.world.start()
        self.orphans.clear()
        self.foreign = dict.fromkeys(self.foreign, False)
        self.down |= self.pending
        for name in set(NAMES) - self.pending:
            self.states[name] = {replace(self.state(name), ready=False)}

    def look(self, touched: set[str]) -> None:
        """Find which of these names are settled now, and what there is of them."""
        for name in touched:
            if self.interrupted(name) is not None:
                self.pending.add(name)
                continue
            self.pending.discard(name)
            self.down.discard(name)
            seen = self.on_disk(name), self.world.answers(name), self.kept(name)
            found = {
                state
                for state in self.states[name]
                if (state.model, state.kept) == (seen[0], seen[2]) and seen[1] in self.answers_if(name, state)
            }
            assert found, (name, self.states[name], seen)
            self.states[name] = found
            if self.state(name).model is not None:
                self.orphans.discard(name)

    def ready(self) -> bool:
        """Say whether the server serves a deployment."""
        return any(state.ready for states in self.states.values() for state in states)

    def state(self, name: str) -> State:
        """Return what there is under a name that is settled."""
        (state,) = self.states[name]
        return state

    def answers_of(self, name: str) -> set[int | None]:
        """Return what the server may answer for a name."""
        allowed = {answer for state in self.states[name] for answer in self.answers_if(name, state)}
        return allowed | {None} if name in self.down else allowed

    def answers_if(self, name: str, state: State) -> set[int | None]:
        """Return what the server may answer for a name if this is what there is."""
        if state.model is not None:
            return {MODELS[state.model][0] if state.ready else None}
        if name in self.orphans:
            return {FOREIGN, None}
        return {FOREIGN if self.foreign.get(name) else None}

    def interrupted(self, name: str) -> str | None:
        """Return the operation that was interrupted in the middle of its change of a name."""
        for notice in claim.notices(self.world.repository):
            if notice.name == name and notice.change is not None:
                return notice.change.operation
        return None

    def on_disk(self, name: str) -> str | None:
        """Return which model lies under a name, whole; ``None``: none that was deployed."""
        directory = self.world.repository / name
        if name in self.foreign:
            assert content(directory) == content(self.saved / "foreign")
            return None
        if not directory.exists():
            return None
        return self.model_in(
            {path: text for path, text in content(directory).items() if Path(path).parts[0] != KEPT}
        )

    def kept(self, name: str) -> str | None:
        """Return which model a deployment keeps, whole."""
        directory = self.world.repository / name / KEPT
        return self.model_in(content(directory)) if directory.exists() else None

    def model_in(self, found: dict[str, bytes]) -> str:
        """Return which model these files are."""
        uri = json.loads(found.pop(RECORD_NAME))["mlflow_model_uri"]
        (model,) = [model for model in MODELS if self.world.models[model] == uri]
        assert found == content(self.saved / f"{model}-source")
        return model

    def nothing_left_over(self) -> None:
        """Find in the repository and beside it what should be there, and nothing else."""
        ours = set(self.world.leftovers())
        there = {path.name for path in self.world.repository.iterdir()} - ours
        assert there - self.pending == (
            {name for name in set(NAMES) - self.pending if self.state(name).model} | set(self.foreign)
        )
        if self.dirty:
            return
        notices = [notice for notice in claim.notices(self.world.repository) if notice.change is not None]
        assert {notice.name for notice in notices} == self.pending
        needed = {f"{claim.PREFIX}{name}{claim.SUFFIX}" for name in self.pending}
        tokens = [notice.change.token for notice in notices if notice.change is not None]
        assert [left for left in ours - needed if not left.endswith(tuple(tokens))] == []

    def count(self, what: str, outcome: str) -> None:
        """Count a step, and how it ended."""
        self.counts[what, kind(outcome)] += 1

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Let the clock of the clients that are started in the block be off."""
        now, now_ns, offset = time.time, time.time_ns, self.offset
        with (
            mock.patch("time.time", side_effect=lambda: now() + offset),
            mock.patch("time.time_ns", side_effect=lambda: now_ns() + int(offset * 1e9)),
        ):
            yield

    def unload(self, name: str) -> None:
        """Unload a model behind the plugin's back, and wait until it has ended."""
        self.request(f"/v2/repository/models/{name}/unload")
        deadline = time.monotonic() + 30
        while any(
            entry["name"] == name and entry.get("state") in ("READY", "UNLOADING")
            for entry in self.request("/v2/repository/index")
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def request(self, path: str) -> Any:
        """Ask something of the server without the plugin."""
        request = urllib.request.Request(f"{self.world.server.http_url}{path}", data=b"{}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")


def described(client: Any) -> dict[str, Any]:
    """Return what `get_deployment` says of each name: a description, or the message of its error."""

    def describe(name: str) -> Any:
        try:
            return client.get_deployment(name)
        except DeploymentNotFound as error:
            return error.message

    return {name: describe(name) for name in NAMES}


def content(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory with its content, and every directory without; but what Python caches there."""
    return {
        str(path.relative_to(directory)): b"" if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
        if "__pycache__" not in path.parts
    }


def write_model(directory: Path, program: str, version: int, files: Iterable[str] = ()) -> None:
    """Write a model's directory."""
    (directory / str(version)).mkdir(parents=True)
    (directory / str(version) / "model.py").write_text(program)
    (directory / "config.pbtxt").write_text(CONFIG)
    for file in files:
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(file)


def set_times(paths: Iterable[Path], moment: float) -> None:
    """Give files another modification time."""
    when = time.time() + moment
    for path in paths:
        os.utime(path, (when, when))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, as MLflow saves them, and what they were made of."""
    top = tmp_path_factory.mktemp("saved")
    for model, (value, version, files) in MODELS.items():
        write_model(top / f"{model}-source", MODEL.format(value=value), version, files)
    write_model(top / "broken-source", BROKEN, 1)
    for model in (*MODELS, "broken"):
        flavor.save_model(top / f"{model}-source", top / model)
    write_model(top / "foreign", MODEL.format(value=FOREIGN), 1)
    return top


@pytest.mark.timeout(7200)
def test_any_sequence(saved: Path) -> None:
    """Whatever is done and happens, in any order: what is listed, described, answered and stored is what should be."""
    seed = int(os.environ.get("STATE_MACHINE_SEED", "0"))
    wanted = int(os.environ.get("STATE_MACHINE_STEPS", "40"))
    counts: Counter[tuple[str, str]] = Counter()
    started = time.monotonic()
    seeds: list[int] = []
    steps = min(PER_EXAMPLE, wanted // 2)
    while counts.total() < wanted:
        seeds.append(seed + len(seeds))
        machine = hypothesis.seed(seeds[-1])(
            type("Deployments", (Deployments,), {"saved": saved, "counts": counts})
        )
        print(f"{counts.total()} steps in {time.monotonic() - started:.0f} s; seed {seeds[-1]}", flush=True)  # noqa: T201
        run_state_machine_as_test(
            machine,
            settings=hypothesis.settings(
                database=None,
                deadline=None,
                max_examples=min(EXAMPLES_PER_SEED, wanted // steps),
                stateful_step_count=steps,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
                report_multiple_bugs=False,
            ),
        )
    lines = [f"{count:>6}  {what}: {end}" for (what, end), count in sorted(counts.items())]
    print("\n".join(["", *lines]))  # noqa: T201 - the figures are the point
    print(f"{counts.total()} steps, seeds {seeds[0]} to {seeds[-1]}, {time.monotonic() - started:.0f} s")  # noqa: T201
