"""The folder that ``hsee broker init`` writes: Mosquitto's files, the authority, and a folder an account to carry away."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from toolkit.access import authority, mosquitto_setup
from toolkit.access.account_folder import Credential, write_account_folder
from toolkit.access.accounts import check_new
from toolkit.access.dynamic_security import DynamicSecurity, initial_state
from toolkit.access.probe import Probe
from toolkit.disk import PRIVATE, PRIVATE_FOLDER, write_atomically
from toolkit.errors import UsageError, writing
from toolkit.link.base import TLS_PORT, BrokerAddress, parse_broker
from toolkit.link.broker import generate_password
from toolkit.wire.topics import Topics, check_name

RECORD = "broker.json"
OPERATOR = "op-admin"
UPTIME_AGE_S = 15.0
"""The broker tells its uptime every ten seconds: so old may the newest be."""


class BrokerRecord(msgspec.Struct, frozen=True):
    """What a broker was set up as; no secret.

    Attributes:
        fleet: that it serves.
        hosts: names and addresses in its certificate; boards reach it by the first.
        port: of its listener.
        join_port: where accounts log in by certificate: of the listener at which join tokens come in; else None.
    """

    fleet: str
    hosts: tuple[str, ...]
    port: int
    join_port: int | None = None

    @property
    def address(self) -> str:
        """As a setting takes it."""
        host = f"[{self.hosts[0]}]" if ":" in self.hosts[0] else self.hosts[0]
        return f"mqtts://{host}" if self.port == TLS_PORT else f"mqtts://{host}:{self.port}"

    @property
    def by_certificate(self) -> bool:
        """Whether accounts log in by certificates, and not by passwords."""
        return self.join_port is not None


@dataclass(frozen=True, slots=True)
class BrokerFolder:
    """A folder that ``create`` wrote.

    Attributes:
        path: absolute.
        record: what it was set up as.
    """

    path: Path
    record: BrokerRecord

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        fleet: str,
        hosts: Sequence[str],
        accounts: Sequence[str],
        port: int = TLS_PORT,
        join_port: int | None = None,
        bind: str = "",
        plugin: Path | None = None,
    ) -> BrokerFolder:
        """Write everything a broker needs, readable by this user only.

        Args:
            path: new, or empty.
            fleet: that it serves.
            hosts: names and addresses that boards will reach it by, the usual one first; this machine's own names for
                itself are added.
            accounts: to begin with, beside the operator's.
            port: of its listener.
            join_port: of another, for join tokens, where accounts are to log in by certificates; None for passwords.
            bind: the address it listens at; empty for all of this machine's.
            plugin: the dynamic-security plugin; by default where packages put it.

        Raises:
            UsageError: the folder is not empty, or a name is none.
            MachineError: the plugin is not here, or the folder can't be written.
        """
        topics = Topics(check_name(fleet, what="The fleet's name"))
        for host in hosts:
            parse_broker(f"[{host}]" if ":" in host else host)
        for account in accounts:
            check_new(account)
        found = plugin or mosquitto_setup.require_plugin()
        names = tuple(dict.fromkeys((*hosts, "localhost", mosquitto_setup.LOOPBACK)))
        if port == join_port:
            raise UsageError(
                f"Port {port} can't be both, that of accounts and that of join tokens.",
                hint="Give another --join-port.",
            )
        folder = cls(path.resolve(), BrokerRecord(fleet, names, port, join_port))
        if any(sign in str(folder.path) for sign in " \t\n"):
            raise UsageError(
                f"{folder.path} holds a space, which systemd and Mosquitto would cut.",
                hint="Choose another folder.",
            )
        passwords = {
            name: "" if folder.record.by_certificate else generate_password()
            for name in dict.fromkeys((OPERATOR, *accounts))
        }
        with writing(folder.path):
            folder._make_empty()
            ca = authority.make_authority(fleet)
            folder._write("ca.pem", ca.certificate)
            folder._write("ca.key", ca.key)
            folder.issue_certificate()
            if folder.record.by_certificate:
                (folder.path / "certificates").mkdir(mode=PRIVATE_FOLDER)
                folder._write("revoked.pem", authority.revoke(ca, []))
            folder._write("dynamic-security.json", msgspec.json.encode(initial_state(passwords, topics)))
            text = mosquitto_setup.configuration(
                folder.path, port=port, bind=bind, plugin=found, join_port=join_port
            )
            folder._write("mosquitto.conf", text.encode())
            folder._write("hsee-broker.service", mosquitto_setup.unit(folder.path, fleet=fleet).encode())
            for account, password in passwords.items():
                folder.write_account(account, password)
            # Last: a folder without it was never finished.
            folder._write(RECORD, msgspec.json.format(msgspec.json.encode(folder.record)))
        return folder

    @classmethod
    def open(cls, path: Path) -> BrokerFolder:
        """Read a folder that was written before.

        Raises: UsageError: it is none.
        """
        try:
            record = msgspec.json.decode((path / RECORD).read_bytes(), type=BrokerRecord)
        except FileNotFoundError as exc:
            raise UsageError(
                f"{path} is no broker's folder: it holds no {RECORD}.",
                hint="Type this on the broker's machine, or say where its folder is: --folder."
                " hsee broker init --host NAME makes one.",
            ) from exc
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise UsageError(
                f"{path / RECORD} can't be read: {exc}.", hint="Is it yours? Restore it from a copy."
            ) from exc
        return cls(path.resolve(), record)

    @property
    def topics(self) -> Topics:
        """Of its fleet."""
        return Topics(self.record.fleet)

    def account_folder(self, account: str) -> Path:
        """Where an account's files are: its password, the authority's certificate, its settings."""
        return self.path / "accounts" / account

    def login(self, account: str, address: BrokerAddress | None = None) -> BrokerAddress:
        """Give an account's way in.

        Args:
            account: whose password is in this folder.
            address: where the broker is, if not where boards find it.
        Raises: UsageError: its password, or its key, is not here.
        """
        where = address or parse_broker(self.record.address, ca_file=self.path / "ca.pem")
        folder = self.account_folder(account)
        if self.record.by_certificate:
            if not (folder / "key.pem").is_file():
                raise UsageError(
                    f"The key of {account!r} is not in {self.path}.",
                    hint="Use the folder that hsee broker init wrote, or act as another: --as op-NAME",
                )
            return where.with_certificate(account, folder / "cert.pem", folder / "key.pem")
        try:
            password = (folder / "password").read_text().strip()
        except OSError as exc:
            raise UsageError(
                f"The password of {account!r} is not in {self.path}: {exc.strerror}.",
                hint="Use the folder that hsee broker init wrote, or act as another: --as op-NAME",
            ) from exc
        return where.with_login(account, password)

    def entry(self, address: BrokerAddress) -> BrokerAddress:
        """Where join tokens are let in, given where accounts are."""
        return (
            address.with_login("", "")
            if self.record.join_port is None
            else replace(address.with_login("", ""), port=self.record.join_port)
        )

    def issue_certificate(self) -> None:
        """Sign a new certificate for the broker, which takes it at its next start.

        Raises: UsageError: the authority's key is not here or can't be read.
        """
        ca = self._authority()
        pair = authority.issue_server(ca, self.record.hosts)
        # With the authority behind it: a board that joins knows its digest, and takes the certificate from here.
        self._write("server.pem", pair.certificate + ca.certificate)
        self._write("server.key", pair.key)

    def write_account(self, account: str, password: str) -> None:
        """Write what a process needs to log in: a folder to copy to its machine and to start it in.

        Args:
            account: its name.
            password: at the broker; empty for a certificate, whose key is then made here.
        """
        credential = Credential(password)
        if not password:
            request, key = authority.make_request(account)
            credential = Credential(certificate=self.certify(account, request), key=key)
        write_account_folder(
            self.account_folder(account),
            account,
            fleet=self.record.fleet,
            address=self.record.address,
            credential=credential,
            authority=(self.path / "ca.pem").read_bytes(),
        )

    def certify(self, account: str, request: bytes) -> bytes:
        """Issue an account's certificate, PEM, and remember it, so that it can be revoked.

        Args:
            account: its name.
            request: of the key's owner, DER.
        Raises: UsageError: the request can't be read, or the authority is not here.
        """
        certificate = authority.issue_account(self._authority(), account, request)
        self._write(f"certificates/{account}.pem", certificate)
        return certificate

    def remove_account(self, account: str) -> None:
        """Delete an account's files, if they are here, and revoke its certificate, if it has one.

        The broker reads the list of revoked certificates at its start; until then the account, which it knows no more,
        is let in and may do nothing.
        """
        shutil.rmtree(self.account_folder(account), ignore_errors=True)
        certificate = self.path / "certificates" / f"{account}.pem"
        if not certificate.is_file():
            return
        known = (self.path / "revoked.pem").read_bytes()
        revoked = authority.revoke(self._authority(), [certificate.read_bytes()], known=known)
        self._write("revoked.pem", revoked)
        with writing(self.path):
            # Its time of change says since when the broker would have to have been started.
            certificate.replace(self._revoked(account))
            self._revoked(account).touch()

    def require_fresh(self, account: str, control: DynamicSecurity) -> None:
        """Refuse a name whose revoked certificate the running broker would still let in.

        Args:
            account: to be added.
            control: of the running broker.
        Raises: UsageError: the broker has not been started since, or does not say.
        """
        if account in control.accounts():
            return  # it is nothing to be added
        if (self.path / "certificates" / f"{account}.pem").is_file():
            self.remove_account(account)  # removed at the broker by an operator elsewhere
        if not self._revoked(account).is_file():
            return
        uptime_s = control.uptime_s()
        revoked_s = self._revoked(account).stat().st_mtime
        if uptime_s is None or revoked_s > time.time() - uptime_s - UPTIME_AGE_S:
            raise UsageError(
                f"There was an account {account!r} whose certificate is revoked, and the broker has not read that yet: it"
                " would take it for the new one's.",
                hint="Restart the broker, wait 15 s, and type this again; or choose another name.",
            )
        self._revoked(account).unlink()

    def _revoked(self, account: str) -> Path:
        return self.path / "certificates" / f"{account}.revoked"

    def _authority(self) -> authority.KeyPair:
        try:
            return authority.KeyPair((self.path / "ca.pem").read_bytes(), (self.path / "ca.key").read_bytes())
        except OSError as exc:
            raise UsageError(
                f"The authority's key is not in {self.path}: {exc.strerror}.",
                hint="Restore ca.key from a copy; without it every board needs a new ca.pem.",
            ) from exc

    def verify(self, program: str) -> list[str]:
        """Start the broker on loopback for a moment and read back what it holds.

        Args:
            program: Mosquitto.
        Returns: its accounts.
        Raises: BrokerError: it does not start, or holds something else than was written.
        """
        with (
            mosquitto_setup.trial(self.path, program=program) as address,
            Probe(self.login(OPERATOR, address)) as probe,
        ):
            control = DynamicSecurity(probe, self.topics)
            accounts = control.accounts()
            for account in accounts:
                control.check(account)
            return accounts

    def _make_empty(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        if any(self.path.iterdir()):
            raise UsageError(
                f"{self.path} is not empty; it may hold an authority that boards trust.",
                hint="Choose a new folder, or add accounts to that broker: hsee broker user add",
            )
        self.path.chmod(PRIVATE_FOLDER)
        (self.path / "accounts").mkdir(mode=PRIVATE_FOLDER)

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.path / name, content, mode=PRIVATE)
