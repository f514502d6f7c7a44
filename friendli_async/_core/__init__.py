"""The core: HTTP calls and server-sent events, independent of any endpoint.

An API is built on it from values (``Operation``, ``Parameters``), a ``Dialect`` and a ``Collector``: ``docs/design.md``
has an example, and a table of where each thing happens ("Where to look"). This page describes how a request, a byte and
a stream move through the core, who owns what, and which private parts of aiohttp it uses.


The path of a request
=====================

1. A method of an API (``chat.resource.Chat.complete``) checks and encodes its arguments: ``body.arguments`` gives
   ``Arguments``, or ``ForeignArguments`` for a URL outside of the API. Invalid arguments raise ``TypeError`` or
   ``ValueError`` here, before any I/O.
2. ``engine.Engine.call`` creates a ``call.Call``. For an ``EventStream``, ``Engine.opening`` returns a
   ``StreamOpening``, whose call runs when the stream is first used.
3. ``call.Call.run`` is the retry loop. Before the first attempt, a usage limit counts or refuses the call, and the call
   waits for a rate-limit hold (``pacing.Pace``), or fails. Each attempt runs inside ``net.clock.CallClock``:

    - **Build**: the call gets the token and a form's headers; ``protocol.RequestBuilder.build`` returns a ``Request``.
    - **Send**: ``net.transport.AiohttpTransport.send`` takes a connection slot (``net.slots``), asks a usage limit
      again, since the call may have waited, and returns a ``net.exchange.AiohttpExchange``. It follows a 307 or 308 to
      the same origin, translates aiohttp's exceptions (``net.failures``), and replaces a pooled connection that dies
      under the request: once per call, before any byte of the reply, and only if the operation is ``repeatable`` and
      the body can be sent again. JSON of up to 64 KiB bypasses aiohttp's session (``net.posting``).
    - **Read**: a status outside 200 to 299 becomes an error (``status_errors.status_error``). Otherwise
      ``Call.read_reply``, ``read_into`` or ``read_first_event`` (``events.opening``) reads the reply. They also detect
      an error with a success status. So a reply that cannot be decoded is a failed attempt.
    - **Evaluate** a failure, in this order:

        1. ``Call._try_recovery``, if the deployment has a recovery and the client's ``wake`` is true, for an
           ``APIStatusError``, until it has succeeded once: if it repairs the cause, the next attempt follows at once,
           outside of ``max_attempts`` and the budget. Without ``wake``, it only explains the error of the last attempt.
        2. ``Call._can_go_on`` and ``retry.is_retryable``: whether another attempt is possible and allowed.
        3. ``retry.wait_after``: whether attempts and time are left, and the seconds until the next one: the server's
           Retry-After with jitter, or else a backoff of tenacity's.
        4. For a 429 or 503: ``Pace.start_hold``, if it says how long to wait, and if the client obeys holds. A bulk run
           may lengthen the wait, or rule the next attempt out (``pacing.on_rejection``).
        5. ``Pace.take_retry``: takes the retry out of the budget, or refuses it.

    - **Wait**: sleep inside the clock.

4. ``Call._finish_succeeded`` attaches ``meta`` to a plain reply. A stream becomes an ``events.stream.OpenStream``.

A client and its ``with_options`` copies share a ``runtime.Runtime``: the transport, the calls in flight, and what they
learn from each other (``pacing.Pace``). ``work.Work`` is several calls that belong together, such as the turns of a
run: a drain lets it finish. ``timing.Stopwatch`` accompanies each call, ``reporting.CallReporter`` one with observers
or a usage limit, and ``reporting.RunReporter`` a run with observers.


From a byte to an event
=======================

1. aiohttp parses HTTP and fills its ``StreamReader``. ``net.dialing.PooledProtocol.data_received`` wakes the reader. A
   read of whole chunks that a reader waits for bypasses the parser (``AiohttpExchange.take_chunks``, ``net.framing``),
   if the parser is between chunks and the last chunk is not among them: it would pass on the same bytes and be in the
   same state afterwards.
2. ``Exchange.take`` returns them without awaiting: the read that bypassed the parser, or at most 32 KiB of what the
   ``StreamReader`` has. Compressed replies (``net.compression``), and connections of a session that was passed in, are
   read by awaiting ``StreamReader.readany``.
3. ``events.reader.EventReader.feed`` passes the bytes to ``events.sse.SSEDecoder``. Its fast paths are ``single``, for
   a read that is one event of one ``data: ...`` line, and ``plain``, for a read of only such events, whose first and
   last may be incomplete. Everything else goes through its ``feed``, which implements the standard. With stop
   conditions, a read is fed one event at a time.
4. ``events.decoding.Dialect`` classifies each event: payload, unknown kind, heartbeat, end, or error. In the common
   case the events of a read are decoded in one pass, with one call of msgspec each; if one of them is not an ordinary
   payload, ``decode`` handles each separately. ``lenient`` converts what msgspec rejects.
5. The API's ``Collector`` accumulates the payloads, and knows whether the stream may end (``may_end``) or has ended
   (``is_last``). Deltas of only text or reasoning, most events of a chat, take a fast path (``add_texts``).
6. ``EventStream.__anext__`` (in ``streams``) takes events from ``EventReader.ready``, and calls ``OpenStream.fill`` if
   there are none. The ``RawView`` of ``raw()`` does the same read by read, and discards the events.

So in plain iteration, a read that waits passes through two coroutines, ``__anext__`` and ``OpenStream.fill``, and one
that finds an event in ``ready`` through one.


The states of a stream
======================

``EventStream.outcome`` leaves ``open`` once, and never changes again. One ``events.stream.StreamState`` holds it, with
the error: the ``StreamOpening`` sets it until the stream is open, then its ``OpenStream``. Unless somebody stops the
stream, ``events.stream.judge_end`` decides. "Raised again" means a copy of the first error. Every ``FriendliError`` of
an open stream has ``partial`` and ``meta``.

- ``open``: created, being opened, or being read.
- ``done``: by the read after the last event. That was the sentinel, the API's last event, or an end where ``may_end``
  holds: of the body, by a broken connection or a timeout, by closing the client. Iteration ends, and ``result()``
  returns the reply.
- ``stopped``: by ``stop()``, or by the read after the event that satisfies ``stop_when()``, unless it is the API's last
  event (``done``). Iteration ends, also for a pending reader; ``result()`` returns what had arrived. If the stream was
  never open, it raises StreamInterruptedError.
- ``truncated``: the connection broke, or the body ended, before that; or the sentinel came before any part of an
  answer. StreamInterruptedError, raised again by each read, also after the stream was closed. (``failed`` if an error
  message came before: beside other fields, in an event of an unknown kind or outside of events.)
- ``failed``: a timeout, a size limit, an error in the stream, an event that cannot be decoded, an answer that is not
  JSON (parsing), or the opening. APITimeoutError, APIStatusError or ResponseDecodeError, raised again. Another
  exception of the opening, or one of a function of ``stop_when()``, is raised once, and later StreamInterruptedError.
- ``cancelled``: by leaving ``async with``, ``aclose()``, or dropping the last reference. Iteration ends; ``result()``
  and a pending reader get StreamInterruptedError.
- ``cancelled``: by cancelling a read (not of a branch). CancelledError, and later StreamInterruptedError.
- ``cancelled``: the client was closed, its drain timed out, or the loop shut down, before the body had ended, and
  ``may_end`` does not hold. The events that had arrived, then StreamInterruptedError, raised again.

If nothing of the answer is missing but the sentinel or the usage (``may_end``), a timeout or closing the client is no
error: it would make the caller pay for the answer again.

**The connection**: a stream holds a slot from its first use until its end has been read, even if events are still
queued. After ``done`` it returns to the pool once the body has ended, and is closed if that takes longer than 0.5 s, if
it broke, and after a timeout or closing. In all other cases it is closed at once, before the call that ends the stream
returns (if the last reference is dropped outside of the loop: in the loop's next turn).

**When it changes**: events that precede the end or an error in the same read are delivered first, and the outcome
changes in the read after the last of them. So it does not depend on how the bytes were split into reads, and leaving
right after the last event gives ``cancelled``. If the user ends the stream or a read is cancelled, it changes at once,
and undelivered events are discarded. If the total timeout or closing the client ends it, it changes at once, and they
are delivered; if the body has ended by then, neither changes anything.

**Before the first use**, ``stop()`` or closing makes a stream ``stopped`` or ``cancelled``, without a call.

**While it is being opened**, errors are raised there, after the retries, and ``call_ended`` reports the same:

- ``stop()`` gives ``stopped``: the opening raises StreamInterruptedError, iteration and ``raw()`` just end.
- ``aclose()``, and closing or draining the client, give ``cancelled`` and StreamInterruptedError.
- Cancelling the task (``asyncio.timeout``) gives ``cancelled`` and CancelledError.
- If the connection broke after the status, or the body of an event stream ended, or ``[DONE]`` came, before any event
  or error: ``truncated`` and StreamInterruptedError.
- Any other exception gives ``failed``, and is what a plain call raises. (The client was closed or drained before:
  ConfigurationError. JSON in place of events: ResponseDecodeError.)

A plain call whose client is closed meanwhile raises APIConnectionError; ``sent`` is whether the server may have
accepted the request.


Ownership
=========

**Loop**: a client has one ``net.pool.Pool`` per loop: an aiohttp session, the connection slots, the exchanges in
flight. It is created on first use. ``net.guard`` starts an async generator in the loop, which asyncio closes when the
loop shuts down (``loop.shutdown_asyncgens``), and which closes the pool: so an unclosed client causes no warning. If a
loop was not shut down, its pool is only discarded (``Pool.discard``), at the latest when the process exits. A stream,
its exchange and its timer belong to the loop in which the stream was opened.

**Thread**: ``AiohttpTransport._pools`` is modified under a lock (except in a forked child, which has one thread). A
pool is modified only in its loop's thread, except when the loop no longer runs (``Pool.discard``) or after a fork
(``Pool.abandon``). Other threads get there by ``call_soon_threadsafe``: ``OpenStream.drop``, ``Runtime.drain`` and
``close``, ``Transport.abort`` and ``close``. ``gauges`` reads the pools from any thread. Whoever iterates over a set or
dict that other threads modify makes a ``list`` of it first, which copies in one step on a free-threaded Python, too
(``tuple`` does not). The first use of a type by msgspec is made under ``_json.type_lock``.

**Fork**: the child lets go of the parent's sockets at once (``os.register_at_fork``, in ``runtime``), without closing
them on the wire (``Pool.abandon``), keeps the parent's objects so that nothing finalizes them, and creates its own
pools. It inherits no lock that a thread of the parent held: see ``_locks``.

**Garbage collector**: nothing depends on it. When the last reference is dropped, a stream is closed by
``EventStream.__del__``, and the pools of a client by a ``weakref.finalize`` of its ``AiohttpTransport``.

A finalizer may run between any two lines of the program, also while an observer holds a lock. So it closes the stream
at once, but observers and limits are told in the loop's next turn, or once the loop is closed (``CallOnce``).

What is in flight must not reference its user: ``OpenStream`` does not reference the ``EventStream``, ``ReadClock``
references the exchange's ``abort_with`` and not the stream, and the transport does not reference the runtime. (Pools in
a cycle with their client would be finalized with it, and aiohttp's session would warn "Unclosed client session".)
Functions of the user may reference anything, so the client and its connections hold what calls them by
``held.weak_method``.


Reference cycles
================

A cycle through an open stream delays its end until a collection: the model goes on generating, and the connection slot
stays in use. Cycles come from errors. A frame that holds an error in a local variable while raising it is in that
error's traceback, and the traceback leads through ``f_back`` to frames that hold the stream. ``held`` has the two
remedies, which all code in here uses:

- ``Held`` holds a caught error until it is raised: ``raise held.take()``.
- ``clear_tracebacks`` is for an error that something else keeps: aiohttp keeps one on the broken connection.

An error that is raised more than once (``StreamState.error``, ``Exchange.abort_with``, ``CallClock.interrupt``) is
stored without a traceback and raised as a copy. tenacity never gets the error itself. A test that shows the absence of
a cycle disables the collector first (``gc.disable()``): otherwise it may have run in between.


Private parts of aiohttp
========================

They were tested with aiohttp 3.13.4, the newest 3.13, and 3.14.5; ``docs/compatibility.md`` lists the Pythons. Read
this list before raising the upper bound in ``pyproject.toml``. ``posting.can_post`` and ``framing.can_bypass`` check
on import what this list says; for the rest, tests show whether a version of aiohttp works.

- ``TCPConnector._get`` (overridden in ``net.dialing.Connector``): shows whether the pool had a connection, and when
  connecting begins; bypasses the pool for a request that replaces a dead connection. ``TraceConfig`` reports reuse, but
  cannot choose: ``force_close`` belongs to the connector, not to a request. It also checks for data that the loop,
  while blocked, has not read from the connection yet.
- ``TCPConnector._release`` (overridden): shows when a connection returns to the pool. From then on its bytes belong to
  no reply, and close it. aiohttp makes no public call there, and sends no trace. If the loop was closed during a call,
  nothing can be closed: what asyncio raises then would replace the outcome of the call.
- ``TCPConnector.__del__`` (overridden): it would warn about an unclosed connector: here the pool closes it, if its loop
  still can.
- ``TCPConnector.connect`` (overridden; its name is public, its signature is not documented): provides the connection
  before anything is sent over it: the phase ``first_event`` begins there, and ``warm_up`` ends there. ``TraceConfig``
  does not expose connections.
- ``TCPConnector._factory`` (set): creates the protocols. The connector takes a socket factory, but no protocol factory.
  It is called once a TCP connection is open, so it also shows when a handshake begins, for the message of a timeout.
- ``ClientRequest`` and ``ClientResponse`` (created in ``net.posting``; their constructors are not documented):
  ``net.posting`` writes JSON of up to 64 KiB directly, with ``ClientResponse.start``, ``TCPConnector.connect`` and
  ``ResponseHandler.set_response_params``: what a session does besides is half the cost of a plain call, and its public
  parameters that disable features save almost nothing of that. On import, ``posting.can_post`` checks the parameters of
  both constructors and of ``set_response_params``, and that ``ClientSession._request`` (read) is aiohttp's own: if not,
  everything goes through the session. So it does while the session is observed, by a ``TraceConfig`` or a function that
  has replaced ``_request`` since. ``start`` and ``connect`` are not checked.
- ``ClientSession._retry_connection`` (set, if it exists): aiohttp sends GET, PUT and DELETE again, once per attempt, if
  the connection breaks before the reply, even if it was new: ``meta.attempts`` would not show it, and ``retry=None``
  not prevent it. ``AiohttpTransport.send`` replaces only a dead pooled connection. A session that was passed in is left
  as it is.
- ``ClientSession._loop`` (read, if it exists): the loop of a session that was passed in: in another loop it fails with
  asyncio's words, after the retries, or hangs. ``ClientSession.loop`` is deprecated.
- ``client_proto.ResponseHandler`` (subclassed as ``PooledProtocol``): with ``data_received``, ``eof_received``,
  ``connection_lost``, ``close``, ``pause_reading``, ``resume_reading``, ``exception``, ``should_close``, ``connected``,
  ``transport``, ``_buffer``, ``_payload`` and ``_drain_waiter``.
    - ``data_received`` wakes the reader; ``StreamReader.readany`` would put two coroutines and a future of aiohttp's
      between the socket and the stream. It also closes a connection that receives data while idle in the pool, which
      aiohttp would treat as the reply to the next request. And it passes the head of a reply to aiohttp by itself: the
      parser drops a head if it fails later in the same call, for instance at data after the reply, and the call would
      be retried. ``_buffer`` is the queue of the heads that were read.
    - ``connection_lost`` makes a reset an error of the body, ``_payload``. aiohttp takes a body that has neither a
      length nor chunks for complete however its connection was lost. (Whether a connection that just ended was cut off
      cannot be told, also over TLS, where asyncio does not report a missing close_notify.) It also parses what arrived
      in a pause, with ``force_close`` before it: aiohttp 3.14 drops that if TLS reports the end of the connection then.
    - ``pause_reading`` does nothing from then on: the parser would stop at each chunk, and copy the rest each time.
    - ``close`` forgets the transport, which first sends what it has buffered, however long that takes; closing the pool
      aborts it. An upload that is cancelled then may leave an exception in ``_drain_waiter`` (3.13), and asyncio would
      log that it was never retrieved.
    - ``resume_reading`` is called after each read, and from 3.14 on runs the parser on empty input, so it is skipped
      until reading has been paused.
- ``StreamReader._http_chunk_splits`` and ``total_bytes``, ``http_parser.HttpResponseParserC`` (read in
  ``net.framing``): the parser's position: between two chunks it can be bypassed, at a quarter of its cost. On import,
  ``framing.can_bypass`` checks that the parser in use is the one in C, and that ``StreamReader`` has the slot
  ``_http_chunk_splits``; otherwise everything goes through the parser. ``total_bytes`` is not checked.
- ``Connection.protocol`` (not documented; read in ``net.dialing``, ``net.exchange`` and ``net.posting``): The
  ``PooledProtocol`` of a connection, which the exchange registers with and ``net.posting`` prepares for a reply.
  Besides methods, ``Connection`` documents only its transport.
- ``ResponseHandler.closed`` (read by ``AiohttpExchange``): wakes a reader that awaits ``readany`` (a foreign session's
  connection, a compressed reply): after garbage in chunked framing aiohttp leaves it waiting.
- ``StreamReader._read_nowait``: the bytes that came before an error: ``read_nowait`` raises the error at once, and
  nothing else reaches them.
- ``StreamReader.set_exception``, ``on_eof`` (not documented): end a pending read, and report the end of the body
  without awaiting it.
- The texts of aiohttp's messages (matched in ``net.failures``): ``_NOISE`` removes what must not or need not be shown,
  ``_WRAPPED`` finds the error inside a payload error, ``_TRUNCATED`` recognizes a body that ended too early, and
  ``_QUOTED`` removes quoted bytes of the reply. If a version words them differently, our messages get worse, and may
  quote a URL or bytes of the reply.
- The traceback of an error: ``failures.failed_connecting`` looks for a frame of a function named ``connect`` whose
  local ``self`` is the connector, to learn whether a request on a session that was passed in had been sent. A foreign
  connector does not report how far it got.
"""
