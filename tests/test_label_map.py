"""Category ids <-> class indices."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr_fast.data.label_map import COCO_LABEL_MAP, GAP, LabelMap


def categories(*ids):
    return [{"id": i, "name": f"class {i}"} for i in ids]


def test_coco_has_the_original_layout():
    assert len(COCO_LABEL_MAP) == 91
    assert len(COCO_LABEL_MAP.categories) == 80
    assert COCO_LABEL_MAP.ids == tuple(range(91))
    assert COCO_LABEL_MAP.name(0) == COCO_LABEL_MAP.name(12) == COCO_LABEL_MAP.name(83) == GAP
    assert COCO_LABEL_MAP.name(COCO_LABEL_MAP.index(17)) == "cat"
    assert COCO_LABEL_MAP.index(90) == 90


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_names_agree_with_real_annotations(shared_data, split):
    path = shared_data / "coco_tiny" / "annotations" / f"instances_{split}.json"
    real = json.loads(path.read_text())["categories"]
    assert list(COCO_LABEL_MAP.categories) == [{"id": c["id"], "name": c["name"]} for c in real]


@pytest.mark.parametrize(
    "ids", [(0, 1, 2), (1, 2, 3), (7,), (0,), (90, 3, 17), (-5, 10**12)], ids=str
)
def test_category_ids_with_gaps_0_based_one_class_round_trip(ids):
    label_map = LabelMap.contiguous(categories(*ids))
    assert len(label_map) == len(ids)
    assert [label_map.index(i) for i in sorted(ids)] == list(range(len(ids)))
    assert [label_map.category_id(label_map.index(i)) for i in ids] == list(ids)
    assert [label_map.name(label_map.index(i)) for i in ids] == [f"class {i}" for i in ids]


@given(st.sets(st.integers(0, 200), min_size=1, max_size=20))
def test_identity_keeps_ids_and_marks_gaps(ids):
    label_map = LabelMap.identity(categories(*ids))
    assert len(label_map) == max(ids) + 1
    for i in range(len(label_map)):
        assert label_map.category_id(i) == i
        assert (i in label_map) == (i in ids)
        assert (label_map.name(i) == GAP) == (i not in ids)


@pytest.mark.parametrize("make", [LabelMap.contiguous, LabelMap.identity])
def test_dictionary_round_trip(make):
    label_map = make(categories(2, 5, 9))
    assert LabelMap.from_dict(label_map.to_dict()) == label_map
    assert LabelMap.from_dict(json.loads(json.dumps(label_map.to_dict()))) == label_map
    assert pickle.loads(pickle.dumps(label_map)) == label_map
    assert hash(LabelMap.from_dict(label_map.to_dict())) == hash(label_map)


def test_label_beyond_the_classes_unknown_category():
    with pytest.raises(ValueError, match=r"category_id 95 \('x'\) is not in the label map"):
        COCO_LABEL_MAP.index(95, "x")
    with pytest.raises(ValueError, match="category_id 95 is not in the label map"):
        COCO_LABEL_MAP.index(95)


def test_gap_is_no_category():
    assert 12 not in COCO_LABEL_MAP
    with pytest.raises(ValueError, match="category_id 12 is not in the label map"):
        COCO_LABEL_MAP.index(12)


@pytest.mark.parametrize("index", [-1, 91])
def test_no_object_slot_and_negative_index_have_no_category(index):
    with pytest.raises(ValueError, match=f"class index {index} is not in the label map"):
        COCO_LABEL_MAP.category_id(index)
    with pytest.raises(ValueError, match="91 is no-object"):
        COCO_LABEL_MAP.name(index)


@pytest.mark.parametrize("make", [LabelMap.contiguous, LabelMap.identity])
def test_repeated_id(make):
    with pytest.raises(ValueError, match="category_id 3 stands twice"):
        make(categories(1, 3, 3))


@pytest.mark.parametrize("make", [LabelMap.contiguous, LabelMap.identity])
def test_no_categories(make):
    with pytest.raises(ValueError, match="at least one category"):
        make([])


@pytest.mark.parametrize("bad", ["1", 1.5, None, True])
def test_id_that_is_no_integer(bad):
    with pytest.raises(ValueError, match="category_id must be an integer; got"):
        LabelMap.contiguous([{"id": bad, "name": "x"}])


@pytest.mark.parametrize("bad", [-1, 10**9])
def test_identity_refuses_ids_that_cannot_be_indices(bad):
    with pytest.raises(ValueError, match=r"cannot be a class index.*LabelMap\.contiguous"):
        LabelMap.identity(categories(1, bad))


def test_category_without_a_name_is_called_by_its_id():
    assert LabelMap.contiguous([{"id": 4}]).names == ("4",)


def test_category_without_an_id():
    with pytest.raises(ValueError, match="a category has no 'id'"):
        LabelMap.contiguous([{"name": "x"}])
