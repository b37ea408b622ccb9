"""Whether we reach an application service, and it us. Spec: application-service-api#pinging."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from minihs.base.errors import Forbidden, MatrixError
from minihs.remote.appservices import V1
from minihs.remote.transport import RemoteError
from minihs.storage import appservices

if TYPE_CHECKING:
    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services


async def ping(
    services: Services, requester: Requester, service_id: str, transaction_id: str | None
) -> int:
    """Ping the application service that asks for it; return how long it took, in milliseconds.

    If it was left alone as it did not answer, it no longer is.
    Spec: client-server-api#post_matrixclientv1appserviceappserviceidping

    Raises:
        Forbidden: somebody else asks for it.
        MatrixError: it has no URL, does not answer, or not with a success.
    """
    service = services.appservices.get(service_id)
    if service is None or service.id != requester.appservice_id:
        raise Forbidden("Only an application service may have itself pinged.")
    if service.url is None:
        raise MatrixError("The application service has no URL.", errcode="M_URL_NOT_SET")
    content = {} if transaction_id is None else {"transaction_id": transaction_id}
    began_ms = services.clock.monotonic_ms()
    answer = await services.appservices.remote.request(
        service, "POST", f"{V1}/ping", content=orjson.dumps(content)
    )
    if isinstance(answer, RemoteError):
        raise _failure(answer)
    await appservices.mark_due(services.db, service.id)
    return services.clock.monotonic_ms() - began_ms


def _failure(error: RemoteError) -> MatrixError:
    """Return what a service is told that we cannot reach."""
    match error.kind:
        case "refused":
            failure = MatrixError(
                f"The application service answered with status {error.status}.",
                status=502,
                errcode="M_BAD_STATUS",
                body=error.message,
            )
            failure.fields["status"] = error.status
            return failure
        case "timed_out":
            return MatrixError(
                "The application service does not answer.",
                status=504,
                errcode="M_CONNECTION_TIMEOUT",
            )
        case "unreachable" | "bad_answer":
            return MatrixError(
                f"Cannot reach the application service: {error.message}",
                status=502,
                errcode="M_CONNECTION_FAILED",
            )
