"""The command `show`."""

import json

import click

from keras_rcl import config
from keras_rcl.cli import options as shared
from keras_rcl.report.tables import phase_table


@click.command(short_help="Print the resolved experiment and its phases.")
@shared.experiment_options
@shared.json_option("the experiment")
def show(choice, as_json):
    """Print the resolved experiment as YAML that `--config` reads back, and its phases."""
    experiment = choice.load()
    if as_json:
        click.echo(json.dumps(config.to_dict(experiment), indent=1))
        return
    click.echo(config.to_yaml(experiment) + "\n" + phase_table(experiment.method.phases(), "# "))
