"""The machine: it knows HTTP and server-sent events, and no endpoint.

An API is built on it from values (``Operation``, ``Parameters``), a ``Dialect`` and a ``Collector``; see
``docs/design.md`` for an example. This page tells how a request, a byte and a stream move through it, who owns what,
and which private parts of aiohttp it uses.


The way of a request
====================

1. A method of an API (``chat.resource.Chat.complete``) checks and encodes what it was given: ``body.arguments``
   (``Parameters.encode``) gives ``Arguments``. What is wrong raises ``TypeError`` or ``ValueError`` here, before any
   I/O.
2. ``call.Engine.call`` makes a ``call.Call`` of the operation and the arguments; ``Engine.opening`` gives an
   ``EventStream`` a ``StreamOpening``, which does so when the stream is first used.
3. ``call.Call.run`` is the loop: build, attempt, judge, wait, again. Each attempt runs inside ``net.clock.CallClock``.
   Before the first, ``Call._held_back`` waits while ``pacing.Pace`` knows that the server wants nothing new.

   a. Build: ``Call._request`` asks for the token and a form's headers; ``protocol.Sender.request`` gives a
      ``Request``.
   b. Attempt: ``net.transport.AiohttpTransport.send`` takes a place (``net.slots.Slots``), calls aiohttp, replaces a
      dead pooled connection once, follows redirects, translates what aiohttp raises (``net.failures``), and returns a
      ``net.exchange.AiohttpExchange``. What most calls send goes over the connector of aiohttp's session
      (``net.posting``), and the rest through the session.
   c. A status outside 200 to 299 becomes an error in ``status_errors.status_error``, which reads what ``error_text``
      makes of the body. Otherwise ``Call.read_reply``, ``read_into`` or ``read_first_event`` reads the reply.
   d. Judge: ``retry.may_repeat`` says whether another attempt is allowed, ``retry.Retries`` when. tenacity applies the
      policy's waits and stops there, and nowhere else. It is entered after the first failure, for its cost, some
      50 µs.
      ``Call._wait_after`` puts that to the retry budget of ``pacing.Pace``, and tells it of a Retry-After.
   e. Wait: ``Call._sleep``, inside the clock.

4. A plain reply is decoded by ``events.decoding.decode_reply``, which also looks for an error that came with a good
   status, and gets its ``meta``. A stream becomes an ``events.stream.OpenStream``.

``runtime.Runtime`` is what a client and its ``with_options`` copies share: the transport, the calls under way, and what
they learn from each other (``pacing.Pace``).
``observers.Watch`` and ``timing.Stopwatch`` go along with each call.


The way of a byte to an event
=============================

1. aiohttp parses HTTP and puts the body's bytes into its ``StreamReader``. ``net.dialing.PooledProtocol.data_received``
   then calls ``AiohttpExchange.notify_readable``, which wakes whoever waits. A read of whole chunks that somebody waits
   for goes past the parser (``AiohttpExchange.take_chunks``, ``net.framing``): it would hand over the same bytes, and
   stand where it stands.
2. ``Exchange.take`` gives those, and empties the ``StreamReader``, without awaiting. (Compressed replies, and
   connections of a session that was passed in, are read by awaiting ``StreamReader.readany`` instead, and decompressed
   by ``net.compression``.)
3. ``events.reader.EventReader.feed`` hands the bytes to ``events.sse.SSEDecoder``. Its ``single`` takes a read that is
   one ``data: ...`` line, its ``plain`` one of nothing but such lines; everything else goes through ``feed``, the whole
   of the standard.
4. ``events.decoding.Dialect`` says what each event is: a payload, an event of an unknown kind, a heartbeat, the end, an
   error. The everyday events of a read are decoded at once by msgspec; where one of them is anything else, ``decode``
   looks at each. What msgspec refuses is read once more by ``lenient``.
5. The API's ``Collector`` adds the payloads up, and says whether the stream may end (``may_end``) or has (``is_last``).
   Pieces of text and nothing else, which most events of a chat are, it takes in one pass (``add_texts``).
6. ``EventStream.__anext__`` (in ``streams``, as is all that users hold of a stream) takes events from
   ``EventReader.ready``, and calls ``OpenStream.fill`` where there are none. ``raw()`` calls ``OpenStream.read``, which
   does the same read by read, and passes the events over.

So a read that has to wait passes two coroutines: ``__anext__`` and ``OpenStream.fill``. One that finds an event in
``ready`` passes one.


The states of a stream
======================

``EventStream.outcome`` leaves ``open`` once, for one of the others, and never changes again. "Raises again" is a copy
of the first error. Every error of an open stream has ``partial`` and ``meta``.

=============  ======================================  ===============================  ================================
``outcome``    how it is reached                       what the reader gets             what happens to the connection
=============  ======================================  ===============================  ================================
``open``       made; being opened; being read; a       events                           none yet; then it is in use, and
               client that was closed leaves it so                                      holds a place in the pool
               until the next read
``done``       the sentinel, the API's last event, or  the end of the iteration;        goes back to the pool when the
               an end where ``may_end`` holds (of the  ``result()`` gives the reply     body has ended; closed if that
               body, by a broken connection, by a                                       takes longer than 0.5 s, and
               time limit), and all events taken                                        where it broke
``stopped``    ``stop()``; or the event for which the  iteration has ended, also for    closed before the call returns;
               function of ``stop_when()`` holds has   whoever was waiting;             or as soon as that event has
               been taken                              ``result()`` gives what had      come
                                                       arrived
``truncated``  the connection broke, or the body       StreamInterruptedError; then     closed
               ended, before that; the sentinel        iteration has ended, and
               before anything of an answer            ``result()`` raises again
``failed``     a time limit, a size limit, an error    APITimeoutError,                 closed
               in the stream, an event that cannot     APIStatusError,
               be read; opening failed                 ResponseDecodeError; then as
                                                       for ``truncated``
``cancelled``  ``async with`` left, ``aclose()``, the  iteration has ended;             closed before the call that
               last reference dropped                  ``result()`` raises              closed it returns; in the loop's
                                                       StreamInterruptedError. Whoever  next turn if the last reference
                                                       was waiting gets it at once      went in another thread
``cancelled``  a read was cancelled                    CancelledError; the next read    closed
                                                       raises StreamInterruptedError,
                                                       once; then iteration has ended
``cancelled``  the client was closed, or drained       StreamInterruptedError at the    closed
                                                       next read; then as above
=============  ======================================  ===============================  ================================

A time limit that expires where ``may_end`` holds ends the stream well: nothing of the answer is missing, only the
sentinel or the usage, and an error would make the caller pay for the answer once more.

Events that stand before an error in the same read are delivered first: the outcome changes when the last of them has
been taken, so it does not depend on how the bytes were cut into reads. What was wrong while a stream was being opened
is raised there, after the retries. What ends an opening decides how it ended, and not the moment: in line for a
place, dialing, sent, with the status, amid the first bytes, or waiting for the next attempt.

===========================================  ==============================  =============  ===========================
while a stream is being opened               raised by the opening           ``outcome``    ``call_ended`` tells
===========================================  ==============================  =============  ===========================
``aclose()``, or the client closed, or       StreamInterruptedError          ``cancelled``  the same
drained
the task cancelled, ``asyncio.timeout``      CancelledError                  ``cancelled``  the same
the connection broke after the status        StreamInterruptedError          ``truncated``  the same
anything else (a client that was closed      what a plain call raises        ``failed``     the same
before, or drained, is ConfigurationError)
===========================================  ==============================  =============  ===========================

A plain call whose client is closed under it raises APIConnectionError, at each of these moments; ``sent`` says whether
the request can have been accepted.


Who owns what
=============

Loop
    A loop has one ``net.pool.Pool``: an aiohttp session, the places, the exchanges under way. It is made on first
    use. ``net.guard`` starts an async generator in the loop, which asyncio closes when the loop shuts down
    (``loop.shutdown_asyncgens``), and which closes the pool: so a client that nobody closed leaves no warning. Of a
    loop that was not shut down the pool is only given up (``Pool.discard``), at the latest when the process ends. A
    stream, its exchange and its timer belong to the loop in which the stream was opened.
Thread
    ``AiohttpTransport._pools`` is changed under a lock; everything else of a pool is touched in its loop's thread only.
    Other threads get there by ``call_soon_threadsafe``: ``OpenStream.drop``, ``Runtime._interrupt``, ``abort``,
    ``close``.
Fork
    The child lets go of the parent's sockets at once (``os.register_at_fork``, in ``runtime``), without closing them on
    the wire (``Pool.abandon``), keeps the parent's objects so that nothing finalizes them, and makes pools of its own.
Garbage collector
    Nothing depends on it. A stream that is dropped is closed by ``EventStream.__del__``, and the pools of a client by a
    ``weakref.finalize`` of its ``AiohttpTransport``, when the last reference goes. The finalizer holds the pools: they
    must not be part of a cycle that the client is in, or aiohttp's connector, finalized with it, says "Unclosed
    connector". What is under way must therefore not know its user:
    ``OpenStream`` does not know the ``EventStream``, ``ReadClock`` knows the exchange's ``wake`` and not the stream,
    the transport knows ``runtime.ChangeSignal`` and not the runtime.


Reference cycles
================

A cycle through an open stream delays its end until a collection: the model goes on generating, the place stays taken.
Cycles arise from errors. A frame that holds an error in a local variable while it raises it is in that error's
traceback, and the traceback leads up, through ``f_back``, to frames that hold the stream. ``held`` has the two means
against that, and all code in here uses them:

- ``Held`` holds a caught error until it is raised: ``raise held.take()``.
- ``forget`` takes the tracebacks off an error that somebody else keeps: aiohttp keeps one on the connection that broke.

An error that is raised more than once (``OpenStream.error``, ``Exchange.wake``, ``CallClock.interrupt``) is kept
without a traceback, and raised as a copy. tenacity is never given the error itself. A test that shows the absence of a
cycle switches the collector off first (``gc.disable()``): otherwise it may have run in between.


Private parts of aiohttp
========================

They were run on aiohttp 3.13.4, the newest 3.13, and 3.14.5; ``docs/compatibility.md`` says on which Pythons. Anyone
who raises the upper bound in ``pyproject.toml`` reads this list first.

``TCPConnector._get`` (overridden in ``net.dialing.Connector``)
    Tells whether the pool had a connection, where the time of connecting begins, and passes the pool over for a request
    that replaces a dead connection. ``TraceConfig`` tells of reuse, but cannot choose: ``force_close`` is the
    connector's, not a request's. It
    also looks whether anything has come over the connection that the loop, blocked, has not read yet.
``TCPConnector._release`` (overridden)
    Tells when a connection goes back to the pool. From then on its bytes are nobody's reply, and close it. No public
    call is made there, and no trace. Where the loop was closed under a call nothing can be closed: what asyncio raises
    then would take the place of the call's own end.
``TCPConnector.__del__`` (overridden)
    It would complain of a connector that nobody closed: here the pool does, where its loop can still do it.
``TCPConnector.connect`` (overridden; its name is public, its signature is not documented)
    Gives the connection before anything is sent over it: the phase ``first_event`` begins there, and ``warm_up`` ends
    there. ``TraceConfig`` does not hand out connections.
``TCPConnector._factory`` (set)
    The class of the protocol. The connector's arguments take a socket factory, but no protocol factory.
``ClientRequest`` and ``ClientResponse`` (made; their constructors are not documented), ``ClientResponse.start``,
``TCPConnector.connect`` and ``ResponseHandler.set_response_params`` (called), all in ``net.posting``
    A session looks for redirects, cookies, credentials, traces and middlewares that a request of ours never has, and
    its request makes headers of headers and, below Python 3.12, a task that writes the body: half of what a plain call
    costs. So JSON of up to 64 KiB is written at once. What the classes take is checked when it is loaded
    (``posting.can_post``): with others, all goes through the session, as it does where somebody watches that: a
    ``TraceConfig``, or whoever puts a function of his own in the place of ``ClientSession._request`` (read).
    A session's public parameters that turn things off save next to nothing of that.
``client_proto.ResponseHandler`` (subclassed as ``PooledProtocol``), with ``data_received``, ``connection_made``,
``connection_lost``, ``pause_reading``, ``resume_reading``, ``exception``, ``should_close``, ``connected``,
``transport``
    ``data_received`` wakes the reader, where ``StreamReader.readany`` would put two coroutines and a future of
    aiohttp's between the socket and the stream. It also closes a connection on which something comes while it lies in
    the pool, where aiohttp would take it for the reply to the next request.
    aiohttp calls ``resume_reading`` after each read; from 3.14 on that runs the parser on nothing, so it is passed over
    as long as nothing has been paused.
``StreamReader._http_chunk_splits`` and ``total_bytes``, ``http_parser.HttpResponseParserC`` (read in ``net.framing``)
    Where the parser stands: between two chunks it can be passed by, which costs a quarter of what it does. What looks
    at these is checked when it is loaded; without them, or with the parser in Python, all goes through the parser.
``ResponseHandler.closed`` (read in ``AiohttpExchange._watch``)
    Wakes who awaits ``readany`` (a foreign session's connection, a compressed reply): after garbage in chunked framing
    aiohttp leaves the reader waiting.
``StreamReader._read_nowait``
    The bytes that came before an error: ``read_nowait`` raises the error at once, and nothing else reaches them.
``StreamReader.set_exception``, ``on_eof`` (not documented)
    End a read that is under way, and tell of the body's end without awaiting it.
"""
