"""``hsee agent start``: the command, on argparse so that a board's process stays light."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from device_agent.agent import Agent
from device_agent.heartbeat import Heartbeat
from device_agent.identity import HeldIdentity, device_id, new_boot_nonce
from device_agent.lent_link import LendableLink
from device_agent.local_data import LocalData, load_local_data
from device_agent.sending import Conduct
from device_agent.service import ServiceManager
from device_agent.telemetry import Reporter
from device_agent.workbench import Workbench
from toolkit.arguments import ArgumentParser
from toolkit.config import Settings, load_config
from toolkit.errors import FencedError, HseeError, report_error, require
from toolkit.journal import Level, LogTo, log_all, write_line
from toolkit.link.connect import broker_of, make_link
from toolkit.profile.schema import profile_text, read_profile
from toolkit.signals import StopSignals, TerminatedError
from toolkit.wire.messages import MeasureRequest
from toolkit.wire.session import DevicePhase
from toolkit.wire.topics import Topics, check_name
from toolkit.wire.words import DeviceWord, encode_word

Say = Callable[..., None]
"""Takes a line, and its level if it is another than "info"."""

INTERRUPTED = 130
POLL_S = 0.05
REMIND_EVERY_S = 30.0

EXAMPLE = """example:
  hsee agent start --broker 127.0.0.1:1883 --id hall-camera --data folder:pictures
  hsee agent start --broker mqtts://broker.example.net --password-file password --data folder:pictures

what leaves this board is printed at the start. A password comes from HSEE_BROKER_PASSWORD or --password-file.
Settings not given here come from HSEE_*, ./hsee.toml, or the user's file: hsee config show --origin
"""
FLAGS: tuple[tuple[str, str, str], ...] = (
    ("--broker", "broker.address", "HOST:PORT of the MQTT broker, or mqtts://HOST:PORT"),
    ("--fleet", "fleet.name", "fleet this board belongs to"),
    ("--id", "device.id", "device id; default: the host's name"),
    (
        "--data",
        "device.data",
        "digits, folder:PATH, npz:FILE, csv:FILE, torchvision:NAME, python:MODULE:FUNCTION",
    ),
    ("--root", "device.root", "folder of torchvision's data sets"),
    ("--part", "device.part", "I/N: take one part of the data, for experiments"),
    ("--partition", "device.partition", "how parts are drawn: iid, dirichlet:ALPHA, shards:N, user"),
    ("--data-seed", "device.data_seed", "of the parts; the same on all boards"),
    ("--held-out", "device.held_out", "share of the data kept out of training"),
    (
        "--accept-weights",
        "device.accept_weights",
        "whether a coordinator may influence this board's weights: never (the default) or coordinator",
    ),
    ("--emulate", "device.emulate", "CPU%%,MB: stand for a weaker board, as 25%%,512"),
    ("--home", "fleet.home", "folder of the run folders"),
    ("--username", "broker.username", "account at the broker"),
    (
        "--password-file",
        "broker.password_file",
        "file with the account's password, readable by its owner only",
    ),
    ("--ca-file", "broker.ca_file", "authority that signed the broker's certificate"),
)


def make_parser() -> argparse.ArgumentParser:
    """Make the command's parser."""
    parser = ArgumentParser(
        prog="hsee agent start",
        description="Train this board's segment and exit on its own data; send activations to the coordinator.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, key, text in FLAGS:
        parser.add_argument(flag, dest=key, metavar=flag.strip("-").upper().replace("-", "_"), help=text)
    parser.add_argument(
        "--compute", dest="device.compute", choices=("auto", "cpu", "cuda"), help="where to compute"
    )
    parser.add_argument(
        "--download",
        dest="device.download",
        action="store_const",
        const=True,
        help="let torchvision fetch a set",
    )
    parser.add_argument(
        "--insecure",
        dest="broker.insecure",
        action="store_const",
        const=True,
        help="allow a broker off this machine without TLS and login: anyone may read along",
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="this board's profile, from hsee profile"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting: run.lr=0.01"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="print only errors and the result")
    volume.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="write what the parts log, connections first, to standard error",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the agent until its run is over.

    Args:
        argv: words after ``hsee agent start``; by default this process's.
    Returns: the exit status.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        args = vars(make_parser().parse_args(words))
    except HseeError as exc:
        return report_error(exc, as_json="--json" in words)
    as_json, quiet = args["json"], args["quiet"]

    def say(text: str, level: Level = "info") -> None:
        if as_json:
            write_line(msgspec.json.encode({"said": text}).decode(), level)
        elif not quiet:
            write_line(text, level)

    try:
        settings = load_config(
            {key: value for key, value in args.items() if "." in key}, overrides=args["set"]
        )
        profile = profile_text(read_profile(args["profile"])) if args["profile"] else ""
        with log_all(on=args["verbose"]):
            said = _serve(settings, profile, say)
    except HseeError as exc:
        return report_error(exc, as_json=as_json)
    except KeyboardInterrupt:
        say("Interrupted; what was trained is saved.")
        return INTERRUPTED
    if as_json:
        sys.stdout.write(msgspec.json.encode({"success": True, "detail": said}).decode() + "\n")
    else:
        write_line(said)
    return 0


def _serve(settings: Settings, profile: str, say: Say) -> str:
    """Run the agent; returns how the run ended, in words."""
    require("torch", part="agent", purpose="Training on this board")
    manager = ServiceManager.of_environment(os.environ, clock=time.monotonic)
    device = device_id(settings.device.id)
    topics = Topics(check_name(settings.fleet.name, what="The fleet's name"))
    nonce = new_boot_nonce()
    address = broker_of(settings, default_username=device)
    will = (topics.device_state(device), encode_word(DeviceWord("offline", nonce.hex())))
    link = LendableLink(make_link(address, client_id=device, will=will))
    data = load_local_data(settings.device)
    reporter = Reporter(link, topics=topics, device=device, boot_nonce=nonce, is_on=settings.device.telemetry)

    def tell(text: str, level: Level = "info") -> None:
        say(text, level)
        reporter.line(text, level)
        manager.status(text)

    bench = Workbench(settings, device=device, data=data, say=tell)
    held = HeldIdentity(Path(settings.fleet.home), fleet=topics.fleet, device=device)
    signals = StopSignals()

    def measure(request: MeasureRequest) -> str:
        with signals.at_once(), manager.long_work():
            profile = bench.measure(request)
            own = topics.check(address.username or device)
            return bench.measure_link(profile, link.lend(own), topic=own, address=address)

    tell(f"device {device}, fleet {topics.fleet}, broker {address}")
    _announce(device, data, accepts=settings.device.accept_weights != "never", say=tell)
    if reporter.is_on:
        tell(
            f"also: how {device} stands (temperature, load, memory, version) and these lines; device.telemetry = false keeps them"
        )
    agent = Agent(
        link,
        topics=topics,
        device=device,
        boot_nonce=nonce,
        data=data.summary(),
        profile=profile,
        make_trainer=bench.make_trainer,
        saved_place=bench.saved_place,
        measure=measure,
        clock=time.monotonic,
        say=tell,
        conduct=Conduct(
            accept_weights=settings.device.accept_weights, trains_alone=settings.device.train_alone
        ),
    )
    with ExitStack() as at_end:
        at_end.callback(manager.close)
        at_end.callback(held.close)
        at_end.callback(bench.close)
        at_end.callback(agent.close)
        at_end.callback(manager.stopping)
        at_end.enter_context(signals)
        at_end.enter_context(LogTo(tell))
        at_end.enter_context(Heartbeat(reporter, agent))
        try:
            agent.start()
            manager.ready()
            _loop(agent, topics, tell, signals, manager)
            return agent.result()
        except FencedError as exc:
            bench.write_fenced(exc.message)
            raise
        except HseeError as exc:  # said at the end by whoever catches it, and told before this process leaves
            reporter.line(str(exc), "error")
            agent.fail(exc.message)
            raise
        except TerminatedError:
            return "Stopped; what was trained is saved."


def _loop(agent: Agent, topics: Topics, say: Say, signals: StopSignals, manager: ServiceManager) -> None:
    """Run until the run is over.

    Raises: KeyboardInterrupt, TerminatedError: the process is to stop; no step is broken off.
    """
    remind_at = time.monotonic() + 2.0
    while not agent.over:
        signals.obey()
        agent.poll(POLL_S)
        manager.alive()
        if agent.phase is DevicePhase.SEEKING and time.monotonic() >= remind_at:
            remind_at = time.monotonic() + REMIND_EVERY_S
            say(f"no coordinator yet in fleet {topics.fleet}; start one with: hsee coordinator start")


def _announce(device: str, data: LocalData, *, accepts: bool, say: Say) -> None:
    train, held_out = data.train, data.held_out
    say(
        f"data: {train.name}: {len(train)} to train on, {len(held_out)} held out, classes {', '.join(train.classes)}"
    )
    say(
        f"what leaves {device}: activations at its cut and labels of every training batch; activations, labels and"
        " exit results of held-out samples each round (eval activations); class names, counts, channel means and"
        " variances; its profile."
        + (
            " Samples stay here; its segment's weights leave where the run averages them (--accept-weights coordinator)."
            if accepts
            else " Samples and weights stay here."
        )
    )


if __name__ == "__main__":
    sys.exit(main())
