"""Files of other tools become blocks of ours, and what cannot is counted and named."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natdeploy.errors import DamagedFileError
from natdeploy.latency.blocks import block_key
from natdeploy.latency.importers import Imported, import_nn_meter, import_ofa
from natdeploy.latency.plan import space_blocks
from natdeploy.latency.table import Timing
from natdeploy.space import Arch, SearchSpace, get_space

PHONE = get_space("ofa_mbv3").restrict(widths=[1.2])
YAML = """\
Conv-input:224x224x3-output:112x112x24: {mean: 1.0, std: 0.1, count: 500}
expanded_conv-input:112x112x24-output:112x112x24-expand:24-kernel:3-stride:1-idskip:1-se:0-hs:0:
  count: 80
  mean: 1.75
  std: 0.1
expanded_conv-input:56x56x32-output:28x28x48-expand:96-kernel:5-stride:2-idskip:0-se:1-hs:0: {mean: 1.5, std: 0.1, count: 10}
Conv_1-input:7x7x192-output:7x7x1152: {mean: 0.5, std: 0.1, count: 400}
AvgPool2D-input:7x7x1152-output:1x1x1152: {mean: 0.25, std: 0.1, count: 300}
Conv_2-input:1x1x1152-output:1x1x1536: {mean: 0.75, std: 0.1, count: 400}
Logits-input:1x1x1536-output:1000: {mean: 0.625, std: 0.1, count: 400}
"""


def found(result: Imported) -> dict[str, Timing]:
    return {block_key(row.block): row.timing for row in result.rows}


def ofa(folder: Path, *texts: str, space: SearchSpace = PHONE) -> Imported:
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"{number}.yaml")
        paths[-1].write_text(text)
    return import_ofa(paths, space)


def test_every_kind_of_entry_becomes_its_block(tmp_path: Path) -> None:
    result = ofa(tmp_path, YAML)
    assert found(result) == {
        "stem-224x3-m24-o24-k3-s2-hswish": Timing(1.0, None, 500, None, None),
        "mbconv-112x24-m24-o24-k3-s1-relu": Timing(1.75, None, 80, None, None),
        "mbconv-56x32-m96-o48-k5-s2-se24-relu": Timing(1.5, None, 10, None, None),
        "head-7x192-m192-o1152-k1-s1-hswish": Timing(0.75, None, 300, None, None),
        "mix-1x1152-m1152-o1536-k1-s1-hswish": Timing(0.75, None, 400, None, None),
        "classifier-1x1536-m1536-o1000-k1-s1": Timing(0.625, None, 400, None, None),
    }
    assert (result.entries, result.left_out) == (7, {})
    assert "the stem has a 3x3 kernel and hswish, as in ofa_mbv3" in result.assumed


def test_equal_entries_of_several_files_are_one_row(tmp_path: Path) -> None:
    key = "Logits-input:1x1x1536-output:1000"
    result = ofa(tmp_path, f"{key}: {{mean: 1, count: 10}}", f"{key}: {{mean: 1.02, count: 30}}")
    assert list(found(result).values()) == [Timing(pytest.approx(1.015), None, 40, None, False)]
    apart = ofa(tmp_path, f"{key}: {{mean: 1, count: 10}}", f"{key}: {{mean: 1.1, count: 10}}")
    assert apart.rows[0].timing.unstable


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("expanded_conv-input:56x56x16-output:28x28x48-expand:96-kernel:5-stride:2-idskip:0-se:1-hs:0", "no block of ofa_mbv3"),
        ("expanded_conv-input:56x56x32-output:27x27x48-expand:96-kernel:5-stride:2-idskip:0-se:1-hs:0", "its output size"),
        ("expanded_conv-input:56x56x32-output:28x28x48-expand:96-kernel:5-stride:2-idskip:1-se:1-hs:0", "a residual between"),
        ("expanded_conv-input:56x28x32-output:28x14x48-expand:96-kernel:5-stride:2-idskip:0-se:1-hs:0", "not square"),
        ("Conv-input:224x224x3-output:56x56x24", "a stem of another stride"),
        ("Logits-input:7x7x1536-output:1000", "pooling and linear layer timed as one"),
        ("AvgPool2D-input:7x7x1152-output:1x1x1152", "pooling of a head that is no row"),
        ("expanded_conv-input:56x56x32-output:28x28x48", "no key of a look-up table"),
        ("Conv_9-input:7x7x192-output:7x7x1152", "no key of a look-up table"),
        ("zero", "no key of a look-up table"),
    ],
)
def test_what_is_no_block_is_named_with_its_reason(tmp_path: Path, key: str, reason: str) -> None:
    result = ofa(tmp_path, f"{key}: {{mean: 1, count: 10}}")
    assert result.rows == ()
    ((why, names),) = result.left_out.items()
    assert why.startswith(reason)
    assert names == (key,)


def test_proxylessnas_keys_hold_ratios_and_no_pooling(tmp_path: Path) -> None:
    text = """
expanded_conv-input:56x56x24-output:28x28x40-expand:6-kernel:5-stride:2-idskip:0: {mean: 1, count: 10}
Conv_1-input:7x7x320-output:7x7x1280: {mean: 2, count: 10}
"""
    result = ofa(tmp_path, text, space=get_space("proxyless"))
    assert set(found(result)) == {"mbconv-56x24-m144-o40-k5-s2", "head-7x320-m320-o1280-k1-s1"}
    assert "the pooling behind a head is not in the files and not in its row" in result.assumed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (YAML.replace("mean: 1.75", "mean: 0"), "line 2: a latency must be positive"),
        (YAML.replace("mean: 1.75", "mean: .nan"), r"line 2: the latency '\.nan' is no number"),
        (YAML.replace("mean: 1.75", "mean: nan"), "line 2: a latency must be positive and finite, not nan"),
        (YAML.replace("mean: 1.75", "mean: fast"), "line 2: the latency 'fast' is no number"),
        (YAML.replace("mean: 1.75", "mean: [1]"), "line 2: the latency .* is no number"),
        (YAML.replace("count: 80", "count: 0"), "line 2: the count must be 1 or more, not 0"),
        (YAML.replace("  count: 80\n", ""), "line 2: .* has no mean and count"),
        (YAML + YAML.splitlines()[0], "line 11: .* is there already, in line 1"),
        (YAML + "Conv", "this is no YAML"),
        ("- 1", "this is no look-up table"),
        ("", "this is no look-up table"),
        ("a: !!python/object/apply:os.getcwd []", "line 1: a has no mean and count"),
        ("[" * 1500, "this is no YAML"),
    ],
)
def test_damage_of_a_yaml_file_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DamagedFileError, match=rf"0\.yaml.*{says}"):
        ofa(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: there must be the columns count, key, mean_ms"),
        ("key,mean,count\n", "line 1: there must be the columns count, key, mean_ms"),
        ("key,mean_ms,count\nLogits,1\n", "line 2: 2 cells, not 3"),
        ("key,mean_ms,count\nLogits,1,2\nLogits,-1,2\n", "line 3: a latency must be positive"),
    ],
)
def test_damage_of_a_csv_file_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match=rf"a\.csv, {says}"):
        import_ofa([path], PHONE)


@pytest.mark.parametrize("read", [import_ofa, import_nn_meter])
def test_missing_and_binary_files_are_named(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a"
    with pytest.raises(DamagedFileError, match="a cannot be read"):
        read([path], PHONE)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedFileError, match="a is no text"):
        read([path], PHONE)


def test_a_real_phone_covers_its_space(shared: Path) -> None:
    path = shared / "latency" / "ofa_note10_blocks.csv"
    result = import_ofa([path], PHONE)
    assert (result.entries, result.left_out) == (1632, {})
    assert not any(row.timing.unstable for row in result.rows)
    wanted = set(space_blocks(PHONE.restrict(resolutions=range(160, 225, 4)), 1000))
    assert {row.block for row in result.rows} == wanted
    assert len(space_blocks(PHONE.restrict(resolutions=[224]), 1000)) == 95


def test_a_network_is_the_sum_of_the_entries_that_its_authors_add_up(shared: Path) -> None:
    """By our blocks, and by keys made of the architecture's layers as once-for-all describes them."""
    path = shared / "latency" / "ofa_note10_blocks.csv"
    rows = {row.block: row.timing.latency_ms for row in import_ofa([path], PHONE).rows}
    with path.open() as file:
        entries = {row["key"]: float(row["mean_ms"]) for row in csv.DictReader(file) if row["image_size"] == "224"}
    space = PHONE.restrict(resolutions=[224])
    for arch in space.decode_all(space.sample(20, np.random.default_rng(0))):
        ours = sum(rows[block] for block in space.blocks(arch, 1000))
        assert ours == pytest.approx(sum(entries[key] for key in keys_of(arch)), rel=0.01)


def keys_of(arch: Arch) -> list[str]:
    """Keys of a MobileNetV3 of width 1.2 at 224 px."""
    channels, strides = (24, 32, 48, 96, 136, 192), (1, 2, 2, 2, 1, 2)
    squeeze, hswish = (0, 0, 1, 0, 1, 1), (0, 0, 0, 1, 1, 1)
    keys, size, inputs = ["Conv-input:224x224x3-output:112x112x24"], 112, 24
    for stage, layers in enumerate(arch.stages):
        for place, layer in enumerate(layers):
            stride, outputs = (1 if place else strides[stage]), channels[stage]
            out, skip = (size - 1) // stride + 1, int(stride == 1 and inputs == outputs)
            mid = round(inputs * layer.expansion)
            keys.append(
                f"expanded_conv-input:{size}x{size}x{inputs}-output:{out}x{out}x{outputs}-expand:{mid}-kernel:{layer.kernel}"
                f"-stride:{stride}-idskip:{skip}-se:{squeeze[stage]}-hs:{hswish[stage]}"
            )
            size, inputs = out, outputs
    return [
        *keys,
        "Conv_1-input:7x7x192-output:7x7x1152",
        "AvgPool2D-input:7x7x1152-output:1x1x1152",
        "Conv_2-input:1x1x1152-output:1x1x1536",
        "Logits-input:1x1x1536-output:1000",
    ]


# ---- nn-Meter

MBV2 = get_space("mbv2")


def conv(size: int, inputs: int, outputs: int, side: int, stride: int) -> dict[str, Any]:
    config = {"HW": size, "CIN": inputs, "COUT": outputs, "KERNEL_SIZE": side, "STRIDES": stride}
    return {"model": "kernels/x", "shapes": [[size, size, inputs]], "config": config}


CONFIG = {
    "conv-bn-relu6": {
        "HEAD": conv(7, 320, 1280, 1, 1),
        "STEM": conv(224, 3, 32, 3, 2),
        "INNER": conv(14, 64, 64, 3, 1),
        "EXPAND": conv(14, 64, 384, 1, 1),
        "LATER": conv(14, 320, 1280, 1, 1),
    },
    "conv-bn-relu": {"HEAD": conv(7, 320, 1280, 1, 1)},
    "dwconv-bn-relu6": {"DEPTH": conv(14, 96, 96, 3, 1)},
    "fc": {"FC": {"config": {"CIN": 1280, "COUT": 100}}, "BROKEN": {"config": {"CIN": 1280}}},
    "global-avgpool": {"GAP": {"config": {"HW": 7, "CIN": 1280}}},
}
LATENCY = {
    "conv-bn-relu6": {
        "HEAD": {"latency": "2.5 +- 0.3"},
        "STEM": {"latency": "37.5 +- 0.3"},
        "INNER": {"latency": "1.0 +- 0.1"},
        "EXPAND": {"latency": "1.0 +- 0.1"},
    },
    "conv-bn-relu": {"HEAD": {"latency": "2.5 +- 0.3"}},
    "dwconv-bn-relu6": {"DEPTH": {"latency": 0.5}},
    "fc": {"FC": {"latency": 0.75}, "BROKEN": {"latency": 1}, "LOST": {"latency": 1}},
    "global-avgpool": {"GAP": {"latency": "0.25 +- 0.0"}},
}


def nn_meter(folder: Path, *contents: Any) -> Imported:
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(content if isinstance(content, str) else json.dumps(content))
    return import_nn_meter(paths, MBV2)


def test_kernels_that_are_whole_blocks_are_taken_and_others_are_named(tmp_path: Path) -> None:
    result = nn_meter(tmp_path, CONFIG, LATENCY)
    assert {key: timing.latency_ms for key, timing in found(result).items()} == {
        "head-7x320-m320-o1280-k1-s1": 2.75,
        "stem-224x3-m32-o32-k3-s2": 37.5,
        "classifier-1x1280-m1280-o100-k1-s1": 0.75,
    }
    assert result.entries == 11
    assert result.left_out == {
        "never profiled": ("conv-bn-relu6/LATER",),
        "a convolution within the network, which is a part of a block": ("conv-bn-relu6/INNER",),
        "no block of mbv2 at width 1": ("conv-bn-relu6/EXPAND", "conv-bn-relu/HEAD"),
        "dwconv-bn-relu6 is a part of a block": ("dwconv-bn-relu6/DEPTH",),
        "its configuration is not complete": ("fc/BROKEN",),
        "its configuration is not in the files": ("fc/LOST",),
    }


def test_one_file_may_hold_both_and_a_head_may_lack_its_pooling(tmp_path: Path) -> None:
    whole = {"conv-bn-relu6": {"A": CONFIG["conv-bn-relu6"]["HEAD"] | {"latency": "2.5 +- 0.3"}}}
    result = nn_meter(tmp_path, whole)
    assert [row.timing.latency_ms for row in result.rows] == [2.5]
    assert "the pooling behind a head is not in the files and not in its row" in result.assumed


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ([{"fc": {"A": {"latency": "0.0 +- 0.0"}}}], r"0\.json: fc/A: a latency must be positive"),
        ([{"fc": {"A": {"latency": "fast"}}}], r"0\.json: fc/A: the latency 'fast' is no number"),
        ([{"fc": {"A": {"latency": None}}}], r"0\.json: fc/A: the latency None is no number"),
        ([{"fc": {"A": {"latency": "1 +- 0"}}}, {"fc": {"A": {"latency": "2 +- 0"}}}], r"1\.json: fc/A has another latency"),
        (['{"fc": {"A": {}, "A": {}}}'], "A is there twice"),
        (["{"], r"0\.json is no JSON"),
        (["[" * 100000], r"0\.json is no JSON"),
        ([[1]], "holds no kernels by name"),
        ([{"fc": 1}], "fc holds no kernels by id"),
        ([{"fc": {"A": 1}}], "fc/A is no kernel"),
    ],
)
def test_damage_of_a_kernel_file_is_named_with_its_place(tmp_path: Path, contents: list[Any], says: str) -> None:
    with pytest.raises(DamagedFileError) as caught:
        nn_meter(tmp_path, *contents)
    assert re.search(says, str(caught.value))
