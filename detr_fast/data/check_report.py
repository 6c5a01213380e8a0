"""What a check of data found: kinds of faults, with counts and the first examples of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# How many places of each kind of fault are named.
EXAMPLES = 3


class DataError(ValueError):
    """A data set is not fit for training; the message is the report of its errors."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    Attributes:
        name: the fault in two or three words.
        is_error: whether training would go wrong; otherwise it is a warning.
        count: how many images, annotations or categories have it.
        total: out of how many.
        examples: the first of them, naming file, image id and annotation id.
        advice: what follows from it, or what to do.
        tolerable: whether `DataReport.raise_for_errors` accepts a small share of it.
    """

    name: str
    is_error: bool
    count: int
    total: int
    examples: tuple[str, ...]
    advice: str
    tolerable: bool = False

    def __str__(self) -> str:
        share = f"{self.count / self.total:.1%}" if self.total else "-"
        head = f"{'ERROR' if self.is_error else 'warning':<8}{self.name:<32}{self.count:>8}"
        examples = "".join(f"\n          {example}" for example in self.examples)
        more = self.count - len(self.examples)
        rest = f"\n          and {more} more" if more > 0 and self.examples else ""
        return f"{head}{share:>8}  {self.advice}{examples}{rest}"


@dataclass
class DataReport:
    """What a check found.

    Attributes:
        name: of the data set, for the headline.
        images: number of images.
        annotations: number of annotations, crowds and faulty ones included.
        categories: number of categories.
        usable: number of annotations that training uses.
        findings: errors first.
    """

    name: str
    images: int
    annotations: int
    categories: int
    usable: int
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_error]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.is_error]

    def raise_for_errors(self, threshold: float = 0.01) -> None:
        """Stops a training that could not succeed.

        Args:
            threshold: share of annotations that is accepted without area, off the image, not finite
                or of an unknown image (training leaves them out), each kind by itself. Other errors
                are never accepted.

        Raises:
            DataError: with the report of the errors.
        """
        fatal = [e for e in self.errors if not (e.tolerable and e.count <= threshold * e.total)]
        if fatal:
            raise DataError(
                "\n".join([f"{self._headline()} {len(fatal)} error(s):", *map(str, fatal)])
            )

    def __str__(self) -> str:
        if not self.findings:
            return f"{self._headline()} no faults found."
        return "\n".join([self._headline(), *map(str, self.findings)])

    def _headline(self) -> str:
        return (
            f"Data check of {self.name}: {self.images} images, {self.annotations} annotations "
            f"({self.usable} usable), {self.categories} categories."
        )


class Findings:
    """Collects findings, leaving out those that did not occur.

    Args:
        total: out of how many the next ones are counted.

    Attributes:
        total: same; to be set before findings that are counted out of something else.
        all: the findings so far.
    """

    def __init__(self, total: int):
        self.total = total
        self.all: list[Finding] = []

    def add(
        self,
        name: str,
        occurrences: Iterable[str],
        advice: str,
        is_error: bool = False,
        tolerable: bool = False,
        count: int | None = None,
        total: int | None = None,
    ) -> None:
        """Adds a kind of fault; see `Finding`.

        Args:
            name: same.
            occurrences: where it occurs, a text each; the first of them become the examples.
            advice: same.
            is_error: same.
            tolerable: same.
            count: by default the number of occurrences.
            total: by default that of the collection.
        """
        occurrences = list(occurrences)
        count = len(occurrences) if count is None else count
        total = self.total if total is None else total
        if count:
            first = tuple(occurrences[:EXAMPLES])
            self.all.append(Finding(name, is_error, count, total, first, advice, tolerable))


class Describer:
    """Says where an annotation or an image is to be found.

    Args:
        images: of the data set, by their ids.
        categories: of the data set.
    """

    def __init__(self, images: Mapping[int, Mapping], categories: Iterable[Mapping]):
        self._images = images
        self._names = {category["id"]: category.get("name") for category in categories}

    def image(self, image_id: int) -> str:
        image = self._images.get(image_id)
        return f"image {image_id}" + ("" if image is None else f" ({image.get('file_name')})")

    def __call__(self, annotation: Mapping, category: bool = False) -> str:
        where = f"annotation {annotation.get('id')} of {self.image(annotation['image_id'])}"
        if not category:
            return f"{where}: bbox {annotation.get('bbox')}"
        category_id = annotation["category_id"]
        return f"{where}: category_id {category_id} ('{self._names.get(category_id)}')"
