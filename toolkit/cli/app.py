"""The tree of commands. Each is thin: it parses, asks and prints; what is heavy is imported inside it."""

from __future__ import annotations

from typing import Annotated

import typer

import toolkit
from toolkit.cli import (
    agent_commands,
    broker_commands,
    bundle_commands,
    calibrate_commands,
    config_commands,
    coordinator_commands,
    delivery_commands,
    demo,
    device_commands,
    doctor_commands,
    export_commands,
    init_commands,
    invite_commands,
    model_commands,
    profile_commands,
    rewind_commands,
    run_commands,
    run_show,
    serve_commands,
    simulate_commands,
    status_commands,
)

app = typer.Typer(
    name="hsee",
    help="Split learning with early exits for real, mixed IoT fleets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if wanted:
        typer.echo(f"hsee {toolkit.__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Split learning with early exits for real, mixed IoT fleets."""


@app.command(context_settings=agent_commands.FORWARD)
def infer(context: typer.Context) -> None:
    """Answer samples with an exported bundle, offline, or asking a coordinator when unsure."""
    from toolkit.cli.offloading import connect_offload
    from toolkit.runtime.__main__ import main

    raise typer.Exit(main(context.args, connect_offload))


app.command()(init_commands.init)
app.command()(doctor_commands.doctor)
app.command()(status_commands.status)
app.command()(status_commands.logs)
app.command()(demo.demo)
app.command()(export_commands.export)
app.command()(calibrate_commands.calibrate)
app.command()(profile_commands.profile)
app.command()(profile_commands.plan)
app.command()(simulate_commands.simulate)
coordinator_commands.app.command()(serve_commands.serve)
app.add_typer(agent_commands.app, name="agent")
app.add_typer(coordinator_commands.app, name="coordinator")
coordinator_commands.run_app.command()(run_show.show)
coordinator_commands.run_app.command("list")(run_commands.list_runs)
coordinator_commands.run_app.command()(run_commands.compare)
coordinator_commands.run_app.command()(run_commands.export)
coordinator_commands.run_app.command()(rewind_commands.rewind)
app.add_typer(coordinator_commands.run_app, name="run")
app.add_typer(device_commands.app, name="device")
app.add_typer(config_commands.app, name="config")
app.add_typer(model_commands.app, name="model")
broker_commands.app.command()(invite_commands.invite)
app.add_typer(broker_commands.app, name="broker")
bundle_commands.app.command()(delivery_commands.send)
bundle_commands.app.command()(delivery_commands.receive)
app.add_typer(bundle_commands.app, name="bundle")
