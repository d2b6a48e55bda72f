"""The options of prepare_data.py. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from common.data.splits import SplitRule
from common.data.windowing import Labelling
from common.errors import InputError
from common.options import DataPath, Fraction, Positive, Seed
from common.validation import first_problem

SOURCE_AND_PLACE = {"sessions", "demo", "data_path", "overwrite", "force"}
WINDOWS_A_BLOCK = 10
MOST_FOLDS = 100


def _date_format(text: str) -> str:
    import pandas as pd  # takes a while to load, and few give a format

    try:
        pd.to_datetime(pd.Series([""]), format=text, errors="coerce")
    except (ValueError, re.error) as error:
        raise ValueError(f"{error}; the directives are those of Python's strptime") from None
    return text


def _by_commas(names: object) -> object:
    """Names separated by commas as well as by blanks."""
    if not isinstance(names, list):
        return names
    parts = [part.strip() for name in names for part in str(name).split(",")]
    return [part for part in parts if part]


Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_by_commas)]


class Preparation(BaseModel):
    """The options of prepare_data.py."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sessions: str | None = Field(
        None,
        description=(
            "folder of your recordings: DIR/PARTICIPANT/SESSION.csv (or .csv.gz) and, without a"
            " label column, DIR/bouts.csv"
        ),
    )
    demo: bool = Field(
        False,
        description=(
            "real smartwatch data instead (10 people, 6 axes, 50 Hz; 2 s windows, 1 s stride, time"
            " split)"
        ),
    )
    data_path: DataPath | None = Field(
        None,
        description=(
            "folder to make, relative to the project folder, such as data/mine, or absolute (with"
            " --demo: data/watch)"
        ),
    )
    time_column: str = Field("time", description="column of sample times")
    time_unit: Literal["s", "ms", "us", "ns"] = Field(
        "s",
        description="unit of the time column and of start and end in bouts.csv, unless these are"
        " dates",
    )
    date_format: Annotated[str, AfterValidator(_date_format)] | None = Field(
        None,
        description="how dates are written, as '%d/%m/%Y %H:%M:%S.%f', with '%z' or '%Z' for a"
        " zone (unset: ISO 8601, as 2024-01-31 13:59:59.5, with or without a zone)",
    )
    label_column: str = Field(
        "label", description="column of labels: 0, 1, or -1 where the label is not known"
    )
    channels: Names | None = Field(
        None,
        description="signal columns, in order, with blanks or commas between (unset: all but time"
        " and label)",
    )
    units: Names | None = Field(None, description="unit of each channel, for the record")
    columns: Names | None = Field(
        None, description="names of the columns, where the files have no header line"
    )
    header_line: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None, description="line with the names of the columns, where others come before it"
    )
    repair_clock: bool = Field(
        False,
        description="mend clocks instead of refusing them: equal stamps, rows out of order, a clock"
        " set back, samples stamped in packets; each mending is counted in dataset.json",
    )
    sampling_rate: Positive = Field(
        50.0, description="Hz, of the grid that sessions are resampled to"
    )
    max_gap_seconds: Positive | None = Field(
        None,
        description=(
            "a longer pause between samples breaks the session (unset: five median sample"
            " intervals)"
        ),
    )
    window_seconds: Positive = Field(60.0, description="length of a window")
    stride_seconds: Positive | None = Field(
        None, description="from the start of one window to the next (unset: half a window)"
    )
    min_overlap: Fraction | Literal["any"] = Field(
        "any", description="fraction of a window that bouts must cover to label it 1, or 'any'"
    )
    exclude_partial: bool = Field(
        False,
        description="leave out windows that bouts cover in part, but by less than --min_overlap",
    )
    split: Literal["session", "chronological", "time", "blocks"] = Field(
        "session",
        description="whole sessions, earlier and later ones, three blocks of each session, or many"
        " blocks with their share of positive time in each split",
    )
    split_seed: Seed = Field(0, description="seed of --split session and blocks")
    split_folds: Annotated[int, Field(ge=3, le=MOST_FOLDS)] | None = Field(
        None,
        description="make so many data sets, NAME_1of5 and so on, in which each session or block is"
        " tested once (--split session, blocks)",
    )
    block_seconds: Positive | None = Field(
        None, description="length of a block of --split blocks (unset: ten windows)"
    )
    overwrite: bool = Field(
        False, description="replace a data folder that was made with other settings"
    )
    force: bool = Field(
        False,
        description="replace it also while a run uses it, which then ends unless the files that it"
        " reads stay the same",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Preparation:
        if self.demo:
            mixed = sorted(self.model_fields_set - {"demo", "data_path", "overwrite", "force"})
            if mixed:
                raise ValueError(f"demo: has its own settings: leave out --{mixed[0]}")
        elif self.sessions is None:
            raise ValueError("sessions: give --sessions DIR, or --demo for the example data")
        elif self.data_path is None:
            raise ValueError("data_path: give --data_path data/NAME, the folder to make")
        return self

    @model_validator(mode="after")
    def _whole_samples(self) -> Preparation:
        for name, seconds in (
            ("window_seconds", self.window_seconds),
            ("stride_seconds", self.stride_seconds or self.window_seconds / 2),
        ):
            samples = seconds * self.sampling_rate
            if round(samples) < 1 or abs(samples - round(samples)) > 1e-6:
                raise ValueError(
                    f"{name}: {seconds:g} s is not a whole number of samples at"
                    f" {self.sampling_rate:g} Hz"
                )
        return self

    @model_validator(mode="after")
    def _fitting(self) -> Preparation:
        for name, given in (("channels", self.channels), ("columns", self.columns)):
            twice = [one for one in given or [] if (given or []).count(one) > 1]
            if twice:
                raise ValueError(f"{name}: {twice[0]} given twice")
        if self.channels and self.units and len(self.channels) != len(self.units):
            raise ValueError(f"units: {len(self.units)} for {len(self.channels)} channels")
        if self.split_folds and self.split not in ("session", "blocks"):
            raise ValueError("split_folds: only with --split session or blocks")
        if self.block_seconds and self.split != "blocks":
            raise ValueError("block_seconds: only with --split blocks")
        if self.block_seconds and self.block_seconds < 2 * self.window_seconds:
            raise ValueError(
                f"block_seconds: {self.block_seconds:g} s; at least two windows"
                f" ({2 * self.window_seconds:g} s) are needed, one of which a gap may take"
            )
        if self.exclude_partial and self.min_overlap == "any":
            raise ValueError(
                "exclude_partial: give --min_overlap too: with 'any' no window is covered too"
                " little"
            )
        return self

    @property
    def labelling(self) -> Labelling:
        """How windows are cut and labelled."""
        stride = (self.stride_seconds or self.window_seconds / 2) * self.sampling_rate
        length = round(self.window_seconds * self.sampling_rate)
        return Labelling(length, round(stride), self.min_overlap, self.exclude_partial)

    @property
    def split_rule(self) -> SplitRule:
        """How splits are made."""
        block = self.block_seconds or WINDOWS_A_BLOCK * self.window_seconds
        samples = round(block * self.sampling_rate)
        return SplitRule(self.split, self.split_seed, samples, self.split_folds or 1)

    @property
    def folders(self) -> list[str]:
        """The data folders to make."""
        folds = self.split_folds
        if folds is None:
            return [str(self.data_path)]
        return [f"{self.data_path}_{fold}of{folds}" for fold in range(1, folds + 1)]

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Preparation:
        """Validate flags.

        Raises:
            InputError: in one line, which option and what is wrong with it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = first_problem(error, values, show_value=True)
            raise InputError(f"options: {problem}") from None

    def settings(self) -> dict[str, Any]:
        """What shapes a data set beside the recordings themselves, as JSON."""
        chosen = self.model_dump(mode="json", exclude=SOURCE_AND_PLACE)
        return chosen | {"stride_seconds": self.labelling.stride / self.sampling_rate}
