"""What is simulated: one value that a folder keeps, so that a simulation can be taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from toolkit.config import Run
from toolkit.disk import write_atomically
from toolkit.errors import CheckpointError, RunError, UsageError, writing
from toolkit.nn.compute import Numerics

Transport = Literal["memory", "mqtt"]
Baseline = Literal["centralised", "local", "fedavg", "splitfed-shared", "splitfed-per-device"]

_FILE = "scenario.json"


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet, its data, what it trains and what befalls it.

    Attributes:
        run: the coordinator's settings; ``devices`` is how many there are.
        names: of the devices.
        data: the source that is divided over them.
        held_out: share of each device's samples kept out of training.
        test: source of a common test set of its own; empty for one taken off ``data``.
        test_users: "K/N": the K-th of N groups of the people in ``data`` is the test set; empty for none.
        test_share: where neither is given, share of all samples set aside first, as a test set with as many
            samples of every class; 0 for none.
        cuts: given to the devices in turn; empty for a plan or profiles.
        plan: a plan's TOML text; empty for none.
        profiles: profiles' TOML texts, given to the devices in turn.
        server_flop_per_s: the server's speed, where profiles give the devices'.
        target_drop: points of accuracy that leaving early may cost, for the threshold that is chosen afterwards.
        numerics: in what form passes are computed.
        drops: device to the round at whose beginning it is lost.
        slow: device to the factor of its step times.
        baseline: what is trained in place of the run's strategy; empty for none.
    """

    run: Run
    names: tuple[str, ...]
    data: str
    root: str = ""
    download: bool = False
    partition: str = "iid"
    held_out: float = 0.2
    test: str = ""
    test_users: str = ""
    test_share: float = 0.2
    cuts: tuple[str, ...] = ()
    plan: str = ""
    profiles: tuple[str, ...] = ()
    server_flop_per_s: float = 20e9
    target_drop: float = 1.0
    numerics: Numerics = Numerics()
    drops: dict[str, int] = {}
    slow: dict[str, float] = {}
    transport: Transport = "memory"
    baseline: Baseline | None = None

    def with_seed(self, seed: int) -> Scenario:
        """The same with another seed, of data and training both."""
        return msgspec.structs.replace(self, run=msgspec.structs.replace(self.run, seed=seed))


def check_folder(folder: Path, scenario: Scenario) -> None:
    """Check that a folder can take this simulation: it holds this very one, or nothing.

    Raises: RunError: it holds another simulation. UsageError: it holds something else. CheckpointError: damaged.
    """
    if (folder / _FILE).exists():
        if read_scenario(folder) != scenario:
            raise RunError(
                f"{folder} holds another simulation.",
                hint="The same command takes it up again; for another one choose another folder (-o).",
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} is not empty and holds no simulation.", hint="Choose another folder (-o)."
        )


def keep_scenario(folder: Path, scenario: Scenario) -> None:
    """Write the scenario into its folder, which is made if missing.

    Raises: MachineError: the disk refuses it.
    """
    path = folder / _FILE
    if not path.exists():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(scenario), indent=1))


def read_scenario(folder: Path) -> Scenario:
    """Read the scenario of a folder.

    Raises: CheckpointError: damaged.
    """
    path = folder / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scenario)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointError(f"{path} can't be read: {exc}.", path=str(path)) from exc
