from hypothesis import given
from hypothesis import strategies as st

from foundation.process.restart import Again, GiveUp, RestartPolicy, Restarts

FOREVER = RestartPolicy(crash_limit=None)
Life = tuple[float, bool]  # how long it was ready, and whether it proved useful
LIVES = st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=40)


def live(policy: RestartPolicy, lives: list[Life], chance: float = 1.0) -> list[Again | GiveUp]:
    restarts, now, verdicts = Restarts(policy, lambda: chance), 0.0, list[Again | GiveUp]()
    for ready_for, useful in lives:
        restarts.ready(now)
        if useful:
            restarts.proved()
        now += ready_for
        verdicts.append(restarts.crashed(now))
    return verdicts


def test_the_pattern() -> None:
    after = [verdict.after for verdict in live(FOREVER, [(1, False)] * 12) if isinstance(verdict, Again)]
    assert after == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_five_crashes_are_a_loop() -> None:
    verdicts = live(RestartPolicy(), [(1, False)] * 5)
    assert [type(verdict) for verdict in verdicts] == [Again] * 4 + [GiveUp]
    assert verdicts[-1] == GiveUp(5)


def test_a_start_that_never_became_ready_counts() -> None:
    restarts = Restarts(RestartPolicy(), lambda: 0.5)
    verdicts = [restarts.crashed(now) for now in range(5)]
    assert verdicts[-1] == GiveUp(5)


def test_being_released_is_a_new_beginning() -> None:
    restarts = Restarts(RestartPolicy(), lambda: 1.0)
    for now in range(5):
        restarts.crashed(now)
    restarts.forgive()
    assert restarts.crashed(10) == Again(0.0)


@given(LIVES)
def test_usefulness_prevents_the_loop_but_not_the_patience(lives: list[Life]) -> None:
    verdicts = live(RestartPolicy(), [(min(ready_for, 599), True) for ready_for, _ in lives])
    after = [verdict.after for verdict in verdicts if isinstance(verdict, Again)]
    assert len(after) == len(verdicts)
    assert after == sorted(after)


@given(LIVES, st.floats(0, 1, exclude_max=True))
def test_every_delay_is_within_its_bound(lives: list[Life], chance: float) -> None:
    drawn, bounds = live(FOREVER, lives, chance), live(FOREVER, lives)
    for verdict, bound in zip(drawn, bounds, strict=True):
        assert isinstance(verdict, Again)
        assert isinstance(bound, Again)
        assert 0 <= verdict.after <= bound.after <= FOREVER.cap


@given(LIVES)
def test_ten_healthy_minutes_forgive(lives: list[Life]) -> None:
    assert live(FOREVER, [*lives, (600, False)])[-1] == Again(0.0)


@given(LIVES)
def test_it_gives_up_exactly_after_five_useless_lives(lives: list[Life]) -> None:
    useless = 0
    for (ready_for, useful), verdict in zip(lives, live(RestartPolicy(), lives), strict=True):
        useless = 1 if useful or ready_for >= 600 else useless + 1
        assert isinstance(verdict, GiveUp) == (useless >= 5)
        if isinstance(verdict, GiveUp):
            break
