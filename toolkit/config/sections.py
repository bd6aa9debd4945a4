"""Every setting there is: its type, bounds, default and one line that says what it does.

Help, schema and error messages are made from here. An empty text means "not set", because TOML has no null.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_SEED = Meta(ge=0, le=2**53)

_CODEC = Literal["float32", "float16", "float32+zstd", "float16+zstd"]
Compute = Literal["auto", "cpu", "cuda"]
Scalar = str | int | float | bool


class Fleet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which fleet this machine belongs to."""

    name: Annotated[
        str, Meta(pattern=f"^{NAME_PATTERN}$", examples=["home"], description="one name for all its machines")
    ] = "home"
    home: Annotated[str, Meta(min_length=1, description="folder that holds the run folders")] = "runs"


class Broker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach the MQTT broker. The password itself is never a setting."""

    # Its form is the link's business (toolkit.link.base.parse_broker), which is an upper room.
    address: Annotated[
        str, Meta(min_length=1, examples=["127.0.0.1:1883"], description="host and port, or mqtts://host")
    ] = "127.0.0.1:1883"
    username: Annotated[str, Meta(description="account; empty for none")] = ""
    password_file: Annotated[
        str, Meta(description="file that holds the password and that only its owner can read")
    ] = ""
    ca_file: Annotated[str, Meta(description="certificate of the authority that TLS is checked against")] = ""
    cert_file: Annotated[
        str, Meta(description="certificate of the account, where the broker takes certificates for passwords")
    ] = ""
    key_file: Annotated[str, Meta(description="its private key, in a file that only its owner can read")] = ""
    max_packet_bytes: Annotated[
        int,
        Meta(
            ge=81_920,
            le=393_216,
            description="largest packet that the broker takes; 122880 for AWS IoT. Chunks are cut to fit",
        ),
    ] = 393_216
    insecure: Annotated[
        bool, Meta(description="allow a broker off this machine without TLS and login: anyone may read along")
    ] = False


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the coordinator trains, and how."""

    preset: Annotated[
        Literal["default", "paper", "best"],
        Meta(
            description="recipe for what is not set: default; paper, with nothing beyond it; best, whose rounds are of 5"
            " steps and whose server influences devices"
        ),
    ] = "default"
    model: Annotated[str, Meta(min_length=1, max_length=256, description="network to train")] = "resnet_small"
    model_options: Annotated[
        dict[str, Scalar], Meta(description="options of the network, such as width")
    ] = {}
    strategy: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=256,
            description="how the server learns: sequential, averaging, consolidated or python:MODULE:CLASS",
        ),
    ] = "sequential"
    strategy_options: Annotated[
        dict[str, Scalar], Meta(description="options of the strategy, such as momentum of averaging")
    ] = {}
    rounds: Annotated[int, Meta(ge=1, le=2**31, description="rounds to train")] = 10
    stop_after_s: Annotated[
        float, Meta(ge=0, description="seconds of rounds after which no other is opened; 0 for no limit")
    ] = 0.0
    patience: Annotated[
        int,
        Meta(
            ge=0,
            le=2**31,
            description="evaluations in a row without a better server accuracy (mean over devices), then the run ends;"
            " 0 for no limit",
        ),
    ] = 0
    devices: Annotated[int, Meta(ge=1, le=100_000, description="devices to wait for")] = 1
    wait_s: Annotated[float, Meta(gt=0, description="seconds to wait for them; then the run gives up")] = (
        120.0
    )
    absent_s: Annotated[
        float, Meta(gt=0, description="seconds without any device after which the run ends")
    ] = 86_400.0
    round_deadline_s: Annotated[float, Meta(gt=0, description="seconds after which a round closes")] = 300.0
    turn_s: Annotated[
        float,
        Meta(
            ge=0,
            description="sequential: seconds of a device's turn, then it comes last; 0 for its share of the round",
        ),
    ] = 0.0
    quorum: Annotated[
        int, Meta(ge=0, le=100_000, description="devices that a round needs; with fewer the run fails")
    ] = 0
    min_share: Annotated[
        float, Meta(ge=0, le=1, description="share of its batches that makes a device count for the quorum")
    ] = 0.5
    commit_every_s: Annotated[
        float, Meta(ge=0, description="seconds between commits within a round; 0 to commit at its end only")
    ] = 0.0
    activation_limit: Annotated[
        float, Meta(ge=0, description="largest magnitude of an activation that is trained on; 0 for none")
    ] = 1e6
    waiting_bytes: Annotated[
        int,
        Meta(
            ge=1,
            le=2**53,
            description="of batches that may wait in the coordinator's memory, all devices together",
        ),
    ] = 268_435_456
    batch_size: Annotated[int, Meta(ge=2, le=65_536, description="samples in a batch")] = 32
    round_steps: Annotated[
        int, Meta(ge=0, description="batches a device trains in a round; 0 means one pass over its data")
    ] = 0
    lr: Annotated[float, Meta(gt=0, description="learning rate at the start")] = 0.05
    schedule: Annotated[
        Literal["constant", "cosine"], Meta(description="what the learning rate does over the rounds")
    ] = "cosine"
    momentum: Annotated[float, Meta(ge=0, lt=1, description="of SGD")] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, description="of SGD")] = 5e-4
    seed: Annotated[int, _SEED, Meta(description="all randomness of the run comes from it")] = 0
    codec: Annotated[
        Literal["float32", "float16", "int8", "float32+zstd", "float16+zstd", "int8+zstd"],
        Meta(description="how activations travel: bytes against precision and CPU time"),
    ] = "float32"
    eval_samples: Annotated[
        int, Meta(ge=0, description="most held-out samples a device sends as activations at a round's end")
    ] = 256
    eval_every: Annotated[
        int,
        Meta(
            ge=1, le=2**31, description="rounds from one evaluation to the next; the last is evaluated anyway"
        ),
    ] = 1
    client_sync: Annotated[
        Literal["none", "same_cut", "prefix"],
        Meta(
            description="average devices' segments between rounds: none, among those of one cut, or every stage among all"
            " that hold it; other than none, the server influences devices"
        ),
    ] = "none"
    sync_every: Annotated[
        int, Meta(ge=1, le=2**31, description="rounds from one such average to the next")
    ] = 1
    sync_momentum: Annotated[
        Literal["keep", "average", "reset"],
        Meta(description="what becomes of the devices' momentum then: each its own, averaged, or dropped"),
    ] = "keep"
    sync_codec: Annotated[_CODEC, Meta(description="how weights travel, both ways")] = "float32"
    all_exits: Annotated[
        bool, Meta(description="devices train an exit at every stage of their segment, not at the cut alone")
    ] = False
    self_distillation: Annotated[
        float, Meta(ge=0, le=1e6, description="how much a device's exits teach each other; 0 for nothing")
    ] = 0.0
    server_logits: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            description="how much the server's logits teach devices' exits; other than 0, the server influences devices",
        ),
    ] = 0.0
    distillation_temperature: Annotated[
        float, Meta(gt=0, le=1e3, description="of both: how soft a teacher's answers are made")
    ] = 3.0
    server_exits: Annotated[
        list[str], Meta(description="stages behind the shallowest cut at whose ends the server trains exits")
    ] = []
    server_exit_weight: Annotated[
        float, Meta(ge=0, description="of each such exit's cross-entropy in the server's loss")
    ] = 0.3
    server_lr_factor: Annotated[
        float, Meta(gt=0, description="the server's learning rate over the devices'")
    ] = 1.0
    threads: Annotated[int, Meta(ge=1, le=4096, description="threads that each process computes with")] = 1
    exit_head: Annotated[
        str, Meta(min_length=1, max_length=64, description="early exits: auto, conv, conv_group or pooled")
    ] = "auto"
    classes: Annotated[
        list[str], Meta(description="ordered class list; empty for the union of what the devices have")
    ] = []
    objective: Annotated[
        Literal["makespan", "device-time", "bytes"],
        Meta(description="what the plan makes small: a round, the devices' computing, or what they send"),
    ] = "makespan"
    slack: Annotated[
        float, Meta(ge=0, le=100, description="how much more of it may be spent on deeper exits; 0.05 is 5 %")
    ] = 0.05
    min_exit_accuracy: Annotated[
        float, Meta(ge=0, le=1, description="least accuracy of an exit in the model's profile; 0 for none")
    ] = 0.0
    model_profile: Annotated[
        str,
        Meta(
            examples=["resnet_small-digits"], description="accuracy of the model's exits by cut: name or file"
        ),
    ] = ""
    plan: Annotated[str, Meta(description="plan.toml of hsee plan, whose cuts are kept")] = ""
    compute: Annotated[Compute, Meta(description="where the server computes")] = "auto"


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This board, and the data that it holds."""

    id: Annotated[
        str,
        Meta(
            pattern=f"^({NAME_PATTERN})?$",
            examples=["hall-camera"],
            description="name of this board in the fleet",
        ),
    ] = ""
    data: Annotated[
        str,
        Meta(
            description="data source: digits, folder:PATH, npz:PATH, csv:PATH, torchvision:NAME, python:MODULE:FUNCTION"
        ),
    ] = ""
    root: Annotated[str, Meta(description="folder of torchvision's data sets")] = ""
    download: Annotated[bool, Meta(description="let torchvision fetch a set that is not there")] = False
    partition: Annotated[
        str,
        Meta(min_length=1, description="how the data are divided: iid, dirichlet:ALPHA, shards:N or user"),
    ] = "iid"
    part: Annotated[
        str,
        Meta(
            pattern="^([1-9][0-9]{0,5}/[1-9][0-9]{0,5})?$",
            examples=["1/3"],
            description="take one part of the data; empty for all of it",
        ),
    ] = ""
    data_seed: Annotated[int, _SEED, Meta(description="of the division; the same on every board")] = 0
    held_out: Annotated[float, Meta(gt=0, lt=1, description="share of the data kept out of training")] = 0.2
    compute: Annotated[Compute, Meta(description="where this board computes")] = "auto"
    checkpoint_every_s: Annotated[
        float, Meta(gt=0, description="seconds of training that a power cut may cost; each save is a write")
    ] = 60.0
    train_alone: Annotated[
        bool, Meta(description="train on while no coordinator is heard; such steps are sent to nobody")
    ] = True
    models: Annotated[
        list[str],
        Meta(
            description="models of your own that this board builds when a coordinator names them: python:MODULE:FUNCTION"
        ),
    ] = []
    telemetry: Annotated[
        bool,
        Meta(description="tell the coordinator how this board stands, and the lines of its log"),
    ] = True
    accept_weights: Annotated[
        Literal["never", "coordinator"],
        Meta(
            description="whether a coordinator may influence this board's weights: never, or the coordinator of its run"
        ),
    ] = "never"
    emulate: Annotated[
        str,
        Meta(
            examples=["25%,512"], description="stand for a weaker board: percent of one core and MB of memory"
        ),
    ] = ""


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole ``hsee.toml``."""

    fleet: Fleet = Fleet()
    broker: Broker = Broker()
    run: Run = Run()
    device: Device = Device()


SECTIONS: dict[str, type[msgspec.Struct]] = {"fleet": Fleet, "broker": Broker, "run": Run, "device": Device}
