"""The command `fit`."""

from pathlib import Path

import click

from keras_rcl import config
from keras_rcl.cli import options as shared
from keras_rcl.cli.completion import complete_variant
from keras_rcl.cli.parsing import pop_data_settings, pop_settings
from keras_rcl.cli.start import join_workers, print_advice, progress_of
from keras_rcl.report.tables import comparison_table, text_table
from keras_rcl.runtime.program import program_name
from keras_rcl.storage.atomic import json_text
from keras_rcl.vocabulary.network import Precision


@click.command(short_help="Train a variant, attack it and export it.")
@shared.experiment_options
@click.option("--seed", type=shared.SEED, help="Seed of the weights, the batches and the attacks.")
@click.option("--precision", type=click.Choice(Precision.__args__), help="The dtype policy of training.")
@shared.attack_dtype_option()
@click.option("--jit", is_flag=True, help="Compile with XLA (for GPUs; slower on most CPUs).")
@click.option("--micro-batch", type=shared.COUNT, help="Pass at most N images at once, where memory is short.")
@click.option("--replicas", type=shared.COUNT, help="The number of GPUs, or logical CPUs, that share each batch.")
@shared.workers_option
@shared.training_data_options
@click.option(
    "--compare",
    multiple=True,
    shell_complete=complete_variant,
    help="Also train this variant, for the table; may be repeated.",
)
@click.option("--no-compare", is_flag=True, help="Train no other variant.")
@click.option("--name", help="The name of the run; <data set>-<variant> by default.")
@shared.runs_option
@shared.saved_models_option
@shared.overwrite_option("Replace a run and export of that name, or an unfinished run.")
@click.option("--deterministic", is_flag=True, help="Give the same bits each time, also after an interruption.")
@click.option(
    "--reuse",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A run, or a folder of runs, whose first phases are reused where they equal those of this training.",
)
@shared.save_every_option
@shared.json_option("the records")
def fit(choice, compare, no_compare, replicas, workers, as_json, **options):
    """Train a variant, attack it on test images, export it as a SavedModel.

    If the command is interrupted or killed, the same command resumes it.
    """
    if no_compare:
        shared.refuse_unused("--no-compare trains no other variant; give one of the two", "compare")
    given = pop_settings(options, "seed", "precision", "attack_dtype", "jit", "micro_batch")
    given += pop_data_settings(options)
    experiment = choice.load(given)
    names = () if no_compare else (compare or experiment.compare)
    others = [
        config.with_variant(experiment, choice.path, name, choice.scale)
        for name in names
        if name != experiment.method.name
    ]
    workers = join_workers(workers, replicas)
    from keras_rcl.workflows.fit import FitOptions, fit_all

    if workers.chief:
        print_advice(experiment.precision, experiment.jit, experiment.attack_dtype)
    with progress_of(workers) as progress:
        fitted = fit_all([experiment, *others], FitOptions(**options), progress=progress, workers=workers)
    if not workers.chief:
        return
    if as_json:
        click.echo(json_text([one.record for one in fitted]))
        return
    click.echo(text_table(*comparison_table({one.experiment.method.name: one.record for one in fitted})))
    first = fitted[0]
    click.echo(
        f"\naccuracy in % on {first.record['images']} test images of {first.record['data']['name']}, "
        f"{first.record['protocol']} protocol\n"
        f"run          {first.run}\nSavedModel   {first.saved_model}\n"
        f"TensorBoard  tensorboard --logdir {options['runs']}\n"
        f"attack it    {program_name()} attack {first.saved_model}"
    )
