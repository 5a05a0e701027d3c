"""Rollouts, and how a step's groups are summed up."""

from __future__ import annotations

import numpy as np
import pytest

from arrol_train.positions import FINISH
from arrol_train.rl.group import GivenUp, Group, Rollout, summary
from arrol_tts.trace import Trace


def part(first: int, *, finish: str = "length") -> Trace:
    """Four tokens of a rollout; the number of each is its state."""
    return Trace(
        "q",
        0,
        num_tokens=4,
        finish_reason=finish,  # type: ignore[arg-type]
        token_ids=list(range(first, first + 4)),
        logprobs=np.full(4, -0.5, np.float32),
        features={at: np.full(2, first + at, np.float32) for at in range(4)},
    )


def test_parts_of_a_rollout_are_appended_and_positions_count_from_its_beginning() -> None:
    rollout = Rollout()
    rollout.append(part(0), marks=(1,), stride=3)
    last = part(4, finish="stop")
    rollout.append(last, marks=(1,), stride=3)
    rollout.end(1.0, last)
    assert rollout.token_ids == list(range(8))
    assert rollout.logprobs == [-0.5] * 8
    assert {at: state.tolist() for at, state in rollout.marks.items()} == {
        1: [1.0, 1.0],
        5: [5.0, 5.0],
        FINISH: [7.0, 7.0],
    }
    assert rollout.states is not None
    assert rollout.states.tolist() == [[0.0, 0.0], [3.0, 3.0], [6.0, 6.0]]
    assert rollout.states.dtype == np.float16
    assert rollout.reward == 1.0


def test_a_part_that_ends_before_the_next_stride_adds_no_state() -> None:
    rollout = Rollout()
    rollout.append(part(0), stride=3)
    rollout.append(Trace("q", 0, num_tokens=1, token_ids=[4], features={0: np.zeros(2, np.float32)}), stride=3)
    assert rollout.states is not None
    assert rollout.states.tolist() == [[0.0, 0.0], [3.0, 3.0]]


def test_one_part_without_log_probabilities_leaves_none() -> None:
    rollout = Rollout()
    rollout.append(part(0))
    rollout.append(Trace("q", 0, num_tokens=1, token_ids=[9]))
    rollout.append(part(5))
    assert rollout.logprobs is None
    assert rollout.states is None
    assert len(rollout.token_ids) == 9


def group(*rewards: float, early: int = 0) -> Group:
    """Survivors of three tokens with these rewards, and a rollout that was pruned after one."""
    kept = [Rollout([1, 2, 3], ended=True, reward=reward) for reward in rewards]
    return Group(0, 0, [5], [*kept, Rollout([1], pruned_at=8)], early)


def test_a_step_is_summed_up_over_its_groups() -> None:
    assert summary([group(1.0, 0.0, early=1), group(1.0, 1.0)]) == {
        "rollout/started": 6.0,
        "rollout/given_up": 0.0,
        "rollout/survivors": 4.0,
        "rollout/early": 1.0,
        "rollout/failed_rewards": 0.0,
        "rollout/generated_tokens": 14.0,
        "rollout/trained_tokens": 12.0,
        "rollout/balance": 0.75,
        "rollout/variance": 0.125,
        "rollout/no_signal": 0.5,
        "rollout/labelled_reward": 0.75,
        "rollout/success": 0.75,
        "rollout/success_square": 0.5,
        "rollout/length": 3.0,
    }


def test_what_all_started_rollouts_would_have_got_is_estimated_by_inverse_inclusion() -> None:
    right = Rollout([1] * 2, reward=1.0, inclusion=0.5)
    also_right = Rollout([1] * 4, reward=1.0)
    wrong = Rollout([1] * 6, reward=0.0, inclusion=0.25, pruned_at=FINISH)
    pruned = Rollout([1], inclusion=0.5, pruned_at=8)
    found = summary([Group(0, 0, [5], [right, also_right, wrong, pruned])])
    # Weights 2, 1 and 4: 3 of 7 are right; of the pairs 2 + 8 + 4, the first is right.
    assert found["rollout/success"] == pytest.approx(3 / 7)
    assert found["rollout/success_square"] == pytest.approx(2 / 14)
    assert found["rollout/length"] == pytest.approx((2 * 2 + 4 + 4 * 6) / 7)


def test_a_group_of_one_graded_rollout_says_nothing_of_pairs() -> None:
    found = summary([Group(0, 0, [5], [Rollout([1], reward=1.0), Rollout([1], pruned_at=8)])])
    assert "rollout/success_square" not in found


def test_what_was_given_up_counts_as_started_and_generated() -> None:
    replaced, begun, kept = group(0.0, 0.0), Group(0, 4, [5], [Rollout([1, 2]), Rollout([1])]), group(1.0, 0.0)
    replaced.give_up(begun)
    kept.give_up(replaced)
    assert kept.given_up == [GivenUp(4, 2, 3, []), GivenUp(0, 3, 7, [0.0, 0.0])]
    found, alone = summary([kept]), summary([group(1.0, 0.0)])
    more = {"rollout/started": 3.0 + 5.0, "rollout/given_up": 2.0, "rollout/generated_tokens": 7.0 + 10.0}
    assert found == alone | more


def test_groups_that_were_unlikely_to_be_kept_count_for_more() -> None:
    rare, common = group(0.0, 0.0), group(1.0, 1.0)
    rare.inclusion = 0.25
    assert summary([rare, common])["rollout/success"] == pytest.approx(1 / 5)


def test_what_was_finished_and_left_out_of_the_update_is_graded_and_no_survivor() -> None:
    cold = Group(0, 0, [5], [Rollout([1], reward=1.0), Rollout([2], reward=0.0, pruned_at=FINISH)])
    assert [rollout.token_ids for rollout in cold.survivors] == [[1]]
    assert [rollout.token_ids for rollout in cold.graded] == [[1], [2]]
    assert not cold.has_signal
    assert summary([cold])["rollout/labelled_reward"] == pytest.approx(0.5)


def ungraded(tokens: int = 3) -> Rollout:
    return Rollout(list(range(tokens)), ended=True)


def test_the_ungraded_are_in_no_mean_and_counted() -> None:
    group = Group(
        0, 0, [5], [Rollout([1], ended=True, reward=1.0), Rollout([2], ended=True, reward=0.0), ungraded()]
    )
    assert group.has_signal
    figures = summary([group, Group(1, 0, [5], [ungraded(), ungraded()])])
    assert figures["rollout/balance"] == 0.5
    assert figures["rollout/variance"] == 0.25
    assert figures["rollout/labelled_reward"] == 0.5
    assert figures["rollout/no_signal"] == 0.5
    assert figures["rollout/failed_rewards"] == 3.0
    assert (figures["rollout/generated_tokens"], figures["rollout/trained_tokens"]) == (11.0, 2.0)


def test_a_group_with_one_reward_beside_the_ungraded_has_no_signal() -> None:
    assert not Group(0, 0, [5], [Rollout([1], ended=True, reward=1.0), ungraded()]).has_signal
    only = Group(0, 0, [5], [ungraded(), ungraded()])
    assert not only.has_signal
    assert "rollout/balance" not in summary([only])


def test_the_ungraded_say_nothing_of_the_pruned() -> None:
    pruned = Rollout([1], posterior=0.25, tau=1.0, pruned_at=8)
    wrong = Rollout([1], ended=True, reward=0.0, posterior=0.25, tau=1.0)
    group = Group(0, 0, [5], [wrong, pruned, ungraded()])
    (expected,) = group.expected_of_others()
    assert expected == pytest.approx(Group(0, 0, [5], [wrong, pruned]).expected_of_others()[0])
    assert 0.1 < expected < 0.25
    np.testing.assert_array_equal(group.survivors_rewards, [0.0, np.nan])
