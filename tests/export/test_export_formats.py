"""Every format, precision and input: files compute what torch computes, and say what they are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

from natdeploy.errors import MissingRuntimeError, UsageError
from natdeploy.export import (
    FORMATS,
    PRECISIONS,
    Description,
    InputKind,
    Parity,
    PhotoSize,
    Preprocessing,
    as_input,
    check_photos,
    check_precision,
    compare,
    get_format,
    input_facts,
    parse_photo_size,
    prepared,
    run_images,
    sha256,
    write,
)
from natdeploy.export.photos import fitted, seen
from natdeploy.export.tflite import read_texts
from natdeploy.runtimes import ort, ov, tflite, tflite_writer
from natdeploy.space import HeadSpec, SearchSpace, get_space
from natdeploy.supernet import Padding, Subnet, Supernet
from natdeploy.supernet.remap import remap
from natdeploy.supernet.weights import read_seed

Make = Callable[..., Subnet]
Describe = Callable[[Subnet], Description]
Pictures = Callable[[Subnet, int], tuple[torch.Tensor, torch.Tensor]]

EVERY = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture
def export(needs: Callable[[str], None], describe: Describe, pictures: Pictures, tmp_path: Path) -> Callable[..., Path]:
    """What writes a subnet as a file."""

    def make(
        subnet: Subnet, name: str, precision: str = "fp32", kind: InputKind = "nchw", photo_size: PhotoSize | None = None
    ) -> Path:
        needs(name)
        path = tmp_path / FORMATS[name].file_name(precision)
        _, images = pictures(subnet, 16)
        calibration = [image[None] for image in images]
        wanted = input_facts("input", kind, subnet.input_shape[2:], photo_size)
        write(subnet, path, FORMATS[name], precision, input=wanted, description=describe(subnet), calibration=calibration)
        return path

    return make


@pytest.fixture
def compared(describe: Describe, pictures: Pictures) -> Callable[..., Parity]:
    """What compares a file with a subnet, in the runtime that checks it."""

    def compute(subnet: Subnet, path: Path, name: str, precision: str = "fp32", kind: InputKind = "nchw") -> Parity:
        runtime, wanted = FORMATS[name].checked_by(), input_facts("input", kind, subnet.input_shape[2:])
        session = runtime.load(path, wanted.sizes, 1, precision, runtime.DELEGATES[0])
        _, images = pictures(subnet, 10)
        batches = [(each, torch.zeros(len(each))) for each in images.split(4)]
        found = run_images(
            lambda inputs: runtime.run(session, inputs),
            batches,
            lambda image: as_input(image, wanted, describe(subnet).preprocessing),
        )
        with torch.inference_mode():
            expected = subnet(images)
        return compare(torch.cat([logits for logits, _ in found]), expected)

    return compute


@EVERY
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_fp32_computes_what_torch_computes(
    make_subnet: Make, export: Callable[..., Path], compared: Callable[..., Parity], name: str, padding: Padding
) -> None:
    for seed in range(2):
        subnet = make_subnet(seed, padding)
        found = compared(subnet, export(subnet, name), name)
        assert found.max_rel < 1e-5
        assert (found.top1_agreement, found.n) == (1.0, 10)


@EVERY
@pytest.mark.parametrize(("precision", "limit"), [("fp16", 2e-2), ("int8", 0.5)])
def test_other_precisions_are_other_numbers_and_nearly_the_same_net(
    make_subnet: Make, export: Callable[..., Path], compared: Callable[..., Parity], *, name: str, precision: str, limit: float
) -> None:
    subnet = make_subnet(0, "same")
    path = export(subnet, name, precision)
    assert path.name == f"model.{precision}{FORMATS[name].suffix}"
    found = compared(subnet, path, name, precision)
    assert 1e-5 < found.max_rel < limit
    whole = export(subnet, name)
    small, large = (sum(each.stat().st_size for each in (at, *FORMATS[name].runtime.companions(at))) for at in (path, whole))
    # Q/DQ nodes of TensorRT stand at weights that stay in fp32.
    assert small < large or (name, precision) == ("tensorrt", "int8") or name == "openvino", "an IR of so small a net is mostly XML"


@EVERY
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["nhwc", "image"])
def test_every_input_gives_what_the_plain_one_gives(
    make_subnet: Make, export: Callable[..., Path], compared: Callable[..., Parity], *, name: str, precision: str, kind: InputKind
) -> None:
    subnet = make_subnet(1, "same")
    plain = compared(subnet, export(subnet, name, precision), name, precision)
    taken = compared(subnet, export(subnet, name, precision, kind), name, precision, kind)
    assert taken.max_abs == pytest.approx(plain.max_abs, rel=0.05, abs=1e-4 if precision == "fp32" else 1e-3)
    assert taken.top1_agreement == plain.top1_agreement


@EVERY
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_says_what_it_is_and_nothing_of_the_machine(
    make_subnet: Make, export: Callable[..., Path], describe: Describe, name: str, precision: str
) -> None:
    subnet = make_subnet(1)
    path = export(subnet, name, precision)
    if path.suffix == tflite.SUFFIX:
        texts = read_texts(path)
    elif path.suffix == ov.SUFFIX:
        model = ov.library().Core().read_model(str(path))
        texts = {
            key: model.get_rt_info(["natdeploy", key]).astype(str) for key in describe(subnet).properties() | {"precision": ""}
        }
    else:
        texts = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert texts == describe(subnet).properties() | {"precision": precision}
    assert json.loads(texts["labels"])[0] == "colt’s foot"
    for each in (path, *FORMATS[name].runtime.companions(path)):
        data = each.read_bytes()
        assert not any(trace in data for trace in (b"site-packages", str(Path.home()).encode(), b"/tmp/"))


@EVERY
def test_writing_is_repeatable_and_leaves_the_subnet_alone(make_subnet: Make, export: Callable[..., Path], name: str) -> None:
    subnet = make_subnet(2).to(memory_format=torch.channels_last)
    subnet.train()
    before = {key: value.clone() for key, value in subnet.state_dict().items()}
    # OpenVINO's converter numbers what it names through the whole process; its weights are alike.
    first, second = (
        sha256((*FORMATS[name].runtime.companions(path), path)[0]) for path in (export(subnet, name) for _ in range(2))
    )
    assert first == second
    assert subnet.training
    assert all(torch.equal(value, before[key]) for key, value in subnet.state_dict().items())


def test_a_subnet_is_written_as_tflite_operator_by_operator(make_subnet: Make) -> None:
    """Through litert-torch it would take a hundred times as long."""
    for space in ("demo", "mbv3_large"):
        subnet = make_subnet(0, space=get_space(space).restrict(resolutions=get_space(space).resolutions[:1]))
        size = subnet.arch.resolution
        assert tflite_writer.write(subnet, torch.zeros(1, 3, size, size), False)


@pytest.mark.parametrize("space", ["ofa_mbv3", "mbv3_large", "proxyless"])
def test_activations_and_squeezes_of_every_space(
    make_subnet: Make, export: Callable[..., Path], compared: Callable[..., Parity], space: str
) -> None:
    subnet = make_subnet(0, space=get_space(space).restrict(resolutions=(64,)), norm_eps=1e-3)
    path = export(subnet, "onnx")
    assert compared(subnet, path, "onnx").max_rel < 1e-5
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert "BatchNormalization" not in kinds
    blocks = subnet.space.blocks(subnet.arch, subnet.classes)
    # ONNX Runtime writes x * hardsigmoid(x) out, as its processors compute it. A layer that expands has two activations.
    hswish = sum(1 + block.expands for block in blocks if block.activation == "hswish")
    squeezes = sum(block.squeeze > 0 for block in blocks)
    assert kinds["HardSigmoid"] == kinds["Mul"] == hswish + squeezes
    assert kinds["GlobalAveragePool"] == 1 + squeezes
    standard = {"Conv", "Clip", "Relu", "HardSigmoid", "Mul", "Add", "GlobalAveragePool", "Flatten", "MatMul", "Gemm"}
    assert kinds.keys() <= standard


def test_epsilon_is_folded_in(make_subnet: Make, export: Callable[..., Path], compared: Callable[..., Parity]) -> None:
    """Where variances are small, another epsilon is another network."""
    subnet = make_subnet(0, norm_eps=1e-3)
    norms = [module for module in subnet.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_var is not None
        norm.running_var.mul_(0.01)
        nn.init.constant_(norm.weight, 0.1)  # else every layer would magnify tenfold
    path = export(subnet, "onnx")
    assert compared(subnet, path, "onnx").max_rel < 1e-5
    for norm in norms:
        norm.eps = 1e-5
    assert compared(subnet, path, "onnx").max_rel > 1e-3


def test_real_weights_on_real_photos(shared: Path, export: Callable[..., Path]) -> None:
    space = get_space("mbv2")
    seed = read_seed(shared / "weights" / "mobilenet_v2_imagenet.safetensors", space)
    supernet = Supernet(space, seed.classes, padding="same", generator=torch.Generator().manual_seed(0))
    remap(seed, supernet)
    subnet = supernet.extract(replace(seed.arch, resolution=96)).eval()
    path = export(subnet, "onnx")
    photos = [sorted(folder.glob("*.jpg"))[0] for folder in sorted((shared / "data" / "flowers12" / "test").iterdir())]
    squares = [np.asarray(ImageOps.fit(Image.open(photo).convert("RGB"), (96, 96)), np.float32) for photo in photos]
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 127.5 - 1
    session = ort.load(path, (1, 3, 96, 96), 1, "fp32", "cpu")
    logits = [ort.run(session, [image[None].numpy()])[0] for image in images]
    with torch.inference_mode():
        found = compare(torch.from_numpy(np.concatenate(logits)), subnet(images))
    assert found.n == 12
    assert found.max_rel < 1e-4
    assert found.top1_agreement == 1.0


def test_graph_is_folded_and_standard(make_subnet: Make, export: Callable[..., Path]) -> None:
    space = get_space("demo")
    for padding in ("symmetric", "same"):
        subnet = make_subnet(0, padding)
        model = onnx.load(export(subnet, "onnx"))
        convolutions = sum(isinstance(module, nn.Conv2d) for module in subnet.modules())
        activations = sum(isinstance(module, nn.ReLU6) for module in subnet.modules())
        kinds = Counter(node.op_type for node in model.graph.node)
        residuals = sum(block.residual for block in space.blocks(subnet.arch, subnet.classes))
        expected = {"Conv": convolutions, "Clip": activations, "Add": residuals, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
        assert kinds == Counter(expected)
        assert [each.domain for each in model.opset_import] == [""]


def test_asymmetric_padding_is_in_the_convolution(make_subnet: Make, export: Callable[..., Path]) -> None:
    model = onnx.load(export(make_subnet(0, "same"), "onnx"))
    strided = [
        {attribute.name: list(attribute.ints) for attribute in node.attribute}
        for node in model.graph.node
        if node.op_type == "Conv" and any(each.name == "strides" and list(each.ints) == [2, 2] for each in node.attribute)
    ]
    assert len(strided) == sum(stage.stride == 2 for stage in get_space("demo").stages)
    for each in strided:
        smaller = (each["kernel_shape"][0] - 2) // 2
        assert each["pads"] == [smaller, smaller, smaller + 1, smaller + 1]


@pytest.mark.parametrize("kind", ["nchw", "nhwc", "image"])
def test_onnx_tells_its_input(make_subnet: Make, export: Callable[..., Path], kind: InputKind) -> None:
    subnet = make_subnet(1)
    size = subnet.arch.resolution
    session = onnxruntime.InferenceSession(export(subnet, "onnx", kind=kind), providers=["CPUExecutionProvider"])
    shape = [1, 3, size, size] if kind == "nchw" else [1, size, size, 3]
    number = "uint8" if kind == "image" else "float"
    assert [(each.name, each.shape, each.type) for each in session.get_inputs()] == [("input", shape, f"tensor({number})")]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("output", [1, 7])]


PHOTOS = ((50, 41), (40, 40), (97, 130), (301, 200))
"""Larger and smaller than the network's images, upright and lying, of odd and even differences."""


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeing(what: str) -> SearchSpace:
    """Networks that see the centre square of a photo, a rectangle, or the whole photo warped to a square."""
    space = get_space("demo")
    if what == "square":
        return space
    if what == "whole":  # an even input, which TensorFlow's padding makes larger on one side alone
        return replace(space, resolutions=(32,), stem_stride=2, dense=HeadSpec("retinanet", 8))
    return replace(space, dense=HeadSpec("lraspp", 8), output_stride=4, aspect=1.5)


@EVERY
@pytest.mark.parametrize(("what", "precision"), [("square", "fp32"), ("square", "int8"), ("wide", "fp32"), ("whole", "fp32")])
def test_photos_of_any_size_are_resized_as_torch_does(
    *, make_subnet: Make, export: Callable[..., Path], describe: Describe, name: str, what: str, precision: str
) -> None:
    subnet = make_subnet(1, "same", seeing(what))
    preprocessing, runtime = describe(subnet).preprocessing, FORMATS[name].runtime
    if FORMATS[name].photos == "none":
        with pytest.raises(UsageError, match=r"tensorrt takes no photos: .* choose another --input, such as image"):
            check_photos(FORMATS[name], (48, 64))
        return
    check_photos(FORMATS[name], (48, 64))
    path = export(subnet, name, precision, "nchw")
    plain = runtime.load(path, subnet.input_shape, 1, precision, runtime.DELEGATES[0])
    one = FORMATS[name].photos == "one"
    for size in PHOTOS[-1:] if one and what != "square" else PHOTOS:  # such networks take litert-torch 10 s each
        path = export(subnet, name, precision, "photo", size if one else None) if one or size == PHOTOS[0] else path
        session = runtime.load(path, None, 1, precision, runtime.DELEGATES[0])
        found = runtime.run(session, [noise(*size)[None]])[0]
        image = prepared(noise(*size), preprocessing)[None]
        expected = runtime.run(plain, [image.numpy()])[0]
        # A last bit of the input may fall to another side of an int8 step.
        np.testing.assert_allclose(found, expected, atol=(1e-5 if precision == "fp32" else 5e-2) * np.abs(expected).max())
        if precision == "fp32":
            with torch.inference_mode():
                assert compare(torch.from_numpy(found), subnet(image)).max_rel < 1e-5


def test_a_photo_is_prepared_as_pillow_does_but_for_its_rounding(make_subnet: Make, describe: Describe) -> None:
    """Torch, the files and training mean the same: the last goes through bytes at every step."""
    preprocessing = describe(make_subnet(1)).preprocessing
    sides = [(preprocessing.square_px,) * 2, (preprocessing.size_px,) * 2]
    for size in PHOTOS:
        square = ImageOps.fit(Image.fromarray(noise(*size)), sides[0], Image.Resampling.BILINEAR)
        pixels = np.asarray(square.resize(sides[1], Image.Resampling.BILINEAR), np.float32)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
        ours = 255 * (prepared(noise(*size), preprocessing) * std + mean).permute(1, 2, 0).numpy()
        assert np.abs(ours - pixels).max() < 2 or (size[0] - size[1]) % 2, (
            "of 255; where the middle falls between pixels, by half of one"
        )


@given(photo=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), cut=st.tuples(st.integers(1, 999), st.integers(1, 999)))
def test_what_is_seen_of_a_photo_is_in_its_middle_and_of_the_shape_of_training_images(
    photo: tuple[int, int], cut: tuple[int, int]
) -> None:
    part = seen(photo, Preprocessing(cut_px=cut, input_px=cut, mean=(0.0,) * 3, std=(1.0,) * 3))
    (height, width), (tall, wide) = photo, cut
    assert 1 <= part.height <= height and 1 <= part.width <= width
    assert part.height == height or part.width == width, "it is as large as it can be"
    assert abs(part.height * wide - part.width * tall) < max(wide, tall) or 1 in (part.height, part.width), "less than a pixel off"
    assert 0 <= height - part.height - 2 * part.top <= 1 and 0 <= width - part.width - 2 * part.left <= 1
    whole = seen(photo, Preprocessing(square_px=8, size_px=8, mean=(0.0,) * 3, std=(1.0,) * 3, whole=True))
    assert (whole.top, whole.left, whole.height, whole.width) == (0, 0, height, width)


@pytest.mark.parametrize("what", ["square", "wide", "whole"])
def test_in_a_photo_of_another_size_the_network_sees_the_same(make_subnet: Make, describe: Describe, what: str) -> None:
    how = describe(make_subnet(1, "same", seeing(what))).preprocessing
    down, across = np.mgrid[0:90, 0:160]
    photo = np.stack([2 * down, across, 255 - across], axis=2).astype(np.uint8)  # smooth, so that resizing loses nothing
    for size in ((300, 100), (120, 200), (160, 160)):
        there, std = fitted(photo, size, how), np.array(how.std)
        assert there.shape == (*size, 3) and there.dtype == np.uint8
        difference = np.abs((prepared(there, how) - prepared(photo, how)).numpy()).max(axis=(1, 2))
        assert (255 * std * difference < 8).all(), "of 255, at the border"
    assert fitted(photo, None, how) is photo and fitted(photo, (90, 160), how) is photo


@pytest.mark.parametrize(("text", "size"), [("480x640", (480, 640)), ("1x1", (1, 1))])
def test_a_photo_size_is_read(text: str, size: PhotoSize) -> None:
    assert parse_photo_size(text) == size
    for wrong in (text + "x3", "0x4", "-1x4", "480", "480×640", "480X640"):
        with pytest.raises(UsageError, match="is no size of photos; write height and width in pixels, as in 480x640"):
            parse_photo_size(wrong)


def test_a_format_of_one_size_wants_to_know_it() -> None:
    with pytest.raises(UsageError, match="tflite files resize photos of one size only; say which with --photo-size"):
        check_photos(FORMATS["tflite"], None)


def test_bytes_of_an_image_are_found_again(make_subnet: Make, describe: Describe, pictures: Pictures) -> None:
    subnet = make_subnet(1)
    pixels, images = pictures(subnet, 3)
    wanted = input_facts("input", "image", subnet.input_shape[2:])
    for image, expected in zip(images, pixels, strict=True):
        np.testing.assert_array_equal(as_input(image, wanted, describe(subnet).preprocessing)[0], expected.permute(1, 2, 0))


def test_what_is_no_number_is_infinitely_far() -> None:
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    broken = expected.clone()
    broken[1, 0] = torch.nan
    found = compare(broken, expected)
    assert (found.max_abs, found.max_rel) == (float("inf"), float("inf"))
    assert compare(expected, expected) == Parity(0.0, 0.0, 1.0, 2)
    with pytest.raises(ValueError, match="images"):
        compare(expected[:0], expected[:0])


def test_unknown_formats_and_precisions_are_told_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"there is no format 'coreml'; choose onnx, "):
        get_format("coreml")
    with pytest.raises(UsageError, match=r"there is no precision 'int4' of files; choose fp32, fp16, int8"):
        check_precision("int4")


def test_what_is_not_installed_is_told_with_what_installs_it(
    make_subnet: Make, export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'openvino'")

    monkeypatch.setattr(ov, "library", missing)
    with pytest.raises(UsageError, match=r"openvino \(after pip install 'natdeploy\[openvino\]'\)"):
        get_format("coreml")
    with pytest.raises(
        MissingRuntimeError, match=r"openvino in fp32 cannot be written here .* pip install 'natdeploy\[openvino\]'"
    ):
        export(make_subnet(0), "openvino")
