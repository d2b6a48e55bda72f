"""The proof that no sample is in two splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.clock import Clock
from common.data.proof import fingerprint, refuse_shared, shared_sample
from common.errors import InputError
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


def prints(*given):
    """Fingerprints of (participant, session, file, start second, values)."""
    return [
        fingerprint(person, name, f"{person}/{name}.csv", file, Clock(start, times), values)
        for person, name, file, start, values in given
        for times in [np.arange(len(values)) / RATE]
    ]


def noise(seed, rows=600):
    return np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)


def test_one_recording_in_two_places_is_refused_whatever_it_is_called():
    one, other = noise(0), noise(1)
    assert refuse_shared(prints(("a", "s1", "1", 0.0, one), ("b", "s1", "2", 0.0, other))) == []
    with pytest.raises(InputError, match=r"a/s1.csv and b/s9.csv are the same file; .* whoever"):
        refuse_shared(prints(("a", "s1", "1", 0.0, one), ("b", "s9", "1", 0.0, one)))
    both = np.concatenate([other[:100], one[200:500]])
    with pytest.raises(InputError, match=r"a/s1.csv and a/s2.csv hold the same samples from"):
        refuse_shared(prints(("a", "s1", "1", 0.0, one), ("a", "s2", "2", 10.0, both)))
    # at another time it may be a copy, or a sensor that gives the same again
    (warning,) = refuse_shared(prints(("a", "s1", "1", 0.0, one), ("a", "s2", "2", 500.0, both)))
    assert "a/s1 and a/s2 hold equal rows" in warning
