"""Spaces by name and from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natdeploy.errors import UsageError
from natdeploy.space import SearchSpace, Stage, get_space, load_space, space_toml
from natdeploy.space.blocks import ACTIVATIONS
from natdeploy.space.catalog import NAMES, SPACES

DOCS = Path(__file__).parents[2] / "docs"

MINE = """\
name = "mine"
resolutions = [96, 128]
widths = [1.0]
stem_channels = 16
stem_stride = 2
head_channels = 320

[[stages]]
out_channels = 16
stride = 1
min_depth = 1
max_depth = 1
kernels = [3]
expansions = [1]

[[stages]]
out_channels = 24
stride = 2
min_depth = 1
max_depth = 3
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_spaces_are_known_by_name() -> None:
    assert [get_space(name).name for name in NAMES] == list(NAMES)
    with pytest.raises(UsageError, match=r"choose one of mbv2, ofa_mbv3, .*, or give the path of a \.toml file"):
        get_space("mars")


def test_what_is_left_out_is_as_in_mobilenet_v2(tmp_path: Path) -> None:
    space = get_space(str(written(tmp_path, MINE)))
    stages = (Stage(16, 1, 1, 1, (3,), (1,)), Stage(24, 2, 1, 3, (3, 5, 7), (3, 6), "relu6"))
    assert space == SearchSpace("mine", (96, 128), (1.0,), 16, 2, stages, 320)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_spaces_come_back_from_their_files(name: str, tmp_path: Path) -> None:
    back = load_space(written(tmp_path, space_toml(SPACES[name])))
    assert back == SPACES[name]
    assert hash(back) == hash(SPACES[name])


def ascending(values: st.SearchStrategy[float], most: int) -> st.SearchStrategy[tuple[float, ...]]:
    return st.lists(values, min_size=1, max_size=most, unique=True).map(lambda found: tuple(sorted(found)))


stages = st.builds(
    lambda low, more, **rest: Stage(min_depth=low, max_depth=low + more, **rest),
    st.integers(1, 3),
    st.integers(0, 3),
    out_channels=st.integers(8, 320),
    stride=st.sampled_from([1, 2]),
    kernels=ascending(st.sampled_from([1, 3, 5, 7, 9]), 4),
    expansions=ascending(st.sampled_from([1, 2.5, 4, 6.0]), 4),
    activation=st.sampled_from(ACTIVATIONS),
    squeeze=st.booleans(),
)
any_space = st.builds(
    SearchSpace,
    name=st.from_regex(r"own_[a-z0-9_]{0,8}", fullmatch=True),
    resolutions=ascending(st.integers(8, 300), 5),
    widths=ascending(st.sampled_from([1.0, 1.25, 2]), 3),
    stem_channels=st.integers(16, 64),
    stem_stride=st.sampled_from([1, 2]),
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    head_channels=st.integers(1, 2000),
    stem_activation=st.sampled_from(ACTIVATIONS),
    head_activation=st.sampled_from(ACTIVATIONS),
    narrow_head=st.booleans(),
    mix_channels=st.integers(0, 2000),
    mix_bias=st.booleans(),
    first_residual=st.booleans(),
)


@given(any_space)
@settings(deadline=None, max_examples=60)
def test_any_space_comes_back_from_its_file(tmp_path_factory: pytest.TempPathFactory, space: SearchSpace) -> None:
    back = load_space(written(tmp_path_factory.mktemp("space"), space_toml(space)))
    assert back == space
    assert space_toml(back) == space_toml(space)


def test_the_example_of_the_docs_is_a_space() -> None:
    space = load_space(DOCS / "example_space.toml")
    assert space.name == "example"
    assert f"```toml\n{(DOCS / 'example_space.toml').read_text()}```" in (DOCS / "spaces.md").read_text()


def test_the_docs_name_every_key() -> None:
    page = (DOCS / "spaces.md").read_text()
    for kind in (SearchSpace, Stage):
        for name in kind.__dataclass_fields__:
            assert name in {"precisions", "output_stride", "dense", "aspect"} or f"`{name}`" in page, (
                "those belong to a search and to a task"
            )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stem_stride", "stem_strides", r"mine\.toml: there is no key 'stem_strides'; choose among name, resolutions"),
        ("max_depth = 3", "max_depth = 3\ndepth = 3", r"mine\.toml, stage 1: there is no key 'depth'; choose among out_channels"),
        ("stem_channels = 16\n", "", r"mine\.toml: stem_channels is missing"),
        ("max_depth = 3\n", "", r"mine\.toml, stage 1: max_depth is missing"),
        ("stem_channels = 16", 'stem_channels = "16"', r"mine\.toml: stem_channels = '16': input should be a valid integer"),
        ("stem_channels = 16", "stem_channels = true", r"stem_channels = True: input should be a valid integer"),
        ("stem_channels = 16", "stem_channels = 16.0", r"stem_channels = 16\.0: input should be a valid integer"),
        ("stem_channels = 16", "stem_channels = 2024-01-01", r"stem_channels = '2024-01-01': input should be a valid integer"),
        ("[96, 128]", "[96, 128.5]", r"mine\.toml: resolutions\.1 = 128\.5: input should be a valid integer"),
        ("[96, 128]", "96", r"mine\.toml: resolutions = 96: input should be a valid (tuple|array)"),
        ("[1.0]", "[inf]", r"mine\.toml: widths\.0 = inf: input should be a finite number"),
        ("[96, 128]", "[128, 96]", r"mine\.toml: resolutions must be .*ascending.*, not \[128, 96\]"),
        ("kernels = [3]", "kernels = [3, 4]", r"mine\.toml, stage 0: kernels must be odd, not \[3, 4\]"),
        ("kernels = [3]", "kernels = []", r"mine\.toml, stage 0: kernels must be .*at least one of them, not \[\]"),
        ("expansions = [1]", "expansions = []", r"stage 0: expansions must be .*at least one of them"),
        ("max_depth = 3", "max_depth = 0", r"stage 1: max_depth must be min_depth \(1\) or more, not 0"),
        ("max_depth = 3", 'max_depth = 3\nactivation = "tanh"', r"stage 1: activation = 'tanh': input should be 'relu', 'relu6'"),
        ('"mine"', '"My space"', r"mine\.toml: name must be lower-case letters, digits and _, not 'My space'"),
        ('"mine"', '"../mine"', r"mine\.toml: name must be lower-case letters, digits and _"),
        ('"mine"', '"mbv2"', r"mine\.toml: name 'mbv2' is that of a shipped space, which differs"),
        ("max_depth = 3", "max_depth = 3\nexpansions = [3, 3.01]", r"stage 1: two of expansions .* same channels at width 1"),
        ("[[stages]]", "[[stage]]", r"mine\.toml: it needs a table \[\[stages\]\] for each stage"),
        (MINE[MINE.index("[[stages]]") :], "stages = []", r"mine\.toml: stages must not be empty"),
        (MINE[MINE.index("[[stages]]") :], "stages = [1]", r"mine\.toml: it needs a table \[\[stages\]\]"),
        ("widths =", "widths", r"mine\.toml is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MINE
    with pytest.raises(UsageError, match=message) as refused:
        load_space(written(tmp_path, MINE.replace(old, new)))
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
        get_space(str(tmp_path / "none.toml"))
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.toml is no TOML"):
        load_space(path)


def test_a_restriction_needs_another_name(tmp_path: Path) -> None:
    smaller = get_space("mbv2").restrict(resolutions=[128])
    with pytest.raises(UsageError, match="shipped space, which differs"):
        load_space(written(tmp_path, space_toml(smaller)))
    own = replace(smaller, name="mbv2_128")
    assert load_space(written(tmp_path, space_toml(own))) == own
