"""`btlm repair`: correct flipped bits. `btlm protect`: add parity bits, so that more can be corrected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bit_transformer.cli.options import Device, Json, Store, parse_range
from bit_transformer.cli.output import EXIT_INTERRUPTED, EXIT_UNPROVED, console, errors_in_one_line, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.errors import ConfigError
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.proving import Proved
    from bit_transformer.service.restoration import RepairReport
    from bit_transformer.service.workspace import Workspace

LISTED = 10


def run(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] FILE",
            help="The damaged file, after a run unless --proof or --checksums decide what is right.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File for the repaired bytes. Default with a proof: FILE.repaired."),
    ] = None,
    proof: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:HEX",
            help="What proves the repair: crc32:HEX, sha256:HEX, md5:HEX, crc16:HEX, adler32:HEX; or auto: the checks in a PNG, ZIP, gzip, "
            "tar or Intel HEX file. Several may be given.",
        ),
    ] = None,
    checksums: Annotated[
        Path | None,
        typer.Option(help="A file of checksums, as sha256sum writes it; with --block-size, one for each block."),
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="Bytes of each block that --checksums lists.")] = None,
    called: Annotated[str, typer.Option(help="What the file is called in --checksums. Default: its name.")] = "",
    lost: Annotated[
        str | None,
        typer.Option(
            metavar="FROM:TO", help="With a proof: at most 256 bytes that are unknown; or located: the clearest damage."
        ),
    ] = None,
    reference: Annotated[
        list[str] | None, typer.Option(metavar="CLEAN", help="With a proof: intact files of the same kind.")
    ] = None,
    most_flips: Annotated[int, typer.Option(help="With a proof: flipped bits that are looked for, 1 to 4.")] = 4,
    seconds: Annotated[float, typer.Option(help="With a proof: when to stop looking.")] = 60.0,
    rate: Annotated[
        float | None,
        typer.Option(help="Without a proof: fraction of flipped bits, in (0, 0.5). Default: estimated from the file."),
    ] = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="FROM:TO", help="Without a proof: bytes to repair; the others stay. Default: all."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--run", "--model", metavar="RUN", help="The same as RUN before FILE.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With a proof: replace an existing file.")] = False,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Repair a file. With a proof (a checksum or hash), nothing is written that it does not prove; without, as far as a run can tell."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.workspace import Workspace

        file, model = _named(names, model)
        workspace = Workspace(store, device)
        proved = bool(proof or checksums or block_size)
        others = {"--rate": rate, "--range": range_} if proved else {"--lost": lost, "--reference": reference}
        if given := [name for name, value in others.items() if value is not None]:
            raise ConfigError(
                f"got {given[0]} {'and a proof' if proved else 'without a proof'}; they do not go together. Try without {given[0]}"
            )
        if proved:
            asked = {
                "path": file,
                "out": out,
                "proofs": tuple(proof or ()),
                "checksums": checksums,
                "block_size": block_size,
                "run": model,
                "reference": tuple(reference or ()),
                "called": called,
                "lost": lost if lost in (None, "located") else parse_range(lost),
                "most_flips": most_flips,
                "seconds": seconds,
                "overwrite": overwrite,
            }
            _prove(asked, workspace, as_json)
            return
        if model is None:
            raise ConfigError(
                "got neither a run nor a proof; one of them must say what is right. Try btlm repair RUN FILE --out OUT, or --proof crc32:HEX"
            )
        if out is None:
            raise ConfigError("got no name for the repaired file. Try --out FILE")
        _repair(model, file, out, rate, range_, workspace, as_json)


def _named(names: list[str], model: str | None) -> tuple[Path, str | None]:
    """The file, and the run if there is one."""
    if len(names) > 2 or (len(names) == 2 and model is not None):
        raise ConfigError(f"got {len(names)} names; a run and a file are needed at most. Try btlm repair RUN FILE")
    return Path(names[-1]), names[0] if len(names) == 2 else model


def _repair(
    model: str, file: Path, out: Path, rate: float | None, range_: str | None, workspace: Workspace, as_json: bool
) -> None:
    from bit_transformer.service.operations import call

    span = None if range_ is None else parse_range(range_)
    with live_progress() as job:
        found = call("repair", {"run": model, "path": file, "out": out, "rate": rate, "span": span}, workspace, job)
    if as_json:
        show_json(found)
    else:
        _show(found, out, rate_given=rate is not None)
    if found.stopped:
        raise typer.Exit(EXIT_INTERRUPTED)


def _prove(asked: dict[str, Any], workspace: Workspace, as_json: bool) -> None:
    from bit_transformer.service.operations import call

    with live_progress() as job:
        found = call("repair_proved", asked, workspace, job)
    if as_json:
        show_json(found)
    else:
        _show_proved(found)
    if not (found.proved or found.already):
        raise typer.Exit(EXIT_UNPROVED)


def _show_proved(found: Proved) -> None:
    if found.already:
        hold = "the check holds" if len(found.checks) == 1 else f"all {len(found.checks)} checks hold"
        console.print(f"{found.file}: {hold} already; nothing to repair", soft_wrap=True)
        return
    if len(found.checks) > 1:
        holding = sum(check.held for check in found.checks)
        console.print(f"{holding} of {len(found.checks)} checks hold as received", soft_wrap=True)
    if not found.proved:
        console.print(_why_not(found), style="yellow", soft_wrap=True)
    made = table("", "rank", "probability", "change", "log-odds")
    made.columns[2].justify = "left"
    for rank, candidate in enumerate(found.candidates[: 1 if found.proved else LISTED], 1):
        words = "; ".join(change.text for change in candidate.changes)
        made.add_row(str(rank), f"{candidate.probability:.2%}", words, f"{candidate.log_odds:.1f}")
    if found.candidates:
        console.print(made)
    if found.proved:
        why = "every check holds" if len(found.checks) > 1 else f"{found.checks[0].name} holds"
        console.print(f"repaired and proved: {why}. Written to {found.out}", style="green", soft_wrap=True)
    for part in found.open:
        console.print(f"still damaged: {part}", soft_wrap=True)
    console.print(
        f"{found.how}; {found.tried:,} sets of changes in {found.seconds:.1f} seconds. Read by {found.reader}",
        style="dim",
        soft_wrap=True,
    )


def _why_not(found: Proved) -> str:
    """Why nothing was written, and what to try."""
    other = "Another proof would decide, such as --proof sha256:HEX"
    if not found.candidates:
        return "not repaired: nothing that was tried passes. Nothing was written. Perhaps more is damaged, or the checksum is of another file"
    if found.unseen > 0.5:
        return (
            "not proved: so many changes were tried that some pass by chance. Nothing was written. Perhaps more is damaged, or the checksum is of "
            f"another file. {other}"
        )
    if found.ambiguous:
        return f"ambiguous: several changes pass and are likely. Nothing was written. {other}"
    return f"not proved: the likeliest is right with {found.candidates[0].probability:.1%}, and 99 % is needed. Nothing was written. {other}"


def _show(found: RepairReport, out: Path, *, rate_given: bool) -> None:
    if found.changes:
        made = table("", "byte", "received", "now", "doubt")
        for change in found.changes[:LISTED]:
            made.add_row(f"{change.offset:,}", _shown(change.received), _shown(change.now), f"{change.doubt:.0%}")
        console.print(made)
    found_rate = f"; about {found.rate:.3%} of the bits were flipped" if not rate_given and found.flipped_bits else ""
    more = f", of which {LISTED} are shown (all: --json)" if len(found.changes) > LISTED else ""
    begin, done = found.repaired
    if done > begin:
        console.print(
            f"{found.flipped_bits:,} bits changed in {done - begin:,} bytes{more}{found_rate}. "
            f"{found.doubtful:,} patches are still doubtful. Written to {out}",
            soft_wrap=True,
        )
    if found.stopped:
        _show_rest(found, out)


def _show_rest(found: RepairReport, out: Path) -> None:
    """Print how to continue a stopped repair."""
    (begin, done), end = found.repaired, found.asked[1]
    if done == begin:
        console.print("Stopped before the first piece was done; nothing was written", soft_wrap=True)
        return
    rest = f"--range {done}:{end} --rate {found.rate:.3g}"
    how = (
        f"btlm repair {found.run} {found.file} {rest} --out {out}.rest; bytes {done} to {end} of that belong into {out}"
        if found.parity
        else f"btlm repair {found.run} {out} {rest} --out {out}"
    )
    console.print(
        f"Stopped: bytes {begin} to {done} are repaired, the others as received. Go on with: {how}", soft_wrap=True
    )


def _shown(byte: int) -> str:
    return f"{byte:02x} {chr(byte) if 32 < byte < 127 else ' '}"


def protect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any file.")],
    out: Annotated[Path, typer.Option(help="File for the result.")],
    undo: Annotated[bool, typer.Option("--undo", help="Read a protected file back.")] = False,
    as_json: Json = False,
) -> None:
    """Add a parity bit to each byte of a file and pack the nine bits, for `btlm repair` with models with parity."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        made = call("protect", {"path": file, "out": out, "undo": undo}, Workspace())
        if as_json:
            show_json({"bytes": made.bytes, "out": made.file})
        else:
            console.print(
                f"{made.bytes:,} bytes {'read back' if undo else 'protected'}, written to {out}", soft_wrap=True
            )
