import errno
import json
import re
from pathlib import Path

import pytest

from toolkit import errors
from toolkit.errors import (
    HseeError,
    MachineError,
    MissingPartError,
    UsageError,
    did_you_mean,
    report_error,
    require,
    writing,
)


def every_error() -> list[type[HseeError]]:
    found, todo = [], [HseeError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return found


def test_codes_are_unique_and_complete():
    kinds = every_error()
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert all("code" in vars(kind) and re.fullmatch(r"HSEE-E\d{3}", kind.code) for kind in kinds)


def test_the_whole_tree_stands_in_one_file():
    assert {kind.__module__ for kind in every_error()} == {errors.__name__}


def test_exit_statuses_follow_the_hundreds():
    by_hundred = {"2": 2, "4": 4, "5": 5, "6": 6}
    for kind in every_error():
        assert kind.exit_status == by_hundred.get(kind.code[6], kind.exit_status), kind
        assert kind.exit_status in range(1, 8)


def test_every_kind_but_the_abstract_is_caught_as_what_a_caller_expects():
    for kind in every_error():
        plain = [base for base in kind.__mro__ if base.__module__ == "builtins"]
        if kind not in (
            HseeError,
            errors.ProtocolError,
            errors.RunError,
            errors.FencedError,
            errors.PartialError,
        ):
            assert len(plain) > len(HseeError.__mro__) - 1, kind


def test_an_error_carries_its_message_hint_and_facts():
    error = UsageError("No.", hint="Yes.", key="x")
    assert str(error) == "No. Yes."
    assert error.facts == {"key": "x"}
    assert str(UsageError("No.")) == "No."


@pytest.mark.parametrize(
    ("word", "said"), [("ronds", "Did you mean 'rounds'?"), ("zzz", "Known: lr, rounds.")]
)
def test_did_you_mean(word, said):
    assert did_you_mean(word, ["rounds", "lr"]) == said


def test_nothing_known_says_nothing():
    assert not did_you_mean("x", [])


def test_a_missing_part_names_the_command():
    require("json", part="x", purpose="A test")
    with pytest.raises(MissingPartError) as caught:
        require("no_such_package", part="export", purpose="Exporting")
    assert caught.value.hint == "Install it with: pip install 'hsee[export]'"
    assert isinstance(caught.value, ImportError)


def test_an_error_is_answered_in_words_or_as_json(capsys, monkeypatch):
    monkeypatch.delenv("HSEE_DEBUG", raising=False)
    assert report_error(UsageError("No.", hint="Yes."), as_json=False) == 2
    assert capsys.readouterr() == ("", "error: No. (HSEE-E200)\nfix:   Yes.\n")
    assert report_error(UsageError("No."), as_json=True) == 2
    told, quiet = capsys.readouterr()
    assert json.loads(told) == {
        "success": False,
        "error": {"code": "HSEE-E200", "message": "No.", "hint": ""},
    }
    assert quiet == ""


def test_a_full_disk_is_told_with_the_bytes_that_are_free(tmp_path):
    with (
        pytest.raises(
            MachineError, match=r"run\.json can't be written: .*; \d+ bytes are free there\."
        ) as caught,
        writing(tmp_path / "not/made/run.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.facts["free_bytes"] >= 0


@pytest.mark.parametrize("number", [errno.EROFS, errno.EFBIG, errno.EIO])
def test_any_other_refusal_is_told_without(number):
    with (
        pytest.raises(MachineError, match=r"x can.t be written: so it is\.") as caught,
        writing(Path("x")),
    ):
        raise OSError(number, "so it is")
    assert caught.value.facts["free_bytes"] is None
