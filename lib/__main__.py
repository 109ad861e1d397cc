"""`python -m lib`: plan, run, render. `./run_all.sh` makes the environment and calls this.

`python -m lib run NAME` does one run, `python -m lib prepare NAME` what it shares with others: the
jobs of `--plan --json`. `python -m lib edit` edits facts of one's own in a model of one's own
(`lib.api.command`).
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path

from lib.errors import StudyError, UsageError
from lib.runs.progress import clock
from lib.runs.schedule import parallel
from lib.runs.settings import DEFAULT, PROFILES, assigned, papers
from lib.storage import hub
from lib.storage.cache import check_cache_dir

DESCRIPTION = """Reproduces the papers of the study: runs what the store does not have yet, renders
one HTML report per paper and an index page into OUTPUT/PROFILE/."""


def parser() -> argparse.ArgumentParser:
    """The flags of `./run_all.sh`."""
    build = argparse.ArgumentParser(
        prog="./run_all.sh",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "./run_all.sh --test runs the test suite (set-up included).\n"
            "./run_all.sh edit --help: edit facts of your own in a model of your own.\n"
            "./run_all.sh api [DIR]: the API reference (default: OUTPUT/api)."
        ),
        allow_abbrev=False,
    )
    add = build.add_argument
    add("--only", metavar="PAPERS", help=f"comma-separated papers: {', '.join(papers())}")
    add("--profile", default=DEFAULT, metavar="NAME", help=f"{', '.join(PROFILES)} (laptop)")
    add("--plan", action="store_true", help="show what would run, with cost; start nothing")
    add(
        "--table", metavar="NAME",
        help="make one table of one paper (--only): do the runs it needs, print it, write its CSV",
    )  # fmt: skip
    add("--check", action="store_true", help="what the profile needs and has not; starts nothing")
    add("--json", action="store_true", help="with --plan: the jobs, as JSON")
    add(
        "--cluster",
        metavar="EXECUTOR",
        help="do the plan's jobs with Snakemake: slurm, another executor, local (all cards here)",
    )
    add(
        "--device", metavar="NAME", help="cpu or cuda, for plans of other machines (default: found)"
    )
    add("--gpu-memory", type=float, metavar="GIB", help="of the card (default: of the one here)")
    add("--jobs", type=int, metavar="N", help="papers at the same time (default: as cores allow)")
    add("--threads", type=int, metavar="N", help="of each run on a CPU, part of its identity (1)")
    add("--seeds", type=int, metavar="N", help="order seeds 0..N-1 (default: the profile's)")
    add(
        "--set", action="append", default=[], metavar="PLACE=VALUE",
        help="another value for one paper (--only), such as --set "
        "zsre-t5.editors.MELO.changes.radius=50; its page stands in OUTPUT/PROFILE-HASH",
    )  # fmt: skip
    add("--data-dir", type=_path, metavar="DIR", help="published datasets in local files")
    add(
        "--assets", type=_path, metavar="DIR", help="archives with weights and data, fetched before"
    )
    add("--output", type=_path, metavar="DIR", help="default: outputs/ of the project")
    add("--self-contained", action="store_true", help="pages carry their figures inside")
    add("--reference", action="store_true", help="copy finished pages to OUTPUT/reference")
    add("--part", action="store_true", help=argparse.SUPPRESS)  # one of several at a time
    add("--free-runs", action="store_true", help=argparse.SUPPRESS)  # do these and write no page
    add("--pages", action="store_true", help=argparse.SUPPRESS)  # begin no run
    add("--cards", help=argparse.SUPPRESS)  # of which a job takes a free one
    add("job", nargs="*", help=argparse.SUPPRESS)  # run NAME, prepare NAME
    bad = build.add_mutually_exclusive_group()
    bad.add_argument("--strict", action="store_true", help="stop at a malformed record (default)")
    bad.add_argument(
        "--skip-bad", action="store_true", help="leave malformed records out, list them"
    )
    return build


def _path(text: str) -> Path:
    """A path as the caller means it: in the caller's folder; `~`, which no shell expands behind an
    equals sign, is the home folder."""
    return Path(os.path.expanduser(text)).resolve()


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all fine, 1 something failed (reports say what), 2 wrong usage."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["edit"]:
        from lib.api import command

        return command.main(given[1:])
    try:
        if given[:1] == ["api"]:
            return _api(given[1:])
        options = parser().parse_args(given)
        with contextlib.ExitStack() as held:
            if options.cards:
                from lib.runs.schedule import fanout

                held.enter_context(fanout.card_of(options.cards.split(",")))
            return _run(options, given)
    except UsageError as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 2
    except StudyError as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; finished runs are kept, call again to go on", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    chosen = _papers(options.only)
    if options.profile not in PROFILES:
        raise UsageError(
            f"unknown profile {options.profile!r}; the profiles are {', '.join(PROFILES)}"
        )
    if options.job and (len(options.job) != 2 or options.job[0] not in ("run", "prepare")):
        raise UsageError(f"{' '.join(options.job)}: neither `run NAME` nor `prepare NAME`")
    if options.json and not options.plan:
        raise UsageError("--json goes with --plan")
    if options.seeds is not None and options.seeds < 1:
        raise UsageError(f"--seeds {options.seeds}: at least one seed is needed")
    for flag, folder in (("--data-dir", options.data_dir), ("--assets", options.assets)):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{flag} {folder}: there is no such folder")
    overrides = assigned("--set", options.set)
    if overrides and len(chosen) > 1:
        raise UsageError(f"--set {options.set[0]}: say of which paper, with --only")
    _environment(options)

    from lib.runs.study import Study, output_root

    options.output = output_root(options.output).resolve()
    if options.reference:
        from lib.report.pages import publish, reference

        source, target = options.output / options.profile, options.output / "reference"
        if options.profile != DEFAULT:  # longer profiles stand below, where its pages look for them
            target = target / options.profile
        made = publish.make(source, target, chosen if options.only else None)
        if options.profile == DEFAULT:
            try:
                reference.write(made / "api")
            except UsageError as error:
                print(f"the copy has no API reference: {error}", file=sys.stderr)
        print(f"open {made / 'index.html'}", file=sys.stderr)
        return 0
    studies = [
        Study.open(
            paper,
            options.profile,
            output=options.output,
            data_dir=options.data_dir,
            seeds=options.seeds,
            strict=not options.skip_bad,
            overrides=overrides,
        )
        for paper in chosen
    ]
    if options.job:
        return _job(studies, *options.job)
    if options.plan and options.json:
        print(json.dumps(_document(studies, options), indent=1))
        return 0
    if options.plan:
        for study in studies:
            _print_plan(study)
        return 0
    if options.check:
        from lib.report import check

        found = check.needs(studies)
        print(check.table(found))
        return 0 if all(need.is_met for need in found) else 1
    check_cache_dir()
    if options.table:
        from lib.report.pages import one_table

        if len(studies) > 1:
            raise UsageError(f"--table {options.table}: say of which paper, with --only")
        for path in one_table.make(studies[0], options.table):
            print(f"wrote {path}", file=sys.stderr)
        return 0
    if options.cluster:
        return _fan_out(studies, options)
    if options.pages:
        return _execute(studies, options, arguments)
    for study in studies:
        study.check_memory()
    if options.free_runs:
        for study in studies:
            study.run_missing(quiet=True, prefix=f"{study.paper}: ", free=True)
        return 0
    return _execute(studies, options, arguments)


def _api(given: list[str]) -> int:
    """Write the API reference into the folder that is given, if one is."""
    from lib.report.pages import reference
    from lib.runs.study import output_root

    if len(given) > 1 or given[:1] in (["-h"], ["--help"]):
        raise UsageError("./run_all.sh api [DIR] writes the API reference into DIR")
    folder = _path(given[0]) if given else output_root().resolve() / "api"
    print(f"open {reference.write(folder)}", file=sys.stderr)
    return 0


def _papers(only: str | None) -> list[str]:
    if not papers():
        raise UsageError("only the library is installed here; run the study from its checkout")
    chosen = [name.strip() for name in (only or ",".join(papers())).split(",") if name.strip()]
    known = papers()
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise UsageError(
            f"unknown paper {', '.join(unknown) or '(none)'}; the papers are {', '.join(known)}"
        )
    return chosen


def _environment(options: argparse.Namespace) -> None:
    """Settings that the library and the notebooks' kernels read from the environment."""
    # It kept the caller's folder out of the imports; in the project's folder a kernel would take
    # its own folder out of them, and then find no `lib`.
    os.environ.pop("PYTHONSAFEPATH", None)
    if options.device is not None:
        if options.device not in ("cpu", "cuda"):
            raise UsageError(f"--device {options.device}: cpu or cuda")
        os.environ["STUDY_DEVICE"] = options.device
    if options.gpu_memory is not None:
        os.environ["STUDY_GPU_MEMORY"] = str(options.gpu_memory)
    if options.threads is not None:
        os.environ["STUDY_THREADS"] = str(options.threads)
    if options.assets:
        os.environ["STUDY_ASSETS"] = str(options.assets)
    for name in ("STUDY_ASSETS", "STUDY_CACHE", "STUDY_MODELS"):
        if os.environ.get(name):  # kernels work in another folder than the caller's
            os.environ[name] = str(_path(os.environ[name]))
    if options.profile != "paper":
        # No package backbone needs the hub; a forgotten hub name should fail at once.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    elif options.check and not hub.reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # no library tries again and again
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _print_plan(study: "Study") -> None:  # noqa: F821 - imported late, it loads torch
    from lib.runs.schedule.jobs import critical_path, gpu_hours, jobs_of

    plan = study.plan()
    to_do = plan[~plan["state"].isin(["done", "left out"])]
    print(f"{study.document['short']}, profile {study.profile}, into {study.folder}")
    print(plan.drop(columns="run").to_string(index=False))
    print(
        f"{len(plan)} runs, {len(to_do)} to do: about {clock(to_do['estimated seconds'].sum())}, "
        f"peak memory {plan[plan['state'] != 'left out']['peak GiB'].max():.1f} GiB"
    )
    for title, reason in study.left_out().items():
        print(f"{title}: {reason}")
    jobs = jobs_of(study.to_do(), [study.paper])
    seconds, names = critical_path(jobs)
    if seconds:
        print(f"critical path {clock(seconds)}: {', '.join(names[:-1])}")
    if hours := gpu_hours(jobs):
        print(f"{hours:.1f} GPU hours")
    print(*study.replaced(), "", sep="\n")


def _document(studies: list["Study"], options: argparse.Namespace) -> dict[str, object]:  # noqa: F821
    """The plan as jobs: what `--plan --json` prints and `workflow/Snakefile` reads."""
    from lib.runs.schedule import fanout, jobs

    to_do = [run for study in studies for run in study.to_do()]
    names = [study.paper for study in studies]
    made = jobs.jobs_of(to_do, names)
    given = [f"{name}={value}" for name, value in fanout.environment().items()]
    flags = ["--profile", options.profile, "--output", str(options.output)]
    flags += ["--skip-bad"] * options.skip_bad + ["--self-contained"] * options.self_contained
    for flag in ("data_dir", "seeds", "threads", "assets", "device", "gpu_memory"):
        if (value := getattr(options, flag)) is not None:
            flags += [f"--{flag.replace('_', '-')}", str(value)]
    taken = ["--cards", ",".join(fanout.cards())] if options.cluster == "local" else []

    def command(job: jobs.Job) -> list[str]:
        own = [job.kind, job.name]
        if job.kind == "page":
            own = ["--pages", "--part", "--jobs", "1"]
        only = job.papers[0]  # a run of several pages is named after the first
        rest = [*flags, *(taken if job.gpu else ())]
        return ["env", *given, sys.executable, "-m", "lib", *own, "--only", only, *rest]

    summary = {}
    for study in studies:
        mine = [job for job in made if study.paper in job.papers]
        seconds, path = jobs.critical_path(
            [job for job in mine if {*job.after} <= {one.name for one in mine}]
        )
        summary[study.paper] = {
            "runs": len(study.unique_runs()),
            "to_do": len(study.to_do()),
            "left_out": study.left_out(),
            "critical_path": {"seconds": seconds, "jobs": path},
            "gpu_hours": jobs.gpu_hours(mine),
        }
    return {
        "profile": options.profile,
        "folder": str(studies[0].folder),
        "noted": jobs.NOTED,
        "threads": parallel.threads(),
        "papers": summary,
        "jobs": [job.as_dict(command(job)) for job in made],
    }


def _fan_out(studies: list["Study"], options: argparse.Namespace) -> int:  # noqa: F821
    """Do the plan's jobs with Snakemake; the store and the pages say whether all went well."""
    from lib.report.pages import reports
    from lib.runs.schedule import fanout

    document = _document(studies, options)
    ended = fanout.start(document, studies[0].folder, options.cluster, options.jobs)
    print(f"open {reports.write_index(studies[0].folder)}", file=sys.stderr)
    if not ended:
        print("some jobs did not end; their logs say why, call again to go on", file=sys.stderr)
    return 0 if ended and all([reports.is_current(study, options) for study in studies]) else 1


def _job(studies: list["Study"], kind: str, name: str) -> int:  # noqa: F821
    """One job of the plan: status 0 if it is done, NOTED if it failed and said so."""
    from lib.runs.schedule import jobs
    from lib.runs.schedule.preparing import prepare

    level, _, rest = name.partition(".")
    wanted = rest if kind == "prepare" else name
    for study in studies:
        for run in study.runs:
            if jobs.name_of(run) == wanted:
                check_cache_dir()
                if kind == "run":
                    fine = study.run_missing(quiet=True, prefix=f"{study.paper}: ", only=name)
                    return 0 if fine else jobs.NOTED
                try:
                    prepare(run, study.store, study.resources, fit=level == "fit")
                except Exception as error:  # the runs that take it will say so in the store
                    print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
                    return jobs.NOTED
                return 0
    raise UsageError(
        f"{name}: this machine plans no such {kind}; `--plan --json` with the same flags names all"
    )


def _execute(studies: list["Study"], options: argparse.Namespace, arguments: list[str]) -> int:  # noqa: F821
    from lib.report.pages import reports

    folder, left = studies[0].folder, []
    for study in studies:
        if reports.is_current(study, options):
            print(f"{study.paper}: nothing that the page shows has changed", file=sys.stderr)
        else:
            left.append(study)
    fine = not left or _make(left, options, arguments)
    index = reports.write_index(folder)
    if not options.part:
        print(f"open {index}", file=sys.stderr)
    if not fine:
        print("some runs failed; the reports show the errors", file=sys.stderr)
    return 0 if fine else 1


def _make(studies: list["Study"], options: argparse.Namespace, arguments: list[str]) -> bool:  # noqa: F821
    """Do the missing runs and write the pages, several papers at a time; whether all went well."""
    from lib.runs import machine
    from lib.runs.study import device_of_runs

    if options.pages:
        return all([_report(study, options) for study in studies])
    device = device_of_runs()
    peaks = [run.gigabytes for study in studies for run in study.to_do()] or [0.0]
    count = parallel.jobs(options.jobs, peaks, device, machine.available_gigabytes(device))
    if count > 1:
        # The longest first, so that nothing waits for it at the end.
        order = sorted(studies, key=lambda study: -sum(run.seconds for run in study.to_do()))
        print(f"{len(order)} reports, {count} processes", file=sys.stderr)
        return parallel.run([study.paper for study in order], arguments, count)
    return all([_report(study, options) for study in studies])


def _report(study: "Study", options: argparse.Namespace) -> bool:  # noqa: F821
    """Do a paper's missing runs and write its page; whether everything went well."""
    from lib.report.pages import reports

    began, to_do = time.monotonic(), study.to_do()
    for title, reason in study.left_out().items():
        print(f"{study.paper}: {title}: {reason}", file=sys.stderr)
    print(
        f"{study.document['short']}: {len(study.unique_runs())} runs, {len(to_do)} to do, "
        f"about {clock(sum(run.seconds for run in to_do))}",
        file=sys.stderr,
    )
    for sentence in study.replaced():
        print(f"{study.paper}: {sentence}", file=sys.stderr)
    try:
        fine = options.pages or study.run_missing(quiet=True, prefix=f"{study.paper}: ")
        fine = reports.render_paper(study, options) and fine
    except StudyError as error:  # the other reports go on
        print(f"{study.paper}: {error}", file=sys.stderr)
        return False
    print(f"{study.paper}: done in {clock(time.monotonic() - began)}", file=sys.stderr)
    return fine


if __name__ == "__main__":
    sys.exit(main())
