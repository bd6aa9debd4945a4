"""The broker's part of ``hsee profile``: reach it before minutes are spent, measure the way to it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from toolkit.config import load_config
from toolkit.errors import HseeError
from toolkit.link.base import BrokerAddress
from toolkit.link.connect import broker_of, make_link
from toolkit.profile.exchange import BrokerWay
from toolkit.profile.link_apart import LinkOutcome, measure_apart
from toolkit.profile.measure_link import QUICK_LINK, THOROUGH_LINK, LinkMeasurement, LinkPace, load_of
from toolkit.profile.schema import Limits, Profile
from toolkit.wire.tensors import check_codec
from toolkit.wire.topics import Topics, check_name


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLink:
    """A way to a broker that is to be measured.

    Attributes:
        client: this board's account, or its name where the broker asks for none.
        limits: of an emulated board, within which the measurement runs.
    """

    address: BrokerAddress
    topics: Topics
    client: str
    codec: str
    pace: LinkPace
    limits: Limits | None

    @classmethod
    def from_flags(
        cls, flags: Mapping[str, object], *, device: str, codec: str, quick: bool, limits: Limits | None
    ) -> BrokerLink:
        """Read it from the command's flags and the settings beneath them.

        Raises: UsageError, ConfigError: something in them makes no sense.
        """
        settings = load_config(flags)
        address = broker_of(settings, default_username=device)
        address.require_secure()
        return cls(
            address=address,
            topics=Topics(check_name(settings.fleet.name, what="The fleet's name")),
            client=check_name(address.username or device, what="The device's name"),
            codec=check_codec(codec),
            pace=QUICK_LINK if quick else THOROUGH_LINK,
            limits=limits,
        )

    def check(self) -> None:
        """Reach the broker and hear from it.

        Raises: BrokerError: it can't be reached, refuses us, or does not deliver.
        """
        outcome = measure_apart(lambda: self._measurement(QUICK_LINK), [], limits=None)
        if outcome.failed:
            raise outcome.error()

    def for_child(self) -> BrokerWay:
        """The way as the measuring child takes it."""
        address = self.address
        return BrokerWay(
            host=address.host,
            port=address.port,
            tls=address.tls,
            username=address.username,
            password=address.password,
            ca_file=str(address.ca_file or ""),
            cert_file=str(address.cert_file or ""),
            key_file=str(address.key_file or ""),
            insecure=address.insecure,
            max_packet_bytes=address.max_packet_bytes,
            client=self.client,
            topic=self.topics.check(self.client),
            codec=self.codec,
        )

    def measure(self, profile: Profile) -> tuple[Profile, HseeError | None]:
        """Measure what the profile's cuts would send.

        Returns: the profile with its link; where the broker went away, with what was measured until then, marked
            partial, and the error.
        """
        loads = [
            load_of(row, profile.training.batch_size)
            for row in profile.cuts
            if profile.training is not None and not row.failed
        ]
        outcome: LinkOutcome = measure_apart(lambda: self._measurement(self.pace), loads, limits=self.limits)
        if not outcome.failed:
            return msgspec.structs.replace(profile, link=outcome.link), None
        return msgspec.structs.replace(profile, link=outcome.link, partial=True), outcome.error()

    def _measurement(self, pace: LinkPace) -> LinkMeasurement:
        topic = self.topics.check(self.client)
        # A measurement that is killed leaves its retained chunk to its will, which removes it.
        link = make_link(self.address, client_id=self.client, will=(topic, b""))
        return LinkMeasurement(
            link, topic=topic, name=str(self.address), codec=self.codec, tls=self.address.tls, pace=pace
        )
