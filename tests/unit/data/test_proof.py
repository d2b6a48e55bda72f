"""The proof that no sample is in two splits."""

from hypothesis import given
from hypothesis import strategies as st

from common.data.proof import shared_sample
from tests.unit.data.made_sessions import RATE


def test_the_proof_finds_a_single_shared_sample_and_nothing_else():
    apart = {"train": [("a", 0.0), ("a", 1.0)], "val": [("a", 3.0), ("b", 0.0)], "test": []}
    assert shared_sample(apart, 2.0, RATE) is None
    found = shared_sample(apart | {"test": [("a", 4.9)]}, 2.0, RATE)
    assert found == "session a: the val window at 3 s and the test window at 4.9 s"


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(0, 60), st.sampled_from(["train", "val", "test"])
        ),
        max_size=12,
    ),
    st.integers(1, 10),
)
def test_the_proof_agrees_with_comparing_sets_of_samples(rows, length):
    held = {
        split: {(s, start + k) for s, start, own in rows if own == split for k in range(length)}
        for split in ("train", "val", "test")
    }
    shares = bool(
        held["train"] & held["val"] or held["train"] & held["test"] or held["val"] & held["test"]
    )
    listed = {
        split: [(s, start / RATE) for s, start, own in rows if own == split] for split in held
    }
    assert (shared_sample(listed, length / RATE, RATE) is not None) == shares
