"""Play coordinator to an agent under test, and say which MUST of PROTOCOL.md it fails.

    python -m toolkit.conformance --broker 127.0.0.1:1883 --model mlp --cut hidden1
    python -m toolkit.conformance --broker 127.0.0.1:1883 --device dev1 -- ./my-agent 127.0.0.1:1883 dev1

Start it on a broker where no coordinator is, then start the agent, with any data of its own that gives at least seven
batches. With a command after ``--`` it starts the agent itself, three times: for a whole run, to be fenced, to be refused.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from toolkit.config import load_config
from toolkit.conformance.script import Script
from toolkit.conformance.stage import Stage
from toolkit.errors import BrokerUnreachableError, HseeError, report_error
from toolkit.findings import Finding, has_failed
from toolkit.link.base import BrokerAddress
from toolkit.link.connect import broker_of, make_link
from toolkit.wire.messages import Fenced, Refusal
from toolkit.wire.tensors import CODECS
from toolkit.wire.topics import Topics, check_name
from toolkit.wire.words import BridgeWord, encode_word

CONNECT_S = 10.0
STOP_S = 10.0
DISMISSALS: tuple[type[Fenced | Refusal], ...] = (Fenced, Refusal)


def check(
    address: BrokerAddress,
    *,
    topics: Topics,
    device: str,
    model: str,
    cut: str,
    codec: str,
    batch_size: int,
    cap_s: float,
    pace: float = 1.0,
    dismissal: type[Fenced | Refusal] | None = None,
) -> list[Finding]:
    """Play one run.

    Args:
        address: of the broker, with a login that may play coordinator.
        topics: of the fleet.
        device: the one under test; empty for the first that says hello.
        model: of the job.
        cut: of the job.
        codec: of the job.
        batch_size: of the job.
        cap_s: how long anything may take that the protocol gives no time for.
        pace: for a device whose clock runs so much faster.
        dismissal: what its hello is answered with; None for a whole run.
    Raises: BrokerError: the broker can't be reached.
    """
    run = f"conformance-{secrets.token_hex(4)}"
    word = encode_word(BridgeWord("offline", run, 1))
    link = make_link(address, client_id=address.username or run, will=(topics.bridge_state, word))
    with Stage(link, topics=topics, run=run, device=device, batch_size=batch_size) as stage:
        if not stage.connect(CONNECT_S):
            raise BrokerUnreachableError(f"The broker {address} does not let the check in.")
        script = Script(
            stage,
            model=model,
            options={},
            cut=cut,
            codec=codec,
            batch_size=batch_size,
            cap_s=cap_s,
            pace=pace,
        )
        return script.play() if dismissal is None else script.play_dismissal(dismissal)


def main(argv: Sequence[str]) -> int:
    """Run the check; returns the exit status: 1 where a MUST failed."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--broker", help="HOST:PORT, or mqtts://HOST")
    parser.add_argument("--fleet", help="fleet of the device")
    parser.add_argument("--username", help="an account that may play coordinator; its password as for hsee")
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--ca-file", type=Path)
    parser.add_argument("--device", default="", help="device id; default: the first that says hello")
    parser.add_argument("--model", default="mlp", help="one that the agent can build (default: mlp)")
    parser.add_argument("--cut", default="hidden1", help="a layer of it (default: hidden1)")
    parser.add_argument("--codec", default="float32", choices=CODECS)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--cap", type=float, default=30.0, metavar="SECONDS", help="longest wait for a step")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("command", nargs="*", help="starts the agent; without it, start the agent yourself")
    args = parser.parse_args(argv)
    flags = {"broker.address": args.broker, "fleet.name": args.fleet, "broker.username": args.username}
    files = {"broker.password_file": args.password_file, "broker.ca_file": args.ca_file}
    try:
        settings = load_config(flags | {key: str(path) for key, path in files.items() if path})
        address, topics = (
            broker_of(settings),
            Topics(check_name(settings.fleet.name, what="The fleet's name")),
        )
        findings: list[Finding] = []
        for dismissal in (None, *DISMISSALS):
            if dismissal is not None and not args.command:
                findings.append(Finding(f"7: {dismissal.__name__}", "skipped", "needs the agent's command"))
                continue
            agent = subprocess.Popen(args.command, stdout=subprocess.DEVNULL) if args.command else None
            try:
                findings += check(
                    address,
                    topics=topics,
                    device=args.device,
                    model=args.model,
                    cut=args.cut,
                    codec=args.codec,
                    batch_size=args.batch_size,
                    cap_s=args.cap,
                    dismissal=dismissal,
                )
                if agent is not None and dismissal is not None:
                    findings.append(_ended(agent, dismissal.__name__))
            finally:
                if agent is not None:
                    agent.kill()
                    agent.wait()
    except HseeError as exc:
        return report_error(exc, as_json=args.json)
    _report(findings, as_json=args.json)
    return 1 if has_failed(findings) else 0


def _ended(agent: subprocess.Popen[bytes], dismissal: str) -> Finding:
    text = f"7: A device that is refused or fenced MUST stop for good ({dismissal}: the process ends)"
    try:
        return Finding(text, "ok", f"exit status {agent.wait(STOP_S)}")
    except subprocess.TimeoutExpired:
        return Finding(text, "failed", f"still runs after {STOP_S:g} s", fix="Read PROTOCOL.md, section 7.")


def _report(findings: Sequence[Finding], *, as_json: bool) -> None:
    failed = [finding for finding in findings if finding.verdict == "failed"]
    if as_json:
        out = {"success": not failed, "findings": findings}
        sys.stdout.write(msgspec.json.encode(out).decode() + "\n")
        return
    for finding in findings:
        sys.stdout.write(f"{finding.verdict:8}{finding.check}\n")
        if finding.detail:
            sys.stdout.write(f"        {finding.detail}\n")
    n_judged = sum(finding.verdict != "skipped" for finding in findings)
    sys.stdout.write(f"\n{n_judged - len(failed)} of {n_judged} sentences of PROTOCOL.md hold.\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
