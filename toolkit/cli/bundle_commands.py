"""``hsee bundle``: who made a bundle, whom a board trusts, and which bundle runs on it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import Json
from toolkit.cli.output import emit_json

app = typer.Typer(no_args_is_help=True, help="Bundles: signed, checked, shown.")
Place = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: its folder or its archive.")]


@app.command()
def key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key shall stand.")],
    *,
    comment: Annotated[str, typer.Option(help="Whose it is; stands in the public key.")] = "",
    json: Json = False,
) -> None:
    """Make an operator's key: FILE signs bundles and stays here, FILE.pub goes to the boards.

    Example: hsee bundle key operator.key
    """
    from toolkit.access.signing import OperatorKey, public_file

    made = OperatorKey.create(path, comment=comment or path.stem)
    if json:
        emit_json({"key": path, "public_key": public_file(path), "name": made.public.name})
        return
    typer.echo(f"{path}  signs bundles; keep it here, and keep a copy of it somewhere safe")
    typer.echo(
        f"{public_file(path)}  {made.public.name}; on every board: hsee bundle trust {public_file(path).name}"
    )


@app.command()
def trust(
    public_key: Annotated[Path, typer.Argument(metavar="FILE.pub", help="An operator's public key.")],
    *,
    into: Annotated[
        Path | None, typer.Option(help="Folder to pin it in; default: beside the user's settings.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of another one.")] = False,
    json: Json = False,
) -> None:
    """Pin an operator's public key on this board: from now on it takes only what this operator signed.

    Example: hsee bundle trust operator.key.pub
    """
    from toolkit.bundle.signature import KEY_FILE, own_key_folder, read_public_key
    from toolkit.disk import write_atomically
    from toolkit.errors import UsageError, writing

    found = read_public_key(public_key)
    folder = into or own_key_folder(os.environ)
    place = folder / KEY_FILE
    if place.exists() and read_public_key(place).content != found.content and not replace:
        raise UsageError(
            f"This board trusts {read_public_key(place).name} already ({place}).",
            hint="Add --replace if its operator changed the key.",
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(place, found.line().encode())
    if json:
        emit_json({"pinned": place, "name": found.name})
        return
    typer.echo(f"{place}  {found.name}: bundles that nobody else signed are refused here from now on")


@app.command()
def sign(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders or archives.")],
    *,
    key_file: Annotated[Path, typer.Option("--key", help="The operator's private key.")],
    devices: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="DEVICE",
            help="Whom it is for, once each; * is anybody. Default: the device that trained it.",
        ),
    ] = None,
    release: Annotated[
        int | None, typer.Option(min=1, help="Must grow from bundle to bundle; default: the time.")
    ] = None,
    json: Json = False,
) -> None:
    """Sign bundles, after their ONNX files were checked. Done last: calibrating a bundle makes another one of it.

    Example: hsee bundle sign --key operator.key runs/run-20260101-120000/export/hall-camera
    """
    from toolkit.access.signing import OperatorKey
    from toolkit.bundle.folder import open_bundle

    operator = OperatorKey.read(key_file)
    opened = [open_bundle(path) for path in bundles]
    signed = [
        operator.sign(bundle, now=datetime.now(UTC), devices=devices or (), release=release)
        for bundle in opened
    ]
    if json:
        emit_json(
            {
                "signed": [
                    {"bundle": path, "release": one.release, "devices": one.devices, "digest": one.manifest}
                    for path, one in zip(bundles, signed, strict=True)
                ]
            }
        )
        return
    for path, one in zip(bundles, signed, strict=True):
        typer.echo(
            f"{path}  release {one.release} for {', '.join(one.devices)}, signed by {operator.public.name}"
        )


@app.command()
def show(bundle: Place, *, json: Json = False) -> None:
    """Show what a bundle is: where it comes from, how good it is, who signed it, how old it is.

    Example: hsee bundle show hall-camera.hsee
    """
    from toolkit.bundle.folder import open_bundle
    from toolkit.bundle.signature import check_signature, pinned_key
    from toolkit.errors import BundleSignatureError

    opened = open_bundle(bundle)
    made, pinned = opened.manifest.provenance, pinned_key()
    facts: dict[str, object] = {
        "bundle": opened.folder,
        "digest": opened.digest,
        "n_bytes": sum(entry.n_bytes for entry in opened.manifest.files.values()),
        "exits": [segment.exit.name for segment in opened.manifest.segments if segment.exit is not None],
        "provenance": made,
    }
    lines = [
        f"{opened.folder}  {opened.digest[:16]}, {facts['n_bytes']} bytes",
        f"{made.model}, cut after {made.cut}, trained on {made.device} in run {made.run}, round {made.round}",
        f"exits: {', '.join(map(str, facts['exits'])) if isinstance(facts['exits'], list) else ''}",
    ]
    if pinned is None:
        lines.append("signature: not checked, this board trusts no operator yet (hsee bundle trust)")
    else:
        try:
            statement = check_signature(opened, pinned)
        except BundleSignatureError as exc:
            facts["signature"] = {"valid": False, "why": exc.message}
            lines.append(f"signature: {exc.message}")
        else:
            age = statement.age_days(datetime.now(UTC))
            facts["signature"] = {"valid": True, "statement": statement, "age_days": age, "key": pinned.name}
            lines.append(f"signature: {pinned.name}, {age_in_words(age)}")
            lines.append(f"release {statement.release}, for {', '.join(statement.devices)}")
    if json:
        emit_json(facts)
        return
    typer.echo("\n".join(lines))


@app.command()
def install(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A .hsee file.")],
    *,
    into: Annotated[Path, typer.Option(metavar="DIR", help="The board's place; hsee infer DIR runs it.")],
    device: Annotated[
        str, typer.Option("--id", help="This board's device id; asked for where the bundle is signed.")
    ] = "",
    max_mb: Annotated[int, typer.Option(min=1, help="The largest archive that is looked at.")] = 512,
    again: Annotated[
        bool, typer.Option("--again", help="One that went back before, or of a lower release than was here.")
    ] = False,
    json: Json = False,
) -> None:
    """Put a new bundle in place of the one that runs: checked and tested first, by one rename, while inference goes on.

    It is on trial until it has answered: if it never does, hsee infer goes back to the one before by itself.

    Example: hsee bundle install hall-camera.hsee --into /var/lib/hsee/bundle
    """
    from device_agent.identity import device_id
    from toolkit.bundle.signature import pinned_key
    from toolkit.config import load_config
    from toolkit.runtime.installing import install as install_bundle

    done = install_bundle(
        archive,
        into,
        device=device_id(device or load_config({}).device.id),
        key=pinned_key(),
        max_bytes=max_mb * 1024**2,
        again=again,
    )
    if json:
        emit_json({"installed": done})
        return
    typer.echo(f"{done.place}  {done.digest[:16]}: {done.found}")
    if done.statement is not None:
        typer.echo(
            f"release {done.statement.release}, {age_in_words(done.statement.age_days(datetime.now(UTC)))}"
        )


@app.command()
def revert(
    into: Annotated[Path, typer.Argument(metavar="DIR", help="The board's place.")], *, json: Json = False
) -> None:
    """Go back to the bundle before the one that runs.

    Example: hsee bundle revert /var/lib/hsee/bundle
    """
    from toolkit.bundle.folder import open_bundle
    from toolkit.bundle.place import Place
    from toolkit.errors import BundleError

    place = Place(into)
    try:
        failed = open_bundle(place.current).digest
    except BundleError:
        failed = None
    place.go_back(failed)
    now = open_bundle(place.current)
    if json:
        emit_json({"place": place.current, "digest": now.digest, "before": failed})
        return
    typer.echo(f"{place.current}  {now.digest[:16]} runs again")


def age_in_words(days: float) -> str:
    """Say how long ago something was signed, or that it lies in the future of this clock."""
    if days < -1 / 24:
        return f"signed {-days:.1f} days ahead of this clock: one of the two clocks is wrong"
    return f"signed {days:.0f} days ago" if days >= 1 else "signed less than a day ago"
