"""Splitting a module at named children, whatever its forward pass does between them; torch.fx tells what that is.

A stage is its child and all that the forward pass does from there up to the next one. Only one tensor may pass a
boundary: where a skip connection jumps over it, the split is refused and the crossing edges are named.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from toolkit.errors import CutError, HseeError, ModelError, did_you_mean
from toolkit.nn.network import StagedNetwork

_GIVE_STAGES = "Let make_model return the stages itself: a sequence of (name, module), the classifier last."
TOLERANCE = 1e-5


class _StageTracer(fx.Tracer):
    """Looks into a user's modules, but takes each stage as a whole."""

    def __init__(self, stages: Sequence[str]) -> None:
        super().__init__()
        self._stages = stages

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._stages or super().is_leaf_module(m, module_qualified_name)


def split_at(module: nn.Module, stages: Sequence[str], input_shape: Sequence[int]) -> StagedNetwork:
    """Make a staged network of a module.

    Args:
        module: any; its parameters are shared with the result.
        stages: children of it in the order of its forward pass, the classifier last.
        input_shape: one sample's.
    Returns: a network that computes what the module computes.

    Raises:
        ModelError: no such children, another order, a forward pass that depends on more than the input, or that
            torch.fx can't follow.
        CutError: a skip connection crosses a boundary; facts: edges.
    """
    _check_names(module, stages)
    graph = _trace(module, stages)
    place = _places(graph, stages)
    _refuse_crossings(graph, place, stages)
    parts = [(name, _part(module, graph, place, stages, index)) for index, name in enumerate(stages)]
    network = StagedNetwork(dict(parts[:-1]), parts[-1][1])
    _check_same(module, network, input_shape)
    return network


def _check_names(module: nn.Module, stages: Sequence[str]) -> None:
    children = dict(module.named_children())
    for name in stages:
        if name not in children:
            raise ModelError(
                f"{type(module).__name__} has no child {name!r}.", hint=did_you_mean(name, children)
            )
    if len(set(stages)) < max(2, len(stages)):
        raise ModelError(
            f"Stages {', '.join(stages) or 'none'}: at least two children are needed, each once.",
            hint=f"Children: {', '.join(children)}.",
        )


def _trace(module: nn.Module, stages: Sequence[str]) -> fx.Graph:
    was_training = module.training
    try:
        graphs = [_StageTracer(stages).trace(module.train(mode)) for mode in (True, False)]
    except HseeError:
        raise
    except Exception as exc:  # torch.fx and a user's forward raise anything
        raise ModelError(
            f"The forward pass of {type(module).__name__} can't be followed by torch.fx: {exc}.",
            hint=_GIVE_STAGES,
        ) from exc
    finally:
        module.train(was_training)
    if len({graph.python_code("self").src for graph in graphs}) > 1:
        raise ModelError(
            f"The forward pass of {type(module).__name__} differs between training and evaluation.",
            hint="Use modules for what differs, nn.Dropout instead of functional.dropout.",
        )
    return graphs[0]


def _places(graph: fx.Graph, stages: Sequence[str]) -> dict[fx.Node, int]:
    """The stage that each operation belongs to: that of the last child called before it."""
    place: dict[fx.Node, int] = {}
    called: list[str] = []
    for node in graph.nodes:
        if node.op == "call_module" and node.target in stages:
            called.append(str(node.target))
        if node.op not in ("placeholder", "get_attr", "output"):
            place[node] = max(0, len(called) - 1)
    if called != list(stages):
        raise ModelError(
            f"The forward pass calls {', '.join(called) or 'none of the stages'}; the stages named are "
            f"{', '.join(stages)}.",
            hint="Name them in the order of the forward pass, each called once.",
        )
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.users]
    if len(inputs) != 1:
        raise ModelError(f"A model takes one tensor; this one takes {len(inputs)}.")
    place[inputs[0]] = -1
    return place


def _refuse_crossings(graph: fx.Graph, place: dict[fx.Node, int], stages: Sequence[str]) -> None:
    """Exactly one value may pass each boundary."""
    for boundary in range(len(stages) - 1):
        values = _values_over(graph, place, boundary)
        if len(values) == 1:
            continue
        edges = [
            f"{_say(node, place, stages)} -> {_say(user, place, stages)}"
            for node in values
            for user in node.users
            if place.get(user, boundary + 1) > boundary
        ]
        raise CutError(
            f"The model can't be cut after {stages[boundary]!r}: {len(values)} values cross that boundary: "
            f"{'; '.join(edges)}.",
            hint=f"Leave {stages[boundary + 1]!r} out of the stages, so that one stage holds both ends."
            if boundary + 2 < len(stages)
            else _GIVE_STAGES,
            cut=stages[boundary],
            edges=edges,
        )


def _values_over(graph: fx.Graph, place: dict[fx.Node, int], boundary: int) -> list[fx.Node]:
    """Values made up to a boundary that something behind it needs."""
    return [
        node
        for node in graph.nodes
        if node in place
        and place[node] <= boundary
        and any(place.get(user, boundary + 1) > boundary for user in node.users)
    ]


def _part(
    module: nn.Module, graph: fx.Graph, place: dict[fx.Node, int], stages: Sequence[str], index: int
) -> nn.Module:
    """One stage as a module: the child itself where the forward pass does nothing else there."""
    nodes = [node for node in graph.nodes if place.get(node) == index]
    if [node.target for node in nodes] == [stages[index]]:
        return module.get_submodule(stages[index])
    part = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    entry = _values_over(graph, place, index - 1)[0]
    made[entry] = part.placeholder("x")
    for node in nodes:
        for attribute in node.all_input_nodes:
            if attribute.op == "get_attr" and attribute not in made:
                made[attribute] = part.node_copy(attribute)
        made[node] = part.node_copy(node, made.__getitem__)
    leaves = _values_over(graph, place, index)[0] if index < len(stages) - 1 else _output(graph)
    part.output(made[leaves])
    return fx.GraphModule(module, part, class_name=f"Stage_{stages[index]}")


def _output(graph: fx.Graph) -> fx.Node:
    answer = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(answer, fx.Node):
        raise ModelError("A model answers with one tensor of logits.", hint=_GIVE_STAGES)
    return answer


def _check_same(module: nn.Module, network: StagedNetwork, input_shape: Sequence[int]) -> None:
    was_training = module.training
    module.eval()
    network.eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *input_shape, generator=generator)
    try:
        with torch.no_grad():
            same = torch.allclose(network(x), module(x), rtol=TOLERANCE, atol=TOLERANCE)
    except (RuntimeError, ValueError, TypeError, IndexError) as exc:
        raise ModelError(
            f"{type(module).__name__} does not take a batch of shape {tuple(x.shape)}: {exc}."
        ) from exc
    finally:
        module.train(was_training)
        network.train(was_training)
    if not same:
        raise ModelError(
            f"The stages of {type(module).__name__} in a row do not compute what it computes.",
            hint=_GIVE_STAGES,
        )


def _say(node: fx.Node, place: dict[fx.Node, int], stages: Sequence[str]) -> str:
    if node.op in ("placeholder", "output"):
        return "the input" if node.op == "placeholder" else "the output"
    stage = stages[place[node]]
    return stage if node.op == "call_module" and node.target == stage else f"{node.name} (in {stage})"
