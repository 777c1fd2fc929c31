"""`.ts` time-series files, the format of the UEA and UCR archives, read as the C++ reader does."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

_PART = re.compile("_(TRAIN|TEST)[.]ts$")


@dataclass(frozen=True)
class TsFile:
    """The cases of one file. n cases, C channels, L = longest case."""

    problem_name: str
    class_labels: list[str]  # in header order; empty without `@classlabel true`
    x: Tensor  # float32 [n, L, C], zero behind the end of a case
    padding_mask: Tensor  # bool [n, L], True = behind the end of the case
    lengths: Tensor  # int64 [n]
    labels: Tensor | None  # int64 [n], index into class_labels; None without class labels
    targets: Tensor | None  # float32 [n]; None without `@targetlabel true`

    @property
    def channels(self) -> int:
        return self.x.shape[2]

    @property
    def max_length(self) -> int:
        return self.x.shape[1]

    def pad_to(self, length: int) -> "TsFile":
        """The same cases padded to ``length`` steps.

        Raises:
            ValueError: a case is longer.
        """
        missing = length - self.max_length
        if missing < 0:
            raise ValueError(
                f"{self.problem_name}: expected series of at most {length} steps, "
                f"but got {self.max_length}"
            )
        return replace(
            self,
            x=torch.nn.functional.pad(self.x, (0, 0, 0, missing)),
            padding_mask=torch.nn.functional.pad(self.padding_mask, (0, missing), value=True),
        )


def read_ts_file(path: str | Path) -> TsFile:
    """Reads a `.ts` file.

    Lines that start with `#` and blank lines are skipped; `@key value` lines, in any case, up to
    `@data`; then one case per line: channels separated by `:`, values by `,`, and the label last if
    the header declares `@classlabel true l1 l2 …` or `@targetlabel true`. CRLF is accepted. `?` and
    `NaN` are missing values: they are interpolated linearly in time, held at both ends, and 0 in a
    channel without any value.

    Raises:
        OSError: the file cannot be read.
        ValueError: "<file>:<line>: expected <what>, but got <what is there>".
        NotImplementedError: the file has time stamps.
    """
    header, cases, labels = _Header(), [], []
    with open(path, encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            try:
                if header.complete:
                    case, label = _read_case(line, header)
                    cases.append(case)
                    labels.append(label)
                else:
                    header.read(line)
            except (ValueError, NotImplementedError) as error:
                raise type(error)(f"{path}:{number}: {error}") from None
    if not header.complete:
        raise ValueError(f"{path}: expected a line @data, but got none")
    if not cases:
        raise ValueError(f"{path}: expected at least one case after @data, but got none")
    return _collate(header, cases, labels)


def find_dataset(name: str) -> tuple[Path, Path]:
    """The files `<name>_TRAIN.ts` and `<name>_TEST.ts`, from ``KKTORCH_DATA`` or a package.

    Raises:
        FileNotFoundError: unknown name (the known ones are listed), or a file is missing.
    """
    roots = [Path(folder) for folder in [os.environ.get("KKTORCH_DATA")] if folder]
    for package in ("aeon", "sktime"):
        if spec := importlib.util.find_spec(package):
            roots.append(Path(spec.submodule_search_locations[0]) / "datasets/data")
    folders = {
        re.sub(_PART, "", file.name): file.parent
        for root in reversed(roots)  # the first folder wins
        for pattern in ("*/*_T*.ts", "*_T*.ts")
        for file in root.glob(pattern)
        if re.search(_PART, file.name)
    }
    if name not in folders:
        raise FileNotFoundError(
            f"data set: expected one of {', '.join(sorted(folders)) or 'none'} (in KKTORCH_DATA or "
            f"the packages aeon and sktime), but got '{name}'"
        )
    files = folders[name] / f"{name}_TRAIN.ts", folders[name] / f"{name}_TEST.ts"
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: expected the pair {files[0].name} and {files[1].name}, "
                "but this file does not exist"
            )
    return files


def load_dataset(name: str) -> tuple[TsFile, TsFile]:
    """Train and test part of a data set by name, padded to the longest series of the two."""
    train, test = map(read_ts_file, find_dataset(name))
    length = max(train.max_length, test.max_length)
    return train.pad_to(length), test.pad_to(length)


class _Header:
    """The `@key value` lines, up to and including `@data`."""

    def __init__(self):
        self.problem_name, self.class_labels = "", []
        self.dimensions = self.series_length = None
        self.equal_length = self.target_label = self.complete = False

    def read(self, line):
        if not line.startswith("@"):
            raise ValueError(f"expected a comment, a line @key or @data, but got '{line[:40]}'")
        key, _, value = line[1:].replace("\t", " ").partition(" ")
        key, value = key.lower(), value.strip()
        if key == "data":
            self.complete = True
            if self.class_labels and self.target_label:
                raise ValueError(
                    "expected one of @classlabel true and @targetlabel true, but got both"
                )
        elif key == "problemname":
            self.problem_name = value
        elif key == "timestamps":
            if _flag(key, value):
                raise NotImplementedError(
                    "expected @timestamps false, but got true: time stamps are not implemented"
                )
        elif key == "missing":
            _flag(key, value)  # missing values are recognised by themselves
        elif key == "univariate":
            if _flag(key, value):
                self.dimensions = 1
        elif key in ("dimensions", "dimension"):
            self.dimensions = _count(key, value)
        elif key == "equallength":
            self.equal_length = _flag(key, value)
        elif key == "serieslength":
            self.series_length = _count(key, value)
        elif key == "targetlabel":
            self.target_label = _flag(key, value)
        elif key == "classlabel":
            self.class_labels = _class_labels(value)
        else:
            raise ValueError(f"expected a key of the .ts format, but got '@{key}'")


def _flag(key, value):
    if value.lower() not in ("true", "false"):
        raise ValueError(f"expected @{key} true or false, but got '{value}'")
    return value.lower() == "true"


def _count(key, value):
    if not (value.isascii() and value.isdecimal() and int(value) >= 1):
        raise ValueError(f"expected @{key} with a positive integer, but got '{value}'")
    return int(value)


def _class_labels(value):
    flag, *labels = value.split() or [""]
    if not _flag("classlabel", flag):
        return []
    if not labels:
        raise ValueError("expected @classlabel true <label> <label> …, but got no label")
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"expected distinct class labels, but got '{label}' twice")
    return labels


def _read_case(line, header):
    """One case: its channels as lists of numbers, and its label (class index, target or None)."""
    fields, label = line.split(":"), None
    if header.class_labels or header.target_label:
        if len(fields) < 2:
            raise ValueError(
                f"expected channels and a label separated by ':', but got '{line[:40]}'"
            )
        label = _read_label(fields.pop().strip(), header)
    header.dimensions = header.dimensions or len(fields)
    if len(fields) != header.dimensions:
        raise ValueError(f"expected {header.dimensions} channels, but got {len(fields)}")
    channels = [[_number(value.strip()) for value in field.split(",")] for field in fields]
    length = len(channels[0])
    for channel in channels:
        if len(channel) != length:
            raise ValueError(
                f"expected channels of equal length, but got {length} and {len(channel)}"
            )
        _interpolate(channel)
    if header.equal_length:
        header.series_length = header.series_length or length
        if length != header.series_length:
            raise ValueError(
                f"expected {header.series_length} steps (@equallength true), but got {length}"
            )
    return channels, label


def _read_label(text, header):
    if header.target_label:
        target = _number(text)
        if math.isnan(target):
            raise ValueError(f"expected a number as target, but got '{text}'")
        return target
    if text not in header.class_labels:
        known = ", ".join(header.class_labels)
        raise ValueError(f"expected one of the class labels {known}, but got '{text}'")
    return header.class_labels.index(text)


def _number(text):
    """A finite number, or NaN for a missing value."""
    if text == "?" or text.lower() == "nan":
        return math.nan
    try:
        value = float(text)
        if math.isfinite(value) and "_" not in text:
            return value
    except ValueError:
        pass
    raise ValueError(f"expected a number, NaN or ?, but got '{text}'")


def _interpolate(channel):
    known = [step for step, value in enumerate(channel) if not math.isnan(value)]
    if len(known) == len(channel):
        return
    if not known:
        channel[:] = [0.0] * len(channel)
        return
    channel[: known[0]] = [channel[known[0]]] * known[0]
    channel[known[-1] + 1 :] = [channel[known[-1]]] * (len(channel) - known[-1] - 1)
    for left, right in zip(known, known[1:], strict=False):
        for step in range(left + 1, right):
            weight = (step - left) / (right - left)
            channel[step] = (1 - weight) * channel[left] + weight * channel[right]


def _collate(header, cases, labels):
    lengths = torch.tensor([len(channels[0]) for channels in cases])
    x = torch.zeros(len(cases), int(lengths.max()), header.dimensions)
    for row, channels in zip(x, cases, strict=True):
        row[: len(channels[0])] = torch.tensor(channels, dtype=torch.float32).T
    return TsFile(
        problem_name=header.problem_name,
        class_labels=header.class_labels,
        x=x,
        padding_mask=torch.arange(x.shape[1]) >= lengths[:, None],
        lengths=lengths,
        labels=torch.tensor(labels) if header.class_labels else None,
        targets=torch.tensor(labels, dtype=torch.float32) if header.target_label else None,
    )
