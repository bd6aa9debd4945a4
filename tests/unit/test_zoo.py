"""Our models: shapes, options, weights from the seed, and ResNets that are torchvision's tensor for tensor."""

import importlib.util
import json

import pytest
import torch
from typer.testing import CliRunner

from tests.numerics.same import assert_same
from toolkit.cli.app import app
from toolkit.cli.entry import main
from toolkit.errors import ModelError
from toolkit.nn.cut import cut_layers, describe, take_segment
from toolkit.nn.datasets import import_torchvision
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.zoo import (
    MODELS,
    build_network,
    check_model,
    from_torchvision_state,
    stage_names,
    torchvision_state,
)
from toolkit.wire.job import ModelSpec

SHAPES = {
    "cnn1d": [6, 50],
    "mlp": [17],
    "resnet18": [3, 32, 32],
    "resnet34": [3, 32, 32],
    "resnet_small": [1, 8, 8],
}


def spec_of(name, *, shape=None, n_classes=5, **options):
    return ModelSpec(name=name, input_shape=shape or SHAPES[name], n_classes=n_classes, options=options)


def resnet_keys(blocks):
    """torchvision's state dict of a ResNet of basic blocks, key by key in its order."""

    def norm(name):
        tensors = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{name}.{tensor}" for tensor in tensors]

    keys = ["conv1.weight", *norm("bn1")]
    for layer, n_blocks in enumerate(blocks, start=1):
        for block in range(n_blocks):
            at = f"layer{layer}.{block}"
            keys += [f"{at}.conv1.weight", *norm(f"{at}.bn1"), f"{at}.conv2.weight", *norm(f"{at}.bn2")]
            if layer > 1 and block == 0:
                keys += [f"{at}.downsample.0.weight", *norm(f"{at}.downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


def test_every_model_is_tried_here():
    assert SHAPES.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_its_shape_and_gives_logits(name):
    network = build_network(spec_of(name), seed=1).eval()
    assert network(torch.zeros(2, *SHAPES[name])).shape == (2, 5)
    assert len(cut_layers(network)) >= 2


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_from_the_seed_alone(name):
    generator = torch.get_rng_state()
    first, again, other = (build_network(spec_of(name), seed=seed).state_dict() for seed in (1, 1, 2))
    assert_same(again, first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("name", "blocks", "n_keys", "n_parameters"),
    [("resnet18", (2, 2, 2, 2), 122, 11_689_512), ("resnet34", (3, 4, 6, 3), 218, 21_797_672)],
)
def test_resnets_have_torchvisions_names(name, blocks, n_keys, n_parameters):
    network = build_network(spec_of(name, shape=[3, 64, 64], n_classes=1000, stem="imagenet"), seed=0)
    state = torchvision_state(network.state_dict())
    assert len(state) == n_keys
    assert list(state) == resnet_keys(blocks)
    assert sum(p.numel() for p in network.parameters()) == n_parameters
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert state["fc.weight"].shape == (1000, 512)
    assert_same(from_torchvision_state(network, state), network.state_dict())


def test_a_torchvision_state_that_lacks_tensors_is_refused():
    network = build_network(spec_of("resnet18", width=4), seed=0)
    state = torchvision_state(network.state_dict())
    del state["layer3.1.bn2.bias"]
    with pytest.raises(ModelError, match=r"layer3\.1\.bn2\.bias"):
        from_torchvision_state(network, state)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_resnets_compute_what_torchvisions_do(name):
    theirs = getattr(import_torchvision("models"), name)(weights=None).eval()
    ours = build_network(spec_of(name, shape=[3, 64, 64], n_classes=1000, stem="imagenet"), seed=0).eval()
    assert list(torchvision_state(ours.state_dict())) == list(theirs.state_dict())
    ours.load_state_dict(from_torchvision_state(ours, theirs.state_dict()))
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_the_stem_keeps_the_size_halves_or_quarters_it():
    for stem, side in (("cifar", 32), ("strided", 16), ("imagenet", 8)):
        network = build_network(spec_of("resnet18", width=4, stem=stem), seed=0)
        assert describe(network, [3, 32, 32])[0].shape == (4, side, side)


def test_facts_of_resnet18_are_the_published_ones():
    """method.md section 9, and 3.628 GFLOP at 224 (torch.utils.flop_counter)."""
    rows = describe(build_network(spec_of("resnet18", n_classes=10), seed=0), [3, 32, 32])
    assert [row.name for row in rows] == ["stem", "layer1", "layer2", "layer3", "layer4", "classifier"]
    assert [row.is_cut_layer for row in rows] == [True] * 4 + [False] * 2
    assert [row.activation_bytes // 1024 for row in rows[:4]] == [256, 256, 128, 64]
    total = sum(row.flop for row in rows)
    assert total == pytest.approx(2 * 555e6, rel=0.01)
    assert [round(sum(r.flop for r in rows[: n + 1]) / total, 3) for n in range(4)] == [
        0.003,
        0.275,
        0.517,
        0.758,
    ]
    assert [sum(r.n_parameters for r in rows[: n + 1]) for n in (0, 1)] == [1_856, 149_824]
    large = build_network(spec_of("resnet18", shape=[3, 224, 224], n_classes=1000, stem="imagenet"), seed=0)
    assert sum(row.flop for row in describe(large, [3, 224, 224])) == pytest.approx(3.628e9, rel=0.001)


@pytest.mark.parametrize("window", [1, 2, 9, 128])
def test_cnn1d_takes_any_window(window):
    network = build_network(spec_of("cnn1d", shape=[9, window], width=4), seed=0).eval()
    assert network(torch.zeros(3, 9, window)).shape == (3, 5)


@pytest.mark.parametrize("name", ["cnn1d", "resnet_small"])
@pytest.mark.parametrize("head", ["conv", "pooled", "auto"])
def test_exit_heads_stand_at_every_cut(name, head):
    network = build_network(spec_of(name, width=4), seed=0)
    for row in describe(network, SHAPES[name]):
        if row.is_cut_layer:
            exit_ = build_exit_head(
                head, activation_shape=row.shape, n_classes=5, cut=row.name, seed=0
            ).eval()
            h = take_segment(network, row.name)(torch.zeros(2, *SHAPES[name]))
            assert exit_(h).shape == (2, 5)


def test_a_convolution_finds_nothing_in_a_table():
    with pytest.raises(ModelError, match=r"'conv' needs activations .* gives \(128,\)") as raised:
        build_exit_head("conv", activation_shape=(128,), n_classes=5, cut="hidden1", seed=0)
    assert "pooled" in raised.value.hint


@pytest.mark.parametrize(
    ("name", "options", "said", "hint"),
    [
        ("resnet81", {}, "no model 'resnet81'", "Did you mean 'resnet18'? Your own: python:"),
        ("resnet18", {"widht": 8}, "no option 'widht'", "Did you mean 'width'?"),
        ("resnet18", {"width": 0}, "'width' is 0; expected a whole number from 1", "64"),
        ("resnet18", {"width": "8"}, "'width' is '8'", "64"),
        ("resnet18", {"width": True}, "'width' is True", "64"),
        ("mlp", {"depth": 2.5}, "'depth' is 2.5", "4"),
        ("resnet18", {"stem": 3}, "'stem' is 3; expected a word", "cifar"),
    ],
)
def test_what_is_no_model_is_refused_before_anything_is_built(name, options, said, hint):
    with pytest.raises(ModelError, match=said) as raised:
        check_model(name, options)
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [("resnet18", [17], "takes pictures"), ("cnn1d", [3, 8, 8], "takes windows"), ("cnn1d", [3], "windows")],
)
def test_data_of_another_kind_are_refused(name, shape, said):
    with pytest.raises(ModelError, match=said) as raised:
        build_network(spec_of(name, shape=shape), seed=0)
    assert "'mlp'" in raised.value.hint


def test_an_unknown_stem_is_refused():
    with pytest.raises(ModelError, match="Stem 'cifra'") as raised:
        build_network(spec_of("resnet18", stem="cifra"), seed=0)
    assert raised.value.hint == "Did you mean 'cifar'?"


def test_show_prints_a_table():
    words = ["model", "show", "resnet_small", "--input", "1x8x8", "--classes", "10", "--option", "width=4"]
    lines = CliRunner().invoke(app, words).output.splitlines()
    assert lines[0].startswith("Model resnet_small: 0.099 MFLOP and 5,142 parameters")
    assert lines[1].split()[:3] == ["stage", "output", "MFLOP"]
    assert lines[2].split() == ["stem", "4x8x8", "0.005", "4.6%", "44", "0.9%", "1,024", "yes"]
    assert [line.split()[0] for line in lines[3:7]] == ["layer1", "layer2", "layer3", "classifier"]
    assert "FLOP means 2 x MAC" in lines[-1]


def test_show_prints_json():
    words = ["model", "show", "mlp", "--input", "11", "--classes", "3", "--option", "width=8", "--json"]
    told = json.loads(CliRunner().invoke(app, words).output)
    assert told["success"] is True
    assert told["model"]["options"] == {"width": 8}
    first = told["stages"][0]
    assert first == {
        "name": "hidden1",
        "shape": [8],
        "flop": 2 * 11 * 8,
        "n_parameters": 11 * 8 + 8 + 16,
        "activation_bytes": 32,
        "is_cut_layer": True,
    }
    assert told["flop"] == sum(stage["flop"] for stage in told["stages"])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["resnet81", "--input", "3x8x8", "--classes", "2"], 1, "Did you mean 'resnet18'?"),
        (["resnet18", "--input", "3xAx8", "--classes", "2"], 2, "1x8x8"),
        (["resnet18", "--input", "8", "--classes", "2"], 1, "takes pictures"),
        (["resnet18", "--input", "3x8x8", "--classes", "2", "--option", "width"], 2, "NAME=VALUE"),
    ],
)
def test_show_refuses_with_a_hint(words, status, said, capsys):
    assert main(["model", "show", *words]) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", MODELS)
def test_group_norm_takes_the_place_of_every_batch_norm(name):
    network = build_network(spec_of(name, norm="group"), seed=1)
    kinds = {type(module).__name__ for module in network.modules() if "Norm" in type(module).__name__}
    assert kinds == {"GroupNorm"}
    assert not list(network.buffers())
    x = torch.randn(2, *SHAPES[name])
    assert network.train()(x).shape == (2, 5)
    assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-5)  # others of its batch say nothing


def test_a_normalisation_that_there_is_not_is_refused():
    with pytest.raises(ModelError, match="no normalisation 'grup'") as refused:
        build_network(spec_of("mlp", norm="grup"), seed=1)
    assert "group" in refused.value.hint


def test_the_convolutional_exit_comes_with_group_norm_too():
    head = build_exit_head("conv_group", activation_shape=(4, 6, 6), n_classes=3, cut="stem", seed=0)
    assert not list(head.buffers())
    assert head(torch.randn(1, 4, 6, 6)).shape == (1, 3)


@pytest.mark.parametrize("name", MODELS)
def test_stages_are_known_before_the_data_are(name):
    assert stage_names(name, {"width": 2}) == build_network(spec_of(name, width=2), seed=0).stage_names


def test_those_of_a_users_model_are_not():
    assert stage_names("python:tests.numerics.models:with_dropout", {}) == ()
