"""Labels and annotations."""

from common.data.bouts import annotated_bouts
from common.data.sessions import Part
from tests.unit.data.made_sessions import session


def test_an_annotation_is_clipped_to_what_was_recorded_inside_it():
    broken = session(
        seconds=30, gaps=[(10, 14)], bouts=[(8, 12), (11, 13), (9, 20), (28, 40), (21, 22)]
    )
    rows = annotated_bouts([broken], {"train": [Part(broken, 0, 200)], "val": [], "test": []})
    # A gap inside a bout does not make two of it; one in the gap alone is not there.
    assert rows == [
        ("s1", 8.0, 10.0, "train"),
        ("s1", 9.0, 20.0, "train"),
        ("s1", 21.0, 22.0, ""),
        ("s1", 28.0, 30.0, ""),
    ]
