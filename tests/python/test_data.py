"""The `.ts` reader: every rule and every error on small files, counts of the bundled data sets."""

import importlib.util

import pytest
import torch
from kktorch.data import find_dataset, load_dataset, read_ts_file

HEADER = """# a comment
@problemName Toy

@TimeStamps false
@dimensions 2
@CLASSLABEL true up down
@data
"""


@pytest.fixture
def ts(tmp_path):
    """Writes text to a file and reads it."""

    def read(text, name="toy.ts"):
        (tmp_path / name).write_bytes(text.encode())
        return read_ts_file(tmp_path / name)

    return read


def test_cases_of_different_length_are_padded(ts):
    file = ts(HEADER + "1,2,3:4,5,6:down\n# between\n\n7:8:up\n")
    assert (file.problem_name, file.class_labels) == ("Toy", ["up", "down"])
    assert (file.channels, file.max_length) == (2, 3)
    expected = [[[1, 4], [2, 5], [3, 6]], [[7, 8], [0, 0], [0, 0]]]
    assert torch.equal(file.x, torch.tensor(expected, dtype=torch.float32))
    assert file.padding_mask.tolist() == [[False] * 3, [False, True, True]]
    assert file.lengths.tolist() == [3, 1] and file.lengths.dtype == torch.int64
    assert file.labels.tolist() == [1, 0] and file.labels.dtype == torch.int64
    assert file.targets is None


def test_padding_to_a_length(ts):
    file = ts(HEADER + "1,2:3,4:up\n")
    longer = file.pad_to(4)
    assert longer.x.shape == (1, 4, 2) and longer.x[0, 2:].count_nonzero() == 0
    assert longer.padding_mask.tolist() == [[False, False, True, True]]
    assert torch.equal(longer.lengths, file.lengths)
    with pytest.raises(ValueError, match="Toy: expected series of at most 1 steps, but got 2"):
        file.pad_to(1)


def test_windows_line_ends_and_spaces(ts):
    text = HEADER + " 1 , 2.5e1 : -3, +4 : up \n"
    assert torch.equal(ts(text.replace("\n", "\r\n")).x, ts(text).x)
    assert ts(text).x.tolist() == [[[1, -3], [25, 4]]]


@pytest.mark.parametrize(
    "written, meant",
    [
        ("?,2,NaN,nan,8,?", [2, 2, 4, 6, 8, 8]),
        ("0,?,?,?,1", [0, 0.25, 0.5, 0.75, 1]),
        ("?,NaN", [0, 0]),
        ("?,5,?", [5, 5, 5]),
    ],
)
def test_missing_values(ts, written, meant):
    file = ts(f"@univariate true\n@classlabel false\n@data\n{written}\n")
    assert file.x[0, :, 0].tolist() == meant
    assert file.labels is None and file.class_labels == []


def test_targets(ts):
    file = ts("@targetlabel true\n@data\n1,2:0.5\n3,4:-1e3\n")
    assert file.targets.tolist() == [0.5, -1000] and file.targets.dtype == torch.float32
    assert file.labels is None


def test_a_file_without_label_keys_has_only_channels(ts):
    file = ts("@data\n1,2:3,4\n")
    assert file.channels == 2 and file.labels is None and file.targets is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,2\n", "toy.ts:1: expected a comment, a line @key or @data, but got '1,2'"),
        ("@colour red\n", "toy.ts:1: expected a key of the .ts format, but got '@colour'"),
        ("@missing maybe\n", "toy.ts:1: expected @missing true or false, but got 'maybe'"),
        ("@dimensions 0\n", "expected @dimensions with a positive integer, but got '0'"),
        ("@serieslength x\n", "expected @serieslength with a positive integer, but got 'x'"),
        ("@classlabel true\n", "expected @classlabel true <label> .*, but got no label"),
        ("@classlabel true a b a\n", "expected distinct class labels, but got 'a' twice"),
        (
            "@classlabel true a\n@targetlabel true\n@data\n",
            "toy.ts:3: expected one of @classlabel true and @targetlabel true, but got both",
        ),
        ("@problemname x\n", "toy.ts: expected a line @data, but got none"),
        (HEADER, "toy.ts: expected at least one case after @data, but got none"),
        (HEADER + "1:2:left\n", "toy.ts:8: expected one of the class labels up, down, .* 'left'"),
        (HEADER + "1:2:up\n1:up\n", "toy.ts:9: expected 2 channels, but got 1"),
        (HEADER + "1,2\n", "expected channels and a label separated by ':', but got '1,2'"),
        (HEADER + "1,2:3:up\n", "expected channels of equal length, but got 2 and 1"),
        (HEADER + "1,x:2,3:up\n", "toy.ts:8: expected a number, NaN or \\?, but got 'x'"),
        (HEADER + "1,:2,3:up\n", "expected a number, NaN or \\?, but got ''"),
        (HEADER + "1,inf:2,3:up\n", "expected a number, NaN or \\?, but got 'inf'"),
        ("@targetlabel true\n@data\n1:?\n", "expected a number as target, but got '\\?'"),
        (
            "@univariate true\n@equallength true\n@data\n1,2\n1\n",
            r"toy.ts:5: expected 2 steps \(@equallength true\), but got 1",
        ),
        (
            "@equallength true\n@serieslength 3\n@data\n1,2\n",
            r"expected 3 steps \(@equallength true\), but got 2",
        ),
    ],
)
def test_errors_name_file_and_line(ts, text, message):
    with pytest.raises(ValueError, match=message):
        ts(text)


def test_time_stamps_are_not_implemented(ts):
    with pytest.raises(NotImplementedError, match="toy.ts:1: expected @timestamps false"):
        ts("@timestamps true\n@data\n")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.ts"):
        read_ts_file(tmp_path / "none.ts")


def test_data_set_by_name(ts, tmp_path, monkeypatch):
    (tmp_path / "Toy").mkdir()
    ts(HEADER + "1,2:3,4:up\n", "Toy/Toy_TRAIN.ts")
    ts(HEADER + "1,2,3:3,4,5:down\n", "Toy/Toy_TEST.ts")
    monkeypatch.setenv("KKTORCH_DATA", str(tmp_path))
    train, test = load_dataset("Toy")
    assert train.max_length == test.max_length == 3
    with pytest.raises(FileNotFoundError, match="data set: expected one of .*Toy.*'Nothing'"):
        find_dataset("Nothing")


@pytest.mark.parametrize("part, other", [("TRAIN", "TEST"), ("TEST", "TRAIN")])
def test_file_without_its_partner(ts, part, other, tmp_path, monkeypatch):
    ts(HEADER + "1,2:3,4:up\n", f"Toy_{part}.ts")
    monkeypatch.setenv("KKTORCH_DATA", str(tmp_path))
    message = f"Toy_{other}.ts: expected the pair Toy_TRAIN.ts and Toy_TEST.ts, but this file"
    with pytest.raises(FileNotFoundError, match=message):
        find_dataset("Toy")


@pytest.mark.skipif(not importlib.util.find_spec("aeon"), reason="the aeon package is missing")
@pytest.mark.parametrize(
    "name, train_size, test_size, channels, train_lengths, test_lengths, classes",
    [
        ("JapaneseVowels", 270, 370, 12, (7, 26), (7, 29), 9),
        ("BasicMotions", 40, 40, 6, (100, 100), (100, 100), 4),
        ("GunPoint", 50, 150, 1, (150, 150), (150, 150), 2),
        ("ItalyPowerDemand", 67, 1029, 1, (24, 24), (24, 24), 2),
        ("ArrowHead", 36, 175, 1, (251, 251), (251, 251), 3),
        ("OSULeaf", 200, 242, 1, (427, 427), (427, 427), 6),
        ("ACSF1", 100, 100, 1, (1460, 1460), (1460, 1460), 10),
        ("PickupGestureWiimoteZ", 50, 50, 1, (29, 361), (37, 324), 10),
    ],
)
def test_bundled_data_sets(
    name, train_size, test_size, channels, train_lengths, test_lengths, classes
):
    train, test = load_dataset(name)
    longest = max(train_lengths[1], test_lengths[1])
    assert train.x.shape == (train_size, longest, channels)
    assert test.x.shape == (test_size, longest, channels)
    for part, (shortest, longest) in ((train, train_lengths), (test, test_lengths)):
        assert (part.lengths.min(), part.lengths.max()) == (shortest, longest)
        assert torch.equal(part.padding_mask.logical_not().sum(1), part.lengths)
        assert part.x.isfinite().all() and part.x[part.padding_mask].count_nonzero() == 0
        assert (
            set(part.labels.tolist()) == set(range(classes)) and len(part.class_labels) == classes
        )
