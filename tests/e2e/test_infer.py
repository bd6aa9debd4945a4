"""``hsee infer`` as its user meets it: a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import write_tiny_bundle
from toolkit.bundle.archive import write_archive
from toolkit.runtime.__main__ import main

ROOT = Path(__file__).parents[2]
X = np.asarray([[9, 0, 0], [0, 0.1, 0], [0, 0, 9], [0, 0, 9]], np.float32)
Y = np.asarray([0, 0, 2, 2])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("infer") / "bundle", factors=(1.0, 1.0))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "held.npz"
    np.savez(path, x=X, y=Y)
    return path


def infer(*arguments, code="", stdin=None, **environment):
    program = [sys.executable, "-c", code] if code else [sys.executable, "-m", "toolkit.runtime"]
    return subprocess.run(
        [*program, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
        check=False,
    )


def test_a_line_a_sample_and_a_summary(bundle, labelled):
    result = infer(bundle.folder, labelled)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["held.npz[0]", "ant", "100.0%", "exit1"]
    assert lines[1].split()[:2] == ["held.npz[1]", "bee"]
    assert lines[1].endswith("unsure, wrong: is ant")
    assert (
        lines[4]
        == "4 samples: 3 by exit1 (75.0%), 1 by exit2 (25.0%); 1 unsure (25.0%; entropy 0.5, entropy 0.5)"
    )
    assert lines[5].startswith("time a sample: p50 ")
    assert lines[6] == "accuracy: 75.0% of all 4; of the 3 sure answers 100.0%"


def test_the_process_loads_numpy_and_onnxruntime_only(bundle, labelled):
    code = """
import sys
from toolkit.bundle.archive import write_archive
from toolkit.runtime.__main__ import main
status = main(sys.argv[1:])
heavy = {"torch", "torchvision", "onnx", "onnxscript", "typer", "rich", "paho", "amqtt", "PIL", "safetensors"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}), "onnxruntime" in sys.modules)
sys.exit(status)
"""
    result = infer(bundle.folder, labelled, "-q", code=code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[] True"


def test_json_is_one_object_and_nothing_else(bundle, labelled, capsys):
    assert main([str(bundle.folder), str(labelled), "--json", "--batch", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["success"] is True
    assert [s["label"] for s in told["samples"]] == ["ant", "bee", "cat", "cat"]
    assert told["samples"][1]["unsure"] is True
    assert told["samples"][1]["known"] == "ant"
    summary = told["summary"]
    assert summary["answered_by"] == {"exit1": 3, "exit2": 1}
    assert (summary["accuracy"], summary["accuracy_of_sure"], summary["n_unsure"]) == (0.75, 1.0, 1)
    assert summary["bundle"]["digest"] == bundle.digest


def test_an_archive_answers_as_its_folder_does(bundle, labelled, tmp_path, capsys):
    archive = write_archive(bundle, tmp_path / "bundle.hsee")
    told = []
    for place in (bundle.folder, archive):
        assert main([str(place), str(labelled), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    answers = [[(s["label"], s["exit"], s["probability"]) for s in one["samples"]] for one in told]
    assert answers[0] == answers[1]
    assert told[0]["summary"]["bundle"]["digest"] == told[1]["summary"]["bundle"]["digest"]
    archive.write_bytes(archive.read_bytes()[:-1])
    assert main([str(archive), str(labelled)]) == 1
    assert "is not an archive of a bundle" in capsys.readouterr().err


def test_a_variant_that_is_not_there_is_told(bundle, labelled, capsys):
    assert main([str(bundle.folder), str(labelled), "--variant", "float32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["variants"] == ["float32", "float32"]
    assert main([str(bundle.folder), str(labelled), "--variant", "int8"]) == 1
    told = capsys.readouterr().err
    assert "segment1.onnx has no int8 variant, only float32." in told
    assert "hsee export --int8" in told


def test_text_answers_end_with_a_newline(bundle, labelled, capsys):
    assert main([str(bundle.folder), str(labelled)]) == 0
    assert capsys.readouterr().out.endswith("100.0%\n")


def test_flags_change_the_policy_and_quiet_leaves_the_summary(bundle, labelled, capsys):
    assert main([str(bundle.folder), str(labelled), "-q", "--threshold", "1", "--no-labels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 samples: 4 by exit1 (100.0%); 0 unsure")
    assert len(lines) == 2
    policy = ["--policy", "margin", "--threshold", "0.99"]
    assert main([str(bundle.folder), str(labelled), "-q", *policy]) == 0
    assert "margin 0.99" in capsys.readouterr().out


def test_standard_input(bundle):
    result = infer(bundle.folder, "-", stdin="9,0,0,ant\n0,0,9,cat\n")
    assert result.returncode == 0, result.stderr
    assert "accuracy: 100.0% of all 2" in result.stdout


def test_values_of_another_scale_bring_a_note_on_stderr(bundle, tmp_path, capsys):
    np.save(tmp_path / "bytes.npy", X * 28)
    assert main([str(bundle.folder), str(tmp_path / "bytes.npy"), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["summary"]["n_far_outside"] == 3
    assert "note: 3 samples hold values far outside -5 to 5" in told.err


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["{bundle}", "nowhere.npz"], 1, "error: nowhere.npz does not exist."),
        (["nowhere", "{labelled}"], 1, "error: nowhere does not exist."),
        (["{bundle}"], 2, "error: The following arguments are required: SAMPLES."),
        (["{bundle}", "{labelled}", "--batch", "0"], 2, "not a whole number"),
        (["{bundle}", "{labelled}", "--threshold", "7"], 1, "not in (0, 1]"),
        (["{bundle}", "{labelled}", "--policy", "margin"], 1, "fix:   Give a threshold together"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_a_fix(bundle, labelled, capsys, arguments, status, complaint):
    filled = [a.format(bundle=bundle.folder, labelled=labelled) for a in arguments]
    assert main(filled) == status
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert complaint in told.err
    assert "Traceback" not in told.err
    assert main([*filled, "--json"]) == status
    failure = json.loads(capsys.readouterr().out)
    assert failure["success"] is False
    assert set(failure["error"]) == {"code", "message", "hint"}


def test_a_flipped_byte_stops_the_command(tmp_path, labelled):
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.folder / "segment1.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = infer(bundle.folder, labelled)
    assert result.returncode == 1
    assert "segment1.onnx is not the file its manifest names" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in infer(bundle.folder, labelled, HSEE_DEBUG="1").stderr


def test_a_reader_that_leaves_early_is_no_error(bundle, tmp_path):
    np.save(tmp_path / "many.npy", np.tile(X, (5000, 1)))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "toolkit.runtime",
            str(bundle.folder),
            str(tmp_path / "many.npy"),
            "--batch",
            "100",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""
