"""The rules of a conversation: two ends joined in memory, with a clock that we move."""

from __future__ import annotations

import pytest

from engine_bridge import codec
from engine_bridge import messages as m
from engine_bridge.errors import BridgeError, ProtocolError
from engine_bridge.session import (
    FINAL,
    JOB_STATES,
    MAX_CREDIT_BYTES,
    MAX_SUBSCRIPTIONS,
    ClientSession,
    Follower,
    JobTable,
    ServerFacts,
    ServerSession,
)

from .shots import JOB

FACTS = ServerFacts("worldwarp", "1", "cache", {}, 1000)


def over_the_wire(message: object, direction: object) -> object:
    return codec.decode(codec.encode(message), direction)  # type: ignore[arg-type]


def joined(now_s: float = 0.0) -> tuple[ClientSession, ServerSession]:
    """A client's and a server's end after their handshake."""
    client, server = ClientSession("test", "1", JOB, now_s), ServerSession(now_s)
    reply, request = server.receive(over_the_wire(client.hello(), m.ClientMessage), FACTS, now_s)  # type: ignore[arg-type]
    assert request is None
    assert client.receive(over_the_wire(reply, m.ServerMessage), now_s) is None  # type: ignore[arg-type]
    return client, server


def info(number: int, state: m.JobState = "queued", client: str = "", priority: int = 0) -> m.JobInfo:
    return m.JobInfo(
        job_id=f"{number:032x}", state=state, created_s=number, client=client, priority=priority, frames=1,
        frames_done=0, last_seq=0, code="", message="",
    )  # fmt: skip


def test_hello_opens_both_ends() -> None:
    client, server = joined()
    assert client.is_open
    assert server.state == "open"
    assert client.welcome is not None
    assert client.welcome.engine == "cache"


def test_nothing_is_served_before_hello() -> None:
    server = ServerSession(0)
    for message in (m.Ping(request_id=4), m.ListJobs(request_id=4), m.Cancel(request_id=4, job_id=JOB)):
        reply, request = server.receive(message, FACTS, 0)
        assert isinstance(reply, m.Error)
        assert (reply.code, reply.request_id, request) == ("hello_first", 4, None)


def test_a_refusal_instead_of_welcome_is_raised_with_its_code() -> None:
    client = ClientSession("test", "1", JOB, 0)
    with pytest.raises(BridgeError) as caught:
        client.receive(m.Error(request_id=0, code="wrong_protocol_version", message="update the server."), 0)
    assert caught.value.code == "wrong_protocol_version"


def test_pings_keep_a_connection_and_silence_ends_it() -> None:
    client, server = joined()
    now_s = 0.0
    for _ in range(1000):
        now_s += 6.0
        assert client.ping_due(now_s)
        client.said(now_s)
        pong, _ = server.receive(m.Ping(request_id=0), FACTS, now_s)
        assert isinstance(pong, m.Pong)
        assert client.receive(pong, now_s) is None
        assert not server.is_silent(now_s)
    assert not client.ping_due(now_s)
    assert server.is_silent(now_s + 61)
    assert not client.is_silent(now_s + 19)
    assert client.is_silent(now_s + 21)


def test_credit_bounds_what_is_sent_and_comes_back_with_consumption() -> None:
    _, server = joined()
    follower = Follower(JOB, credit_bytes=1000)
    server.subscribe(follower.subscribe(1))
    subscription = server.subscriptions[JOB]
    sent = consumed = 0
    for round_ in range(200):
        while subscription.may_send:
            server.sent(JOB, 300, logged=True)
            sent += 300
        assert sent - consumed <= 1000 + 300, "never more than the credit and one event on the way"
        while consumed < sent:
            consumed += 300
            if (credit := follower.consumed(300)) is not None:
                assert server.receive(credit, FACTS, round_) == (None, None)
    assert sent > 50_000


def test_an_event_larger_than_the_credit_still_goes() -> None:
    _, server = joined()
    server.subscribe(m.Subscribe(request_id=1, job_id=JOB, after_seq=0, credit_bytes=1))
    assert server.subscriptions[JOB].may_send
    server.sent(JOB, 10**9, logged=True)
    assert not server.subscriptions[JOB].may_send


def test_too_much_credit_is_refused() -> None:
    _, server = joined()
    with pytest.raises(BridgeError) as caught:
        server.subscribe(m.Subscribe(request_id=1, job_id=JOB, after_seq=0, credit_bytes=MAX_CREDIT_BYTES + 1))
    assert caught.value.code == "credit_exceeded"
    server.subscribe(m.Subscribe(request_id=1, job_id=JOB, after_seq=0, credit_bytes=MAX_CREDIT_BYTES))
    reply, _ = server.receive(m.Credit(job_id=JOB, credit_bytes=1), FACTS, 0)
    assert isinstance(reply, m.Error)
    assert reply.code == "credit_exceeded"


def test_credit_for_a_job_that_is_not_followed_is_ignored() -> None:
    _, server = joined()
    assert server.receive(m.Credit(job_id=JOB, credit_bytes=1), FACTS, 0) == (None, None)


def notice(seq: int) -> m.NoticeEvent:
    return m.NoticeEvent(job_id=JOB, seq=seq, code="", message="")


def test_a_follower_takes_each_event_once_and_notices_a_gap() -> None:
    follower = Follower(JOB, 1000)
    assert [follower.accept(notice(seq)) for seq in (1, 2, 1, 2, 3)] == [True, True, False, False, True]
    with pytest.raises(ProtocolError, match="Event 5 of the job came after event 3"):
        follower.accept(notice(5))
    assert follower.subscribe(9).after_seq == 3


def test_a_new_subscription_leaves_room_for_what_waits_unread() -> None:
    follower = Follower(JOB, 1000)
    assert follower.subscribe(1, unread_bytes=400).credit_bytes == 600
    assert follower.subscribe(1, unread_bytes=4000).credit_bytes == 0


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_a_final_state_ends_a_follower(state: m.JobState) -> None:
    follower = Follower(JOB, 1000)
    follower.accept(m.StateEvent(job_id=JOB, seq=1, state="running"))
    assert not follower.ended
    follower.accept(m.StateEvent(job_id=JOB, seq=2, state=state))
    assert follower.ended


def test_jobs_of_one_client_run_first_come_first_served() -> None:
    jobs = JobTable()
    for number in range(3):
        jobs.add(info(number))
    assert [jobs.position(f"{n:032x}") for n in range(3)] == [0, 1, 2]
    assert jobs.next_queued is not None
    assert jobs.next_queued.job_id == f"{0:032x}"
    jobs.move(f"{0:032x}", "running")
    assert [job.job_id for job in jobs.running] == [f"{0:032x}"]
    jobs.move(f"{1:032x}", "cancelled", "cancelled", "by the user")
    assert jobs.position(f"{2:032x}") == 1
    jobs.move(f"{0:032x}", "done")
    assert jobs.running == ()
    assert jobs.next_queued is not None
    assert jobs.next_queued.job_id == f"{2:032x}"


def order(jobs: JobTable) -> list[int]:
    """The numbers of the jobs in the order in which they get their turns, each with the position foretold for it."""
    numbers = []
    while (job := jobs.next_queued) is not None:
        assert jobs.position(job.job_id) == 0
        foretold = sorted((jobs.position(other.job_id), other.job_id) for other in jobs if other.state == "queued")
        assert [position for position, _ in foretold] == list(range(len(foretold)))
        assert foretold[0][1] == job.job_id
        jobs.move(job.job_id, "running")
        jobs.move(job.job_id, "done")
        numbers.append(int(job.job_id, 16))
    return numbers


def test_clients_take_turns_however_many_jobs_one_of_them_has() -> None:
    jobs = JobTable()
    for number in range(6):
        jobs.add(info(number, client="many"))
    for number in (6, 7):
        jobs.add(info(number, client="few"))
    jobs.add(info(8, client="late"))
    assert order(jobs) == [0, 6, 8, 1, 7, 2, 3, 4, 5]


def test_priority_orders_ones_own_jobs_and_below_zero_yields_to_all() -> None:
    jobs = JobTable()
    for number, client, priority in (
        (0, "a", -5), (1, "a", 0), (2, "a", 10), (3, "b", 0), (4, "b", -1), (5, "a", 10), (6, "b", 3),
    ):  # fmt: skip
        jobs.add(info(number, client=client, priority=priority))
    assert order(jobs) == [2, 6, 5, 3, 1, 4, 0]


def test_who_had_a_turn_waits_until_the_others_had_theirs() -> None:
    jobs = JobTable()
    jobs.add(info(0, client="a"))
    jobs.move(f"{0:032x}", "running")
    jobs.add(info(1, client="a"))
    jobs.add(info(2, client="b"))
    assert [jobs.position(f"{n:032x}") for n in (0, 1, 2)] == [0, 2, 1]
    assert order(JobTable()) == []


def test_only_moves_of_the_table_are_possible() -> None:
    for before in JOB_STATES:
        for after in JOB_STATES:
            jobs = JobTable()
            jobs.add(info(1, before))
            if after in JOB_STATES[before]:
                assert jobs.move(f"{1:032x}", after).state == after
            else:
                with pytest.raises(AssertionError):
                    jobs.move(f"{1:032x}", after)
    assert {"done", "failed", "cancelled"} == FINAL


def test_the_queue_has_an_end_and_each_client_its_share_of_it() -> None:
    jobs = JobTable(max_queued=3, max_queued_by_client=2)
    for number, client in ((1, "a"), (2, "a")):
        jobs.check_room(client)
        jobs.add(info(number, client=client))
    with pytest.raises(BridgeError) as caught:
        jobs.check_room("a")
    assert caught.value.code == "over_limit"
    jobs.check_room("b")
    jobs.add(info(3, client="b"))
    with pytest.raises(BridgeError) as caught:
        jobs.check_room("c")
    assert caught.value.code == "queue_full"
    jobs.move(f"{1:032x}", "running")
    jobs.check_room("a")
    with pytest.raises(BridgeError) as caught:
        jobs[f"{9:032x}"]
    assert caught.value.code == "unknown_job"


def test_a_connection_follows_so_many_jobs_and_no_more() -> None:
    _, server = joined()
    for number in range(MAX_SUBSCRIPTIONS):
        server.subscribe(m.Subscribe(request_id=1, job_id=f"{number:032x}", after_seq=0, credit_bytes=1))
    server.subscribe(m.Subscribe(request_id=1, job_id=f"{0:032x}", after_seq=5, credit_bytes=1))
    with pytest.raises(BridgeError) as caught:
        server.subscribe(m.Subscribe(request_id=1, job_id=f"{MAX_SUBSCRIPTIONS:032x}", after_seq=0, credit_bytes=1))
    assert caught.value.code == "over_limit"


def test_what_a_client_calls_itself_cannot_forge_a_log() -> None:
    server = ServerSession(0)
    hello = m.Hello(
        request_id=0, protocol_version=m.PROTOCOL_VERSION, client="a\nJob\x1b[31m", client_id=JOB, version="1"
    )
    server.receive(hello, FACTS, 0)
    assert server.client == "a\ufffdJob\ufffd[31m 1"
    assert server.owner == JOB
    assert ServerSession(0, "anna").owner == "anna"
