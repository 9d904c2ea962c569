"""The command `tune`."""

import click

from keras_rcl import config
from keras_rcl.cli import options as shared
from keras_rcl.cli.completion import complete_attack
from keras_rcl.cli.parsing import pop_data_settings, pop_settings
from keras_rcl.errors import InvalidInputError
from keras_rcl.report.tables import repeats_table, trials_table
from keras_rcl.runtime.program import program_name
from keras_rcl.runtime.progress import StderrProgress
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import json_text
from keras_rcl.vocabulary.attacks import parse_attack
from keras_rcl.vocabulary.search import OBJECTIVES, default_search, parse_search


@click.command(short_help="Search for the best settings of a variant.")
@shared.experiment_options
@click.option(
    "--search",
    "ranges",
    multiple=True,
    metavar="A.B=RANGE",
    help="Vary a setting: log(1e-4,1e-2), uniform(0,1), int(2,20) or choice(64,128); may be repeated. By default the "
    "file's `search`, and without one the learning rates, batch size, temperature, margins and weights.",
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default=OBJECTIVES[0],
    show_default=True,
    help="The number that the best trial maximizes.",
)
@click.option(
    "--attack",
    "text",
    metavar=shared.ATTACK_SYNTAX,
    shell_complete=complete_attack,
    help="The attack that robust accuracy is measured by; the file's validation_attack by default.",
)
@click.option("--trials", type=shared.COUNT, help="The total number of trials; 20 by default.")
@click.option(
    "--processes", type=shared.COUNT, default=1, show_default=True, help="The number of trials that run at once."
)
@click.option(
    "--prune",
    is_flag=True,
    help="Stop a trial whose validation is below the median of at least 5 completed trials at the same point.",
)
@click.option(
    "--repeat",
    "source",
    type=shared.FOLDER,
    metavar="FOLDER",
    help="Search nothing; train the best trials of the search in FOLDER again with several seeds.",
)
@click.option("--best", type=shared.COUNT, help="The number of trials that --repeat trains; 3 by default.")
@click.option("--seeds", type=shared.COUNT, help="The number of seeds of each of them; 3 by default.")
@click.option("--seed", type=shared.SEED, help="Seed of the trainings and of the search; the first one of --repeat.")
@shared.training_data_options
@shared.output_dir_option("tuned/<data set>-<variant>, with -repeated at its end for --repeat,")
@shared.overwrite_option("Replace a study with other settings.")
@shared.save_every_option
@shared.json_option("the study")
def tune(choice, ranges, text, source, as_json, **options):
    """Search for the settings of a variant that are best on validation images, never on test images.

    If the command is interrupted or killed, the same command resumes it. With more --trials it continues a
    completed search, with more --seeds completed repeats.
    """
    _check_belong(source, ranges, options)
    counts = {name: value for name in ("best", "seeds") if (value := options.pop(name))}
    if options["trials"] is None:
        del options["trials"]
    given = [*pop_settings(options, "seed"), *pop_data_settings(options)]

    def vary(changes):
        return choice.load([*given, *changes])

    experiment = vary([])
    attack = parse_attack(text) if text else None
    space = {} if source else _space(choice, experiment, ranges)
    start_tensorflow()
    from keras_rcl.workflows.trial_table import BEST
    from keras_rcl.workflows.tune import Repeats, TuneOptions, repeat
    from keras_rcl.workflows.tune import tune as search

    with StderrProgress() as progress:
        chosen = TuneOptions(attack=attack, **options)
        if source:
            found, written = repeat(experiment, vary, Repeats(source, **counts), chosen, progress=progress)
        else:
            found, written = search(experiment, vary, space, chosen, progress=progress)
    if as_json:
        click.echo(json_text(found))
    else:
        table = repeats_table(found) if source else trials_table(found)
        click.echo(
            f"{table}\n\nin % of validation images of {experiment.dataset.name}, robust accuracy under "
            f"{found['attack']}\nwritten to {written}"
        )
    if found["best"] is None:
        raise InvalidInputError(f"none of {len(found['trials'])} trials could be measured; {written} has the reasons")
    if not as_json:
        click.echo(f"train the best  {program_name()} fit --config {written / BEST}")


def _check_belong(source, ranges, options):
    """Refuse options of a search beside --repeat, and those of --repeat in a search."""
    others = {"--search": ranges, "--trials": options["trials"], "--prune": options["prune"]}
    if not source:
        others = {"--best": options["best"], "--seeds": options["seeds"]}
    for name, value in others.items():
        if value:
            raise InvalidInputError(f"{name} is for {'a search' if source else '--repeat'}; leave it out")


def _space(choice, experiment, ranges):
    """The ranges given, else those of the file, else the default ones."""
    space = dict(parse_search(one) for one in ranges)
    space = space or config.load_search(choice.path, experiment.method.name, choice.scale)
    return space or default_search(config.to_dict(experiment)["method"])
