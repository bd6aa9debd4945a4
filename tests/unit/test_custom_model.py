"""Models that users bring: what is taken, what is refused, and that a refusal shows where."""

import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from device_agent.workbench import Workbench
from tests.numerics.same import assert_same
from toolkit.config import load_config
from toolkit.errors import CutError, ModelError
from toolkit.nn.cut import cut_layers, take_segment, take_suffix
from toolkit.nn.network import StagedNetwork
from toolkit.nn.seeds import derive_seed, seeded
from toolkit.nn.zoo import build_network, check_model
from toolkit.wire.job import ModelSpec
from toolkit.wire.messages import MeasureRequest


class Plain(nn.Module):
    """Children in a row, with functions between them."""

    def __init__(self, n_classes=3):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, n_classes)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        h = self.pool(functional.relu(self.bn1(self.conv1(x))))
        h = functional.relu(self.conv2(h)) * self.scale
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(h, 1), 1))


class Skipping(nn.Module):
    """A skip connection from a to c."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(5, 5) for _ in range(4))
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        a = self.a(x)
        c = self.c(self.b(a) + a)
        return self.out(self.d(c))


class JumpsTwo(Skipping):
    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        return self.out(self.d(self.c(b) + a))


class ToTheEnd(Skipping):
    def forward(self, x):
        return self.out(self.b(self.a(x)) + x)


class FunctionalDropout(Skipping):
    def forward(self, x):
        return self.out(functional.dropout(self.a(x), 0.5, self.training))


class LooksAtValues(Skipping):
    def forward(self, x):
        return self.out(self.a(x) if x.sum() > 0 else self.b(x))


def chain(input_shape, n_classes, *, width=7):
    n_in = input_shape[0]
    return [("first", nn.Linear(n_in, width)), ("act", nn.ReLU()), ("last", nn.Linear(width, n_classes))]


def shared(n_classes):
    layer = nn.Linear(5, 5)
    return [("a", layer), ("b", layer), ("out", nn.Linear(5, n_classes))]


def tied(n_classes):
    a, b = nn.Linear(5, 5), nn.Linear(5, 5)
    b.weight = a.weight
    return [("a", a), ("b", b), ("out", nn.Linear(5, n_classes))]


class Doubles(nn.Module):
    def forward(self, x):
        return x.double()


class Remembers(nn.Linear):
    def get_extra_state(self):
        return {"calls": 1}


def failing():
    raise KeyError("nothing here")


MAKERS = {
    "plain": Plain,
    "skipping": Skipping,
    "jumps": JumpsTwo,
    "to_the_end": ToTheEnd,
    "dropout": FunctionalDropout,
    "values": LooksAtValues,
    "chain": chain,
    "staged": lambda n_classes: StagedNetwork({"one": nn.Flatten()}, nn.Linear(5, n_classes)),
    "open": lambda **given: [("a", nn.Linear(5, 4)), ("b", nn.Linear(4, given["n_classes"]))],
    "needs": lambda n_classes, secret: [("a", nn.Linear(5, secret)), ("b", nn.Linear(secret, n_classes))],
    "unchained": lambda n_classes: [
        ("a", nn.Linear(5, 4)),
        ("b", nn.Linear(6, 4)),
        ("c", nn.Linear(4, n_classes)),
    ],
    "ten": lambda: [("a", nn.Linear(5, 4)), ("b", nn.Linear(4, 10))],
    "doubles": lambda n_classes: [("a", Doubles()), ("b", nn.Linear(5, n_classes).double())],
    "remembers": lambda n_classes: [("a", Remembers(5, 4)), ("b", nn.Linear(4, n_classes))],
    "tuple": lambda n_classes: [("a", nn.LSTM(5, 4)), ("b", nn.Linear(4, n_classes))],
    "shared": shared,
    "tied": tied,
    "twice": lambda n_classes: [("a", nn.ReLU()), ("a", nn.Linear(5, n_classes))],
    "dotted": lambda n_classes: [("a.b", nn.ReLU()), ("c", nn.Linear(5, n_classes))],
    "alone": lambda n_classes: [("a", nn.Linear(5, n_classes))],
    "nothing": lambda: None,
    "failing": failing,
    "number": 3,
}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """A package of the user's."""
    module = types.ModuleType("orchard_models")
    for name, maker in MAKERS.items():
        setattr(module, name, maker)
    monkeypatch.setitem(sys.modules, "orchard_models", module)


def build(name, *, shape=(5,), n_classes=3, seed=1, **options):
    return build_network(
        ModelSpec(
            name=f"python:orchard_models:{name}",
            input_shape=list(shape),
            n_classes=n_classes,
            options=options,
        ),
        seed=seed,
    )


def test_a_sequence_of_stages():
    network = build("chain", width=9)
    assert network.stage_names == ("first", "act")
    assert network.stages.first.out_features == 9
    assert network(torch.zeros(2, 5)).shape == (2, 3)


def test_a_staged_network_and_open_options():
    assert build("staged").stage_names == ("one",)
    assert build("open", colour="green").stage_names == ("a",)


def test_weights_come_from_the_seed():
    assert_same(build("chain").state_dict(), build("chain").state_dict())
    assert not torch.equal(build("chain").stages.first.weight, build("chain", seed=2).stages.first.weight)


@pytest.mark.parametrize(
    "stages", ["conv1,bn1,pool,conv2,fc", "conv1,conv2,fc", "pool,conv2,fc", "conv1, fc"]
)
def test_a_module_is_split_at_its_children_with_all_that_its_forward_does(stages):
    names = [name.strip() for name in stages.split(",")]
    network = build("plain", shape=(1, 8, 8), stages=stages)
    assert network.stage_names == tuple(names[:-1])
    with seeded(derive_seed(1, "network")):
        whole = Plain()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for training in (True, False):  # batch statistics in one, running ones in the other
        whole.train(training)
        network.train(training)
        assert torch.equal(network(x), whole(x))
    for cut in cut_layers(network):
        h = take_segment(network, cut)(x)
        assert torch.equal(take_suffix(network, cut)(h), whole(x))


def test_a_split_module_trains_every_parameter_once():
    network = build("plain", shape=(1, 8, 8), stages="conv1,conv2,fc").train()
    network(torch.randn(4, 1, 8, 8)).sum().backward()
    assert len(list(network.parameters())) == len(list(Plain().parameters()))
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "stages", "cut", "edges"),
    [
        ("jumps", "a,b,c,d,out", "b", ["b -> c", "a -> add (in c)"]),
        ("jumps", "a,c,d,out", "a", ["b (in a) -> c", "a -> add (in c)"]),
        ("to_the_end", "a,b,out", "a", ["a -> b", "the input -> add (in b)"]),
    ],
)
def test_a_cut_that_a_skip_connection_crosses_is_refused(name, stages, cut, edges):
    with pytest.raises(CutError, match=f"can't be cut after '{cut}': 2 values cross") as raised:
        build(name, stages=stages)
    assert sorted(raised.value.facts["edges"]) == sorted(edges)
    assert all(edge in raised.value.message for edge in edges)
    assert "Leave" in raised.value.hint or "sequence of" in raised.value.hint


@pytest.mark.parametrize(
    ("name", "stages"), [("skipping", "a,b,c,d,out"), ("jumps", "a,d,out"), ("jumps", "a,b,d,out")]
)
def test_a_stage_that_holds_both_ends_of_a_skip_connection_is_taken(name, stages):
    """And a tensor that passes a boundary may be used more than once behind it."""
    network = build(name, stages=stages)
    with seeded(derive_seed(1, "network")):
        whole = MAKERS[name]()
    x = torch.randn(2, 5)
    assert torch.equal(network(x), whole(x))
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize(
    ("name", "options", "said", "hint"),
    [
        ("plain", {}, "nothing says where it can be cut", "--option stages=conv1,bn1,pool,conv2,fc"),
        ("plain", {"stages": "conv1,conv3,fc"}, "no child 'conv3'", "Did you mean 'conv"),
        ("plain", {"stages": "fc"}, "at least two", "Children: conv1"),
        ("plain", {"stages": "conv1,conv1,fc"}, "each once", "Children"),
        ("skipping", {"stages": "b,a,out"}, "calls a, b, out; the stages named are b, a, out", "order"),
        ("dropout", {"stages": "a,out"}, "differs between training and evaluation", "nn.Dropout"),
        ("values", {"stages": "a,out"}, "can't be followed by torch.fx", "sequence of"),
        ("chain", {"stages": "first,last"}, "names its stages itself", ""),
        ("chain", {"widht": 3}, "no option 'widht'", "Did you mean 'width'?"),
        ("needs", {}, "needs the option 'secret'", "--option secret=..."),
        (
            "unchained",
            {},
            "do not chain: input 5 -> a 4 -> b fails: mat1 and mat2 shapes cannot be multiplied",
            "one tensor",
        ),
        ("ten", {}, r"shape \(10,\) a sample; the data has 3 classes", "n_classes"),
        ("doubles", {}, "Stage 'a' gives float64; what passes between stages is float32", ".float()"),
        ("remembers", {}, r"keeps stages\.a\._extra_state, which is no parameter or buffer", "as a buffer"),
        ("tuple", {}, "'a' gives tuple for a batch of one|do not chain: input 5 -> a fails", "tensor"),
        ("shared", {}, "'a' and 'b' share a module", "one stage"),
        ("tied", {}, "'a' and 'b' share a module or its parameters", "one stage"),
        ("twice", {}, "'a' stands there twice", "name of its own"),
        ("dotted", {}, r"can't be called 'a\.b'", "letters"),
        ("alone", {}, "too few", "at least one stage"),
        ("nothing", {}, "returned NoneType", "sequence of"),
        ("failing", {}, "can't be made: KeyError: 'nothing here'", "HSEE_DEBUG"),
        ("number", {}, "is no function", ""),
        ("missing", {}, "can't be imported on this machine: AttributeError", "never sent"),
    ],
)
def test_what_can_not_work_is_refused_and_says_why(name, options, said, hint):
    with pytest.raises(ModelError, match=said) as raised:
        build(name, shape=(1, 8, 8) if name == "plain" else (5,), **options)
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("python:not_here_models:make", "can't be imported on this machine: ModuleNotFoundError"),
        ("python:not_here_models", "names no model"),
        ("python::make", "names no model"),
    ],
)
def test_a_model_that_is_not_installed_is_refused_before_a_run(name, said):
    with pytest.raises(ModelError, match=said):
        check_model(name, {})


@pytest.mark.parametrize("name", ["python:os:system", "python:orchard_models:chain"])
def test_a_board_runs_no_code_of_a_coordinators_choice(name, tmp_path, monkeypatch):
    """Whoever may name a function and its arguments may do anything on the board."""
    monkeypatch.chdir(tmp_path)
    bench = Workbench(load_config({}), device="dev1", data=None, say=print)
    model = ModelSpec(name=name, input_shape=[5], n_classes=3, options={"command": "touch owned"})
    with pytest.raises(ModelError, match="has not allowed") as raised:
        bench.measure(MeasureRequest(model=model, batch_size=8, exit_head="pooled"))
    assert f"device.models={name}" in raised.value.hint
    assert not (tmp_path / "owned").exists()


def test_a_board_allows_what_its_owner_named():
    name = "python:orchard_models:chain"
    bench = Workbench(load_config({"device.models": [name]}), device="dev1", data=None, say=print)
    bench._check_allowed(ModelSpec(name=name, input_shape=[5], n_classes=3))
