"""A mapping that forgets what has not been used for longest."""

from detr_fast.inference.recent import Recent


def test_what_was_not_used_for_longest_is_forgotten():
    recent = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert list(recent) == ["a", "c"]
    assert recent.get("b") is None
    recent.put("a", 4)
    recent.put("d", 5)
    assert (len(recent), recent.get("a"), "c" in recent) == (2, 4, False)
    recent.clear()
    assert len(recent) == 0


def test_asking_whether_something_is_there_does_not_use_it():
    recent = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert "a" in recent
    recent.put("c", 3)
    assert "a" not in recent
