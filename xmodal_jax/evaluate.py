"""Evaluation: encode each item once, score block by block, count ranks; one checkpoint, or watch a run folder."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from xmodal_jax import digest
from xmodal_jax.baselines.cca import FILE as BASELINE
from xmodal_jax.baselines.cca import Fitted
from xmodal_jax.data.pipeline import Captions, text_ids
from xmodal_jax.data.records import Dataset, open_dataset
from xmodal_jax.errors import CheckpointError, UsageError, check_output, require
from xmodal_jax.evaluation import ranks_file, speak, table
from xmodal_jax.evaluation.embeddings import load_array, load_map, recall
from xmodal_jax.evaluation.run import Run, run_and_step
from xmodal_jax.evaluation.speak import Said
from xmodal_jax.evaluation.vote import Ranking, rank_split, scaled
from xmodal_jax.inference import load
from xmodal_jax.inference.table import Measured
from xmodal_jax.text.generation import Decoding
from xmodal_jax.text.noise import noisy
from xmodal_jax.training.bundle import is_bundle

NOISE = "noise.json"  # the noise curve of a run, in its folder "eval"


def open_run(path: Path, args: argparse.Namespace) -> Run:
    workdir, step = run_and_step(path) if args.ensemble else (path, None)
    return Run(workdir, args.data, allow_unknown=args.allow_unknown, voting=step)


def show(result: table.Table, title: str, name: str, latex: bool) -> None:
    """Print a table, as LaTeX too where that is asked for."""
    table.to_screen(result, title=title, chance=True)
    if latex:
        print(*table.to_latex(result, name=name), sep="\n")


def report(run: Run, step: int, args: argparse.Namespace) -> None:
    """Print recall and, of a system that speaks, how good its sentences are; write both under ``workdir/eval`` as JSON
    and Markdown, beside the ranks of all queries, and to ``args.json``; draw the page of ``args.report``."""
    split = args.split
    member, ranking = run.rank(step, split, args.protocol, shared=args.duplicates == "shared")
    said = run.speech(step, split, Decoding("beam" if args.beams > 1 else "greedy", beams=args.beams))
    record(run, step, split, ranking, said, latex=args.latex, copy=args.json)
    if args.report:
        from xmodal_jax.report import page as pages

        title = f"{run.workdir} on {run.title} {split}, step {step:,}"
        pages.make(run, step, member, ranking, run.dataset.split(split), args.report, title=title)
        print(f"report: {args.report / 'report.md'}")


def record(
    run: Run,
    step: int,
    split: str,
    ranking: Ranking,
    said: Sequence[Said] = (),
    *,
    latex: bool = False,
    copy: Path | None = None,
) -> table.Table:
    """Print and keep what :func:`report` measured, as LaTeX too by ``latex``; gives the table."""
    result = ranking.table()
    reached = run.checkpoints.reached(step)
    chosen = f"step {step:,}" + (f" ({reached})" if reached else "")
    title = f"{run.workdir} on {run.title} {split}, {chosen}"
    show(result, title, run.workdir.name, latex)
    content = {**run.about, "split": split, "step": step, **table.to_json(result)}
    if run.coverage:
        content["unknown"] = run.coverage._asdict()
    markdown = table.to_markdown(result, title=title, chance=True)
    if said:
        print(*speak.to_lines(said), sep="\n")
        content["sentences"] = {s.kind: {"decoding": s.decoding._asdict(), **s.figures()} for s in said}
        markdown += "\n" + speak.to_markdown(said)
    text = json.dumps(digest.sealed(content), indent=1) + "\n"
    shared = ranking.duplicates.shared
    name = f"{split}-{step}" + ("-shared" if shared else "")  # a figure of another kind
    ranks = {} if shared else ranks_of(run, step, split, ranking)
    keep(run, {f"{name}.json": text, f"{name}.md": markdown, **ranks}, copy, text)
    return result


def ranks_of(run: Run, step: int, split: str, ranking: Ranking) -> dict[str, bytes]:
    """The file of ranks of an evaluation by its name."""
    rows = run.dataset.split(split)
    about = {**run.about, "split": split, "step": step, "system": str(run.config.model.name)}
    return {ranks_file.file_of(split, step): ranks_file.make(ranking, rows.ids, rows.captions, about)}


def keep(run: Run, files: Mapping[str, str | bytes], copy: Path | None, text: str) -> None:
    """Write the files of an evaluation, and ``text`` to ``copy``. Raises CheckpointError where the disk refuses."""
    folder = run.evaluations
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise digest.refused(folder, error) from error
    for name, content in files.items():
        digest.write(folder / name, content)
    if copy:
        digest.write(copy, text)


def ensemble(args: argparse.Namespace) -> int:
    """The mean of the score matrices of several systems, each scaled by its spread on dev with ``--scale``."""
    if args.watch or args.step is not None:
        raise UsageError(
            "--ensemble takes the best step of each run, or that of RUN@STEP; leave out --watch and --step."
        )
    runs = members_of(args)
    for run in runs[1:]:
        if run.dataset.identity != runs[0].dataset.identity:
            raise UsageError(
                f"{run.workdir} was trained on {run.dataset.directory}, {runs[0].workdir} on "
                f"{runs[0].dataset.directory}: other data. An ensemble ranks one set; name it with --data."
            )
    parts = [run.vote(args.split) for run in runs]
    members, owner, count = [part[0] for part in parts], parts[0][1], len(runs[0].dataset.split(args.split))
    if args.scale:
        known = [part[0] for part in parts] if args.split == "dev" else [run.vote("dev")[0] for run in runs]
        members = [scaled(member, by) for member, by in zip(members, known, strict=True)]
    weights = "/".join(sorted({part[2] for part in parts}))
    options = {"text_id": text_ids(runs[0].dataset.split(args.split)), "shared": args.duplicates == "shared"}
    ranking = rank_split(members, owner, count, protocol=args.protocol, weights=weights, **options)
    result = ranking.table()
    names = ", ".join(map(str, runs))
    how = "mean score, each in units of its deviation on dev," if args.scale else "mean score"
    title = f"{how} of {names} on {runs[0].dataset.manifest['name']} {args.split}"
    show(result, title, " + ".join(path.name for path in args.ensemble), args.latex)
    if args.json:
        content = {"ensemble": list(map(str, args.ensemble)), "scale": args.scale, "split": args.split}
        content |= {"data": runs[0].dataset.manifest["name"], "identity": runs[0].dataset.identity}
        whole = digest.sealed({**content, **table.to_json(result)})
        digest.write(args.json, json.dumps(whole, indent=1) + "\n")
        about = {**content, "system": "ensemble"}
        ranks_file.write_beside(args.json, ranking, runs[0].dataset.split(args.split), about)
    return 0


def members_of(args: argparse.Namespace) -> list[Run | Fitted | Measured]:
    """What ``--ensemble`` names; bundles, which have no data, are measured on ``--data`` or that of the first other."""

    def open_other(path: Path) -> Run | Fitted:
        if (path / BASELINE).is_file():
            return Fitted.load(path, args.data)
        return open_run(path, args)

    bundles = {path for path in args.ensemble if is_bundle(path)}
    others = {path: open_other(path) for path in args.ensemble if path not in bundles}
    if not others and args.data is None:
        raise UsageError("An --ensemble of bundles alone needs --data, a prepared data set.")
    dataset = next(iter(others.values())).dataset if others else open_dataset(args.data)
    return [others.get(path) or measured(path, dataset, args) for path in args.ensemble]


def measured(path: Path, dataset: Dataset, args: argparse.Namespace) -> Measured:
    return Measured(path, load(path), dataset, args.allow_unknown)


def main(args: argparse.Namespace) -> int:
    """`xmodal eval`: the best step (or ``--step``) of a run folder, every new one (``--watch``), or an ensemble."""
    check_output("--json", args.json)
    if args.report:
        if not args.workdir or args.watch or args.char_noise:
            raise UsageError(
                "--report is of one step of a run: give --workdir, and leave out --watch and --char-noise."
            )
        require("matplotlib", "train")
        try:
            args.report.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise digest.refused(args.report, error) from error
    if args.ensemble:
        return ensemble(args)
    if args.embeddings:
        return arrays(args)
    if args.bundle:
        return bundle(args)
    if args.map:
        raise UsageError("--map is for --embeddings.")
    if args.scale:
        raise UsageError("--scale is for the members of an --ensemble.")
    run = open_run(args.workdir, args)
    if args.watch:
        return watch(run, args)
    step = run.step(args.step)
    if args.char_noise:
        return noise_curve(run, step, args)
    report(run, step, args)
    return 0


def arrays(args: argparse.Namespace) -> int:
    """The table of two .npy files of embeddings, whichever program wrote them."""
    if args.map is None:
        raise UsageError("--embeddings needs --map, a JSON list with the row of the image of each caption.")
    unfit = {"--watch": args.watch, "--step": args.step is not None, "--data": args.data, "--scale": args.scale}
    unfit |= {"--char-noise": args.char_noise, "--duplicates shared": args.duplicates == "shared"}
    if given := [name for name, value in unfit.items() if value]:
        raise UsageError(f"--embeddings are all that is looked at; leave out {', '.join(given)}.")
    image, text = map(load_array, args.embeddings)
    result = recall(image, text, load_map(args.map), protocol=args.protocol)
    title = f"{args.embeddings[0]} and {args.embeddings[1]}, inner products"
    show(result, title, f"{args.embeddings[0].stem}, {args.embeddings[1].stem}", args.latex)
    if args.json:
        content = {"embeddings": list(map(str, args.embeddings)), "map": str(args.map), **table.to_json(result)}
        digest.write(args.json, json.dumps(digest.sealed(content), indent=1) + "\n")
    return 0


def bundle(args: argparse.Namespace) -> int:
    """The table of a bundle on a prepared data set."""
    if args.data is None:
        raise UsageError("--bundle needs --data, a prepared data set.")
    unfit = {"--watch": args.watch, "--step": args.step is not None, "--scale": args.scale, "--map": args.map}
    if given := [name for name, value in (unfit | {"--char-noise": args.char_noise}).items() if value]:
        raise UsageError(f"A bundle holds one state of a system; leave out {', '.join(given)}.")
    dataset = open_dataset(args.data)
    system = measured(args.bundle, dataset, args)
    ranking = system.rank(args.split, args.protocol, shared=args.duplicates == "shared")
    result, name = ranking.table(), dataset.manifest["name"]
    show(result, f"{args.bundle} ({system.bundle.system}) on {name} {args.split}", args.bundle.name, args.latex)
    if args.json:
        about = {"bundle": str(args.bundle), "manifest": system.bundle.fingerprint, "data": name, "split": args.split}
        about["identity"] = dataset.identity
        whole = digest.sealed({**about, **table.to_json(result)})
        digest.write(args.json, json.dumps(whole, indent=1) + "\n")
        kept = {**about, "system": system.bundle.system}
        ranks_file.write_beside(args.json, ranking, dataset.split(args.split), kept)
    return 0


def noise_curve(run: Run, step: int, args: argparse.Namespace) -> int:
    """Recall against the share of wrong characters (CHAIN-VSE's Figure 5): lines, JSON and a picture in the run folder,
    beside the curves that other runs have there."""
    from xmodal_jax.evaluation import noise as pictures

    if any(name != "token" for name in run.inputs.text):
        raise UsageError(f"{run.workdir} reads dense text vectors, not text; leave out --char-noise.")
    split = run.dataset.split(args.split)
    reader, (variables, weights) = run.reader(args.split), run.variables(step)
    results = []
    print(f"{'noise':>6}{'i2t R@1':>9}{'R@10':>7}{'t2i R@1':>9}{'R@10':>7}{'rsum':>8}")
    for share in sorted(set(args.char_noise)):
        captions = Captions(noisy(split.captions, share, 0), run.vocabulary, run.config.data.lengths)
        options = {"protocol": args.protocol, "weights": weights, "text_id": text_ids(split)}
        options["shared"] = args.duplicates == "shared"
        result = run.evaluator.table(variables, reader, captions, quiet=True, draws=0, **options)
        about = {**run.about, "char_noise": share, "split": args.split, "step": step}
        results.append({**about, **table.to_json(result)})
        i2t, t2i = result.i2t, result.t2i
        print(f"{share:6.2f}{i2t.r1:9.1f}{i2t.r10:7.1f}{t2i.r1:9.1f}{t2i.r10:7.1f}{result.rsum:8.1f}", flush=True)
    text = json.dumps(results, indent=1) + "\n"
    keep(run, {NOISE: text}, args.json, text)
    curves = {run.workdir.name: results}
    for other in args.beside:
        path = other / "eval" / NOISE
        if not path.is_file():
            raise UsageError(f"{path} is missing; make it with: xmodal eval --workdir {other} --char-noise ...")
        curves[other.name] = json.loads(path.read_text())
    picture = run.evaluations / "noise.png"
    pictures.draw(curves, picture)
    print(f"curve: {picture}")
    return 0


def watch(run: Run, args: argparse.Namespace) -> int:
    """Evaluate each checkpoint once as it appears, until the run says it is finished."""
    if args.step is not None:
        raise UsageError("--watch evaluates every new step; leave out --step.")
    done: set[int] = set()
    print(f"Watching {run.workdir} every {args.interval:g} s; stop with Ctrl-C.", file=sys.stderr)
    while True:
        finished = (run.workdir / "finished.json").is_file()
        for step in run.checkpoints.steps():
            if step in done:
                continue
            done.add(step)
            try:
                report(run, step, args)
            except (CheckpointError, FileNotFoundError) as error:
                print(f"step {step:,}: passed over, {error}", file=sys.stderr)  # the run may have removed it meanwhile
        if finished:
            return 0
        time.sleep(args.interval)
