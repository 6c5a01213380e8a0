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


def test_the_limit_may_be_of_what_the_entries_weigh():
    recent = Recent(10, len)
    for letter, count in (("a", 3), ("b", 4), ("c", 3)):
        recent.put(letter, letter * count)
    assert recent.get("a") == "aaa"
    recent.put("d", "dd")
    assert list(recent) == ["c", "a", "d"]
    recent.put("d", "d" * 7)
    assert list(recent) == ["a", "d"]


def test_the_latest_entry_is_kept_whatever_it_weighs():
    recent = Recent(10, len)
    recent.put("a", "a")
    recent.put("b", "b" * 11)
    assert list(recent) == ["b"]
    recent.put("c", "c")
    assert list(recent) == ["c"]


def test_asking_whether_something_is_there_does_not_use_it():
    recent = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert "a" in recent
    recent.put("c", 3)
    assert "a" not in recent
