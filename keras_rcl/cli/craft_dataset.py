"""The command `craft-dataset`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.cli.completion import complete_attack
from keras_rcl.cli.parsing import stored_setting
from keras_rcl.cli.start import join_workers, progress_of
from keras_rcl.runtime.program import program_name
from keras_rcl.storage.atomic import json_text
from keras_rcl.vocabulary.attacks import describe, parse_attack


@click.command("craft-dataset", short_help="Store adversarial training images as TFRecords.")
@click.argument("model", type=shared.FOLDER)
@click.option(
    "--attack",
    "text",
    metavar=shared.ATTACK_SYNTAX,
    shell_complete=complete_attack,
    default="pgd-10",
    show_default=True,
    help="The attack that makes the images.",
)
@shared.data_options(split="train")
@shared.foreign_model_options
@shared.workers_option
@shared.output_dir_option("adversarial/<model>")
@click.option("--shard-size", type=shared.COUNT, default=5000, show_default=True, help="Examples per file.")
@shared.overwrite_option("Replace the folder, or an interrupted crafting.")
@shared.json_option("the record")
def craft_dataset(model, text, as_json, workers, **options):
    """Attack every training image once and store the adversarial images as TFRecords to train on.

    If the command is interrupted or killed, the same command resumes it.
    """
    attack, workers = parse_attack(text), join_workers(workers)
    from keras_rcl.workflows.craft_dataset import craft_dataset

    with progress_of(workers) as progress:
        record, written = craft_dataset(model, attack, workers=workers, progress=progress, **options)
    if not workers.chief:
        return
    if as_json:
        click.echo(json_text(record))
        return
    click.echo(
        f"{record['examples']} examples of the {record['data']['part']} split of {record['data']['name']} by "
        f"{describe(attack)}\naccuracy of {record['model']['name']} on the images {record['clean_accuracy']:.1%}, on "
        f"the examples {record['accuracy']:.1%}\nwritten to {written}\n"
        f"train on them  {program_name()} fit --variant at --set 'method.attack={stored_setting(written, attack)}'"
    )
