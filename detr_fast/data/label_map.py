"""The one correspondence between category ids of a data set and class indices of a model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

GAP = "N/A"
_LARGEST_IDENTITY = 10_000


@dataclass(frozen=True)
class LabelMap:
    """Class index <-> category id, with names.

    A model with this map has `len(label_map)` classes, and no-object is the index after the last.
    Indices whose name is `GAP` belong to no category: they exist so that an identity map can
    follow ids with holes, and no annotation may use them.

    Args:
        ids: category id of every index, unique.
        names: category name of every index.
        stuff: ids of the categories that are stuff (sky, grass), which has no instances; the
            others are things. Empty for detection.

    Raises:
        ValueError: lengths differ, an id is repeated or not an integer, an id of stuff is none of
            the categories', or there is no category.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    stuff: frozenset[int] = frozenset()
    _index: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        ids = tuple(_checked_id(category_id) for category_id in self.ids)
        names = tuple(str(name) for name in self.names)
        if len(ids) != len(names):
            raise ValueError(f"a label map needs one name per id; got {len(ids)} and {len(names)}.")
        if all(name == GAP for name in names):
            raise ValueError("a label map needs at least one category; got none.")
        index = {}
        for i, (category_id, name) in enumerate(zip(ids, names, strict=True)):
            if category_id in index:
                raise ValueError(
                    f"category_id {category_id} stands twice in the categories "
                    f"('{names[index[category_id]]}' and '{name}'); ids must be unique."
                )
            index[category_id] = i
        stuff = frozenset(_checked_id(category_id) for category_id in self.stuff)
        unknown = sorted(i for i in stuff if i not in index or names[index[i]] == GAP)
        if unknown:
            raise ValueError(f"category_id {unknown[0]} is stuff, but no category has that id.")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "stuff", stuff)
        object.__setattr__(self, "_index", index)

    @classmethod
    def contiguous(cls, categories: Iterable[Mapping]) -> "LabelMap":
        """One index per category, in ascending order of id.

        Args:
            categories: COCO-format entries with `id` and `name` (the id where it is absent), and
                `isthing` 0 for stuff.
        """
        categories = list(categories)
        entries = _entries(categories)
        return cls(
            tuple(i for i, _ in entries), tuple(name for _, name in entries), _stuff(categories)
        )

    @classmethod
    def identity(cls, categories: Iterable[Mapping]) -> "LabelMap":
        """Index equal to category id, from 0 to the largest: the layout of the original weights.

        Args:
            categories: as `contiguous`, with `id` >= 0; ids may have gaps.

        Raises:
            ValueError: an id is negative, or so large that the classifier would be mostly gaps.
        """
        categories = list(categories)
        entries = _entries(categories)
        if not entries:
            raise ValueError("a label map needs at least one category; got none.")
        smallest, largest = entries[0][0], entries[-1][0]
        if smallest < 0 or largest > _LARGEST_IDENTITY:
            outlier = smallest if smallest < 0 else largest
            raise ValueError(
                f"category_id {outlier} cannot be a class index (allowed: 0 to "
                f"{_LARGEST_IDENTITY}); use LabelMap.contiguous for these categories."
            )
        taken = {i for i, _ in entries}
        gaps = [(i, GAP) for i in range(largest + 1) if i not in taken]
        entries = sorted(entries + gaps, key=lambda entry: entry[0])
        return cls(
            tuple(i for i, _ in entries), tuple(name for _, name in entries), _stuff(categories)
        )

    @classmethod
    def from_dict(cls, state: Mapping) -> "LabelMap":
        """Inverse of `to_dict`."""
        return cls(tuple(state["ids"]), tuple(state["names"]), frozenset(state.get("stuff", ())))

    def to_dict(self) -> dict:
        """Plain lists of int and str: safe in JSON, YAML and weights-only checkpoints."""
        state = {"ids": list(self.ids), "names": list(self.names)}
        return {**state, "stuff": sorted(self.stuff)} if self.stuff else state

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, category_id) -> bool:
        index = self._index.get(category_id)
        return index is not None and self.names[index] != GAP

    def index(self, category_id: int, name: str | None = None) -> int:
        """Class index of a category.

        Args:
            category_id: the data set's own id.
            name: the category's name there, for the error message only.

        Raises:
            ValueError: the category is not in the map.
        """
        if category_id not in self:
            called = "" if name is None else f" ('{name}')"
            raise ValueError(
                f"category_id {category_id}{called} is not in the label map "
                f"({len(self.categories)} categories, ids {self._range()})."
            )
        return self._index[category_id]

    def category_id(self, index: int) -> int:
        """Category id of a class index.

        Raises:
            ValueError: the index is not in [0, len(self)); no-object has no category id.
        """
        return self.ids[self._checked_index(index)]

    def name(self, index: int) -> str:
        """Category name of a class index; `GAP` where the index belongs to no category.

        Raises:
            ValueError: the index is not in [0, len(self)).
        """
        return self.names[self._checked_index(index)]

    def is_thing(self, index: int) -> bool:
        """Whether a class has instances, and is not stuff.

        Raises:
            ValueError: the index is not in [0, len(self)).
        """
        return self.category_id(index) not in self.stuff

    @cached_property
    def categories(self) -> tuple[dict, ...]:
        """COCO-format entries `{"id", "name"}` of the categories, gaps left out.

        Where there is stuff they have `isthing` too, 1 or 0.
        """
        pairs = zip(self.ids, self.names, strict=True)
        entries = [{"id": i, "name": name} for i, name in pairs if name != GAP]
        if self.stuff:
            entries = [
                {**entry, "isthing": int(entry["id"] not in self.stuff)} for entry in entries
            ]
        return tuple(entries)

    def _checked_index(self, index: int) -> int:
        if not 0 <= index < len(self.ids):
            raise ValueError(
                f"class index {index} is not in the label map (0 to {len(self.ids) - 1}; "
                f"{len(self.ids)} is no-object)."
            )
        return int(index)

    def _range(self) -> str:
        ids = [category["id"] for category in self.categories]
        return f"{min(ids)} to {max(ids)}"


def _checked_id(category_id) -> int:
    try:
        if isinstance(category_id, bool) or int(category_id) != category_id:
            raise TypeError
    except (TypeError, ValueError):
        raise ValueError(f"category_id must be an integer; got {category_id!r}.") from None
    return int(category_id)


def _stuff(categories: Iterable[Mapping]) -> frozenset[int]:
    return frozenset(c["id"] for c in categories if not c.get("isthing", 1))


def _entries(categories: Iterable[Mapping]) -> list[tuple[int, str]]:
    entries = []
    for category in categories:
        if "id" not in category:
            raise ValueError(f"a category has no 'id': {dict(category)!r}.")
        category_id = _checked_id(category["id"])
        entries.append((category_id, str(category.get("name", category_id))))
    return sorted(entries, key=lambda entry: entry[0])


# The categories of COCO's instance annotations since 2014 (https://cocodataset.org).
_COCO_NAMES = {
    1: "person",
    2: "bicycle",
    3: "car",
    4: "motorcycle",
    5: "airplane",
    6: "bus",
    7: "train",
    8: "truck",
    9: "boat",
    10: "traffic light",
    11: "fire hydrant",
    13: "stop sign",
    14: "parking meter",
    15: "bench",
    16: "bird",
    17: "cat",
    18: "dog",
    19: "horse",
    20: "sheep",
    21: "cow",
    22: "elephant",
    23: "bear",
    24: "zebra",
    25: "giraffe",
    27: "backpack",
    28: "umbrella",
    31: "handbag",
    32: "tie",
    33: "suitcase",
    34: "frisbee",
    35: "skis",
    36: "snowboard",
    37: "sports ball",
    38: "kite",
    39: "baseball bat",
    40: "baseball glove",
    41: "skateboard",
    42: "surfboard",
    43: "tennis racket",
    44: "bottle",
    46: "wine glass",
    47: "cup",
    48: "fork",
    49: "knife",
    50: "spoon",
    51: "bowl",
    52: "banana",
    53: "apple",
    54: "sandwich",
    55: "orange",
    56: "broccoli",
    57: "carrot",
    58: "hot dog",
    59: "pizza",
    60: "donut",
    61: "cake",
    62: "chair",
    63: "couch",
    64: "potted plant",
    65: "bed",
    67: "dining table",
    70: "toilet",
    72: "tv",
    73: "laptop",
    74: "mouse",
    75: "remote",
    76: "keyboard",
    77: "cell phone",
    78: "microwave",
    79: "oven",
    80: "toaster",
    81: "sink",
    82: "refrigerator",
    84: "book",
    85: "clock",
    86: "vase",
    87: "scissors",
    88: "teddy bear",
    89: "hair drier",
    90: "toothbrush",
}

COCO_LABEL_MAP = LabelMap.identity({"id": i, "name": name} for i, name in _COCO_NAMES.items())

# The stuff of COCO's panoptic annotations since 2017 (https://cocodataset.org).
_COCO_STUFF_NAMES = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}
# Ids that the original's panoptic models have classes for; COCO uses those up to 200.
_PANOPTIC_CLASSES = 250


def _coco_panoptic() -> LabelMap:
    names = {**_COCO_NAMES, **_COCO_STUFF_NAMES}
    return LabelMap(
        tuple(range(_PANOPTIC_CLASSES)),
        tuple(names.get(i, GAP) for i in range(_PANOPTIC_CLASSES)),
        frozenset(_COCO_STUFF_NAMES),
    )


COCO_PANOPTIC_LABEL_MAP = _coco_panoptic()
