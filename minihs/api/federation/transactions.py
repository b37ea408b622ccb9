"""Transactions: what other servers push to us.

Spec: server-server-api#transactions
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.api.requests import Answer
from minihs.services.federation import transactions

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def send_transaction(request: Request) -> object:
    """PUT /_matrix/federation/v1/send/{txnId}.

    Spec: server-server-api#put_matrixfederationv1sendtxnid
    """
    return Answer(
        await transactions.receive_transaction(
            request.services, request.origin, request.path["txnId"], await request.json_object()
        )
    )
