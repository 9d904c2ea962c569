"""A paper's tables and figures as values: what it published, and what of ours stands beside it."""

from collections.abc import Iterator
from typing import Annotated, Literal, Union

from pydantic import Field, PositiveInt

from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Pixels


@spec
class Clean:
    """Accuracy on the images as they are, in percent."""

    kind: Literal["clean"] = "clean"


@spec
class Robust:
    """Robust accuracy under an attack, in percent.

    Fields:
        limit: at most so many test images, where the attack is too dear for all of them.
    """

    kind: Literal["robust"] = "robust"
    attack: Attack
    limit: PositiveInt | None = None


@spec
class Verified:
    """How many images are `timeout / safe / safe-incomplete` at a radius, of the first that stood the attack."""

    kind: Literal["verified"] = "verified"
    epsilon: Pixels


Measure = Annotated[Union[Clean, Robust, Verified], Field(discriminator="kind")]
Published = float | str | None
"""Percent, or a text as the paper has it; none where it gives nothing."""


@spec
class Column:
    """One number of the paper, and the measures of ours that stand beside it, one a protocol."""

    title: str
    measures: tuple[Measure, ...] = ()


@spec
class Row:
    """A system of the table.

    Fields:
        label: as the paper calls it.
        config: the file below `configs/papers/<paper>/` that trains it.
        published: a value a column; none given is nothing published.
    """

    label: str
    config: str
    published: tuple[Published, ...] = ()


@spec
class Comparison:
    """Two rows, by label."""

    row: str
    against: str


@spec
class Claim:
    """A conclusion: that some rows lie above others, each of them in each of some columns.

    Fields:
        text: in our words.
        columns: by title; their measures are of the same protocols.
        pairs: a `row` that is said to lie above its `against`.
    """

    text: str
    columns: tuple[str, ...]
    pairs: tuple[Comparison, ...]

    @classmethod
    def above(cls, text: str, columns: tuple[str, ...], row: str, *others: str) -> "Claim":
        """That one row lies above others."""
        return cls(text=text, columns=columns, pairs=tuple(Comparison(row=row, against=other) for other in others))


@spec
class Table:
    """A table of the paper, or the numbers of one of its figures.

    Fields:
        protocol: of the published numbers, where there are any.
        comparisons: whose differences are told.
        claims: what is concluded from it, or asked of it.
        notes: what contradicts what, and what is done here.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    protocol: str = ""
    comparisons: tuple[Comparison, ...] = ()
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        labels = [row.label for row in self.rows]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self.name} has two rows of one label")
        for row in self.rows:
            if len(row.published) not in (0, len(self.columns)):
                raise ValueError(
                    f"{self.name}, {row.label}: {len(row.published)} values for {len(self.columns)} columns"
                )
        for pair in (*self.comparisons, *(pair for claim in self.claims for pair in claim.pairs)):
            if missing := {pair.row, pair.against} - set(labels):
                raise ValueError(f"{self.name} has no row {missing.pop()!r}")
        for claim in self.claims:
            if missing := set(claim.columns) - {column.title for column in self.columns}:
                raise ValueError(f"{self.name} has no column {missing.pop()!r}")
            if len({len(self.columns[i].measures) for i in self.numbers(claim)}) != 1:
                raise ValueError(f"{self.name}, {claim.text!r}: columns of unlike measures")

    def numbers(self, claim: Claim) -> tuple[int, ...]:
        """Which columns a claim is about."""
        return tuple(i for i, column in enumerate(self.columns) if column.title in claim.columns)


@spec
class LossCurves:
    """The loss of each epoch, a panel a training, or a phase of one."""

    kind: Literal["loss_curves"] = "loss_curves"
    title: str
    panels: tuple[tuple[str, str, str | None], ...]
    """(title, config, phase), the phase none where all are shown."""


@spec
class RobustCurves:
    """Robust accuracy against epsilon, a line a row of a table, a picture a protocol."""

    kind: Literal["robust_curves"] = "robust_curves"
    title: str
    table: str
    rows: tuple[str, ...]


@spec
class Bars:
    """What a table has under its first column, measured and published, a pair of bars a row."""

    kind: Literal["bars"] = "bars"
    title: str
    table: str


@spec
class Embeddings:
    """Embeddings of test images in the plane, a panel a (title, config)."""

    kind: Literal["embeddings"] = "embeddings"
    title: str
    panels: tuple[tuple[str, str], ...]
    images: PositiveInt = 100


@spec
class Pictures:
    """What an attack does to some images, a picture a (title, config)."""

    kind: Literal["pictures"] = "pictures"
    title: str
    panels: tuple[tuple[str, str], ...]
    attack: Attack


Figure = Annotated[Union[LossCurves, RobustCurves, Bars, Embeddings, Pictures], Field(discriminator="kind")]


@spec
class StoredExamples:
    """Adversarial examples of the training images, made once, that rows of a paper train on.

    Fields:
        folder: as the `stored` attacks of those rows name it.
        proxy: `<paper>/<row>` of the network that is attacked, at seed 0.
    """

    folder: str
    proxy: str
    attack: Attack


@spec
class Paper:
    """A paper: its tables, as published, and its figures.

    Fields:
        name: of its folder in `configs/papers/`.
        notes: what holds for all of its tables.
        stored: what is to be made before rows that train on it.
    """

    name: str
    title: str
    reference: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    stored: tuple[StoredExamples, ...] = ()

    def __post_init__(self):
        for figure in self.figures:
            if figure.kind in ("robust_curves", "bars"):
                self.table(figure.table)

    def table(self, name: str) -> Table:
        """The table of that name."""
        for table in self.tables:
            if table.name == name:
                return table
        raise ValueError(f"{self.title} has no {name}")

    @property
    def configs(self) -> tuple[str, ...]:
        """All files of its rows, in their order."""
        return tuple(dict.fromkeys(row.config for table in self.tables for row in table.rows))

    def measures(self, config: str) -> Iterator[Clean | Robust | Verified]:
        """What its tables want of a row, each once."""
        wanted = (
            measure
            for table in self.tables
            if any(row.config == config for row in table.rows)
            for column in table.columns
            for measure in column.measures
        )
        yield from dict.fromkeys(wanted)
