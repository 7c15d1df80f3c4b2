from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_triton.errors import InvalidModel, InvalidModelConfig, InvalidName
from mlflow_triton.repository.layout import KEPT, Layout, check_name, lay_out

PYTHON = b'backend: "python"'
ONNX = b'backend: "onnxruntime"'
ENSEMBLE = b'platform: "ensemble" ensemble_scheduling {}'
SOURCE = Path("source")
ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def layout(*files: str, config: bytes | None = None, directories: tuple[str, ...] = ()) -> Layout:
    """Lay out files of these names."""
    return lay_out(
        {PurePosixPath(file): SOURCE / file for file in files},
        origin="models:/m/1",
        config_text=config,
        directories=frozenset(map(PurePosixPath, directories)),
    )


def problems(subject: Layout, name: str | None = "m") -> str:
    """Return the message with which a layout is refused."""
    with pytest.raises(InvalidModel) as caught:
        subject.check(name)
    message: str = caught.value.message
    assert message.isprintable()
    assert message.startswith("Triton could not serve models:/m/1: ")
    assert "Nothing has been changed" in message
    return message


@pytest.mark.parametrize(
    "name", ["m", "M-1_2.3", "123", "_x", "a..b", "a.", "versions", "infer", "v2", "con", "a" * 200]
)
def test_names_that_triton_serves(name: str) -> None:
    """Names of ASCII letters, digits, underscores, dots and dashes are accepted, dots anywhere but in front."""
    check_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        (".", "begins with '.'"),
        ("..", "begins with '.'"),
        (".hidden", "begins with '.'"),
        ("-flag", "begins with '-'"),
        ("../evil", "holds '/'"),
        ("a/b", "holds '/'"),
        ("a\\b", "holds '\\\\'"),
        ("a b", "holds a space"),
        ("name\n", "holds '\\n'"),
        ("café", "holds '\\xe9'"),
        ("\u0661", "holds '\\u0661'"),
        ("\udce9", "holds '\\udce9'"),
        ("~", "holds '~'"),
        ("a%2e", "holds '%'"),
        ("a" * 201, "is 201 characters long"),
        ("x/" * 100_000, "holds '/'"),
        (None, "must be text, not NoneType"),
        (b"m", "must be text, not bytes"),
        (7, "must be text, not int"),
    ],
)
def test_names_that_are_refused(name: object, words: str) -> None:
    """A name that Triton could not serve, or that leaves the repository, is refused with what is wrong with it."""
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert words in caught.value.message
    assert caught.value.message.isascii() or "…" in caught.value.message
    assert len(caught.value.message) < 500


@given(st.text(max_size=210))
@example("a" * 200 + "\n")
def test_a_name_is_accepted_by_the_rule_alone(name: str) -> None:
    """A name is accepted if and only if its length, its characters and its first character allow it."""
    allowed = 1 <= len(name) <= 200 and ALLOWED.issuperset(name) and name[0] not in ".-"
    try:
        check_name(name)
    except InvalidName:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize("version", ["0", "1", "10", "20260612120000", "9223372036854775807"])
def test_version_directories_that_triton_serves(version: str) -> None:
    """Every number from 0 to 2**63-1 is a version, and directories that are no numbers do not matter."""
    subject = layout(f"{version}/model.py", "docs/readme.md", "v1/model.py", config=PYTHON)
    subject.check("m")
    assert subject.versions == (int(version),)


@pytest.mark.parametrize(
    "version",
    [
        "01",
        "00",
        "2.bak",
        "3d_assets",
        "-1",
        "+2",
        " 2",
        "\t2",
        "1e5",
        "0x1",
        "9223372036854775808",
        "9" * 40,
    ],
)
def test_version_directories_that_are_refused(version: str) -> None:
    """A directory that Triton takes for a number, but that is none, is refused even beside a good one."""
    subject = layout("1/model.py", f"{version}/model.py", config=PYTHON)
    assert subject.versions == (1,)
    assert f"the directory {version!r}".replace("\t", "\\t") in problems(subject)


@given(st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=25))
@example("9223372036854775807")
@example("9223372036854775808")
@example("²")
@example("٣")
def test_every_directory_is_a_version_refused_or_ignored_by_triton(name: str) -> None:
    """No directory name reaches Triton that its integer parser would take for another number."""
    if name in {".", ".."}:
        return
    subject = layout("1/model.py", f"{name}/model.py", config=PYTHON)
    parsed = name.lstrip(" \t\n\v\f\r")[:1].lstrip("+-") or name.lstrip(" \t\n\v\f\r+-")[:1]
    canonical = name.isascii() and name.isdigit() and str(int(name)) == name and int(name) < 2**63
    if canonical:
        subject.check("m")
        assert int(name) in subject.versions
    elif (
        parsed.isascii()
        and parsed.isdigit()
        and not name.lstrip(" \t\n\v\f\r").startswith(("++", "--", "+-", "-+"))
    ):
        assert "is read by Triton as a version" in problems(subject)
    else:
        assert subject.versions == (1,)


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        (layout("config.json", config=PYTHON), "there is no version directory (it has no directories)"),
        (
            layout("v1/model.py", config=PYTHON),
            "there is no version directory (the directories it has are v1)",
        ),
        (
            layout("one/1/model.py", "two/config.pbtxt"),
            "give the directory of one model, such as 'one' in it",
        ),
        (layout("1/other.py", config=PYTHON), "version 1 has no model.py"),
        (layout(config=PYTHON, directories=("1",)), "version 1 has no model.py"),
        (layout("1/model.py", config=ONNX), "version 1 has no model.onnx"),
        (layout("1/x", config=b'platform: "onnxruntime_onnx"'), "version 1 has no model.onnx"),
        (layout("1/x", config=b'platform: "tensorflow_savedmodel"'), "version 1 has no model.savedmodel"),
        (
            layout("1/model.onnx", config=ONNX + b' default_model_filename: "m.onnx"'),
            "version 1 has no m.onnx",
        ),
        (layout("1/a b.py", config=PYTHON + b' default_model_filename: "a b.py"'), "hangs for ever"),
        (layout("1/model.onnx", "2/x", config=ONNX), "version 2 has no model.onnx"),
        (layout("1/weights.bin"), "names no backend"),
        (layout("1/model.onnx", ".git/HEAD"), "the directory '.git', the first"),
        (layout("1/m.onnx", config=b'default_model_filename: "m.onnx"'), "finds none by the file 'm.onnx'"),
        (layout("1/model.py", "2/x"), "version 2 has no model.py"),
        (
            layout("1/model.py", config=PYTHON + b' output { name: "o" label_filename: "labels.txt" }'),
            "output 'o' names the file 'labels.txt', which is not there",
        ),
        (
            layout(
                "1/model.py", "x.txt", config=PYTHON + b' output { name: "o" label_filename: "../x.txt" }'
            ),
            "outside the model directory",
        ),
        (
            layout(
                "1/model.py",
                config=PYTHON + b" model_warmup { batch_size: 1 inputs { key: 'i' value { "
                b"input_data_file: 'raw' } } }",
            ),
            "names the file 'warmup/raw', which is not there",
        ),
        (
            layout(
                "1/model.py",
                config=PYTHON + b" sequence_batching { state { initial_state { name: 's' "
                b"data_file: 'zero' } } }",
            ),
            "names the file 'initial_state/zero', which is not there",
        ),
        (
            layout(
                "1/model.onnx",
                config=ONNX
                + b' default_model_filename: "../../x" cc_model_filenames { key: "7.5" value: "m" }',
            ),
            "default_model_filename names '../../x', outside the version's directory",
        ),
        (
            layout("1/model.onnx", config=ONNX + b' cc_model_filenames { key: "7.5" value: "/etc/x" }'),
            "cc_model_filenames '7.5' names '/etc/x', outside",
        ),
        (layout("1/model.py", "mlflow-meta.json", config=PYTHON), "holds mlflow-meta.json"),
        (layout("1/model.py", "a/../../x", config=PYTHON), "leads out of the model directory"),
        (layout("1/model.py", "/etc/x", config=PYTHON), "leads out of the model directory"),
        (layout("1/model.py", "1/a\nb", config=PYTHON), "cannot be written down"),
        (layout("1/model.py", "1/\udce9", config=PYTHON), "cannot be written down"),
        (layout("1/model.py", config=PYTHON + b' name: "other"'), 'deploy under the name "other"'),
    ],
)
def test_check_refuses(subject: Layout, words: str) -> None:
    """A model directory that Triton refuses without a reason, or does not survive, is refused beforehand."""
    assert words in problems(subject)


@pytest.mark.parametrize(
    "subject",
    [
        layout("1/model.py", config=PYTHON),
        layout("1/model.py", "1/my weights.bin", "1/ü.bin", "labels of mine.txt", config=PYTHON),
        layout("1/sub/m-2.py", config=PYTHON + b' default_model_filename: "sub/m-2.py"'),
        layout(
            "1/model.onnx",
            "1/0b1c.data",
            "labels.txt",
            config=ONNX + b' output { label_filename: "labels.txt" }',
        ),
        layout("1/my model.onnx", config=b'backend: "openvino" default_model_filename: "my model.onnx"'),
        layout("1/model.onnx/model.onnx", "1/model.onnx/weights", config=ONNX),
        layout("1/model.savedmodel/saved_model.pb", config=b'platform: "tensorflow_savedmodel"'),
        layout("1/model.pt2", config=b'backend: "pytorch"'),
        layout(
            "1/sm75.plan", config=b'backend: "tensorrt" cc_model_filenames { key: "7.5" value: "sm75.plan" }'
        ),
        layout("1/model.onnx"),
        layout("1/model.onnx", "docs/readme.md"),
        layout("1/old", "2/model.onnx", config=ONNX),
        layout("1/model.py", "2/x", config=PYTHON + b" version_policy { specific { versions: 1 } }"),
        layout("1/model.py", config=PYTHON + b' platform: "onnxruntime_onnx"'),
        layout(config=b'backend: "identity"', directories=("1",)),
        layout(config=ENSEMBLE),
        layout("notes.md", config=ENSEMBLE, directories=("3",)),
    ],
)
def test_check_accepts(subject: Layout) -> None:
    """A model directory that Triton loads is accepted, whatever else lies in it."""
    subject.check("m")


def test_every_problem_is_reported_at_once() -> None:
    """One error lists the problems of the files and of the configuration, ten at most."""
    subject = layout("01/x", "mlflow-meta.json", config=PYTHON + b" max_batch_size: -1")
    message = problems(subject)
    assert all(words in message for words in ("mlflow-meta.json", "'01'", "max_batch_size is -1"))
    many = layout("1/model.py", *(f"{number}.bak/x" for number in range(30)), config=PYTHON)
    assert "and 20 more" in problems(many)


def test_entries_that_are_no_files_are_refused() -> None:
    """A symbolic link is a problem that names it and its remedy."""
    subject = lay_out(
        {PurePosixPath("1/model.py"): SOURCE},
        origin="models:/m/1",
        config_text=PYTHON,
        unusual={PurePosixPath("1/weights"): "a symbolic link"},
    )
    assert "1/weights is a symbolic link" in problems(subject)


def test_an_ensemble_gets_its_version_directory() -> None:
    """An ensemble whose empty version directory got lost on the way has version 1, and keeps others."""
    assert layout(config=ENSEMBLE).versions == (1,)
    assert layout(config=ENSEMBLE).directories == {PurePosixPath("1")}
    assert layout(config=ENSEMBLE, directories=("3",)).versions == (3,)


def test_without_a_name_only_the_rules_about_it_are_left_out() -> None:
    """When publishing, a configuration may have any name, and a model any backend its name may tell."""
    layout("1/model.py", config=PYTHON + b' name: "x"').check(None)
    layout("1/weights.json").check(None)
    layout("1/weights.json").check("trees.fil")
    assert "no version directory" in problems(layout("x/model.py", config=PYTHON), name=None)


def test_a_broken_configuration_is_refused_at_once() -> None:
    """lay_out refuses a config.pbtxt that cannot be read, and says where."""
    with pytest.raises(InvalidModelConfig, match=r"^models:/m/1/config.pbtxt:1:1: .*no field"):
        layout("1/model.py", config=b"quux: 1")


def test_a_directory_in_place_of_the_configuration() -> None:
    """A directory that has the name of the configuration is refused: the configuration could not be written."""
    words = "config.pbtxt is a directory: put the file there"
    assert words in problems(layout("1/model.py", "config.pbtxt/file"))
    assert words in problems(layout("1/model.py", directories=("config.pbtxt",)))


@pytest.mark.parametrize("files", [(f"{KEPT}/1/model.py",), (KEPT,), (f"{KEPT}/config.pbtxt",)])
def test_what_is_kept_for_the_plugin(files: tuple[str, ...]) -> None:
    """A model cannot bring what a rollback would take for the deployment before it."""
    assert f"it holds {KEPT}" in problems(layout("1/model.py", *files, config=b'backend: "python"'))
    assert KEPT > "z"  # Triton looks into the first directory for what kind of model this is
