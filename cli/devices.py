"""`natdeploy devices`: which there are, what one is, whether it can be measured, and one's own."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Quiet, Verbose
from .terminal import session, write_json

if TYPE_CHECKING:
    from natdeploy.hardware.check import DeviceReport
    from natdeploy.hardware.device import Device

devices = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show, check and add devices.")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A known device, or the path of a .toml file; pixel4#2 is the second pixel4.")
]


@devices.command("list")
def list_(*, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Show the devices there are.

    Those that ship and your own, which come before shipped ones of the same name: how they are reached, which runtimes they have,
    and on which hardware their files were tried.

    \b
    Example:
      natdeploy devices list
    """
    from natdeploy.errors import UsageError
    from natdeploy.hardware.device import device_files, devices_folder, load_device

    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        files, damaged = device_files(), []
        known: list[Device] = []
        for name in sorted(files):
            try:
                known.append(load_device(name))
            except UsageError as error:
                damaged.append(str(error))
    if as_json:
        shown = [{**device.model_dump(mode="json"), "file": str(files[device.name])} for device in known]
        write_json({"devices": shown, "damaged": damaged})
        return
    for device in known:
        runtimes, own = ", ".join(device.runtimes), "yours" if files[device.name].parent == devices_folder() else "ships"
        tried = f"tried on {device.verified}" if device.verified else "not tried on any"
        typer.echo(f"{device.name:16} {device.description}; {_way(device)}; {runtimes}; {own}, {tried}")
    for problem in damaged:
        typer.echo(f"damaged: {problem}")


@devices.command()
def show(device: Name, *, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Show everything the file of a device says.

    \b
    Example:
      natdeploy devices show jetson
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy.hardware.device import device_file, load_device

        found, file = load_device(device), device_file(device)
    if as_json:
        write_json({**found.model_dump(mode="json"), "file": str(file)})
        return
    typer.echo(f"{found.to_toml()}\nfile: {file}")


@devices.command()
def check(device: Name, *, as_json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Ask a device what it has, and say what is missing.

    Processor, cores, memory and temperature; Python, numpy and the runtimes, loaded for real, or the vendors' tools where there is
    no Python. Exit code 1 when something is missing, 5 when the device cannot be reached.

    \b
    Example:
      natdeploy devices check jetson
    """
    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy.hardware.check import check as ask
        from natdeploy.hardware.device import load_device

        reports = [ask(member) for member in load_device(device).members()]
    if as_json:
        write_json([_report_json(report) for report in reports])
    else:
        for report in reports:
            _show(report)
    if any(report.problems for report in reports):
        raise typer.Exit(1)


@devices.command()
def add(
    device: Annotated[
        str, typer.Argument(metavar="NAME", help="A known device: what yours is, such as jetson, pixel4 or linux_arm64.")
    ],
    *,
    ssh: Annotated[
        str | None, typer.Option(metavar="DEST", help="Where it is: USER@HOST, or a Host of your ssh configuration.")
    ] = None,
    adb: Annotated[str | None, typer.Option(metavar="SERIAL", help="Which it is: a serial that `adb devices` shows.")] = None,
    like: Annotated[
        str | None, typer.Option(metavar="NAME", help="Known device to take the rest from.", show_default="NAME")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call it.", show_default="NAME")] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="Python on the device, such as venv/bin/python.", show_default="python3")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a device file of yours.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a file for a device of your own.

    It is asked what it is first: big cores, memory, where its temperature is read and which tools it has come from the device,
    all else from a known one.

    \b
    Example:
      natdeploy devices add jetson --ssh me@jetson.local
      natdeploy devices add my_phone --like android --adb 0A1B2C3D
    """
    from natdeploy.errors import UsageError

    with session(as_json=as_json, verbose=verbose, quiet=quiet):
        from natdeploy.hardware.add import add_device

        if ssh is not None and adb is None:
            made = add_device(like or device, "ssh", ssh, name=name or device, python=python, force=force)
        elif adb is not None and ssh is None:
            made = add_device(like or device, "adb", adb, name=name or device, python=python, force=force)
        else:
            raise UsageError("say how the device is reached: either --ssh USER@HOST or --adb SERIAL")
    if as_json:
        described = made.device.model_dump(mode="json")
        write_json({"file": str(made.path), "found": made.found, "report": _report_json(made.report), "device": described})
        return
    _show(made.report)
    for line in made.found:
        typer.echo(f"in the file: {line}")
    typer.echo(f"file: {made.path}")


def _way(device: Device) -> str:
    missing = {"local": "", "ssh": "no address yet", "adb": "the one that is attached"}[device.transport]
    return ", ".join(filter(None, (device.transport, *(device.addresses or (missing,)))))


def _report_json(report: DeviceReport) -> dict[str, Any]:
    values = {name: value for name, value in vars(report).items() if name not in ("device", "cores", "sensors")}
    return {
        "device": report.device.name,
        "address": report.device.address,
        **values,
        "cores": [asdict(core) for core in report.cores],
        "sensors": [asdict(sensor) for sensor in report.sensors],
        "big_cores": report.big_cores,
        "ok": not report.problems,
    }


def _show(report: DeviceReport) -> None:
    name = " at ".join(filter(None, (report.device.name, report.device.address)))
    typer.echo(f"{name}: {', '.join(filter(None, (report.model, report.system, report.os)))}")
    clocks = ", ".join(f"{khz / 1e6:.2f}" for khz in sorted({core.max_khz for core in report.cores if core.max_khz is not None}))
    governors = sorted({core.governor for core in report.cores if core.governor is not None})
    rows = {
        "processor": report.cpu,
        "cores": f"{len(report.cores)}{f', at most at {clocks} GHz' if clocks else ''}",
        "big cores": ", ".join(map(str, report.big_cores)) or "all alike",
        "governor": ", ".join(governors),
        "memory": None if report.memory_mb is None else f"{report.memory_mb / 1024:.1f} GiB",
        "free space": None if report.free_mb is None else f"{report.free_mb / 1024:.1f} GiB",
        "temperature": ", ".join(f"{each.kind} {each.celsius:g} C" for each in report.sensors[:4] if each.celsius is not None),
        "Python": None if report.python is None else f"{report.python}, numpy {report.numpy or 'does not load'}",
        "runtimes": ", ".join(f"{name} {version}" for name, version in report.runtimes.items()),
        "tools": ", ".join(report.tools.values()),
        "settings": "; ".join(f"{name} {outcome}" for name, outcome in report.settings.items()),
    }
    for label, value in rows.items():
        if value:
            typer.echo(f"  {label:12} {value}")
    for problem in report.problems:
        typer.echo(f"  missing: {problem}")
