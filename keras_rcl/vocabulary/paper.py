"""A paper's tables and figures as values: the published numbers and our measurements that correspond to them."""

from collections.abc import Iterator
from typing import Annotated, Literal, Union

from pydantic import Field, PositiveInt

from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Pixels


@spec
class Clean:
    """Accuracy on clean images, in percent."""

    kind: Literal["clean"] = "clean"


@spec
class Robust:
    """Robust accuracy under an attack, in percent.

    Attributes:
        limit: at most this number of test images, if the attack is too expensive for all of them.
    """

    kind: Literal["robust"] = "robust"
    attack: Attack
    limit: PositiveInt | None = None


@spec
class Success:
    """Success rate of an attack on images that are classified correctly, in percent.

    Attributes:
        limit: as of `Robust`.
    """

    kind: Literal["success"] = "success"
    attack: Attack
    limit: PositiveInt | None = None


@spec
class Verified:
    """Number of images that are `timeout / safe / safe-incomplete` at a radius, of the first robust ones."""

    kind: Literal["verified"] = "verified"
    epsilon: Pixels


Measure = Annotated[Union[Clean, Robust, Success, Verified], Field(discriminator="kind")]
Published = float | str | None
"""Percent, or a text as in the paper; None if the paper gives nothing."""


@spec
class Column:
    """One number of the paper and our measures of it, one per protocol."""

    title: str
    measures: tuple[Measure, ...] = ()


@spec
class Row:
    """A system of the table.

    Attributes:
        label: the name in the paper.
        config: the file below `configs/papers/<paper>/` that trains it; empty if the authors' own weights are measured.
        published: one value per column; empty if nothing is published.
        weights: SHA-256 of the file of the authors' weights.
        in_place_of: label of the row whose place it takes in claims, under the protocol that it was trained under.
    """

    label: str
    config: str = ""
    published: tuple[Published, ...] = ()
    weights: str = ""
    in_place_of: str = ""

    def __post_init__(self):
        if bool(self.config) == bool(self.weights):
            raise ValueError(f"row {self.label!r} has a config and weights, or none of them")

    @property
    def key(self) -> str:
        """What its measurements are found by: the config or the hash of the weights."""
        return self.config or self.weights


@spec
class Comparison:
    """Two rows, by label."""

    row: str
    against: str


@spec
class Claim:
    """A conclusion: some rows lie above others in each of some columns.

    Attributes:
        text: in our words.
        columns: by title; their measures are of the same protocols.
        pairs: each `row` lies above its `against`.
        above_column: title of the column that holds the numbers of `against`, if it is another one.
    """

    text: str
    columns: tuple[str, ...]
    pairs: tuple[Comparison, ...]
    above_column: str = ""

    @classmethod
    def above(cls, text: str, columns: tuple[str, ...], row: str, *others: str) -> "Claim":
        """A claim that one row lies above others."""
        return cls(text=text, columns=columns, pairs=tuple(Comparison(row=row, against=other) for other in others))


@spec
class Table:
    """A table of the paper, or the numbers of one of its figures.

    Attributes:
        protocol: of the published numbers, where there are any.
        comparisons: pairs of rows whose differences are reported.
        claims: conclusions that are drawn from the table or tested on it.
        notes: contradictions in the paper, and how they are resolved here.
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
        for row in self.rows:
            if row.in_place_of and row.in_place_of not in labels:
                raise ValueError(f"{self.name} has no row {row.in_place_of!r}")
        for claim in self.claims:
            named = {*claim.columns, *filter(None, [claim.above_column])}
            if missing := named - {column.title for column in self.columns}:
                raise ValueError(f"{self.name} has no column {missing.pop()!r}")
            if len({len(column.measures) for column in self.columns if column.title in named}) != 1:
                raise ValueError(f"{self.name}, {claim.text!r}: columns of unlike measures")

    def numbers(self, claim: Claim) -> tuple[int, ...]:
        """Which columns a claim is about."""
        return tuple(i for i, column in enumerate(self.columns) if column.title in claim.columns)


@spec
class LossCurves:
    """The loss of each epoch, one panel per training or per phase of one."""

    kind: Literal["loss_curves"] = "loss_curves"
    title: str
    panels: tuple[tuple[str, str, str | None], ...]
    """(title, config, phase); the phase is None if all are shown."""


@spec
class RobustCurves:
    """Robust accuracy against epsilon, one line per row of a table, one picture per protocol."""

    kind: Literal["robust_curves"] = "robust_curves"
    title: str
    table: str
    rows: tuple[str, ...]


@spec
class Bars:
    """One column of a table, measured and published, one group of bars per row.

    Attributes:
        column: title of the column; the first one if not given.
        beside: title of another column, whose published numbers are bars too.
    """

    kind: Literal["bars"] = "bars"
    title: str
    table: str
    column: str = ""
    beside: str = ""


@spec
class Embeddings:
    """Embeddings of test images in the plane, one panel per (title, config)."""

    kind: Literal["embeddings"] = "embeddings"
    title: str
    panels: tuple[tuple[str, str], ...]
    images: PositiveInt = 100


@spec
class Pictures:
    """Images under an attack, one picture per (title, config)."""

    kind: Literal["pictures"] = "pictures"
    title: str
    panels: tuple[tuple[str, str], ...]
    attack: Attack


Figure = Annotated[Union[LossCurves, RobustCurves, Bars, Embeddings, Pictures], Field(discriminator="kind")]


@spec
class StoredExamples:
    """Adversarial examples of the training images, crafted once, that rows of a paper train on.

    Attributes:
        folder: the name in the `stored` attacks of those rows.
        proxy: `<paper>/<row>` of the network that is attacked, at seed 0.
    """

    folder: str
    proxy: str
    attack: Attack


@spec
class Paper:
    """A paper: its tables, as published, and its figures.

    Attributes:
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
                table = self.table(figure.table)
                named = {figure.column, figure.beside} - {""} if figure.kind == "bars" else set()
                if missing := named - {column.title for column in table.columns}:
                    raise ValueError(f"{table.name} has no column {missing.pop()!r}")

    def table(self, name: str) -> Table:
        """The table of that name."""
        for table in self.tables:
            if table.name == name:
                return table
        raise ValueError(f"{self.title} has no {name}")

    @property
    def configs(self) -> tuple[str, ...]:
        """All files of its rows, in their order."""
        return tuple(dict.fromkeys(row.config for table in self.tables for row in table.rows if row.config))

    def measures(self, config: str) -> Iterator[Clean | Robust | Success | Verified]:
        """What its tables want of a row, each once."""
        wanted = (
            measure
            for table in self.tables
            if any(row.config == config for row in table.rows)
            for column in table.columns
            for measure in column.measures
        )
        yield from dict.fromkeys(wanted)
