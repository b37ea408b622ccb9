"""Matrix as pure functions: events, room versions, authorization, state resolution, signing.

Nothing here opens a socket, reads a clock or waits: values come in, values or exceptions come out.
Moments are arguments in milliseconds since the Unix epoch. The package can be used, and is tested,
without the rest of the server.

Where to start: `room_versions` says what differs between the versions of the protocol, `events`
what an event is, `event_auth` who may send it, and `state_resolution` what the state of a room is
when its servers did not all see the same events in the same order.
"""
