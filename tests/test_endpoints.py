"""Endpoint management: the request and response of each operation, and waiting for an endpoint's status."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pytest
from support.clock import Clock, run_loop_iterations

from friendli_async import (
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    ResponseDecodeError,
    Timeouts,
)
from friendli_async.endpoints import (
    AcceleratorRequirement,
    AdvancedConfig,
    AutoscalingPolicy,
    EndpointStatus,
    SimplescaleConfig,
)
from friendli_async.testing import FriendliServer, body, json_body, script, stall, status

BASE: Final = "/dedicated/beta/endpoint"
ADVANCED: Final[dict[str, Any]] = {"tokenizer_skip_special_tokens": True, "tokenizer_add_special_tokens": False}
NEW: Final[dict[str, Any]] = {"project_id": "p", "name": "n", "instance_option_id": "i", "advanced": ADVANCED}
STATUS: Final[dict[str, Any]] = {
    "status": "FAILED",
    "createdAt": "2026-01-02T03:04:05.123456789Z",
    "updatedAt": "2026-01-02T03:04:06Z",
    "errorCode": "INFERENCE_ENGINE_MEMORY_ERROR",
    "phase": "ENGINE_INITIALIZING",
}
SPEC: Final[dict[str, Any]] = {
    "name": "n",
    "gpuType": "H100",
    "numGpu": 2,
    "projectId": "p",
    "creatorId": "c",
    "teamId": "t",
    "autoscalingMin": 0,
    "autoscalingMax": 3,
    "autoscalingCooldown": 300,
    "maxBatchSize": 64,
    "tokenizerSkipSpecialTokens": True,
    "tokenizerAddSpecialTokens": False,
    "instanceId": "i",
    "maxInputLength": 1000,
    "maxContextLength": 2000,
    "currReplicaCnt": 1,
    "desiredReplicaCnt": 2,
    "updatedReplicaCnt": 0,
}
STATUS_METHODS: Final = ("get_status", "restart", "sleep", "terminate", "wake")
ID_METHODS: Final = (*STATUS_METHODS, "get_spec", "delete", "update", "wait", "get_version_history")


def state(name: str, **others: object) -> Any:
    """A response with an endpoint's status."""
    return json_body({"status": name, "createdAt": "2026-01-02T03:04:05Z", **others})


# --- responses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", STATUS_METHODS)
async def test_status_response_is_decoded(client: AsyncFriendli, server: FriendliServer, method: str) -> None:
    server.enqueue(json_body(STATUS))
    reply: EndpointStatus = await getattr(client.dedicated.endpoint, method)("ep_1")
    assert (reply.status, reply.error_code, reply.phase) == (STATUS["status"], STATUS["errorCode"], STATUS["phase"])
    assert reply.created_at == datetime(2026, 1, 2, 3, 4, 5, 123457, tzinfo=UTC)
    assert reply.updated_at == datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
    assert reply.meta.request_id == server.requests[0].request_id


@pytest.mark.parametrize("method", ["get_spec", "update"])
async def test_spec_response_is_decoded(client: AsyncFriendli, server: FriendliServer, method: str) -> None:
    server.enqueue(json_body(SPEC))
    reply = await getattr(client.dedicated.endpoint, method)("ep_1")
    assert msgspec.to_builtins(reply) == SPEC
    assert (reply.gpu_type, reply.num_gpu, reply.desired_replica_cnt) == ("H100", 2, 2)
    assert reply.meta.status == 200


async def test_listed_endpoints_and_versions_have_ids(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(
        json_body({"data": {"ep_1": STATUS, "ep_2": {"status": "RUNNING"}}}), json_body({"data": {"v1": SPEC}})
    )
    first, second = [endpoint async for endpoint in client.dedicated.endpoint.list()]
    assert (first.id, first.status, first.error_code) == ("ep_1", "FAILED", STATUS["errorCode"])
    assert (second.id, second.status, second.created_at) == ("ep_2", "RUNNING", None)
    [version] = [version async for version in client.dedicated.endpoint.get_version_history("ep_1")]
    assert (version.id, version.name, version.max_batch_size) == ("v1", "n", 64)


@pytest.mark.parametrize("reply", [{}, {"data": {}}, {"data": None, "nextCursor": None}], ids=str)
async def test_missing_or_null_page_data_is_an_empty_list(
    client: AsyncFriendli, server: FriendliServer, reply: object
) -> None:
    server.always(json_body(reply))
    assert [endpoint async for endpoint in client.dedicated.endpoint.list()] == []
    assert (await client.dedicated.endpoint.get_version_history("ep_1")).items == ()


async def test_documented_status_with_a_message_is_no_error(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body({"status": "FAILED", "message": "out of memory"}))
    assert (await client.dedicated.endpoint.get_status("ep_1")).status == "FAILED"


@pytest.mark.parametrize("method", [*STATUS_METHODS, "get_spec", "update"])
async def test_empty_object_response_is_a_decode_error(
    client: AsyncFriendli, server: FriendliServer, method: str
) -> None:
    server.always(json_body({}))
    with pytest.raises(ResponseDecodeError):
        await getattr(client.dedicated.endpoint, method)("ep_1")


async def test_created_endpoint_without_id_is_a_decode_error(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body({"endpointName": "n"}))
    with pytest.raises(ResponseDecodeError, match="endpointId"):
        await client.dedicated.endpoint.wandb_artifact_create(wandb_artifact_version_name="e/p/a:v1")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"null", b"{}", b'{"id": "ep_1"}', b"[]", b'"ok"', b"true", b"1", b'"the endpoint was deleted"'),
        *(b'{"message": "Endpoint deleted"}', b'{"deleted": true, "name": "my nice endpoint"}'),
        *(b'{"detail": "the endpoint is being terminated"}', b'{"endpointId": "ep_1", "title": "my endpoint"}'),
        *(b'{"status": "TERMINATING", "message": "it takes a minute"}', b'{"code": 200, "message": "gone"}'),
    ],
    ids=repr,
)
async def test_delete_accepts_any_success_body(client: AsyncFriendli, server: FriendliServer, data: bytes) -> None:
    server.enqueue(body(data, content_type="application/json"))
    await client.dedicated.endpoint.delete("ep_1")
    assert (server.requests[0].method, server.requests[0].path) == ("DELETE", f"{BASE}/ep_1")


async def test_delete_raises_on_error_or_html_in_success_response(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    error = {"error": {"message": "in use", "code": "conflict"}}
    server.enqueue(json_body(error), body(b"<html></html>"))
    with pytest.raises(ConflictError, match="in use"):
        await client.dedicated.endpoint.delete("ep_1")
    with pytest.raises(ResponseDecodeError):
        await client.dedicated.endpoint.delete("ep_1")


# --- requests --------------------------------------------------------------------------------------------------------


async def test_body_keys_are_camel_case_except_inside_advanced(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("INITIALIZING"))
    await client.dedicated.endpoint.create(**NEW, hf_model_repo="org/repo", initial_version_comment=None)
    assert server.requests[0].json == {
        "projectId": "p",
        "name": "n",
        "instanceOptionId": "i",
        "advanced": ADVANCED,
        "hfModelRepo": "org/repo",
        "initialVersionComment": None,
    }


async def test_structs_are_accepted_in_place_of_dicts(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("INITIALIZING"), json_body({"endpointId": "ep_1"}))
    await client.dedicated.endpoint.create(
        **{**NEW, "advanced": AdvancedConfig(**ADVANCED, max_token_count=10)},
        simplescale=SimplescaleConfig(replicas=2),
        autoscaling_policy=AutoscalingPolicy(max_replica=4),
    )
    sent: Any = server.requests[0].json
    assert sent["advanced"] == {**ADVANCED, "max_token_count": 10}
    assert (sent["simplescale"], sent["autoscalingPolicy"]) == ({"replicas": 2}, {"maxReplica": 4})
    created = await client.dedicated.endpoint.wandb_artifact_create(
        wandb_artifact_version_name="e/p/a:v1", accelerator=AcceleratorRequirement("H100", 1)
    )
    assert created.endpoint_id == "ep_1"
    sent = server.requests[1].json
    assert sent == {"wandbArtifactVersionName": "e/p/a:v1", "accelerator": {"type": "H100", "count": 1}}


async def test_update_sends_only_given_fields(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(json_body(SPEC))
    await client.dedicated.endpoint.update("ep_1")
    await client.dedicated.endpoint.update(
        "ep_1", autoscaling_policy=None, extra_body={"newKey": 1}, extra_query={"a": 1}
    )
    assert [request.json for request in server.requests] == [{}, {"autoscalingPolicy": None, "newKey": 1}]
    assert list(server.requests[1].query["a"]) == ["1"]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"name": None}, "name"),
        ({"project_id": 1}, "project_id"),
        ({"advanced": {"tokenizer_add_special_tokens": True}}, "advanced"),
        ({"advanced": {**ADVANCED, "max_batch_size": "many"}}, "advanced.max_batch_size"),
        ({"advanced": {**ADVANCED, "max_token_count": None}}, "advanced.max_token_count"),
        ({"autoscaling_policy": {"minReplica": 1.5}}, "autoscaling_policy.minReplica"),
        ({"autoscaling_policy": 3}, "autoscaling_policy"),
        ({"simplescale": {}}, "simplescale"),
        ({"hf_model_repo": 5}, "hf_model_repo"),
        ({"extra_body": {"x": float("nan")}}, "x"),
    ],
    ids=str,
)
async def test_invalid_value_is_rejected_with_its_path(
    client: AsyncFriendli, server: FriendliServer, options: dict[str, Any], path: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(path)}: "):
        await client.dedicated.endpoint.create(**{**NEW, **options})
    assert server.requests == []


async def test_unknown_keyword_is_rejected_with_a_suggestion(client: AsyncFriendli, server: FriendliServer) -> None:
    endpoint: Any = client.dedicated.endpoint
    with pytest.raises(TypeError, match="'hf_model_repo'"):
        await endpoint.create(**NEW, hf_model_rep="org/repo")
    with pytest.raises(TypeError, match="'new_version_comment'"):
        await endpoint.update("ep_1", version_comment="x")
    with pytest.raises(TypeError, match="name"):
        await endpoint.create(project_id="p", instance_option_id="i", advanced=ADVANCED)
    assert server.requests == []


@pytest.mark.parametrize("endpoint_id", ["", ".", "..", "a/../b", "../b", "a\\..", "./b", None, 5], ids=repr)
@pytest.mark.parametrize("method", ID_METHODS)
async def test_invalid_endpoint_id_is_rejected(
    client: AsyncFriendli, server: FriendliServer, method: str, endpoint_id: Any
) -> None:
    with pytest.raises(ValueError, match="endpoint_id"):
        await getattr(client.dedicated.endpoint, method)(endpoint_id)
    assert server.requests == []


async def test_endpoint_id_is_escaped_as_one_path_segment(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(state("RUNNING"))
    await client.dedicated.endpoint.sleep("a/..b?c#d e%2F")
    assert server.requests[0].raw_path == f"{BASE}/a%2F..b%3Fc%23d%20e%252F/sleep"
    assert not server.requests[0].query


@pytest.mark.parametrize("method", [*STATUS_METHODS, "get_spec", "update", "delete"])
async def test_idempotent_operations_are_retried(server: FriendliServer, method: str) -> None:
    server.enqueue(status(500, headers={"retry-after-ms": "0"}), json_body({**STATUS, **SPEC}))
    async with AsyncFriendli("test-token", server_url=server.url) as client:
        await getattr(client.dedicated.endpoint, method)("ep_1")
    assert len(server.requests) == 2


async def test_create_is_not_retried_after_server_error(server: FriendliServer) -> None:
    server.always(status(500, headers={"retry-after-ms": "0"}))
    async with AsyncFriendli("test-token", server_url=server.url) as client:
        with pytest.raises(InternalServerError):
            await client.dedicated.endpoint.create(**NEW)
        with pytest.raises(InternalServerError):
            await client.dedicated.endpoint.wandb_artifact_create(wandb_artifact_version_name="e/p/a:v1")
    assert len(server.requests) == 2


# --- wait ------------------------------------------------------------------------------------------------------------


async def test_wait_returns_when_endpoint_reaches_status(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("INITIALIZING"), state("UNKNOWN"), state("DREAMING"), state("SLEEPING"), state("RUNNING"))
    reply = await client.dedicated.endpoint.wait("ep_1", interval=0)
    assert (reply.status, reply.meta.status) == ("RUNNING", 200)
    assert {(request.method, request.path) for request in server.requests} == {("GET", f"{BASE}/ep_1/status")}
    assert len(server.requests) == 5


async def test_wait_polls_once_if_already_in_status(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("SLEEPING"))
    assert (await client.dedicated.endpoint.wait("ep_1", until="SLEEPING", timeout=None)).status == "SLEEPING"
    assert len(server.requests) == 1


async def test_wait_for_a_state_that_is_newer_than_the_library(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("RUNNING"), state("DREAMING"))
    assert (await client.dedicated.endpoint.wait("ep_1", until="DREAMING", interval=0)).status == "DREAMING"


@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("FAILED", "RUNNING"),
        ("FAILED", "SLEEPING"),
        ("TERMINATING", "RUNNING"),
        ("TERMINATED", "RUNNING"),
        ("TERMINATED", "FAILED"),
    ],
)
async def test_wait_raises_if_status_is_unreachable(
    client: AsyncFriendli, server: FriendliServer, now: str, until: str
) -> None:
    server.enqueue(state("STOPPING"), state(now, errorCode="INFERENCE_ENGINE_MEMORY_ERROR"))
    with pytest.raises(APIStatusError, match=f"ep_1 is {now} .INFERENCE_ENGINE_MEMORY_ERROR.*not be {until}") as raised:
        await client.dedicated.endpoint.wait("ep_1", until=until, interval=0)
    error = raised.value
    assert (error.type, error.code, error.status_code) == (now, "INFERENCE_ENGINE_MEMORY_ERROR", 0)
    assert error.request_id == server.requests[1].request_id
    assert error.meta is not None
    assert error.meta.status == 200


async def test_wait_for_terminated_continues_after_failed(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("FAILED"), state("TERMINATING"), state("TERMINATED"))
    reply = await client.dedicated.endpoint.wait("ep_1", until="TERMINATED", interval=0)
    assert reply.status == "TERMINATED"


async def test_wait_gives_up_if_endpoint_falls_asleep_again(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("SLEEPING"), state("AWAKING"), state("SLEEPING"))
    with pytest.raises(APIStatusError, match="ep_1 is SLEEPING and will not be RUNNING") as raised:
        await client.dedicated.endpoint.wait("ep_1", timeout=None, interval=0)
    assert (raised.value.type, len(server.requests)) == ("SLEEPING", 3)
    server.enqueue(state("RUNNING"), state("SLEEPING"), state("TERMINATED"))
    reached = await client.dedicated.endpoint.wait("ep_1", until="TERMINATED", timeout=None, interval=0)
    assert reached.status == "TERMINATED"  # a sleeping endpoint can still be terminated, by anyone


async def test_wait_timeout_reports_last_status(client: AsyncFriendli, server: FriendliServer, clock: Clock) -> None:
    server.always(state("INITIALIZING", phase="DOWNLOADING_MODEL"))
    waiting = asyncio.create_task(client.dedicated.endpoint.wait("ep_1", timeout=20, interval=3600))
    await server.wait_for_requests(1)
    await server.idle()
    await run_loop_iterations(20)
    clock.advance(20)
    with pytest.raises(
        APITimeoutError, match=r"not RUNNING within 20 s: it is INITIALIZING, DOWNLOADING_MODEL"
    ) as raised:
        await waiting
    assert (raised.value.limit, raised.value.seconds, raised.value.sent) == ("total", 20, True)
    assert isinstance(raised.value, TimeoutError)
    assert raised.value.meta is not None
    assert len(server.requests) == 1


async def test_wait_timeout_interrupts_a_request_in_flight(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(script(stall()))
    with pytest.raises(APITimeoutError, match=r"not RUNNING within 0\.05 s$") as raised:
        await client.dedicated.endpoint.wait("ep_1", timeout=0.05)
    assert raised.value.limit == "total"
    assert raised.value.meta is None


async def test_request_timeout_still_applies_during_wait(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(script(stall()))
    impatient = client.with_options(timeout=Timeouts(first_event=0.05))
    with pytest.raises(APITimeoutError) as raised:
        await impatient.dedicated.endpoint.wait("ep_1", timeout=600)
    assert (raised.value.limit, raised.value.seconds) == ("first_event", 0.05)


@pytest.mark.parametrize("timeout", [600, None])
async def test_timeout_error_of_a_token_callable_is_raised_unchanged(
    server: FriendliServer, timeout: float | None
) -> None:
    def token() -> str:
        raise TimeoutError("vault is slow")

    async with AsyncFriendli(token, server_url=server.url) as client:
        with pytest.raises(TimeoutError, match=r"^vault is slow$") as raised:
            await client.dedicated.endpoint.wait("ep_1", timeout=timeout)
    assert type(raised.value) is TimeoutError


async def test_wait_raises_if_endpoint_is_deleted(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("INITIALIZING"), status(404))
    with pytest.raises(NotFoundError):
        await client.dedicated.endpoint.wait("ep_1", interval=0)


async def test_wait_can_be_cancelled(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(state("INITIALIZING"))
    waiting = asyncio.create_task(client.dedicated.endpoint.wait("ep_1", interval=3600))
    await server.wait_for_requests(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_wait_on_closed_client_is_an_error(server: FriendliServer) -> None:
    client = AsyncFriendli("test-token", server_url=server.url)
    await client.aclose()
    with pytest.raises(ConfigurationError, match="closed"):
        await client.dedicated.endpoint.wait("ep_1")


@pytest.mark.parametrize(
    "bad",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 10**400},
        {"timeout": "60"},
        {"timeout": True},
        {"interval": None},
        {"interval": -0.1},
        {"interval": float("inf")},
    ],
    ids=str,
)
async def test_invalid_timeout_or_interval_is_rejected(
    client: AsyncFriendli, server: FriendliServer, bad: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(bad))}: must be a number of seconds"):
        await client.dedicated.endpoint.wait("ep_1", **bad)
    assert server.requests == []


async def test_endpoint_that_wakes_up_can_be_waited_for(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(state("SLEEPING"), state("AWAKING"), state("RUNNING"))
    assert (await client.dedicated.endpoint.wake("ep_1")).status == "SLEEPING"
    assert (await client.dedicated.endpoint.wait("ep_1", interval=0)).status == "RUNNING"
    assert [request.method for request in server.requests] == ["PUT", "GET", "GET"]
