"""The command `show`."""

import click

from keras_rcl import config
from keras_rcl.cli import options as shared
from keras_rcl.report.tables import phase_table
from keras_rcl.storage.atomic import json_text


@click.command(short_help="Print the resolved experiment and its phases.")
@shared.experiment_options
@shared.json_option("the experiment")
def show(choice, as_json):
    """Print the resolved experiment as YAML that `--config` reads back, and its phases."""
    experiment = choice.load()
    if as_json:
        click.echo(json_text(config.to_dict(experiment)))
        return
    click.echo(config.to_yaml(experiment) + "\n" + phase_table(experiment.method.phases(), "# "))
