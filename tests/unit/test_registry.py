"""Who may take part, and what the joined devices make the run's data."""

import numpy as np
import pytest

from coordinator.fleet.registry import refusal_of, refusal_of_model, unite
from device_agent.agent import ADVICE
from toolkit.config import Run
from toolkit.errors import CutError, DataError
from toolkit.nn.datasets import channel_moments
from toolkit.wire.messages import DataSummary, Hello, Refusal, encode_header


def summary(classes=("a", "b"), shape=(1, 8, 8), *, x=None, **changes):
    mean, var = channel_moments(x) if x is not None else ([0.5] * shape[0], [1.0] * shape[0])
    facts = {
        "classes": list(classes),
        "input_shape": list(shape),
        "n_train": 10 if x is None else len(x),
        "n_eval": 2,
        "mean": mean,
        "var": var,
        "fingerprint": "f" * 32,
    }
    return DataSummary(**{**facts, **changes})


def hello(data=None, **changes):
    facts = {
        "device": "ant",
        "boot_nonce": bytes(16),
        "protocols": [1],
        "software": "hsee",
        "data": data or summary(),
    }
    return Hello(**{**facts, **changes})


def judge(said, **known):
    facts = {"device": "ant", "classes": [], "input_shape": None, "members": None}
    return refusal_of(said, **{**facts, **known})


def test_whoever_fits_is_welcome():
    assert judge(hello()) is None
    known = {"classes": ["b", "c", "a"], "input_shape": (1, 8, 8), "members": {"ant", "bee"}}
    assert judge(hello(), **known) is None


@pytest.mark.parametrize(
    ("said", "known", "code", "text"),
    [
        (hello(), {"device": "bee"}, "name", "on the topic of 'bee' names 'ant'"),
        (hello(protocols=[2, 3]), {}, "protocol", "speaks protocol 1; the device speaks [2, 3]"),
        (hello(), {"members": ["bee"]}, "late", "began without this device"),
        (hello(), {"input_shape": [3, 8, 8]}, "shape", "shape [1, 8, 8]; the run's have [3, 8, 8]"),
        (
            hello(summary(["a", "x", "y"])),
            {"classes": ["a", "b"]},
            "classes",
            "does not have: x, y. The run's classes are a, b.",
        ),
    ],
)
def test_every_refusal_says_why(said, known, code, text):
    refusal = judge(said, **known)
    assert refusal is not None
    assert refusal[0] == code
    assert text in refusal[1]
    # A device that names another can't be advised; all others learn what to do.
    assert code == "name" or ADVICE[code]


def test_any_number_of_unknown_classes_fits_a_refusal():
    names = [f"{number}-{'x' * 250}" for number in range(1000)]
    code, text = judge(hello(summary(names)), classes=[*names[::-1][:-900], "q" * 256])
    assert "and 894 more" in text
    encode_header(Refusal(boot_nonce=bytes(16), code=code, message=text))


def test_a_model_for_other_samples_is_refused_before_anything_is_measured():
    assert refusal_of_model(Run(model="resnet_small"), [1, 8, 8]) is None
    code, text = refusal_of_model(Run(model="resnet_small"), [64])
    assert code == "model"
    assert "takes pictures" in text
    assert "--model" in ADVICE[code]


def test_an_exit_that_no_server_of_a_users_model_has_ends_the_run_when_its_first_device_comes():
    own = "python:tests.numerics.models:with_dropout"
    assert refusal_of_model(Run(model=own, server_exits=["second"]), [3, 12]) is None
    with pytest.raises(
        CutError, match="no stage 'first' to put an exit at; behind 'first' stand second, third"
    ):
        refusal_of_model(Run(model=own, server_exits=["second", "first"]), [3, 12])


def test_the_run_has_the_union_of_classes_in_natural_order():
    facts = unite([summary(["digit10", "digit9"]), summary(["digit9", "digit2", "blank"])])
    assert facts.classes == ("blank", "digit2", "digit9", "digit10")
    assert facts.input_shape == (1, 8, 8)


def test_names_that_differ_only_in_how_a_number_is_written_have_one_order():
    # By chance alone a set of nine would be in this order once in thousands of runs.
    names = ["01", "1", "001", "0001", "1\u0663", "a01", "a1", "a", "\u00b2"]
    ordered = ("0001", "001", "01", "1", "1\u0663", "a", "a01", "a1", "\u00b2")
    assert unite([summary(names)]).classes == unite([summary(names[::-1])]).classes == ordered


def test_a_class_list_that_is_set_stays_as_it_is():
    assert unite([summary(["a", "b"])], classes=["b", "c", "a"]).classes == ("b", "c", "a")


def test_one_class_in_all_is_too_few():
    with pytest.raises(DataError, match="the class 'a' only"):
        unite([summary(["a"]), summary(["a"])])


def test_pooled_moments_are_those_of_all_samples_together():
    generator = np.random.default_rng(1)
    parts = [
        generator.normal(mean, spread, (n, 3, 4, 4)).astype(np.float32)
        for n, mean, spread in ((5, 0.0, 1.0), (50, 10.0, 0.1), (200, -3.0, 4.0))
    ]
    facts = unite([summary(shape=(3, 4, 4), x=x) for x in parts])
    together = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(facts.mean, together.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(facts.std, together.std((0, 2, 3)), rtol=1e-9)


def test_a_channel_that_never_changes_can_still_be_divided_by():
    facts = unite([summary(var=[0.0]), summary(var=[0.0])])
    assert facts.std[0] > 0
