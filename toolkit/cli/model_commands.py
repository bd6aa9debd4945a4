"""``hsee model show``: what a model's stages are, what each costs, and where it can be cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.model_spec import model_spec
from toolkit.cli.options import Json
from toolkit.cli.output import emit_json, table
from toolkit.errors import require

if TYPE_CHECKING:
    from toolkit.nn.cut import StageFacts

app = typer.Typer(no_args_is_help=True, help="Models and where they can be cut.")


@app.callback()
def models() -> None:
    """Models and where they can be cut."""


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="cnn1d, mlp, resnet18, resnet34, resnet_small, or your own: python:MODULE:FUNCTION.",
        ),
    ],
    *,
    input_shape: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of a sample: 1x28x28.")],
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")],
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the model, as width=32; may be given again."),
    ] = None,
    json: Json = False,
) -> None:
    """Show a model's stages: output shape, FLOP, parameters, activation bytes; a cut layer can end a device's part.

    Example: hsee model show resnet18 --input 3x32x32 --classes 10 --option width=16
    """
    require("torch", part="agent", purpose="Building a model")
    from toolkit.nn.cut import describe
    from toolkit.nn.zoo import build_network

    spec = model_spec(name, input_shape, classes, option or [])
    rows = describe(build_network(spec, seed=0), spec.input_shape)
    if json:
        emit_json(
            {
                "model": spec,
                "stages": [
                    {
                        "name": row.name,
                        "shape": row.shape,
                        "flop": row.flop,
                        "n_parameters": row.n_parameters,
                        "activation_bytes": row.activation_bytes,
                        "is_cut_layer": row.is_cut_layer,
                    }
                    for row in rows
                ],
                "flop": sum(row.flop for row in rows),
                "n_parameters": sum(row.n_parameters for row in rows),
            }
        )
    else:
        _print(name, rows)


def _print(name: str, rows: list[StageFacts]) -> None:
    total_flop, total_parameters = sum(r.flop for r in rows), sum(r.n_parameters for r in rows)
    flop = parameters = 0
    lines = []
    for row in rows:
        flop += row.flop
        parameters += row.n_parameters
        lines.append(
            [
                row.name,
                "x".join(map(str, row.shape)),
                f"{row.flop / 1e6:.3f}",
                f"{flop / max(1, total_flop):.1%}",
                f"{row.n_parameters:,}",
                f"{parameters / max(1, total_parameters):.1%}",
                f"{row.activation_bytes:,}",
                "yes" if row.is_cut_layer else "",
            ]
        )
    table(
        ["stage", "output", "MFLOP", "so far", "parameters", "so far", "activation bytes", "cut layer"],
        lines,
        title=f"Model {name}: {total_flop / 1e6:.3f} MFLOP and {total_parameters:,} parameters a sample's forward pass",
    )
    typer.echo("FLOP means 2 x MAC, forward pass of one sample. Activation bytes: one sample's, float32.")
