"""The two steps: what they compute together, what they touch, and that making a batch again touches nothing."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.numerics.same import assert_same
from toolkit.nn.cut import cut_layers, take_segment, take_suffix
from toolkit.nn.server_exits import build_server_exits, take_suffix_with
from toolkit.nn.steps import (
    build_device_model,
    device_eval,
    device_remake,
    device_step,
    make_optimizer,
    server_step,
)
from toolkit.nn.weights import training_state
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec, OptimizerSpec

OPTIMIZER = OptimizerSpec(lr=0.1, momentum=0.9, weight_decay=0.01)
OWN = "python:tests.numerics.models:"
MODELS = {
    "resnet_small": ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=3, options={"width": 4}),
    "resnet18": ModelSpec(name="resnet18", input_shape=[3, 16, 16], n_classes=4, options={"width": 4}),
    "cnn1d": ModelSpec(name="cnn1d", input_shape=[6, 32], n_classes=3, options={"width": 4}),
    "mlp": ModelSpec(name="mlp", input_shape=[11], n_classes=2, options={"width": 8}),
    "dropout": ModelSpec(name=f"{OWN}with_dropout", input_shape=[3, 12], n_classes=3),
    "float64": ModelSpec(
        name=f"{OWN}of_other_numbers", input_shape=[1, 8, 8], n_classes=3, options={"dtype": "float64"}
    ),
}
IN_PLACE = ModelSpec(name=f"{OWN}working_in_place", input_shape=[1, 8, 8], n_classes=3)


def batch_for(model, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *model.input_shape, generator=generator)
    return x, torch.randint(model.n_classes, (n,), generator=generator)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_network_cut_and_joined_again_is_the_network(model):
    """Loss, logits and every gradient, where the gradient is handed back at the cut as the whole network does."""
    x, y = batch_for(model)
    whole = build_network(model, seed=3)
    for cut in cut_layers(whole):
        alone = copy.deepcopy(whole).train()
        parts = copy.deepcopy(whole).train()
        segment, suffix = take_segment(parts, cut), take_suffix(parts, cut)
        torch.manual_seed(5)
        logits = alone(x)
        loss = cross_entropy(logits, y)
        loss.backward()
        torch.manual_seed(5)
        h = segment(x)
        handed_over = h.detach().requires_grad_()
        split_logits = suffix(handed_over)
        split_loss = cross_entropy(split_logits, y)
        split_loss.backward()
        h.backward(handed_over.grad)
        assert torch.equal(split_logits, logits)
        assert torch.equal(split_loss, loss)
        assert_same(gradients(parts), gradients(alone))
        assert_same(parts.state_dict(), alone.state_dict())


def test_the_steps_are_those_of_the_two_halves():
    """device_step and server_step against plain torch with torch's own optimizer: loss and every tensor."""
    model = MODELS["resnet_small"]
    x, y = batch_for(model)
    device = build_device_model(model, cut="layer1", exit_head="conv", optimizer=OPTIMIZER, seed=3)
    server = take_suffix(build_network(model, seed=3), "layer1")
    sgd = make_optimizer(server, OPTIMIZER)
    twins = copy.deepcopy(device.segment), copy.deepcopy(device.exit_head), copy.deepcopy(server)
    spec = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "foreach": False}
    optimizers = [
        torch.optim.SGD([*twins[0].parameters(), *twins[1].parameters()], **spec),
        torch.optim.SGD(twins[2].parameters(), **spec),
    ]
    for step in range(3):
        made = device_step(device, x, y, seed=step)
        loss = server_step(server, sgd, made.h, y, seed=step).loss
        for optimizer in optimizers:
            optimizer.zero_grad()
        h = twins[0].train()(x)
        exit_loss = cross_entropy(twins[1].train()(h), y)
        exit_loss.backward()
        optimizers[0].step()
        server_loss = cross_entropy(twins[2].train()(h.detach()), y)
        server_loss.backward()
        optimizers[1].step()
        assert torch.equal(made.h, h.detach())  # of the pass before the update
        assert (made.loss, loss) == (exit_loss.item(), server_loss.item())
    for ours, theirs in zip((device.segment, device.exit_head, server), twins, strict=True):
        assert_same(ours.state_dict(), theirs.state_dict())


def test_what_is_handed_over_carries_no_graph():
    model = MODELS["resnet_small"]
    x, y = batch_for(model)
    device = build_device_model(model, cut="stem", exit_head="pooled", optimizer=OPTIMIZER, seed=3)
    made = device_step(device, x, y, seed=0)
    assert not made.h.requires_grad
    assert made.h.grad_fn is None
    before = {name: t.clone() for name, t in training_state(device.modules, device.optimizer).items()}
    suffix = take_suffix(build_network(model, seed=3), "stem")
    server_step(suffix, make_optimizer(suffix, OPTIMIZER), made.h, y, seed=0)
    assert_same(training_state(device.modules, device.optimizer), before)


def test_a_step_touches_only_the_layers_it_ran():
    """Momentum and weight decay would move layers before the cut if they had a gradient of zero and not none."""
    model = MODELS["resnet_small"]
    network = build_network(model, seed=3)
    theta = take_suffix(network, "stem")
    sgd = make_optimizer(theta, OPTIMIZER)
    x, y = batch_for(model)
    with torch.no_grad():
        h = {cut: take_segment(network, cut)(x) for cut in ("stem", "layer2")}
    server_step(theta, sgd, h["stem"], y, seed=0)
    before = {name: t.clone() for name, t in training_state(theta, sgd).items()}
    assert sum(name.startswith("momentum/layer1.") for name in before) > 0
    server_step(take_suffix(network, "layer2"), sgd, h["layer2"], y, seed=1)
    after = training_state(theta, sgd)
    ran = {name for name in after if not torch.equal(after[name], before[name])}
    run_layers = ("layer3.", "classifier.")
    assert ran == {name for name in after if name.removeprefix("momentum/").startswith(run_layers)}
    assert [n for n, p in network.named_parameters() if p.grad is not None] == [
        n for n, _ in network.named_parameters() if n.removeprefix("stages.").startswith(run_layers)
    ]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_making_a_batch_again_changes_nothing(model):
    x, y = batch_for(model)
    cut = cut_layers(build_network(model, seed=3))[0]
    device = build_device_model(model, cut=cut, exit_head="pooled", optimizer=OPTIMIZER, seed=3)
    device_step(device, x, y, seed=0)
    before = {name: t.clone() for name, t in training_state(device.modules, device.optimizer).items()}
    held = gradients(device.modules)
    generator = torch.get_rng_state()
    remade = [device_remake(device, x, y, seed=7) for _ in range(2)]
    device_eval(device, x, y)
    assert_same(training_state(device.modules, device.optimizer), before)
    assert_same(gradients(device.modules), held)
    assert torch.equal(torch.get_rng_state(), generator)
    # It is the forward pass that a step with the same seed makes, dropout and batch statistics included.
    made = device_step(device, x, y, seed=7)
    for again in remade:
        assert torch.equal(again.h, made.h)
        assert (again.loss, again.n_correct) == (made.loss, made.n_correct)
    assert torch.equal(torch.get_rng_state(), generator)


def test_held_out_samples_stay_as_they_are_where_a_stage_works_in_place():
    model = IN_PLACE
    x, y = batch_for(model)
    before = x.clone()
    device = build_device_model(model, cut="second", exit_head="conv", optimizer=OPTIMIZER, seed=3)
    first, again = (device_eval(device, x, y) for _ in range(2))
    assert torch.equal(x, before)
    assert torch.equal(first.h, again.h)


def test_exits_on_the_way_learn_from_what_they_saw_where_the_next_stage_works_in_place():
    """A twin that gives every stage and head memory of its own comes to the same."""
    model = IN_PLACE
    x, y = batch_for(model)
    device = build_device_model(
        model, cut="second", exit_head="conv", optimizer=OPTIMIZER, seed=3, all_exits=True
    )
    twins = copy.deepcopy(device.modules).train()
    device_step(device, x.clone(), y, seed=0)
    h, losses = x, []
    for name, stage in twins["segment"].named_children():
        h = stage(h.clone())
        head = twins["exit_head"] if name == "second" else twins["shallow_heads"][name]
        losses.append(cross_entropy(head(h.clone()), y))
    sum(losses).backward()
    assert_same(gradients(device.modules), gradients(twins))


def test_so_do_exits_at_the_server():
    model = IN_PLACE
    _, y = batch_for(model)
    network = build_network(model, seed=3)
    heads = build_server_exits(network, model, ["second", "third"], exit_head="conv", seed=3, behind="first")
    suffix = take_suffix_with(network, "first", heads)
    twin = copy.deepcopy(suffix).train()
    h = torch.randn(6, 4, 8, 8)
    server_step(suffix, make_optimizer(suffix, OPTIMIZER), h.clone(), y, seed=0, exit_weight=0.5)
    loss = 0
    for name in ("second", "third"):
        h = twin.get_submodule(name)(h.clone())
        loss = loss + 0.5 * cross_entropy(twin.server_exits[name](h.clone()), y)
    (loss + cross_entropy(twin.classifier(h), y)).backward()
    for name, gradient in gradients(twin).items():
        assert torch.allclose(gradient, gradients(suffix)[name], atol=1e-6), name


def test_layers_with_nothing_to_learn_are_passed_through():
    model = ModelSpec(name=f"{OWN}with_nothing_to_learn", input_shape=[1, 8, 8], n_classes=3)
    x, y = batch_for(model)
    device = build_device_model(model, cut="second", exit_head="pooled", optimizer=OPTIMIZER, seed=3)
    suffix = take_suffix(build_network(model, seed=3), "second")
    forward = device_step(device, x, y, seed=0)
    made = server_step(suffix, make_optimizer(suffix, OPTIMIZER), forward.h, y, seed=0)
    assert made.loss == cross_entropy(suffix(forward.h), y).item()
