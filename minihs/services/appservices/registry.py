"""All application services of this server, and what others must ask them.

`services.appservices` is known to everybody: who makes users or aliases asks it whose they are, and
who looks for an alias that is not there asks it whether a service will make it. Without any service
each question is answered at once.

Spec: application-service-api#registration
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

from minihs.base.batching import Batcher
from minihs.base.caching import BoundedCache
from minihs.base.errors import Exclusive, RequestTimeout
from minihs.base.metrics import Family, labels
from minihs.protocol.identifiers import server_name_of
from minihs.remote.appservices import NO_ANSWER, V1
from minihs.remote.transport import RemoteError
from minihs.services.accounts.authentication import hash_token
from minihs.storage import accounts, appservices

if TYPE_CHECKING:
    from collections.abc import Iterable

    from minihs.remote.appservices import AppserviceRemote
    from minihs.services.appservices.registration import Registration
    from minihs.storage.appservices import Mask
    from minihs.storage.database import Database

logger = logging.getLogger(__name__)

USERS_REMEMBERED_MAX = 50_000

Services = tuple["Registration", ...]


class Appservices:
    """The application services. Truth of it: there are some."""

    def __init__(
        self, registrations: Iterable[Registration], remote: AppserviceRemote, db: Database
    ) -> None:
        self.remote = remote
        self.all: Services = tuple(registrations)
        self._server_name = server_name_of(self.all[0].sender) if self.all else ""
        self.masks: Batcher[tuple[str, str], Mask] = Batcher(
            lambda asked: appservices.list_masks(db, asked)
        )
        # By the hash of the token: how long a look-up takes tells nothing about any token.
        self._by_token = {hash_token(service.as_token): service for service in self.all}
        self._transactions: dict[str, float] = {}
        self._by_user: BoundedCache[str, Services] = BoundedCache(USERS_REMEMBERED_MAX)

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self.all)

    def of_token(self, token: str | None) -> Registration | None:
        """Return the application service that an access token belongs to, None: no service's."""
        if token is None or not self._by_token:
            return None
        return self._by_token.get(hash_token(token))

    def get(self, service_id: str | None) -> Registration | None:
        """Return the application service of an id."""
        return next((service for service in self.all if service.id == service_id), None)

    @property
    def listening(self) -> Services:
        """Those that are sent what happens."""
        return tuple(service for service in self.all if service.url is not None)

    def of_user(self, user_id: str) -> Services:
        """Return the services that a user is in a namespace of; none for users of other servers."""
        if not self.all or server_name_of(user_id) != self._server_name:
            return ()
        found = self._by_user.get(user_id)
        if found is None:
            found = tuple(service for service in self.all if service.has_user(user_id))
            self._by_user.put(user_id, found)
        return found

    def owns_user(self, user_id: str) -> bool:
        """Return whether a user is a service's alone: nobody else acts for them."""
        return any(service.owns_user(user_id) for service in self.of_user(user_id))

    def count(self, service_id: str, outcome: str) -> None:
        """Count a transaction that was `delivered` or `failed`."""
        key = labels(service=service_id, outcome=outcome)
        self._transactions[key] = self._transactions.get(key, 0) + 1

    def families(self) -> list[Family]:
        """Return figures about the deliveries of this process."""
        return (
            [
                Family(
                    "minihs_appservice_transactions_total",
                    "counter",
                    "Transactions sent to application services",
                    dict(self._transactions),
                )
            ]
            if self.all
            else []
        )

    # --- whose names they are --------------------------------------------------------------------

    def check_user(self, user_id: str, by: str | None) -> None:
        """Check that a user may be made by an application service, or by people (`by` is None).

        Raises:
            Exclusive: the user is in an exclusive namespace of another service, or in none of the
                service's own.

        Spec: application-service-api#server-admin-style-permissions
        """
        for service in self.all:
            if service.id == by and not service.has_user(user_id):
                raise Exclusive("This user name is in no namespace of the application service.")
            if service.id != by and service.owns_user(user_id):
                raise Exclusive("This user name is reserved by an application service.")

    def check_alias(self, alias: str, by: str | None) -> None:
        """Check that an alias may be made or deleted by a service, or by people (`by` is None).

        Raises:
            Exclusive: as for users.
        """
        for service in self.all:
            if service.id == by and not service.has_alias(alias):
                raise Exclusive("This alias is in no namespace of the application service.")
            if service.id != by and service.owns_alias(alias):
                raise Exclusive("This alias is reserved by an application service.")

    # --- what they may make when they are asked --------------------------------------------------

    async def make_alias(self, alias: str) -> bool:
        """Ask the services whose namespace an alias is in; return whether one says it is there now.

        Raises:
            RequestTimeout: none says so, and one does not answer, however often it is asked.

        Spec: application-service-api#querying
        """
        path, is_silent = _path("rooms", alias), False
        for service in self.listening:
            if not service.has_alias(alias):
                continue
            answer = await self.remote.ask(service, path)
            if not isinstance(answer, RemoteError):
                return True
            _log_failure(alias, answer)
            is_silent = is_silent or answer.kind in NO_ANSWER
        if is_silent:
            raise RequestTimeout("The application service that has the name does not answer.")
        return False

    async def make_user(self, service: Registration, user_id: str) -> None:
        """Let a service make a user of its own who is not there, if it wants to.

        It is asked once: nobody waits for the user, and the service is sent the event that speaks
        of them until it takes it.

        Spec: application-service-api#querying
        """
        path = _path("users", user_id)
        answer = await self.remote.request(service, "GET", V1 + path, legacy=path)
        if isinstance(answer, RemoteError):
            _log_failure(user_id, answer)


def _path(kind: str, name: str) -> str:
    return f"/{kind}/{quote(name, safe='')}"


def _log_failure(name: str, error: RemoteError) -> None:
    if error.kind != "refused":
        logger.warning("cannot ask about %s: %s", name, error.describe())


async def begin(registry: Appservices, db: Database, now_ms: int) -> None:
    """Give every service its user, and let new ones be served from now on."""
    if not registry:
        return
    for service in registry.all:
        await accounts.insert_account(db, service.sender, None, now_ms, appservice_id=service.id)
    await appservices.insert_services(db, [s.id for s in registry.listening], now_ms)
