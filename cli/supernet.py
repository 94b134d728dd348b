"""`natdeploy supernet`: what a file of weights is, and supernets made of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Json, Quiet, Run, Verbose
from .terminal import session, write_json

if TYPE_CHECKING:
    from natdeploy.pipeline import WeightsInfo

supernet = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show what a file of weights is; make supernets of them.")

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help=".safetensors or .pth, or torchvision's name for weights: MobileNet_V3_Large_Weights.IMAGENET1K_V2."
    ),
]
Space = Annotated[str | None, typer.Option(metavar="NAME", help="Name or .toml file of its space.", show_default="recognised")]


@supernet.command()
def info(file: File, *, space: Space = None, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Show what a file of weights is.

    Format, space, width, depths, expansions and kernels are recognised from its tensors; what does not fit is named.

    \b
    Example:
      natdeploy supernet info mobilenet_v2.safetensors
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        found = pipeline.supernet_info(file, space)
    if as_json:
        write_json(asdict(found))
    else:
        _show(found)


@supernet.command("import")
def import_(
    file: File,
    *,
    space: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name or .toml file of the supernet's space.", show_default="that of the file"),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Outputs of the classifier.", show_default="those of the file")
    ] = None,
    padding: Annotated[
        Literal["symmetric", "same"] | None,
        typer.Option(help="At stride 2; `same` is TensorFlow's.", show_default="as the file says, else symmetric"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the initial values of what is new.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Supernet to write.")] = Path("supernet.safetensors"),
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Make a supernet of a file of weights.

    A network's layers, channels and kernels go to their places in the supernet, where its own architecture computes what it
    computed; a supernet of the same space is taken as it is.

    \b
    Example:
      natdeploy supernet import mobilenet_v2.safetensors --space mbv2 --classes 12
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        result = pipeline.supernet_import(file, out, space=space, classes=classes, padding=padding, seed=seed)
    if as_json:
        write_json({**asdict(result), "path": str(result.path)})
        return
    _show(result.seed)
    typer.echo(f"{'imported':11} {result.report.summary()}\n")
    _show(result.supernet)
    typer.echo(f"{'written':11} {result.path}")


@supernet.command()
def save(
    run: Run,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Supernet to write.")] = Path("supernet.safetensors"),
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write the supernet of a finished search.

    It is a seed for further searches, of other images or for other targets, and any architecture can be exported from it.

    \b
    Example:
      natdeploy supernet save runs/flowers --out flowers.safetensors
      natdeploy search --data orchids --seed-weights flowers.safetensors
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy import pipeline

        found = pipeline.supernet_save(run, out)
    if as_json:
        write_json({**asdict(found), "path": str(out)})
        return
    _show(found)
    typer.echo(f"{'written':11} {out}")


def _show(found: WeightsInfo) -> None:
    one = found.smallest == found.largest
    sizes = (found.largest,) if one else (found.smallest, found.largest)
    transforms = ", smaller kernels are learned maps of larger ones" if found.kernel_transforms else ""
    lines = {
        "file": f"{found.file} ({found.sha256[:12]})",
        "format": f"{found.format}, {found.tensors} tensors",
        "holds": f"a {found.holds} of space {found.space}, width {found.width:g}{transforms}",
        "channels": " ".join(map(str, found.channels)),
        **({"dense head": f"{found.head} of {found.head_channels} channels"} if found.head else {}),
        "classes": str(found.classes) if found.classes else "none, it has no classifier",
        "norm eps": f"{found.norm_eps:g}",
        "padding": found.padding or "not stated; recognised on photos",
        "input": found.input or "not stated; recognised on photos",
    }
    for name, size in zip(("network",) if one else ("smallest", "largest"), sizes, strict=True):
        lines[name] = f"{size.arch}: {size.params / 1e6:.3f}M parameters, {size.macs / 1e6:.1f}M MACs"
    typer.echo("\n".join(f"{name:11} {text}" for name, text in lines.items()))
