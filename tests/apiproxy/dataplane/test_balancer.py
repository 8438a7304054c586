"""Which replica gets the next call."""

from apiproxy.dataplane.balancer import PENALTY, Balancer
from apiproxy.dataplane.catalogue import Replica

A, B, C = (Replica(id=number, url=f"http://127.0.0.1:{number}", api_key="", upstream_model="m") for number in (1, 2, 3))


def test_t7_the_one_with_the_fewest_calls_is_chosen_at_any_place():
    balancer = Balancer()
    for replica, calls in ((A, 2), (B, 1), (C, 3)):
        for _ in range(calls):
            balancer.add_call(replica)
    for order in ((A, B, C), (C, B, A), (B, A, C)):
        assert balancer.choose(order, 0.0) is B
    assert balancer.choose((A, B, C), 0.0, but=B.id) is A
    balancer.add_call(B)
    balancer.add_call(B)
    assert balancer.choose((C, B, A), 0.0) is A
    for _ in range(3):
        balancer.remove_call(B)
    assert balancer.choose((A, C, B), 0.0) is B


def test_t7_one_that_refused_comes_last_for_a_while_and_is_better_than_none():
    balancer = Balancer()
    balancer.add_call(B)
    balancer.penalise(A, 10.0)
    assert balancer.choose((A, B), 10.0) is B
    assert balancer.choose((A,), 10.0) is A
    assert balancer.choose((A, B), 10.0 + PENALTY) is A
